//! Who may call what: one table, default deny.
//!
//! A row names a full gRPC method path and the kinds of callers that may call it. Whether a node
//! speaks of itself (and not of another node) is checked by the services, which know what their
//! messages mean. A test holds the table against the descriptor set of the wire contract: every
//! RPC has a row and every row an RPC.

use crate::identity::CallerKind::{self, Anonymous, LocalRoot, Mesh};
use crate::identity::IdentityKind::{Admin, Controller, Etcd, Gateway, Ipam, Node, Relay};

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// `/package.Service/Method`.
    pub method: &'static str,
    /// Who may call it.
    pub callers: &'static [CallerKind],
}

/// Rows, looked up by method.
pub type Table = &'static [Row];

/// A row for the metrics and the decision; `None` for a method nobody declared.
pub fn row(table: Table, method: &str) -> Option<&'static Row> {
    table.iter().find(|row| row.method == method)
}

/// Whether a caller of this kind may call the method. A method without a row: nobody may.
pub fn allows(table: Table, method: &str, caller: CallerKind) -> bool {
    row(table, method).is_some_and(|row| row.callers.contains(&caller))
}

const IPAM: &[CallerKind] = &[Mesh(Ipam)];
const IPAM_AND_PEOPLE: &[CallerKind] = &[Mesh(Ipam), Mesh(Admin)];
const NODES: &[CallerKind] = &[Mesh(Node)];
const EVERY_SERVICE: &[CallerKind] = &[
    Mesh(Node),
    Mesh(Ipam),
    Mesh(Controller),
    Mesh(Gateway),
    Mesh(Admin),
];
const CONTROLLERS: &[CallerKind] = &[Mesh(Controller)];
const LOCAL: &[CallerKind] = &[LocalRoot];
/// Who has no certificate yet, and who renews one and shows the old one.
const ANYBODY: &[CallerKind] = &[
    Anonymous,
    Mesh(Node),
    Mesh(Ipam),
    Mesh(Gateway),
    Mesh(Controller),
    Mesh(Relay),
    Mesh(Etcd),
];

const fn may(method: &'static str, callers: &'static [CallerKind]) -> Row {
    Row { method, callers }
}

