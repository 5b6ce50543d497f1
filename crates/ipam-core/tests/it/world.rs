//! One shard, its owner, its cloud and its nodes. Every record goes through bytes, and every law is
//! checked after every record.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipam_core::clock::OwnerClock;
use ipam_core::eni::EniState;
use ipam_core::invariants;
use ipam_core::inventory;
use ipam_core::plan::{NodeView, Plan, PlanPolicy, plan_node};
use ipam_core::record::Record;
use ipam_core::shard::Shard;
use ipam_core::slot::SlotState;
use ipam_core::spec::{Mode, Timing, VSwitchSpec, shards_of_vswitch};
use ipam_core::step::{Call, Step, next_step, on_outcome};
use types::address::Stack;
use types::cloud::{EniId, InstanceId};
use types::op::Seq;
use types::quota::EniQuota;
use types::time::Tick;

use crate::cloud::{Cloud, Fault};
use crate::node::{Ack, Message, Node};

pub(crate) const COOLDOWN: Duration = Duration::from_mins(1);
pub(crate) const SETTLE: Duration = Duration::from_mins(1);

/// Two secondary ENIs of 13 addresses: more than the ten that a create call takes.
pub(crate) const QUOTA: EniQuota = EniQuota {
    enis: 3,
    enis_total: 3,
    ipv4_per_eni: 13,
    ipv6_per_eni: 13,
    trunk: false,
};

pub(crate) struct World {
    pub(crate) shard: Shard,
    pub(crate) cloud: Cloud,
    pub(crate) nodes: BTreeMap<InstanceId, Node>,
    pub(crate) log: Vec<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    pub(crate) stack: Stack,
    pub(crate) exhausted: bool,
    quota: EniQuota,
    to_nodes: Vec<(InstanceId, Message)>,
    to_owner: Vec<(InstanceId, Ack)>,
    clock: OwnerClock,
    pub(crate) wall: Tick,
    monotonic: Duration,
    /// Each call by its key: a repeat must be the same.
    calls: BTreeMap<Seq, Call>,
    /// When our calls took an address off which ENI.
    left: BTreeMap<IpAddr, (Duration, EniId)>,
}

pub(crate) fn instance(n: usize) -> InstanceId {
    format!("i-{n}").parse().unwrap()
}

impl World {
    /// A vSwitch of 60 usable IPv4 addresses, dual stack.
    pub(crate) fn new(mode: Mode) -> Self {
        Self::with("10.0.0.0/26", mode, QUOTA)
    }

    pub(crate) fn with(v4: &str, mode: Mode, quota: EniQuota) -> Self {
        let vswitch = VSwitchSpec {
            id: "vsw-a".parse().unwrap(),
            zone: "cn-hangzhou-h".parse().unwrap(),
            v4: v4.parse().unwrap(),
            v6: Some("2001:db8::/64".parse().unwrap()),
            mode,
            timing: Timing {
                cooldown: COOLDOWN,
                foreign_ttl: Duration::from_hours(1),
            },
        };
        let spec = shards_of_vswitch(&vswitch, 20).unwrap().remove(0);
        let nodes = (0..3).map(|n| (instance(n), Node::default())).collect();
        Self {
            shard: Shard::new(spec),
            cloud: Cloud::new(quota),
            nodes,
            log: Vec::new(),
            snapshot: None,
            stack: Stack::Dual,
            exhausted: false,
            quota,
            to_nodes: Vec::new(),
            to_owner: Vec::new(),
            clock: OwnerClock::at_claim(Tick(0), Duration::ZERO),
            wall: Tick(1_800_000_000_000),
            monotonic: Duration::ZERO,
            calls: BTreeMap::new(),
            left: BTreeMap::new(),
        }
    }

    pub(crate) fn now(&mut self) -> Tick {
        let pending = self.shard.next_deadline().is_some();
        self.clock.read(self.wall, self.monotonic, pending)
    }

