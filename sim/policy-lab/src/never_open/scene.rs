//! The pods, policies and streams of the storm.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fabric::shell;
use serde_json::{Value, json};
use types::pod::PodKey;

use crate::bed::enforcer::Kind;
use crate::bed::topology::{NodeSpec, PodSpec};
use crate::bed::{Bed, Plan};
use crate::stream::{Count, Route, Stream};
use crate::talk::{Heard, Over, Speaker, Talks, Topic};

/// Where the allowed stream goes to. Each denied stream has one of the next ports, which are allowed to friends too:
/// it is denied for its sender alone.
const PORT: u16 = 9_000;
/// The last port of a stream.
const LAST_PORT: u16 = 9_003;
/// Allowed datagrams in a second, at most: a denied stream has no fewer.
const ALLOWED_RATE: u64 = 2_000;
/// Ports of the rules that change; nobody uses them.
const FIRST_RULE_PORT: u64 = 20_000;
/// Where the conversation goes to that is allowed and denied in turn.
const DOOR: u16 = 9_004;
/// How another tool's chains branch, and how often.
const FAN: usize = 4;
const LEVELS: usize = 6;
/// So many numbers of rules differ from each other.
const RULE_PORTS: u64 = 40_000;

/// How long a conversation may take to be cut or to come back.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a conversation.
const LOOK: Duration = Duration::from_millis(5);

/// A bed with pods whose traffic is denied and allowed.
#[derive(Debug)]
pub struct Scene {
    /// The bed.
    pub bed: Bed,
    /// A conversation through the door of [`Scene::documents`], once it has begun.
    turning: Option<Talks>,
}

/// All streams of the storm.
#[derive(Debug)]
pub struct Streams {
    denied: Vec<Stream>,
    allowed: Stream,
}

impl Streams {
    /// What the denied ones did so far.
    pub fn denied(&self) -> Count {
        sum(self.denied.iter().map(Stream::count))
    }

    /// Ends them: the denied ones, and the allowed one.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn finish(self) -> anyhow::Result<(Count, Count)> {
        let mut counts = Vec::new();
        for stream in self.denied {
            counts.push(stream.finish()?);
        }
        Ok((sum(counts), self.allowed.finish()?))
    }
}

fn sum(counts: impl IntoIterator<Item = Count>) -> Count {
    counts
        .into_iter()
        .fold(Count::default(), |sum, count| Count {
            sent: sum.sent.saturating_add(count.sent),
            received: sum.received.saturating_add(count.received),
        })
}

/// The nodes of the bed.
pub fn nodes() -> Vec<NodeSpec> {
    let node = |n: u8| NodeSpec {
        name: format!("n{n}"),
        v4: Ipv4Addr::new(192, 168, 0, 10_u8.saturating_add(n)),
        v6: Ipv6Addr::new(
            0xfd00,
            0x192,
            0,
            0,
            0,
            0,
            0,
            0x0a_u16.saturating_add(n.into()),
        ),
    };
    vec![node(1), node(2)]
}

