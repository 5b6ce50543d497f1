//! What is to be done about each fault, by its name.
//!
//! Names are those of node conditions, events and metrics: the reasons of the wire contract in Kubernetes' spelling
//! (`REASON_VSWITCH_EXHAUSTED` is `VswitchExhausted`), what node-agent says besides, and a few that only this command
//! finds.

/// A fault by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// Its name.
    pub name: &'static str,
    /// What to do.
    pub todo: &'static str,
    /// Whether time mends it, usually.
    pub passes: bool,
}

const fn do_(name: &'static str, todo: &'static str) -> Advice {
    Advice {
        name,
        todo,
        passes: false,
    }
}

const fn wait(name: &'static str, todo: &'static str) -> Advice {
    Advice {
        name,
        todo,
        passes: true,
    }
}

/// All faults that there is advice for.
pub const ALL: &[Advice] = &[
    // The configuration and the cloud.
    do_(
        "VswitchExhausted",
        "add a vSwitch of that zone with free addresses to eni-config (vswitches), or lower maxPoolSize so that nodes keep fewer idle ones",
    ),
    do_(
        "VswitchInvalid",
        "correct vswitches in eni-config: each id must exist in this VPC and region, and stand under its own zone",
    ),
    do_(
        "NoVSwitch",
        "add a vSwitch of the node's zone to eni-config (vswitches); a node in a zone without one gets no addresses",
    ),
    do_(
        "SecurityGroupInvalid",
        "correct security_groups in eni-config: each must exist, in the VPC of the vSwitches",
    ),
    do_(
        "SecurityGroupFull",
        "the security group has no room for more addresses: name another one in eni-config, or use an enterprise security group",
    ),
    do_(
        "CloudForbidden",
        "grant the RAM user or role the action that the message names; docs/install.md (Needed) lists all",
    ),
    do_(
        "CloudCredentials",
        "the cloud does not know the gateway's credentials, or there are none: look at the Secret that the gateway mounts, and at its log",
    ),
    do_(
        "CloudInvalid",
        "the cloud refuses the request itself: look at the gateway's log, and compare eni-config with the VPC",
    ),
    wait(
        "CloudThrottled",
        "the account's quota is used up: ask for more, or lower gateway.quotaSharePermille of other clusters of the account",
    ),
    wait(
        "CloudUnavailable",
        "the gateway does not reach the cloud: look at gateway.ecsEndpoint and gateway.vpcEndpoint, DNS, and the way out of its node",
    ),
    do_(
        "EniLimit",
        "the instance type allows no further ENI: use fewer pods on the node, or a larger type",
    ),
    do_(
        "AddressLimit",
        "the instance type allows no further address: use fewer pods on the node, or a larger type",
    ),
    do_(
        "AddressInUse",
        "somebody else takes addresses of the vSwitch: do not list it in ipam.exclusiveVSwitches; `terwayctl audit` shows which",
    ),
    // Between the services.
    do_(
        "CertificateExpired",
        "look at the container `certificate` of that pod: it says why there is no new one; with certificates.source=existing, renew the Secret or the files",
    ),
    do_(
        "IdentityMismatch",
        "metadata, certificate and Node object name different instances: correct spec.providerID, or remove the state folder's tls of a copied disk",
    ),
    wait(
        "IpamUnreachable",
        "look at the ipam pods, and whether ports 7301 to 7303 are free and open between nodes",
    ),
    wait(
        "StoreUnavailable",
        "look at the store of ipam: its volume, or etcd",
    ),
    wait(
        "OutcomeUnknown",
        "an answer of the cloud was lost and is looked up; if it stays, look at the gateway's log",
    ),
    wait("Overloaded", "too much is asked at once: it is tried again"),
    wait("NotOwner", "a shard changes hands: it is tried again"),
    wait("EpochStale", "a shard has changed hands: it is tried again"),
    wait(
        "StateConflict",
        "an object of the cloud is in another state than it should be: it is looked at again",
    ),
    do_(
        "NodeUnknown",
        "the cloud does not know this instance: spec.providerID of the Node must name an instance of this region and account",
    ),
    // On nodes.
    do_(
        "ApiServerForbidden",
        "the node's service account lacks a right: `helm upgrade` restores it",
    ),
    do_(
        "ApiServerUnreachable",
        "the node does not reach the API server: look at kube-proxy there, or set kubernetesAPI.host",
    ),
    do_(
        "PolicyNotReady",
        "look at the container policy-agent of that node's pod: pods start when policy is in force",
    ),
    do_(
        "KernelNotReady",
        "the node's kernel is not as pods need it: look at the container node-agent; another network plug-in may be at work",
    ),
    do_(
        "ConfigError",
        "the CNI configuration can not be written, or the one in eni-config is wrong: look at the container node-agent",
    ),
    wait(
        "PoolEmpty",
        "no address is free on the node yet: if it stays, a line above says what keeps new ones away",
    ),
    wait(
        "PodUnknown",
        "the node has not heard of the pod yet: look whether it reaches the API server",
    ),
    wait(
        "Busy",
        "another call for the same sandbox runs: it is tried again",
    ),
    do_(
        "KernelDrift",
        "somebody else changes routes, rules or links of pods on the node: `terwayctl audit` shows what differs",
    ),
    wait(
        "NetnsGone",
        "the pod's network namespace is gone: kubelet makes a new sandbox",
    ),
    wait(
        "NotReady",
        "the node can not serve yet: its condition TerwayReady says why",
    ),
    do_(
        "NotFound",
        "an object that should be in the cloud is gone: `terwayctl audit` shows which",
    ),
    do_(
        "BadField",
        "a value is missing or malformed: the message names it",
    ),
    wait(
        "Starting",
        "it comes by itself; if it stays longer than some minutes, look at the container node-agent",
    ),
    wait(
        "Leaving",
        "the installation is being uninstalled; `helm upgrade` makes nodes serve again",
    ),
    wait(
        "InsufficientIP",
        "see the condition SufficientIP of the node: the message names the cause",
    ),
    do_(
        "PolicyNotEnforced",
        "the kernel refuses a part of a policy; its pods are closed: `terwayctl policy status` on the node names it",
    ),
    // Found here.
    do_(
        "NotInstalled",
        "install it (docs/install.md), or say where it is: --namespace, --release",
    ),
    do_(
        "NotReported",
        "the node has never said anything: look at its pod of the DaemonSet, and whether the control plane runs",
    ),
    wait(
        "Silent",
        "the node's last word is old: look at its pod of the DaemonSet, and whether the control plane runs",
    ),
    do_(
        "SecretMissing",
        "make the Secret with the name that the pod wants, or correct the name in the values (credentials.existingSecret, credentials.tokenSecret, certificates.existing)",
    ),
    do_(
        "ConfigMissing",
        "make the ConfigMap with the name that the pod wants, or correct the name in the values (eniConfig.existingConfigMap)",
    ),
    do_(
        "ImageMissing",
        "look at image.registry, image.repository, image.tag and image.pullSecrets",
    ),
    do_("Crashing", "read its log: the last lines name the reason"),
    do_(
        "NotScheduled",
        "the scheduler finds no node for it: the message says why",
    ),
    wait(
        "NotReadyYet",
        "it comes by itself; if it stays, read its log",
    ),
    do_(
        "NoLeader",
        "no replica of the control plane leads: read their logs; they need the Lease and the API server",
    ),
    do_(
        "TrustEmpty",
        "the control plane has not written its authority into the ConfigMap yet: read its log",
    ),
    do_(
        "TakesNoNode",
        "no node is chosen: with cluster.registered, nodes need the label alibabacloud.com/external=true; look at node.nodeSelector",
    ),
    do_(
        "AddressQuarantined",
        "books and cloud contradict each other about these addresses: `terwayctl audit` shows both sides",
    ),
    do_(
        "VswitchNearlyFull",
        "add a vSwitch of that zone to eni-config, before it is full",
    ),
    do_(
        "CertificateEndsSoon",
        "it should have been renewed long ago: look at the container `certificate` of that pod",
    ),
    do_(
        "AuthorityEndsSoon",
        "renew the authority (certificates.source says whose task that is) before its end",
    ),
    do_(
        "NoNetwork",
        "look at the events of the pod and at the container node-agent of its node",
    ),
    do_(
        "NotLookedAt",
        "give this account the right, or ask somebody who has it: a fault there is not seen",
    ),
];