    /// Appends a record and does what an owner does once it is committed.
    pub(crate) fn commit(&mut self, record: &Record) {
        let bytes = record.encode().unwrap();
        let record = Record::decode(&bytes).unwrap();
        let before = self.shard.clone();
        let seq = self.shard.next_seq();
        if let Err(error) = self.shard.apply(seq, &record) {
            panic!("{record:?}: {error}");
        }
        self.log.push(bytes);
        let mut found = invariants::violations(&self.shard);
        found.extend(invariants::step_violations(&before, &self.shard));
        let quota = self.quota;
        found.extend(invariants::quota_violations(&self.shard, |_| Some(quota)));
        assert_eq!(found, [], "after {seq} {record:?}");
        self.speak(&before, &record);
    }

    fn speak(&mut self, before: &Shard, record: &Record) {
        let (Record::Held { eni: key, .. } | Record::Revoke { eni: key, .. }) = record else {
            return;
        };
        let (key, eni) = (*key, self.shard.eni(*key).unwrap());
        let (node, id) = (eni.instance.clone(), eni.id.clone().unwrap());
        if matches!(record, Record::Held { .. }) {
            let addresses = self
                .shard
                .grants_on(key)
                .iter()
                .filter(|grant| before.slot(grant.slot) != self.shard.slot(grant.slot))
                .map(|grant| (grant.address, grant.generation))
                .collect();
            self.to_nodes
                .push((node, Message::Grant { eni: id, addresses }));
        } else {
            for request in inventory::pending_revokes(&self.shard, key) {
                self.to_nodes.push((node.clone(), Message::Revoke(request)));
            }
        }
    }

    pub(crate) fn view(&self, instance: &InstanceId) -> NodeView {
        let node = self.nodes.get(instance);
        NodeView {
            instance: instance.clone(),
            quota: self.quota,
            stack: self.stack,
            want: node.map_or(0, |node| node.want),
            wholes: node.map_or(0, |node| node.wholes),
            bound: node.map(Node::usage).unwrap_or_default(),
            free_places: (0..8).collect(),
            security_groups: vec!["sg-a".parse().unwrap()],
            vswitch_exhausted: self.exhausted,
        }
    }

    pub(crate) fn look(&mut self, instance: &InstanceId) -> Plan {
        let now = self.now();
        let policy = PlanPolicy {
            settle: SETTLE,
            ..PlanPolicy::default()
        };
        plan_node(&self.shard, &self.view(instance), &policy, now)
    }

    pub(crate) fn plan(&mut self, instance: &InstanceId) -> Plan {
        let plan = self.look(instance);
        for record in &plan.records {
            self.commit(record);
        }
        plan
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        self.shard
            .open_ops()
            .map(|(op, _)| next_step(&self.shard, op).expect("an open operation has a next step"))
            .collect()
    }

    pub(crate) fn drive(&mut self, step: &Step, fault: Fault) {
        // I4: the same key means the same call, whoever makes it.
        let first = self.calls.entry(step.key).or_insert(step.call.clone());
        assert_eq!(*first, step.call, "key {} names two calls", step.key);
        let outcome = self.cloud.call(step, fault);
        self.watch_cooldown();
        let now = self.now();
        for record in on_outcome(&self.shard, step, &outcome, now) {
            self.commit(&record);
        }
        // A repeated answer changes nothing.
        assert_eq!(
            on_outcome(&self.shard, step, &outcome, now)
                .iter()
                .filter(|_| next_step(&self.shard, step.op).as_ref() != Some(step))
                .count(),
            0
        );
    }

    // I6: another ENI gets an address only after its cooldown, by a clock that nobody can turn.
    fn watch_cooldown(&mut self) {
        for (ip, eni) in std::mem::take(&mut self.cloud.left) {
            self.left.insert(ip, (self.monotonic, eni));
        }
        for (ip, eni) in std::mem::take(&mut self.cloud.came) {
            if let Some((at, from)) = self.left.get(&ip)
                && *from != eni
            {
                assert!(
                    self.monotonic.abs_diff(*at) >= COOLDOWN,
                    "{ip} came back too early"
                );
            }
        }
    }