/// A pod's document.
pub fn pod(name: &str, node: usize, number: u16) -> Value {
    let [v4, v6] = addresses(node, number);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": format!("u-{name}"), "labels": {"pod": name}},
        "spec": {"nodeName": format!("n{}", node.saturating_add(1)), "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

/// Addresses of a pod by its node and number.
pub fn addresses(node: usize, number: u16) -> [IpAddr; 2] {
    let node = u8::try_from(node.saturating_add(1)).unwrap_or(u8::MAX);
    let [high, low] = number.to_be_bytes();
    [
        Ipv4Addr::new(10, node, high, low).into(),
        Ipv6Addr::new(0xfd00, 0x10, node.into(), 0, 0, 0, 0, number).into(),
    ]
}

fn selected(name: &str) -> Value {
    json!({"matchLabels": {"pod": name}})
}

impl Scene {
    /// Builds the bed.
    ///
    /// # Errors
    /// What was refused.
    pub async fn create(enforcer: Kind) -> anyhow::Result<Self> {
        let plan = Plan {
            nodes: nodes(),
            outside: Vec::new(),
            ports: vec![PORT],
            enforcer,
        };
        Ok(Self {
            bed: Bed::create(plan).await?,
            turning: None,
        })
    }

    /// The cluster with the policies of this number. Numbers that differ make chains that differ, and mean the same
    /// for every stream. The door is open to the visitor with even numbers, and shut with odd ones: each change of
    /// that leaves an established flow to be marked.
    pub fn documents(&self, number: u64) -> Vec<Value> {
        let port = FIRST_RULE_PORT.saturating_add(number % RULE_PORTS);
        let changing = json!({"protocol": "TCP", "port": port});
        let guard = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "guard"},
            "spec": {
                "podSelector": selected("victim"), "policyTypes": ["Ingress"],
                "ingress": [{
                    "from": [{"podSelector": selected("friend")}],
                    "ports": [{"protocol": "UDP", "port": PORT, "endPort": LAST_PORT}, changing],
                }],
            },
        });
        let jail = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "jail"},
            "spec": {
                "podSelector": selected("prisoner"), "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": selected("victim")}], "ports": [changing]}],
            },
        });
        let visitors = if number.is_multiple_of(2) {
            json!([{
                "from": [{"podSelector": selected("visitor")}],
                "ports": [{"protocol": "UDP", "port": DOOR}],
            }])
        } else {
            json!([])
        };
        let door = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "door"},
            "spec": {
                "podSelector": selected("victim"), "policyTypes": ["Ingress"], "ingress": visitors,
            },
        });
        let nodes = self.bed.plan().nodes.iter().map(|node| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": node.v4},
                    {"type": "InternalIP", "address": node.v6},
                ]},
            })
        });
        let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
        let pods = [
            pod("victim", 0, 10),
            pod("friend", 0, 11),
            pod("enemy", 0, 12),
            pod("prisoner", 0, 13),
            pod("open", 1, 14),
            pod("stranger", 1, 15),
            pod("visitor", 1, 16),
        ];
        nodes
            .chain([space])
            .chain(pods)
            .chain([guard, jail, door])
            .collect()
    }

    /// Makes the policies of this number the ones in force.
    ///
    /// # Errors
    /// What was refused.
    pub async fn show(&mut self, number: u64) -> anyhow::Result<()> {
        let documents = self.documents(number);
        self.bed.show(&documents).await
    }

    /// Begins the conversation through the door, which has to be open.
    ///
    /// # Errors
    /// It does not begin.
    pub fn begin_turning(&mut self) -> anyhow::Result<()> {
        let route = self.route(("visitor", "victim", false), DOOR, 0)?;
        let talks = Talks::start()?;
        talks.begin(&Topic {
            name: "the visitor".to_owned(),
            client: route.sender,
            client_address: route.source,
            call: route.destination,
            server: route.receiver,
            listen: route.destination,
            over: Over::Udp,
            speaker: Speaker::Server,
        })?;
        self.turning = Some(talks);
        Ok(())
    }

    fn heard(&self) -> anyhow::Result<Heard> {
        let heard = self.turning.as_ref().and_then(|t| t.heard().pop());
        heard.context("nobody talks through the door")
    }

    /// When the newest word was said that the visitor heard.
    ///
    /// # Errors
    /// The conversation has not begun.
    pub fn last_heard(&self) -> anyhow::Result<Instant> {
        Ok(self.heard()?.last)
    }

    /// Waits until the visitor hears something that was said after `since`; says how long after that.
    ///
    /// # Errors
    /// He does not.
    pub async fn wait_heard(&self, since: Instant) -> anyhow::Result<Duration> {
        loop {
            let heard = self.heard()?;
            if heard.last > since {
                let first = heard.resumed.filter(|at| *at > since);
                return Ok(first.unwrap_or(heard.last).saturating_duration_since(since));
            }
            if since.elapsed() > PATIENCE {
                bail!("the conversation that is allowed again did not go on in {PATIENCE:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the visitor hears nothing any more; says how long after `since` the last word was said.
    ///
    /// # Errors
    /// There is no end to it.
    pub async fn wait_cut(&self, since: Instant) -> anyhow::Result<Duration> {
        loop {
            let heard = self.heard()?;
            if heard.is_cut() {
                return Ok(heard.last.saturating_duration_since(since));
            }
            if since.elapsed() > PATIENCE {
                bail!("the conversation that is denied went on for {PATIENCE:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts a pod beside the streams and stops it again.
    ///
    /// # Errors
    /// What was refused.
    pub async fn churn(&mut self, number: u64) -> anyhow::Result<()> {
        let number = u16::try_from(number % 1_000)?;
        let name = format!("guest{number}");
        let [v4, v6] = addresses(0, number.saturating_add(256));
        let mut documents = self.documents(u64::from(number));
        documents.push(pod(&name, 0, number.saturating_add(256)));
        self.bed.enforcer().publish(&documents).await?;
        let spec = PodSpec {
            key: PodKey::new("x", name.as_str()),
            uid: format!("u-{name}"),
            node: 0,
            v4: only_v4(v4),
            v6: only_v6(v6),
        };
        self.bed.start_pod(&spec).await?;
        self.bed.stop_pod(&spec.key).await
    }

    /// Adds another tool's chains before ours in the hook where policy is: slow, and accepting everything. They jump
    /// [`FAN`] ways on each of [`LEVELS`] levels, so that few rules take a packet long; each of the ways ends at this
    /// many.
    ///
    /// # Errors
    /// `nft` refuses.
    pub async fn add_neighbour(&self, rules: u32) -> anyhow::Result<()> {
        if rules == 0 {
            return Ok(());
        }
        let mut script = format!("table inet neighbour {{\nchain level{LEVELS} {{\n");
        for rule in 0..rules {
            let mark = rule.saturating_add(0x100_0000);
            writeln!(script, "meta mark {mark:#x} accept")?;
        }
        script.push_str("}\n");
        for level in (0..LEVELS).rev() {
            writeln!(script, "chain level{level} {{")?;
            for _ in 0..FAN {
                writeln!(script, "jump level{}", level.saturating_add(1))?;
            }
            script.push_str("}\n");
        }
        script.push_str(
            "chain slow {\ntype filter hook postrouting priority 80;\njump level0\n}\n}\n",
        );
        let node = self.bed.topology.node(0)?;
        shell::nft(&node.namespace, &script).await?;
        Ok(())
    }

    fn end(&self, name: &str) -> anyhow::Result<&crate::bed::topology::Standing> {
        let key = PodKey::new("x", name);
        self.bed
            .pods()
            .get(&key)
            .with_context(|| format!("{key} does not stand"))
    }

    fn route(&self, ends: (&str, &str, bool), port: u16, rate: u64) -> anyhow::Result<Route> {
        let (from, to, v6) = ends;
        let (sender, receiver) = (self.end(from)?, self.end(to)?);
        let of = |pod: &PodSpec| {
            pod.addresses()
                .find(|a| a.is_ipv6() == v6)
                .with_context(|| format!("{} lacks a family", pod.key))
        };
        Ok(Route {
            sender: sender.namespace.clone(),
            source: of(&sender.spec)?,
            receiver: receiver.namespace.clone(),
            destination: SocketAddr::new(of(&receiver.spec)?, port),
            rate,
        })
    }

    /// Starts all streams; `rate` is that of the denied ones together.
    ///
    /// # Errors
    /// A socket that could not be opened.
    pub fn streams(&self, rate: u64) -> anyhow::Result<Streams> {
        let friend = self.route(
            ("friend", "victim", false),
            PORT,
            ALLOWED_RATE.min(rate / 3),
        )?;
        let allowed = Stream::start(&friend)?;
        let denied = [
            ("enemy", "victim", false),
            ("stranger", "victim", true),
            ("prisoner", "open", false),
        ];
        let mut streams = Vec::new();
        for (ends, port) in denied.into_iter().zip(PORT.saturating_add(1)..=LAST_PORT) {
            streams.push(Stream::start(&self.route(ends, port, rate / 3)?)?);
        }
        Ok(Streams {
            denied: streams,
            allowed,
        })
    }
}

/// The address if it is of that family.
pub const fn only_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

/// The address if it is of that family.
pub const fn only_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(v6),
    }
}
