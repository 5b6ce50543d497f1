//! Two instances in two vSwitches of two zones, and sockets inside them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ecs_sim::plane::{DataPlane, Port};
use fabric::namespace::Namespace;
use fabric::vpc::{Fabric, FabricConfig, NodeNamespace};

/// How long a connection that should work may take, and one that should not is waited for.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

pub(crate) struct World {
    pub(crate) fabric: Fabric,
    pub(crate) a: NodeNamespace,
    pub(crate) b: NodeNamespace,
    pub(crate) port_a: Port,
    pub(crate) port_b: Port,
}

pub(crate) fn port(number: u8, zone: u8, addresses: &[&str]) -> Port {
    Port {
        eni: format!("eni-{number}").parse().unwrap(),
        mac: format!("00:16:3e:00:00:{number:02x}").parse().unwrap(),
        instance: format!("i-{zone}").parse().unwrap(),
        vswitch: format!("vsw-{zone}").parse().unwrap(),
        vswitch_v4: format!("10.0.{zone}.0/24").parse().unwrap(),
        vswitch_v6: Some(format!("2001:db8:0:{zone}::/64").parse().unwrap()),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        primary: true,
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(FabricConfig {
            link_lag: Duration::ZERO,
            source_check: true,
        })
        .await
    }

    pub(crate) async fn with(config: FabricConfig) -> Self {
        let fabric = Fabric::start(config).await.unwrap();
        let port_a = port(1, 1, &["10.0.1.5", "2001:db8:0:1::5"]);
        let port_b = port(2, 2, &["10.0.2.5", "2001:db8:0:2::5"]);
        let a = fabric.add_instance(&port_a.instance, "a").await.unwrap();
        let b = fabric.add_instance(&port_b.instance, "b").await.unwrap();
        fabric.plug(&port_a).await.unwrap();
        fabric.plug(&port_b).await.unwrap();
        Self {
            fabric,
            a,
            b,
            port_a,
            port_b,
        }
    }
}

/// Accepts connections for ever on a port of the kernel's choice and answers each with its peer's address.
pub(crate) fn serve(namespace: &Namespace) -> u16 {
    let listener = namespace
        .enter(|| TcpListener::bind("[::]:0"))
        .unwrap()
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            stream.write_all(peer.to_string().as_bytes()).unwrap();
        }
    });
    port
}

/// Connects from inside a namespace; the answer is our address as the other side sees it.
pub(crate) fn connect(namespace: &Namespace, ip: &str, port: u16) -> std::io::Result<IpAddr> {
    let to = SocketAddr::new(ip.parse().unwrap(), port);
    namespace
        .enter(move || {
            let mut stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.parse().unwrap())
        })
        .unwrap()
}

pub(crate) fn udp(namespace: &Namespace, at: &str) -> UdpSocket {
    let at: SocketAddr = at.parse().unwrap();
    let socket = namespace
        .enter(move || UdpSocket::bind(at))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(CONNECT_LIMIT)).unwrap();
    socket
}

/// Runs `ip` with the words of `line` inside a namespace and returns what it prints.
pub(crate) fn ip(namespace: &Namespace, line: &str) -> String {
    let line = line.to_owned();
    let output = namespace
        .enter(move || {
            std::process::Command::new("ip")
                .args(line.split_whitespace())
                .output()
        })
        .unwrap()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the namespace has a link with this MAC.
pub(crate) fn has_link(namespace: &Namespace, mac: &str) -> bool {
    ip(namespace, "-o link").contains(mac)
}
