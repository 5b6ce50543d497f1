//! What runs of the release, and why the rest does not.

use crate::status::judge::{Area, Level, Line, count, duration};
use crate::status::objects::{ContainerStatus, Pod, Workload, condition};
use crate::status::picture::{COMPONENT, Kind, Picture};

/// A leader that has not renewed for so many terms of its Lease leads no more.
const TERMS: i64 = 3;

pub(super) fn judge(picture: &Picture, lines: &mut Vec<Line>) {
    let namespace = &picture.namespace;
    if picture.workloads.is_empty() {
        let (subject, what) = if picture.release.is_empty() {
            (
                format!("namespace {namespace}"),
                "no release of Terway Mesh is there".to_owned(),
            )
        } else {
            let others = picture.others.join(", ");
            (
                format!("release {} in {namespace}", picture.release),
                format!("nothing of it is there; others: [{others}]"),
            )
        };
        lines.push(Line::fault(
            Area::Components,
            Level::Bad,
            "NotInstalled",
            subject,
            what,
        ));
        return;
    }
    for (kind, workload) in &picture.workloads {
        lines.push(of_workload(picture, *kind, workload));
    }
    phase(picture, lines);
    leader(picture, lines);
    if !picture.others.is_empty() {
        let others = picture.others.join(", ");
        let what = format!("not looked at; --release chooses ({others})");
        lines.push(Line::good(Area::Components, "other releases", what));
    }
}

fn of_workload(picture: &Picture, kind: Kind, workload: &Workload) -> Line {
    let name = &workload.metadata.name;
    let subject = format!("{} {name}", kind.name());
    let (ready, wanted) = match kind {
        Kind::Deployment | Kind::StatefulSet => (
            workload.status.ready_replicas,
            workload.spec.replicas.unwrap_or(1),
        ),
        Kind::DaemonSet => (
            workload.status.number_ready,
            workload.status.desired_number_scheduled,
        ),
    };
    let pods: Vec<&Pod> = picture
        .pods
        .iter()
        .filter(|pod| is_of(pod, workload))
        .collect();
    let restarts: u32 = pods
        .iter()
        .flat_map(|pod| containers(pod))
        .map(|c| c.restart_count)
        .sum();
    let numbers = format!("{ready} of {wanted} ready, {}", count_restarts(restarts));
    if kind == Kind::DaemonSet && wanted == 0 {
        return Line::fault(
            Area::Components,
            Level::Bad,
            "TakesNoNode",
            subject,
            numbers,
        );
    }
    if ready >= wanted {
        return Line::good(Area::Components, subject, numbers);
    }
    let (fault, why) = pods
        .iter()
        .find_map(|pod| trouble(picture, pod))
        .unwrap_or_else(|| ("NotReadyYet", "its pods are being made".to_owned()));
    Line::fault(
        Area::Components,
        Level::Bad,
        fault,
        subject,
        format!("{numbers}; {why}"),
    )
}

fn count_restarts(restarts: u32) -> String {
    count(usize::try_from(restarts).unwrap_or(usize::MAX), "restart")
}

fn is_of(pod: &Pod, workload: &Workload) -> bool {
    let component = |labels: &crate::status::objects::Texts| labels.get(COMPONENT).cloned();
    component(&pod.metadata.labels) == component(&workload.metadata.labels)
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let first = pod.status.init_container_statuses.iter();
    first.chain(&pod.status.container_statuses)
}