/// The table of this project.
///
/// Source: IPAM design, §8 (authorization matrix), cut to the calls that exist.
pub const TABLE: Table = &[
    may("/terway.cloud.v1.Cloud/CreateEni", IPAM),
    may("/terway.cloud.v1.Cloud/AttachEni", IPAM),
    may("/terway.cloud.v1.Cloud/DetachEni", IPAM),
    may("/terway.cloud.v1.Cloud/DeleteEni", IPAM),
    may("/terway.cloud.v1.Cloud/AssignAddresses", IPAM),
    may("/terway.cloud.v1.Cloud/UnassignAddresses", IPAM),
    may("/terway.cloud.v1.Cloud/DescribeEnis", IPAM_AND_PEOPLE),
    may("/terway.cloud.v1.Cloud/DescribeInstances", IPAM_AND_PEOPLE),
    may("/terway.cloud.v1.Cloud/DescribeVSwitches", IPAM_AND_PEOPLE),
    may("/terway.cloud.v1.Cloud/Fence", IPAM),
    may("/terway.control.v1.Certificates/Issue", ANYBODY),
    may("/terway.control.v1.NodeReports/ReportNode", NODES),
    may("/terway.control.v1.NodeReports/AnnotatePod", NODES),
    may("/terway.control.v1.NodeReports/PostEvent", NODES),
    may("/terway.ipam.v1.NodeIpam/Session", NODES),
    may("/terway.ipam.v1.Nodes/NodeGone", CONTROLLERS),
    may("/terway.ipam.v1.Routing/WatchRoutes", EVERY_SERVICE),
    may("/terway.ipam.v1.Admin/DumpShards", IPAM_AND_PEOPLE),
    may("/terway.ipam.v1.Admin/GetReplica", IPAM_AND_PEOPLE),
    may("/terway.node.v1.Cni/Add", LOCAL),
    may("/terway.node.v1.Cni/Del", LOCAL),
    may("/terway.node.v1.Cni/Check", LOCAL),
    may("/terway.node.v1.Cni/Gc", LOCAL),
    may("/terway.node.v1.Cni/Status", LOCAL),
    may("/terway.node.v1.Inspect/DumpNode", LOCAL),
    may("/terway.policy.v1.Gate/Ready", LOCAL),
    may("/terway.policy.v1.Gate/Release", LOCAL),
    may("/terway.policy.v1.Gate/Restore", LOCAL),
    may("/terway.policy.v1.Policies/Status", LOCAL),
    may("/terway.policy.v1.Policies/Explain", LOCAL),
    may("/terway.policy.v1.Policies/ShowPod", LOCAL),
    may("/terway.policy.v1.Policies/Diff", LOCAL),
    may("/terway.policy.v1.Policies/Trace", LOCAL),
    may("/terway.policy.v1.Policies/Denied", LOCAL),
    may("/terway.policy.v1.Relay/Watch", NODES),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::{TABLE, allows};
    use crate::identity::CallerKind;
    use crate::identity::IdentityKind;

    fn methods_on_the_wire() -> BTreeSet<String> {
        let set = FileDescriptorSet::decode(proto::DESCRIPTOR_SET).unwrap();
        let mut methods = BTreeSet::new();
        for file in set.file {
            let package = file.package().to_owned();
            for service in &file.service {
                for method in &service.method {
                    methods.insert(format!("/{package}.{}/{}", service.name(), method.name()));
                }
            }
        }
        methods
    }

    #[test]
    fn every_rpc_has_one_row_and_every_row_an_rpc() {
        let on_the_wire = methods_on_the_wire();
        let in_the_table: BTreeSet<String> =
            TABLE.iter().map(|row| row.method.to_owned()).collect();

        assert_eq!(in_the_table.len(), TABLE.len(), "a method has two rows");
        assert_eq!(in_the_table, on_the_wire);
        assert!(!on_the_wire.is_empty());
    }

    #[test]
    fn method_without_a_row_is_denied_to_everybody() {
        for kind in [
            CallerKind::LocalRoot,
            CallerKind::Mesh(IdentityKind::Admin),
            CallerKind::Mesh(IdentityKind::Ipam),
        ] {
            assert!(!allows(TABLE, "/terway.cloud.v1.Cloud/Nothing", kind));
            assert!(!allows(TABLE, "", kind));
        }
    }

    #[test]
    fn nodes_reach_their_session_and_routes_and_nothing_else() {
        let reach: Vec<&str> = TABLE
            .iter()
            .filter(|row| row.callers.contains(&CallerKind::Mesh(IdentityKind::Node)))
            .map(|row| row.method)
            .collect();

        assert_eq!(
            reach,
            [
                "/terway.control.v1.Certificates/Issue",
                "/terway.control.v1.NodeReports/ReportNode",
                "/terway.control.v1.NodeReports/AnnotatePod",
                "/terway.control.v1.NodeReports/PostEvent",
                "/terway.ipam.v1.NodeIpam/Session",
                "/terway.ipam.v1.Routing/WatchRoutes",
                "/terway.policy.v1.Relay/Watch"
            ]
        );
    }

    #[test]
    fn who_has_no_certificate_reaches_the_issuing_of_one_and_nothing_else() {
        let reach: Vec<&str> = TABLE
            .iter()
            .filter(|row| row.callers.contains(&CallerKind::Anonymous))
            .map(|row| row.method)
            .collect();

        assert_eq!(reach, ["/terway.control.v1.Certificates/Issue"]);
    }

    #[test]
    fn only_people_and_replicas_reach_the_cloud() {
        for row in TABLE
            .iter()
            .filter(|row| row.method.starts_with("/terway.cloud."))
        {
            for caller in row.callers {
                assert!(
                    matches!(
                        caller,
                        CallerKind::Mesh(IdentityKind::Ipam | IdentityKind::Admin)
                    ),
                    "{} is open to {caller}",
                    row.method
                );
            }
        }
    }
}
