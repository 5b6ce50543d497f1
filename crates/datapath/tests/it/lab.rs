//! A node, a router that plays the VPC, and pods: each a network namespace.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use datapath::desired::{EniDesired, EniState, HostDesired, PodDesired, PodTeardown, WholeDesired};
use datapath::kernel::Datapath;
use datapath::names;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use types::address::MacAddr;
use types::pod::{AttachmentKey, PodKey};

/// How long a connection may take that should come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long we watch for a connection that should not come about.
pub(crate) const DOUBT: Duration = Duration::from_millis(900);

pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 253);
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0xfff7);
pub(crate) const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 4);
/// A host of the VPC that is no node.
pub(crate) const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
pub(crate) const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 1);

static NEXT: AtomicU32 = AtomicU32::new(0);

fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `ip` with words separated by blanks.
pub(crate) fn ip(words: &str) -> String {
    ok(Command::new("ip").args(words.split_whitespace()))
}

pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) datapath: Datapath,
    namespaces: Vec<String>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let status = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
            drop(status);
        }
    }
}

pub(crate) fn eni_mac(n: u8) -> MacAddr {
    MacAddr([0x02, 0x16, 0x3e, 0, 0, n])
}

impl Lab {
    /// A node and a router without any link between them.
    pub(crate) fn bare() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dp{}-{number}", std::process::id());
        let mut namespaces = Vec::new();
        for part in ["node", "vpc"] {
            let namespace = format!("{name}-{part}");
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
            namespaces.push(namespace);
        }
        let node = PathBuf::from(format!("/var/run/netns/{name}-node"));
        let datapath = Datapath::open_at(&node).unwrap();
        Self {
            name,
            datapath,
            namespaces,
        }
    }

    /// A node whose first ENI is plugged in, and the router's addresses behind it.
    pub(crate) fn with_eni() -> Self {
        let lab = Self::bare();
        lab.plug_eni(1);
        lab
    }

    pub(crate) fn node(&self) -> String {
        format!("{}-node", self.name)
    }

    pub(crate) fn vpc(&self) -> String {
        format!("{}-vpc", self.name)
    }

    pub(crate) fn plug_eni(&self, n: u8) {
        let (node, vpc) = (self.node(), self.vpc());
        let mac = eni_mac(n);
        ip(&format!(
            "-n {vpc} link add vpc{n} type veth peer name eni{n} address {mac} netns {node}"
        ));
        ip(&format!("-n {vpc} link set vpc{n} up"));
        for address in [
            GATEWAY_V4.to_string() + "/32",
            OUTSIDE_V4.to_string() + "/32",
        ] {
            ip(&format!("-n {vpc} addr replace {address} dev vpc{n}"));
        }
        for address in [
            GATEWAY_V6.to_string() + "/128",
            OUTSIDE_V6.to_string() + "/128",
        ] {
            ip(&format!("-n {vpc} addr replace {address} dev vpc{n} nodad"));
        }
    }

    /// The VPC sends traffic for `address` to the ENI, by its hardware address.
    pub(crate) fn assign(&self, address: IpAddr, n: u8) {
        let (vpc, mac) = (self.vpc(), eni_mac(n));
        ip(&format!("-n {vpc} route replace {address} dev vpc{n}"));
        ip(&format!(
            "-n {vpc} neigh replace {address} lladdr {mac} dev vpc{n} nud permanent"
        ));
    }

    pub(crate) fn eni(n: u8) -> EniDesired {
        EniDesired {
            mac: eni_mac(n),
            v4_gateway: Some(GATEWAY_V4),
            v6_gateway: Some(GATEWAY_V6),
            node_v4: Some(NODE_V4),
            node_v6: None,
            mtu: 1500,
        }
    }

    pub(crate) fn host() -> HostDesired {
        HostDesired {
            v6: true,
            veth_prefixes: vec!["cali".to_owned()],
            node_addresses: Vec::new(),
        }
    }

    /// Settings of the node and its first ENI, done by the code under test.
    pub(crate) async fn ready() -> (Self, EniState) {
        let lab = Self::with_eni();
        lab.datapath.ensure_host(&Self::host()).await.unwrap();
        let eni = lab.datapath.ensure_eni(&Self::eni(1)).await.unwrap();
        (lab, eni)
    }

    /// A namespace for pod `n`, and what it should get.
    pub(crate) fn pod(&mut self, n: u8, eni: &EniState) -> PodDesired {
        self.sandbox_of(&format!("web-{n}"), n, eni)
    }

    /// Another sandbox of the pod `name`, with addresses numbered `n`.
    pub(crate) fn sandbox_of(&mut self, name: &str, n: u8, eni: &EniState) -> PodDesired {
        let namespace = format!("{}-pod{n}", self.name);
        ip(&format!("netns add {namespace}"));
        self.namespaces.push(namespace.clone());
        let desired = PodDesired {
            attachment: AttachmentKey::new(format!("{}s{n}", self.name), "eth0").unwrap(),
            host_link: names::host_link("", &PodKey::new("default", name), "eth0").unwrap(),
            netns: PathBuf::from(format!("/var/run/netns/{namespace}")),
            mtu: 1500,
            v4: Some(Ipv4Addr::new(10, 9, 0, n)),
            v6: Some(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(n))),
            table: eni.table,
        };
        for address in desired.addresses() {
            self.assign(address, 1);
        }
        desired
    }

    /// A namespace for a pod with addresses numbered `n` that gets ENI `eni` for itself, which is plugged in for it.
    pub(crate) fn whole(&mut self, n: u8, eni: u8) -> WholeDesired {
        let namespace = format!("{}-pod{n}", self.name);
        ip(&format!("netns add {namespace}"));
        self.namespaces.push(namespace.clone());
        self.plug_eni(eni);
        // Between two ENIs the VPC forwards.
        let settings = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                        net.ipv4.conf.all.rp_filter=0";
        ip(&format!("netns exec {} sysctl -qw {settings}", self.vpc()));
        let desired = WholeDesired {
            attachment: AttachmentKey::new(format!("{}s{n}", self.name), "eth0").unwrap(),
            host_link: names::host_link("", &PodKey::new("default", format!("web-{n}")), "eth0")
                .unwrap(),
            netns: PathBuf::from(format!("/var/run/netns/{namespace}")),
            mac: eni_mac(eni),
            mtu: 1500,
            v4: (Ipv4Addr::new(10, 9, 0, n), GATEWAY_V4),
            v6: Some((
                Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(n)),
                GATEWAY_V6,
            )),
            through_node: vec![
                format!("{NODE_V4}/32").parse().unwrap(),
                "10.96.0.0/16".parse().unwrap(),
            ],
        };
        for address in desired.addresses() {
            self.assign(address, eni);
        }
        desired
    }

    /// Name of a pod's namespace.
    pub(crate) fn inside(pod: &PodDesired) -> String {
        pod.netns.file_name().unwrap().to_str().unwrap().to_owned()
    }
}

