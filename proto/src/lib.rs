//! The wire: generated messages, clients and servers, and nothing else.
//!
//! With the feature `node-client` alone only the CNI door's client is there, so that the
//! `terway` binary stays small. The default is everything.

/// Messages that more than one service speaks.
pub mod types {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("terway.types.v1");
    }
}

/// The doors of node-agent.
pub mod node {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("terway.node.v1");
    }
}

/// The ENI verbs of cloud-gateway.
#[cfg(feature = "full")]
pub mod cloud {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("terway.cloud.v1");
    }
}

/// The doors of controlplane.
#[cfg(feature = "full")]
pub mod control {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("terway.control.v1");
    }
}

/// Node sessions, routing and administration of ipam-service.
#[cfg(feature = "full")]
pub mod ipam {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("terway.ipam.v1");
    }
}

/// The doors of policy-agent, and the relay between one watcher and many agents.
#[cfg(feature = "full")]
pub mod policy {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("terway.policy.v1");
    }
}

/// kubelet's device plug-in API.
#[cfg(feature = "full")]
pub mod deviceplugin {
    /// Version 1, beta 1.
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }
}

/// The encoded `FileDescriptorSet` of our own services.
pub const DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptor");
