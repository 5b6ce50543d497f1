//! Answers for people: what policy means, what the engine wants, and what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::status::Refusal;
use policy_core::engine::{PodView, Stats};
use policy_core::flow::{Direction, Flow};
use policy_core::judge::Explanation;
use policy_core::judge::Verdict;
use policy_core::plan::Target;
use proto::policy::v1::{
    DeniedFlow, ExplainRequest, ExplainResponse, KernelFact, ShowPodResponse, StatusResponse,
    TraceEvent, TraceRequest,
};
use proto::types::v1::Reason;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use types::pod::PodKey;

use super::PoliciesDoor;
use super::convert::{self, End};
use crate::attachments::Attached;
use crate::denied::DeniedAt;
use crate::enforcer::Handle;
use crate::enforcer::core::{Core, Progress};
use crate::enforcer::port::{Dump, DumpError, Ownership, Rules};
use crate::facts::{self, Fact};
use crate::gate::State;
use crate::trace::TraceError;

/// Lines of a trace that wait for a slow reader.
const AHEAD: usize = 64;

/// What `status` takes from the enforcer.
struct Seen {
    progress: Progress,
    stats: Stats,
    counts: policy_core::index::Counts,
    ownership: Ownership,
    problems: Vec<String>,
}

pub(super) async fn status(door: &PoliciesDoor) -> Result<StatusResponse, Status> {
    let done = door.revoker.done();
    let mut response = StatusResponse {
        revocations: done.revoked,
        revoked_at_ms: done.at_ms,
        ..StatusResponse::default()
    };
    let (state, found) = match door.gate.state() {
        State::On(handle) => ("on", Ok(handle)),
        State::Starting(reason) => ("starting", Err(reason)),
        State::Refused(reason) => ("refused", Err(reason)),
        State::Off(reason) => ("off", Err(reason)),
    };
    state.clone_into(&mut response.state);
    let handle = match found {
        Ok(handle) => handle,
        Err(reason) => {
            response.reason = reason;
            return Ok(response);
        }
    };
    let seen = ask(&handle, |core| Seen {
        progress: core.progress,
        stats: core.engine.stats(),
        counts: core.engine.index().counts(),
        ownership: core.rules.ownership(),
        problems: problems(core),
    })
    .await?;
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let large = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    response.enabled = true;
    response.in_sync = seen.progress.synced;
    response.applied = seen.progress.applied;
    response.seen = seen.progress.seen;
    response.transactions = seen.progress.transactions;
    response.pods = small(seen.counts.pods);
    response.namespaces = small(seen.counts.namespaces);
    response.policies = small(seen.counts.policies);
    response.local_pods = small(seen.stats.pods);
    response.failed_closed = small(seen.stats.closed_pods);
    response.set_members = large(seen.stats.members);
    response.sets = small(seen.stats.peer_sets.saturating_add(seen.stats.fixed_sets));
    response.chains = small(seen.stats.chains);
    response.owned = seen.ownership.owned;
    response.persistent = seen.ownership.persistent;
    response.problems = seen.problems;
    Ok(response)
}

fn problems(core: &Core) -> Vec<String> {
    let mut all = core.notices.sentences();
    for problem in core.engine.problems() {
        let pods: Vec<String> = problem.pods.iter().map(ToString::to_string).collect();
        let of = match &problem.policy {
            // Named above, with all its fields.
            Some(id) if core.notices.knows(id) && pods.is_empty() => continue,
            Some(id) => format!("{id}, "),
            None => String::new(),
        };
        let closed = if pods.is_empty() {
            String::new()
        } else {
            format!("; closed: {}", pods.join(", "))
        };
        all.push(format!("{of}{}: {}{closed}", problem.what, problem.why));
    }
    all.extend(core.trouble.clone());
    all
}