    /// Lets time pass; the wall clock may jump besides.
    pub(crate) fn pass(&mut self, by: Duration, jump_ms: i64) {
        self.monotonic += by;
        self.wall = Tick(self.wall.after(by).0.saturating_add_signed(jump_ms));
        let now = self.now();
        if self.shard.next_deadline().is_some_and(|due| due <= now) {
            self.commit(&Record::Tick { at: now });
        }
    }

    /// Delivers the `pick`-th message; it stays in the net if `again`.
    pub(crate) fn deliver(&mut self, pick: usize, again: bool) {
        if self.to_nodes.is_empty() {
            return;
        }
        let pick = pick % self.to_nodes.len();
        let (to, message) = self.to_nodes[pick].clone();
        if !again {
            self.to_nodes.remove(pick);
        }
        if let Some(ack) = self.nodes.get_mut(&to).and_then(|n| n.receive(&message)) {
            self.to_owner.push((to, ack));
        }
    }

    pub(crate) fn acknowledge(&mut self, pick: usize, again: bool) {
        if self.to_owner.is_empty() {
            return;
        }
        let pick = pick % self.to_owner.len();
        let (from, ack) = self.to_owner[pick].clone();
        if !again {
            self.to_owner.remove(pick);
        }
        let record =
            inventory::acknowledge(&self.shard, &from, ack.revoke, &ack.accepted, &ack.refused);
        if let Some(record) = record {
            self.commit(&record);
        }
    }

    /// The sessions of whoever holds the ENI are over: nothing that was said about it arrives any more.
    pub(crate) fn silence(&mut self, id: &EniId) {
        self.to_nodes.retain(|(_, message)| match message {
            Message::Grant { eni, .. } => eni != id,
            Message::Revoke(request) => request.eni != *id,
        });
    }

    /// A session starts: the node says what it holds and is told the rest.
    pub(crate) fn sync(&mut self, instance: &InstanceId) {
        let Some(node) = self.nodes.get(instance) else {
            return;
        };
        let difference = inventory::compare(&self.shard, instance, &node.inventory());
        let attached = difference
            .attached
            .iter()
            .map(|key| (*key, self.shard.grants_on(*key)));
        let grants: Vec<_> = attached.chain(difference.grants.clone()).collect();
        for (key, grants) in grants {
            let eni = self.shard.eni(key).and_then(|eni| eni.id.clone()).unwrap();
            let addresses = grants.iter().map(|g| (g.address, g.generation)).collect();
            self.to_nodes
                .push((instance.clone(), Message::Grant { eni, addresses }));
        }
        for request in difference.revokes {
            self.to_nodes
                .push((instance.clone(), Message::Revoke(request)));
        }
    }

    pub(crate) fn take_snapshot(&mut self) {
        self.snapshot = Some(self.shard.snapshot().unwrap());
    }

    /// A new owner: loads from the snapshot and the records after it, or from the log alone, and starts
    /// its own clock. Both must give the state that was.
    pub(crate) fn reload(&mut self) {
        let spec = self.shard.spec().clone();
        let mut replayed = Shard::new(spec.clone());
        self.fold(&mut replayed);
        assert_eq!(replayed, self.shard, "the fold of the log is the state");
        if let Some(bytes) = &self.snapshot {
            let mut restored = Shard::restore(spec, bytes).unwrap();
            self.fold(&mut restored);
            assert_eq!(restored, self.shard, "snapshot and tail are the state");
        }
        self.clock = OwnerClock::at_claim(self.shard.tick(), self.monotonic);
    }

    fn fold(&self, shard: &mut Shard) {
        for bytes in self
            .log
            .iter()
            .skip(usize::try_from(shard.last_seq().0).unwrap())
        {
            shard
                .apply(shard.next_seq(), &Record::decode(bytes).unwrap())
                .unwrap();
        }
    }

