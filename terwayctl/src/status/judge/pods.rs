//! Pods of anybody that wait for their network.

use crate::status::advice::{self, Advice};
use crate::status::judge::{Area, Level, Line, count, duration};
use crate::status::objects::{Event, Pod, condition};
use crate::status::picture::Picture;

/// A pod that waits longer than this, in seconds, is stuck.
const STUCK: i64 = 60;
/// Pods that are shown; the others are counted.
const SHOWN: usize = 10;

/// A pod that waits for its network.
struct Stuck<'a> {
    pod: &'a Pod,
    since: i64,
    last: Option<&'a Event>,
}

pub(super) fn judge(picture: &Picture, lines: &mut Vec<Line>) {
    let mut stuck: Vec<Stuck<'_>> = picture
        .pending
        .iter()
        .filter_map(|pod| waits(picture, pod))
        .collect();
    stuck.sort_by_key(|one| std::cmp::Reverse(one.since));
    if stuck.is_empty() {
        lines.push(Line::good(
            Area::Pods,
            "pods",
            "none waits for its network longer than a minute",
        ));
        return;
    }
    let more = stuck.len().saturating_sub(SHOWN);
    lines.extend(stuck.iter().take(SHOWN).map(line));
    if more > 0 {
        let what = format!("{} more wait for their network", count(more, "pod"));
        lines.push(Line::fault(
            Area::Pods,
            Level::Bad,
            "NoNetwork",
            "pods",
            what,
        ));
    }
}

/// A pod on a node, not of the host's network, whose sandbox is not there.
fn waits<'a>(picture: &'a Picture, pod: &'a Pod) -> Option<Stuck<'a>> {
    if pod.spec.host_network
        || pod.spec.node_name.is_empty()
        || pod.metadata.deletion_timestamp.is_some()
    {
        return None;
    }
    let conditions = &pod.status.conditions;
    // With a sandbox it waits for something else, such as an image.
    let has_sandbox = condition(conditions, "PodReadyToStartContainers");
    if has_sandbox.is_some_and(|has| has.status == "True") {
        return None;
    }
    let scheduled = condition(conditions, "PodScheduled").and_then(|c| c.last_transition_time);
    let since = scheduled.or(pod.metadata.creation_timestamp)?;
    let since = picture.now.duration_since(since).as_secs();
    if since < STUCK {
        return None;
    }
    let of_pod = picture
        .events
        .iter()
        .filter(|event| event.involved_object.uid == pod.metadata.uid);
    let (network, other): (Vec<&Event>, Vec<&Event>) =
        of_pod.partition(|event| is_about_network(event));
    let last = network.into_iter().max_by_key(|event| event.seen());
    if last.is_none() && !other.is_empty() {
        // Volumes come before the sandbox.
        return None;
    }
    Some(Stuck { pod, since, last })
}

/// Said by node-agent, or by kubelet of a call of ours.
fn is_about_network(event: &Event) -> bool {
    event.reason == "AllocIPFailed"
        || (event.reason == "FailedCreatePodSandBox"
            && (event.message.contains("terway") || event.message.contains("cni")))
}

fn line(stuck: &Stuck<'_>) -> Line {
    let metadata = &stuck.pod.metadata;
    let subject = format!("pod {}/{}", metadata.namespace, metadata.name);
    let place = format!(
        "waits on {} for {}",
        stuck.pod.spec.node_name,
        duration(stuck.since)
    );
    let message = stuck.last.map_or("", |event| event.message.as_str());
    let fault = advice::named_in(message).map_or("NoNetwork", |found: &Advice| found.name);
    let what = if message.is_empty() {
        format!("{place}; nobody says why")
    } else {
        format!("{place}: {message}")
    };
    Line::fault(Area::Pods, Level::Bad, fault, subject, what)
}
