//! Pods with an ENI of their own: its link is moved into the pod and comes back.
//!
//! A link that is in a namespace when that goes away is moved by the kernel to the node by itself, under a name of the
//! kernel's choice; it is found by its hardware address wherever it is.

use types::address::MacAddr;

use crate::desired::{PodState, PodTeardown, TornDown, WholeDesired, WholeTeardown, node_side};
use crate::error::DatapathError;
use crate::forward::masquerade;
use crate::kernel::{Datapath, teardown};
use crate::moved::{complete, observe, take_back};
use crate::names::{self, VethEnd};
use crate::namespace::Namespace;
use crate::observed::{Link, Observed};
use crate::op::Place;
use crate::plan::{self, Drift};

/// Names of the steps of [`Datapath::setup_whole`] after which a [`crate::netlink::executor::StepHook`] is called.
pub const CRASH_POINTS: &[&str] = &[
    "datapath.setup.after_create",
    "datapath.setup.after_move",
    "datapath.setup.after_pod",
    "datapath.setup.after_node",
];

impl Datapath {
    /// Moves the ENI into the pod and sets up all that belongs to it. Repeating it completes what is missing and
    /// changes nothing else.
    ///
    /// # Errors
    /// [`DatapathError::EniMissing`] when neither node nor pod has the ENI: wait for its link;
    /// [`DatapathError::NetnsGone`], [`DatapathError::NotANetns`], [`DatapathError::InterfaceTaken`],
    /// [`DatapathError::Refused`].
    #[tracing::instrument(name = "datapath.setup_whole", skip_all, fields(link = %pod.host_link), err)]
    pub async fn setup_whole(&self, pod: &WholeDesired) -> Result<PodState, DatapathError> {
        let pod = pod.clone();
        self.change(move |kernel| {
            complete(kernel, &pod)?;
            Ok(PodState {
                host_mac: names::veth_mac(&pod.node_side(), VethEnd::Host),
                pod_mac: pod.mac,
            })
        })
        .await
    }

    /// How the kernel differs from what `pod` should have. Empty when all is well. Changes nothing.
    ///
    /// # Errors
    /// Those of [`Datapath::setup_whole`].
    pub async fn check_whole(&self, pod: &WholeDesired) -> Result<Vec<Drift>, DatapathError> {
        let pod = pod.clone();
        self.look(move |kernel| {
            kernel.enter_pod(Namespace::open(&pod.netns)?)?;
            let (node, inside) = observe(kernel, &pod)?;
            Ok(plan::whole::complete(&pod, &node, &inside)?
                .iter()
                .map(Drift::from)
                .collect())
        })
        .await
    }

    /// Takes the ENI back to the node, and removes what else the pod had. Needs no namespace, and does no harm twice.
    ///
    /// # Errors
    /// [`DatapathError::Refused`], [`DatapathError::Socket`]: repeat.
    #[tracing::instrument(name = "datapath.teardown_whole", skip_all, fields(link = %pod.host_link), err)]
    pub async fn teardown_whole(&self, pod: &WholeTeardown) -> Result<TornDown, DatapathError> {
        let (pod, steps) = (pod.clone(), self.steps);
        self.change(move |kernel| {
            kernel.go(Place::Node)?;
            masquerade::remove(&pod.host_link)?;
            match take_back(kernel, &pod.netns, pod.mac) {
                // Then the link has come back by itself.
                Ok(()) | Err(DatapathError::NetnsGone { .. } | DatapathError::NotANetns { .. }) => {
                }
                Err(error) => return Err(error),
            }
            let rest = PodTeardown {
                attachment: node_side(&pod.attachment),
                host_link: pod.host_link,
                addresses: pod.addresses,
            };
            teardown(kernel, &rest, steps)
        })
        .await
    }

    /// The link with that hardware address, if the node has it now.
    ///
    /// # Errors
    /// [`DatapathError::Socket`], [`DatapathError::Garbled`].
    pub async fn find_link(&self, mac: MacAddr) -> Result<Option<Link>, DatapathError> {
        self.look(move |kernel| {
            let seen = Observed {
                links: kernel.connection(Place::Node)?.links()?,
                ..Observed::default()
            };
            Ok(seen.link_by_mac(mac).cloned())
        })
        .await
    }
}