pub(super) async fn explain(
    door: &PoliciesDoor,
    request: &ExplainRequest,
) -> Result<ExplainResponse, Status> {
    let handle = on(door)?;
    let source = convert::end("source", &request.source)?;
    let destination = convert::end("destination", &request.destination)?;
    let asked = Asked {
        source,
        destination,
        protocol: request.protocol.clone(),
        port: request.port.clone(),
        family: request.family,
    };
    let answer = ask(&handle, move |core| {
        let flow = resolve(core, &asked)?;
        let explanation = core.engine.explain(&flow);
        let pods = [&explanation.source, &explanation.destination];
        let views: Vec<PodView> = pods
            .into_iter()
            .flatten()
            .filter_map(|pod| core.engine.show_pod(pod))
            .collect();
        let notes = notes(core, &explanation);
        Ok::<_, Status>((explanation, views, notes))
    })
    .await?;
    let (explanation, views, notes) = answer?;
    let views: Vec<Placed> = views.into_iter().map(|v| Placed::of(door, v)).collect();
    let targets = views.iter().flat_map(|v| v.targets.iter().cloned());
    let kernel = dump(door, &handle, targets.collect()).await?;
    let mut response = explained(&explanation, &views, kernel);
    response.reasons.extend(notes);
    Ok(response)
}

/// A local pod, and the namespaces in which its rules stand.
struct Placed {
    view: PodView,
    targets: BTreeSet<Target>,
}

impl Placed {
    fn of(door: &PoliciesDoor, view: PodView) -> Self {
        let known = door.gate.known();
        let of_pod = known.iter().filter(|a| a.pod == view.key);
        let targets = of_pod.map(|a| a.own_namespace().unwrap_or(Target::Host));
        Self {
            targets: targets.collect(),
            view,
        }
    }
}

/// What the judgement does not say: which policies of the two pods are malformed, and that a far pod's side is
/// judged elsewhere.
fn notes(core: &Core, explanation: &Explanation) -> Vec<String> {
    let ends = [
        explanation.source.as_ref(),
        explanation.destination.as_ref(),
    ];
    let mut notes: Vec<String> = core
        .engine
        .problems()
        .into_iter()
        .filter(|p| p.pods.iter().any(|pod| ends.contains(&Some(pod))))
        .map(|p| match p.policy {
            Some(id) => format!(
                "{id} is malformed and denies what it does not clearly allow: {}: {}",
                p.what, p.why
            ),
            None => format!("{}: {}", p.what, p.why),
        })
        .collect();
    let flow = &explanation.flow;
    for (side, ip, here) in [
        ("egress of", flow.source, &explanation.source),
        ("ingress to", flow.destination, &explanation.destination),
    ] {
        if here.is_some() {
            continue;
        }
        let index = core.engine.index();
        for pod in index.pods_by_ip(ip) {
            let node = index.pod(&pod).map(|pod| pod.node).unwrap_or_default();
            notes.push(format!(
                "{side} {pod} is judged on its node {node:?}: ask there"
            ));
        }
    }
    notes
}

fn explained(explanation: &Explanation, pods: &[Placed], mut found: KernelView) -> ExplainResponse {
    let mut kernel = Vec::new();
    for pod in pods {
        let view = &pod.view;
        kernel.extend(found.facts(pod, |dump| facts::elements(dump, &view.links, &view.ips)));
    }
    let flow = &explanation.flow;
    for (direction, far, key) in [
        (Direction::Egress, flow.destination, &explanation.source),
        (Direction::Ingress, flow.source, &explanation.destination),
    ] {
        let Some(pod) = pods.iter().find(|pod| Some(&pod.view.key) == key.as_ref()) else {
            continue;
        };
        let profiles = pod.view.profiles.iter();
        for profile in profiles.filter(|p| p.direction == direction) {
            kernel.extend(found.facts(pod, |dump| facts::members(dump, &profile.sets, far)));
        }
        let of_side = explanation
            .reasons
            .iter()
            .filter(|r| r.direction == direction);
        let chains: BTreeSet<&str> = of_side.filter_map(|r| r.chain.as_deref()).collect();
        for chain in chains {
            kernel.extend(found.facts(pod, |dump| facts::chain(dump, chain)));
        }
    }
    // Both ends of a flow may be in the same chain.
    let mut told = BTreeSet::new();
    kernel.retain(|fact| told.insert(fact.what.clone()));
    ExplainResponse {
        allowed: explanation.verdict() == Verdict::Allowed,
        reasons: explanation
            .reasons
            .iter()
            .map(|reason| reason.text.clone())
            .collect(),
        kernel: kernel.into_iter().map(fact).collect(),
        differences: std::mem::take(&mut found.differences),
    }
}