/// Why a pod of ours is not ready: name of the fault, words.
fn trouble(picture: &Picture, pod: &Pod) -> Option<(&'static str, String)> {
    let name = &pod.metadata.name;
    let ready = condition(&pod.status.conditions, "Ready");
    if ready.is_some_and(|ready| ready.status == "True") {
        return None;
    }
    let at = |node: &str| {
        if node.is_empty() {
            String::new()
        } else {
            format!(" on {node}")
        }
    };
    let place = format!("{name}{}", at(&pod.spec.node_name));
    if let Some(scheduled) = condition(&pod.status.conditions, "PodScheduled")
        && scheduled.status == "False"
    {
        return Some(("NotScheduled", format!("{place}: {}", scheduled.message)));
    }
    if let Some((fault, why)) = missing_object(picture, pod) {
        return Some((fault, format!("{place}: {why}")));
    }
    for container in containers(pod) {
        let Some(waiting) = &container.state.waiting else {
            continue;
        };
        let fault = match waiting.reason.as_str() {
            "ImagePullBackOff" | "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => {
                "ImageMissing"
            }
            "CrashLoopBackOff" | "RunContainerError" | "CreateContainerError" => "Crashing",
            _ => continue,
        };
        let ended = container.last_state.terminated.as_ref();
        let ended = ended.map_or_else(String::new, |ended| {
            format!(" (ended with {} {})", ended.exit_code, ended.reason)
        });
        let why = format!(
            "{place}: container {}: {}{ended}",
            container.name, waiting.reason
        );
        return Some((fault, why));
    }
    let unready =
        containers(pod).find(|container| !container.ready && container.state.running.is_some());
    let which = unready.map_or_else(
        || "its containers are being made".to_owned(),
        |container| format!("container {} is not ready", container.name),
    );
    Some(("NotReadyYet", format!("{place}: {which}")))
}

/// A Secret or ConfigMap that kubelet does not find.
fn missing_object(picture: &Picture, pod: &Pod) -> Option<(&'static str, String)> {
    let events = picture
        .events
        .iter()
        .filter(|event| event.involved_object.uid == pod.metadata.uid);
    let waiting = containers(pod).filter_map(|c| c.state.waiting.as_ref());
    let words = events
        .map(|event| event.message.as_str())
        .chain(waiting.map(|why| why.message.as_str()));
    for text in words.filter(|text| text.contains("not found")) {
        for (what, fault) in [
            ("secret \"", "SecretMissing"),
            ("configmap \"", "ConfigMissing"),
        ] {
            let rest = text.split_once(what).map(|(_, rest)| rest);
            if let Some((name, _)) = rest.and_then(|rest| rest.split_once('"')) {
                let what = what.trim_end_matches([' ', '"']);
                return Some((fault, format!("{what} {name} is not there")));
            }
        }
    }
    None
}

fn phase(picture: &Picture, lines: &mut Vec<Line>) {
    let Some(phase) = &picture.phase else {
        return;
    };
    let text = |key: &str| phase.data.get(key).map_or("", String::as_str);
    if text("phase") == "leave" {
        let state = text("state");
        let what = if state.is_empty() {
            "nodes leave".to_owned()
        } else {
            format!("nodes leave: {state}")
        };
        let subject = format!("configmap {}", phase.metadata.name);
        lines.push(Line::fault(
            Area::Components,
            Level::Note,
            "Leaving",
            subject,
            what,
        ));
    }
}

fn leader(picture: &Picture, lines: &mut Vec<Line>) {
    let Some(lease) = &picture.lease else {
        return;
    };
    let subject = format!("lease {}", lease.metadata.name);
    let term = i64::from(lease.spec.lease_duration_seconds).max(1);
    let age = lease
        .spec
        .renew_time
        .map(|renewed| picture.now.duration_since(renewed).as_secs());
    let what = match age {
        Some(age) if !lease.spec.holder_identity.is_empty() && age <= TERMS * term => {
            let what = format!("{} leads", lease.spec.holder_identity);
            lines.push(Line::good(Area::Components, subject, what));
            return;
        }
        Some(age) => format!("renewed last {} ago", duration(age)),
        None => "nobody has led yet".to_owned(),
    };
    lines.push(Line::fault(
        Area::Components,
        Level::Bad,
        "NoLeader",
        subject,
        what,
    ));
}