    /// The instance is gone and that is proved.
    pub(crate) fn remove_node(&mut self, instance: &InstanceId) {
        if self.nodes.remove(instance).is_none() {
            return;
        }
        self.cloud.gone.insert(instance.clone());
        for eni in self.cloud.enis.values_mut() {
            if eni.instance.as_ref() == Some(instance) {
                eni.instance = None;
                eni.orphaned = true;
            }
        }
        self.commit(&Record::NodeGone {
            instance: instance.clone(),
        });
    }

    // I1, I2: what a node may use is on an ENI of its instance in the cloud, and is nobody else's.
    pub(crate) fn check_use(&self) {
        let mut users: BTreeMap<IpAddr, &InstanceId> = BTreeMap::new();
        for (instance, node) in &self.nodes {
            for (ip, (eni, _)) in &node.usable {
                if let Some(other) = users.insert(*ip, instance) {
                    panic!("{ip} is used by {other} and {instance}");
                }
                assert!(
                    self.cloud.vanished.contains(eni) || self.cloud.has(eni, instance, ip),
                    "{instance} uses {ip}, which is not on {eni}"
                );
            }
        }
    }

    /// No more faults: everybody speaks, plans and acts until nothing changes.
    pub(crate) fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..400 {
            let before = self.changes();
            let instances = self.instances();
            for instance in &instances {
                self.sync(instance);
                while !self.to_nodes.is_empty() {
                    self.deliver(0, false);
                }
                while !self.to_owner.is_empty() {
                    self.acknowledge(0, false);
                }
                let _shortage = self.plan(instance).shortage;
            }
            for step in self.steps() {
                self.drive(&step, Fault::None);
            }
            self.pass(SETTLE, 0);
            self.check_use();
            // One quiet round more: what came last may only now be old enough to be given back.
            quiet = if self.changes() == before {
                quiet + 1
            } else {
                0
            };
            if quiet == 2 {
                return;
            }
        }
        panic!(
            "does not come to rest: {:?}",
            self.shard.open_ops().collect::<Vec<_>>()
        );
    }

    pub(crate) fn instances(&self) -> Vec<InstanceId> {
        let mut instances: Vec<InstanceId> = self.nodes.keys().cloned().collect();
        instances.extend(self.shard.instances().into_iter().cloned());
        instances.sort();
        instances.dedup();
        instances
    }

    fn changes(&self) -> usize {
        self.log
            .iter()
            .filter(|bytes| !matches!(Record::decode(bytes).unwrap(), Record::Tick { .. }))
            .count()
    }

    /// Pods that a node can serve with what it may use.
    pub(crate) fn pods(&self, instance: &InstanceId) -> usize {
        let mut per_eni: BTreeMap<&EniId, [usize; 2]> = BTreeMap::new();
        for (ip, (eni, _)) in &self.nodes[instance].usable {
            per_eni.entry(eni).or_default()[usize::from(ip.is_ipv6())] += 1;
        }
        per_eni
            .values()
            .map(|[v4, v6]| {
                if self.stack.has_v6() {
                    *v4.min(v6)
                } else {
                    *v4
                }
            })
            .sum()
    }

    pub(crate) fn attached(&self) -> usize {
        self.shard
            .enis()
            .filter(|(_, eni)| eni.state == EniState::Attached)
            .count()
    }

    // I7: with nobody wanting anything, every address becomes free.
    pub(crate) fn check_no_leak(&mut self) {
        for node in self.nodes.values_mut() {
            node.want = 0;
            node.wholes = 0;
            node.bound.clear();
        }
        self.settle();
        self.pass(Duration::from_hours(3), 0);
        let left: Vec<_> = self
            .shard
            .enis()
            .map(|(key, eni)| {
                (
                    key,
                    eni.clone(),
                    self.shard.slots_where(key, |_| true),
                    self.shard.grants_on(key),
                )
            })
            .collect();
        assert!(left.is_empty(), "{left:#?}");
        assert_eq!(self.shard.open_ops().count(), 0);
        for (slot, state) in self.shard.slots() {
            assert!(
                matches!(state, SlotState::Free | SlotState::Reserved),
                "{slot:?} is {state:?}"
            );
        }
        assert_eq!(self.cloud.enis.len(), 0);
    }
}