/// A flow as people ask for it.
struct Asked {
    source: End,
    destination: End,
    protocol: String,
    port: String,
    family: u32,
}

fn resolve(core: &mut Core, asked: &Asked) -> Result<Flow, Status> {
    let sources = addresses(core, "source", &asked.source)?;
    let destinations = addresses(core, "destination", &asked.destination)?;
    let wanted = |ip: &IpAddr| match asked.family {
        4 => ip.is_ipv4(),
        6 => ip.is_ipv6(),
        _ => true,
    };
    let pair = sources.iter().filter(|ip| wanted(ip)).find_map(|source| {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == source.is_ipv4();
        Some((*source, *destinations.iter().find(of_family)?))
    });
    let Some((source, destination)) = pair else {
        let why = format!("have no family in common: {sources:?} and {destinations:?}");
        return Err(Refusal::bad_field("source and destination", why).into());
    };
    let protocol = convert::protocol(&asked.protocol, source.is_ipv6())?;
    let port = if !protocol.has_ports() {
        0
    } else if asked.port.is_empty() {
        return Err(Refusal::bad_field("port", "is missing").into());
    } else if let Ok(number) = asked.port.parse() {
        number
    } else {
        let End::Pod(pod) = &asked.destination else {
            let why = "a name needs a pod as destination";
            return Err(Refusal::bad_field("port", why).into());
        };
        let pod = core.engine.index().pod(pod);
        let named = pod.iter().flat_map(|pod| &pod.ports);
        let mut matching =
            named.filter(|port| *port.name == *asked.port && port.protocol == protocol);
        let Some(port) = matching.next() else {
            let why = format!("the destination names no port {:?}", asked.port);
            return Err(Refusal::bad_field("port", why).into());
        };
        port.number
    };
    Ok(Flow {
        source,
        destination,
        protocol,
        port,
    })
}

fn addresses(core: &mut Core, field: &str, end: &End) -> Result<Vec<IpAddr>, Status> {
    match end {
        End::Address(ip) => Ok(vec![*ip]),
        End::Node(name) => {
            let own = core.rules.node_addresses();
            let index = core.engine.index();
            let is_own = |ip: &IpAddr| index.nodes_by_ip(*ip).iter().any(|n| **n == **name);
            if name.is_empty() || own.iter().any(is_own) {
                return Ok(own);
            }
            let why = format!("{name:?} is not this node: name its address, or ask there");
            Err(Refusal::bad_field(field, why).into())
        }
        End::Pod(key) => match core.engine.index().pod(key) {
            Some(pod) if pod.ips.is_empty() => {
                let why = format!("pod {key} has no address yet");
                Err(Refusal::bad_field(field, why).into())
            }
            Some(pod) => Ok(pod.ips),
            None => Err(not_found(format!("pod {key} is not known"))),
        },
    }
}

pub(super) async fn show_pod(
    door: &PoliciesDoor,
    namespace: String,
    name: String,
) -> Result<ShowPodResponse, Status> {
    let handle = on(door)?;
    let key = PodKey::new(namespace, name);
    let asked = key.clone();
    let found = ask(&handle, move |core| {
        let uid = core.engine.index().pod(&asked).map(|pod| pod.uid);
        Some((core.engine.show_pod(&asked)?, uid))
    })
    .await?;
    let Some((view, uid)) = found else {
        let why = format!("pod {key} is not on this node, or is of the host network");
        return Err(not_found(why));
    };
    let pod = Placed::of(door, view);
    let found = dump(door, &handle, pod.targets.clone()).await?;
    let view = &pod.view;
    let mut kernel = found.facts(&pod, |dump| facts::elements(dump, &view.links, &view.ips));
    for chain in view.profiles.iter().filter_map(|p| p.chain.as_deref()) {
        kernel.extend(found.facts(&pod, |dump| facts::chain(dump, chain)));
    }
    // Its filter of source addresses is named after its link.
    for link in &view.links {
        kernel.extend(found.facts(&pod, |dump| facts::chain(dump, link)));
    }
    let mut ingress = lines(view, Direction::Ingress);
    let mut egress = lines(view, Direction::Egress);
    let denied = door
        .denied
        .read()
        .await
        .map_err(|e| unreadable(&e.to_string()))?;
    let of_pod = |(target, entry): &&DeniedAt| {
        pod.targets.contains(target) && view.links.contains(&entry.link)
    };
    for (side, is_far) in [(&mut egress, false), (&mut ingress, true)] {
        // The pod's own address is the source of what its egress denies.
        let of_side = denied
            .iter()
            .filter(of_pod)
            .filter(|(_, e)| view.ips.contains(&e.source) != is_far);
        let (flows, packets) = of_side.fold((0_u32, 0_u64), |(flows, packets), (_, e)| {
            (flows.saturating_add(1), packets.saturating_add(e.packets))
        });
        side.push(format!("denied lately: {packets} packets of {flows} flows"));
    }
    Ok(ShowPodResponse {
        uid: uid.map(|uid| uid.to_string()).unwrap_or_default(),
        host_link: view.links.first().cloned().unwrap_or_default(),
        ips: view.ips.iter().map(ToString::to_string).collect(),
        ingress,
        egress,
        kernel: kernel.into_iter().map(fact).collect(),
    })
}

