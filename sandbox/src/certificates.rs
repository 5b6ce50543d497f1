//! The sandbox's own certificate authority, and a certificate for everybody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh::ca::{Authority, CaError, Leaf};
use mesh::identity::Identity;
use types::cloud::InstanceId;

use crate::layout::CLUSTER;
use crate::options::Service;

/// Certificates outlive any run of the sandbox.
const LIFETIME: Duration = Duration::from_hours(14 * 24);

/// Issues into folders of a run.
#[derive(Debug)]
pub struct Certificates {
    authority: Authority,
    root: PathBuf,
}

impl Certificates {
    /// Makes a new authority in `<root>/ca`.
    pub fn create(root: &Path) -> Result<Self, CaError> {
        Ok(Self {
            authority: Authority::init(&root.join("ca"), LIFETIME)?,
            root: root.to_owned(),
        })
    }

    /// The folder of the authority, for `terwayctl ca`.
    pub fn authority_dir(&self) -> PathBuf {
        self.root.join("ca")
    }

    /// The folder with a process's `ca.crt`, `tls.crt`, `tls.key`.
    pub fn dir(&self, service: Service) -> PathBuf {
        self.root.join(service.to_string()).join("tls")
    }

    /// The folder of the operator's certificate.
    pub fn admin_dir(&self) -> PathBuf {
        self.root.join("admin").join("tls")
    }

    /// Issues a process its certificate, good for its own hosts.
    pub fn issue(
        &self,
        service: Service,
        instance: &InstanceId,
        hosts: &[String],
    ) -> Result<(), CaError> {
        let identity = identity(service, instance);
        self.write(&identity, hosts, &self.dir(service))
    }

    /// Issues the operator's certificate.
    pub fn issue_admin(&self) -> Result<(), CaError> {
        self.write(&Identity::admin("sandbox"), &[], &self.admin_dir())
    }

    /// Issues any identity into any folder: for stories about strangers.
    pub fn write(&self, identity: &Identity, hosts: &[String], dir: &Path) -> Result<(), CaError> {
        let mut leaf = Leaf::new(identity, LIFETIME);
        for host in hosts {
            leaf = leaf.host(host.as_str());
        }
        self.authority.issue(&leaf)?.write(dir)
    }
}

/// Who a process is. A node is its instance.
pub fn identity(service: Service, instance: &InstanceId) -> Identity {
    match service {
        Service::Etcd => Identity::etcd("etcd-1"),
        Service::Gateway => Identity::gateway("gateway-1"),
        Service::Ipam(n) => Identity::ipam(format!("ipam-{n}")),
        Service::Relay => Identity::relay("relay-1"),
        Service::Policy(_) | Service::Agent(_) => Identity::node(CLUSTER, instance.as_str()),
    }
}
