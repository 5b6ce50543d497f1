//! The kernel's side of pods with an ENI of their own: what is done to node and pod, on a thread that may enter both.

use std::path::Path;

use types::address::MacAddr;

use crate::desired::WholeDesired;
use crate::error::DatapathError;
use crate::forward::masquerade;
use crate::namespace::Namespace;
use crate::netlink::executor::Executor;
use crate::observed::Observed;
use crate::op::{Op, Place};
use crate::plan;

/// Takes the ENI back from the pod whose namespace is at `netns`, if it has it.
pub(crate) fn take_back(
    kernel: &mut Executor,
    netns: &Path,
    mac: MacAddr,
) -> Result<(), DatapathError> {
    kernel.enter_pod(Namespace::open(netns)?)?;
    let inside = kernel.observe(Place::Pod, [])?;
    let ops = plan::whole::removal(mac, &inside);
    kernel.run(&ops)
}

/// Brings node and pod to what `pod` wants. Returns what was changed, in words.
pub(crate) fn complete(
    kernel: &mut Executor,
    pod: &WholeDesired,
) -> Result<Vec<String>, DatapathError> {
    kernel.enter_pod(Namespace::open(&pod.netns)?)?;
    for (key, value) in plan::whole::settings(pod) {
        kernel.ensure_setting(Place::Pod, &key, value)?;
    }
    let (node, inside) = observe(kernel, pod)?;
    let ops = plan::whole::complete(pod, &node, &inside)?;
    kernel.run(&ops)?;
    let mut done: Vec<String> = ops.iter().map(Op::to_string).collect();
    kernel.go(Place::Node)?;
    done.extend(masquerade::add(&pod.host_link, pod.v6.is_some())?);
    Ok(done)
}

/// Both sides as they are.
pub(crate) fn observe(
    kernel: &mut Executor,
    pod: &WholeDesired,
) -> Result<(Observed, Observed), DatapathError> {
    let settings = plan::whole::settings(pod);
    let inside = kernel.observe(Place::Pod, settings.into_iter().map(|(key, _)| key))?;
    let settings = plan::node_link_settings(&pod.host_link, pod.v6.is_some());
    let node = kernel.observe(Place::Node, settings.into_iter().map(|(key, _)| key))?;
    Ok((node, inside))
}