fn lines(view: &PodView, direction: Direction) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(
        view.closed
            .iter()
            .map(|why| format!("everything is denied: {why}")),
    );
    for profile in view.profiles.iter().filter(|p| p.direction == direction) {
        for (policy, chain) in &profile.policies {
            lines.push(format!("{policy} (chain {chain})"));
        }
        lines.push(if profile.isolated {
            "what none of these allows is denied".to_owned()
        } else {
            "what none of these denies is allowed".to_owned()
        });
    }
    lines
}

pub(super) async fn diff(door: &PoliciesDoor) -> Result<Vec<String>, Status> {
    let handle = on(door)?;
    let known = door.gate.known();
    let inside = known.iter().filter_map(Attached::own_namespace);
    Ok(dump(door, &handle, inside.collect()).await?.differences)
}

pub(super) async fn trace(
    door: &PoliciesDoor,
    request: &TraceRequest,
) -> Result<ReceiverStream<Result<TraceEvent, Status>>, Status> {
    let handle = on(door)?;
    if !(1..=60).contains(&request.seconds) {
        let why = format!("{} is not within 1 and 60", request.seconds);
        return Err(Refusal::bad_field("seconds", why).into());
    }
    let asked = Asked {
        source: convert::end("source", &request.source)?,
        destination: convert::end("destination", &request.destination)?,
        protocol: request.protocol.clone(),
        // Without a port every port is followed.
        port: if request.port.is_empty() {
            "0".to_owned()
        } else {
            request.port.clone()
        },
        family: 0,
    };
    let flow = ask(&handle, move |core| resolve(core, &asked)).await??;
    let time = Duration::from_secs(request.seconds.into());
    let mut lines = door.tracer.start(flow, time, &door.tasks).map_err(|e| {
        let reason = Reason::Overloaded.as_str_name();
        Refusal::new(Code::ResourceExhausted, reason, e.to_string()).into_status()
    })?;
    let (events, stream) = mpsc::channel(AHEAD);
    let work = async move {
        while let Some(line) = lines.recv().await {
            let event = line
                .map(|line| TraceEvent { line })
                .map_err(|e| refused(&e));
            if events.send(event).await.is_err() {
                return;
            }
        }
    };
    // Its end is the end of the stream.
    drop(door.tasks.spawn_once("trace", work));
    Ok(ReceiverStream::new(stream))
}

fn refused(error: &TraceError) -> Status {
    let reason = Reason::KernelDrift.as_str_name();
    Refusal::new(Code::Unavailable, reason, error.to_string()).into_status()
}

pub(super) async fn denied(door: &PoliciesDoor, limit: usize) -> Result<Vec<DeniedFlow>, Status> {
    let handle = on(door)?;
    let mut found = door
        .denied
        .read()
        .await
        .map_err(|e| unreadable(&e.to_string()))?;
    found.truncate(limit);
    let known = door.gate.known();
    ask(&handle, move |core| {
        let flows = found.iter();
        flows.map(|at| denied_flow(core, &known, at)).collect()
    })
    .await
}