pub(crate) fn teardown_of(pod: &PodDesired) -> PodTeardown {
    PodTeardown {
        attachment: pod.attachment.clone(),
        host_link: pod.host_link.clone(),
        addresses: pod.addresses().collect(),
    }
}

/// `ip -j` in a namespace.
pub(crate) fn json(namespace: &str, words: &str) -> Vec<Value> {
    let text = ip(&format!("-n {namespace} -d -j {words}"));
    if text.trim().is_empty() {
        return Vec::new();
    }
    serde_json::from_str::<Vec<Value>>(&text).unwrap()
}

/// Rules as `priority from to table`, sorted, without those that the kernel has from birth.
pub(crate) fn rules(namespace: &str) -> Vec<String> {
    let mut found: Vec<String> = ["-4", "-6"]
        .iter()
        .flat_map(|family| json(namespace, &format!("{family} rule show")))
        .map(|r| {
            let text = |key: &str| r[key].as_str().unwrap_or("all").to_owned();
            format!(
                "{} from {} to {} lookup {}",
                r["priority"],
                text("src"),
                text("dst"),
                text("table")
            )
        })
        .filter(|r| r.starts_with("512 ") || r.starts_with("2048 "))
        .collect();
    found.sort();
    found
}

/// What a namespace holds, to compare before and after. What the kernel changes by itself (carrier,
/// operational state) is left out.
pub(crate) fn picture(namespace: &str) -> String {
    let mut text = String::new();
    for link in json(namespace, "link show") {
        for key in ["ifname", "address", "mtu", "ifalias"] {
            text.push_str(&link[key].to_string());
        }
        text.push_str(if is_up(&link) { " up\n" } else { " down\n" });
    }
    for words in [
        "-o -4 addr show",
        "-o -6 addr show scope global",
        "-4 route show table all",
        "-6 route show table all proto static",
        "-4 rule show",
        "-6 rule show",
        "-4 neigh show nud permanent",
        "-6 neigh show nud permanent",
    ] {
        text.push_str(&ip(&format!("-n {namespace} {words}")));
    }
    text.replace(" linkdown", "")
}

/// Whether a link of `ip -j link` is administratively up.
pub(crate) fn is_up(link: &Value) -> bool {
    link["flags"].as_array().unwrap().iter().any(|f| f == "UP")
}

/// Runs `work` in a namespace, on a thread of its own.
pub(crate) fn within<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let file = std::fs::File::open(format!("/var/run/netns/{namespace}")).unwrap();
    std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// Whether a TCP connection from one namespace to an address of another carries a byte.
pub(crate) fn reaches(from: &str, to: &str, address: IpAddr, patience: Duration) -> bool {
    let listener = within(to, move || {
        TcpListener::bind(SocketAddr::new(address, 0)).unwrap()
    });
    let target = listener.local_addr().unwrap();
    let client = within(from, move || TcpStream::connect_timeout(&target, patience));
    let Ok(mut client) = client else { return false };
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"x").unwrap();
    client.set_read_timeout(Some(patience)).unwrap();
    let mut byte = [0_u8; 1];
    client.read_exact(&mut byte).is_ok()
}