/// The advice for a fault; another spelling of upper and lower case is the same name.
pub fn of(name: &str) -> Option<&'static Advice> {
    ALL.iter()
        .find(|advice| advice.name.eq_ignore_ascii_case(name))
}

/// Names that others use as well, such as in `InvalidVSwitchId.NotFound`.
const EVERYDAY: &[&str] = &["NotFound", "NotReady"];

/// The fault that a text names, as a word in Kubernetes' spelling or in that of the wire: the first that does not pass
/// by itself, else the first.
pub fn named_in(text: &str) -> Option<&'static Advice> {
    let named: Vec<&Advice> = all_named_in(text).collect();
    let lasting = named.iter().find(|advice| !advice.passes);
    lasting.or(named.first()).copied()
}

fn all_named_in(text: &str) -> impl Iterator<Item = &'static Advice> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter_map(|word| match word.strip_prefix("REASON_") {
            Some(wire) => of(&wire.replace('_', "")),
            // A word of prose is no name, and neither is a part of the cloud's codes.
            None => of(word).filter(|_| {
                word.chars().skip(1).any(char::is_uppercase) && !EVERYDAY.contains(&word)
            }),
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::types::v1::Reason;

    use super::*;

    #[test]
    fn every_reason_of_the_wire_has_advice() {
        for number in 1.. {
            let Ok(reason) = Reason::try_from(number) else {
                assert!(number > 20);
                break;
            };
            let name = reason.as_str_name().replace("REASON_", "").replace('_', "");
            assert!(of(&name).is_some(), "{}", reason.as_str_name());
        }
    }

    #[test]
    fn every_fault_stands_once() {
        let names: BTreeSet<&str> = ALL.iter().map(|advice| advice.name).collect();

        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn fault_is_found_in_messages_of_kubelet_and_of_ours() {
        let name = |text| named_in(text).map(|advice| advice.name);

        assert_eq!(
            name(
                "plugin type=\"terway\" failed (add): node-agent: no address; REASON_VSWITCH_EXHAUSTED x=y"
            ),
            Some("VswitchExhausted")
        );
        assert_eq!(
            name("CloudForbidden: ecs:CreateNetworkInterface"),
            Some("CloudForbidden")
        );
        assert_eq!(name("VSwitchExhausted: vsw-1"), Some("VswitchExhausted"));
        assert_eq!(
            name("no address; REASON_POOL_EMPTY; CloudForbidden: ecs:CreateNetworkInterface"),
            Some("CloudForbidden")
        );
        assert_eq!(name("no address; REASON_POOL_EMPTY"), Some("PoolEmpty"));
        assert_eq!(name("it is busy starting: InvalidX.NotFound"), None);
    }
}