fn denied_flow(core: &Core, known: &[Attached], (target, entry): &DeniedAt) -> DeniedFlow {
    let of = |ip: IpAddr| core.engine.index().pods_by_ip(ip).into_iter().next();
    let is_here = |pod: &PodKey| {
        let mut attached = known.iter().filter(|a| a.pod == *pod);
        attached.any(|a| a.own_namespace().unwrap_or(Target::Host) == *target)
    };
    let at_link = |pod: &PodKey| {
        let view = core.engine.show_pod(pod);
        is_here(pod) && view.is_some_and(|view| view.links.contains(&entry.link))
    };
    // The set is keyed by the pod's link: whose link it is says which direction was denied.
    let source = of(entry.source).filter(at_link);
    let (direction, pod) = match source {
        Some(pod) => ("egress", Some(pod)),
        None => ("ingress", of(entry.destination)),
    };
    let protocol = policy_core::flow::Protocol(entry.protocol);
    DeniedFlow {
        direction: direction.to_owned(),
        host_link: entry.link.clone(),
        pod: pod.map(|pod| pod.to_string()).unwrap_or_default(),
        source: entry.source.to_string(),
        destination: entry.destination.to_string(),
        protocol: protocol
            .name()
            .map_or_else(|| entry.protocol.to_string(), str::to_ascii_lowercase),
        port: entry.port.into(),
        packets: entry.packets,
    }
}

/// What the kernel has now, and where that is not what it should have.
struct KernelView {
    tables: BTreeMap<Target, Dump>,
    differences: Vec<String>,
}

impl KernelView {
    /// Facts about a pod, from each namespace in which its rules stand.
    fn facts(&self, pod: &Placed, look: impl Fn(&Dump) -> Vec<Fact>) -> Vec<Fact> {
        let mut facts = Vec::new();
        for target in &pod.targets {
            let Some(dump) = self.tables.get(target) else {
                continue;
            };
            facts.extend(look(dump).into_iter().map(|mut fact| {
                if let Target::Namespace(path) = target {
                    fact.what = format!("{} in {path}", fact.what);
                }
                fact
            }));
        }
        facts
    }
}

/// Reads the kernel on another thread and socket than the enforcer's, which has other things to do: the node's
/// namespace, and these.
async fn dump(
    door: &PoliciesDoor,
    handle: &Handle,
    mut targets: BTreeSet<Target>,
) -> Result<KernelView, Status> {
    targets.insert(Target::Host);
    let open = Arc::clone(&door.rules);
    let reading = door.tasks.spawn_blocking(move || {
        let mut rules = open()?;
        read(&mut *rules, targets).map_err(|e| e.to_string())
    });
    let tables = reading
        .await
        .map_err(|_| unreadable("the reader panicked"))?
        .map_err(|why| unreadable(&why))?;
    ask(handle, move |core| KernelView {
        differences: tables
            .iter()
            .flat_map(|(target, dump)| core.engine.diff(target, dump))
            .collect(),
        tables,
    })
    .await
}

fn read(
    rules: &mut dyn Rules,
    targets: BTreeSet<Target>,
) -> Result<BTreeMap<Target, Dump>, DumpError> {
    let mut tables = BTreeMap::new();
    for target in targets {
        match rules.dump(&target) {
            Ok(dump) => drop(tables.insert(target, dump)),
            // Its pod has just ended.
            Err(DumpError::NamespaceGone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tables)
}

/// The enforcer, when policy is on.
fn on(door: &PoliciesDoor) -> Result<Handle, Status> {
    match door.gate.state() {
        State::On(handle) => Ok(handle),
        State::Starting(why) | State::Refused(why) | State::Off(why) => {
            let reason = Reason::NotReady.as_str_name();
            Err(Refusal::new(Code::FailedPrecondition, reason, why).into())
        }
    }
}

async fn ask<T, F>(handle: &Handle, question: F) -> Result<T, Status>
where
    T: Send + 'static,
    F: FnOnce(&mut Core) -> T + Send + 'static,
{
    handle
        .look(question)
        .await
        .map_err(|e| convert::unready_status(&e))
}

fn fact(fact: Fact) -> KernelFact {
    KernelFact {
        what: fact.what,
        packets: fact.packets,
        bytes: fact.bytes,
    }
}

fn not_found(why: String) -> Status {
    Refusal::new(Code::NotFound, Reason::NotFound.as_str_name(), why).into()
}

fn unreadable(why: &str) -> Status {
    let reason = Reason::KernelDrift.as_str_name();
    Refusal::new(Code::Unavailable, reason, why).into()
}
