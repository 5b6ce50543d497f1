//! ns of CPU per packet from one pod to another through their node.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fabric::namespace::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use nix::time::{ClockId, clock_gettime};
use policy_lab::bed::agents::Agents;
use policy_lab::bed::topology::Topology;
use serde_json::{Value, json};

use crate::policy::{Promises, world};
use crate::report::line;

/// The port that the last policy opens.
const PORT: u16 = 9_000;
/// Packets of one slice: so short that most end before somebody else gets the core. The smallest of all rounds counts.
const SLICE: u32 = 1_000;
/// Slices of one round.
const SLICES: u32 = 40;
/// Rounds; lanes take turns.
const ROUNDS: u32 = 4;
/// Most that an established flow may cost over conntrack and established accept, in ns.
const ESTABLISHED_MAX: f64 = 150.0;
/// The same with anti-spoofing.
const SPOOF_MAX: f64 = 250.0;
/// Most by which 1,000 policies may change it, as a share.
const POLICIES_SHARE: f64 = 0.03;
/// Most that a new flow may cost over the control with 1,000 policies, in ns.
const NEW_MAX: f64 = 4_000.0;

/// Two pods, their node, and what judges between them.
struct Lane {
    name: String,
    sender: UdpSocket,
    receiver: UdpSocket,
    raw: OwnedFd,
    target: Ipv4Addr,
    next_port: u16,
    established: Vec<f64>,
    new: Vec<f64>,
    _topology: Topology,
    _agents: Option<Agents>,
}

enum Judge {
    Nothing,
    Control,
    Ours { policies: u32, anti_spoof: bool },
}

/// Measures all lanes in turn.
pub(crate) async fn run(promises: &mut Promises) -> Result<()> {
    let ours = |policies, anti_spoof| Judge::Ours {
        policies,
        anti_spoof,
    };
    let mut lanes = vec![
        Lane::open("nothing", Judge::Nothing).await?,
        Lane::open("conntrack and established accept", Judge::Control).await?,
        Lane::open("1 policy", ours(1, false)).await?,
        Lane::open("1 policy, anti-spoof", ours(1, true)).await?,
        Lane::open("10 policies, anti-spoof", ours(10, true)).await?,
        Lane::open("1,000 policies", ours(1_000, false)).await?,
        Lane::open("1,000 policies, anti-spoof", ours(1_000, true)).await?,
    ];
    for _ in 0..ROUNDS {
        for lane in &mut lanes {
            lane.round()?;
        }
    }
    let mut figures = Vec::new();
    for lane in &mut lanes {
        let (established, new) = (best(&mut lane.established), best(&mut lane.new));
        line(&format!(
            "         {:<34} established {established:>6.0}   new {new:>6.0}",
            lane.name
        ));
        figures.push((established, new));
    }
    let at = |n: usize| figures.get(n).copied().context("a lane is missing");
    let (control, one, one_spoof) = (at(1)?, at(2)?, at(3)?);
    let (many, many_spoof) = (at(5)?, at(6)?);
    let over = one.0 - control.0;
    promises.check(
        over <= ESTABLISHED_MAX,
        &format!("established: {over:+.0} ns over the control (at most +{ESTABLISHED_MAX:.0})"),
    );
    let over = one_spoof.0 - control.0;
    promises.check(
        over <= SPOOF_MAX,
        &format!("established with anti-spoof: {over:+.0} ns (at most +{SPOOF_MAX:.0})"),
    );
    let change = (many.0 / one.0 - 1.0).abs();
    promises.check(
        change <= POLICIES_SHARE,
        &format!(
            "from 1 to 1,000 policies established changes by {:.1} % (at most 3 %)",
            change * 100.0
        ),
    );
    let over = many_spoof.1.min(many.1) - control.1;
    promises.check(
        over <= NEW_MAX,
        &format!("a new flow at 1,000 policies: {over:+.0} ns (at most +{NEW_MAX:.0})"),
    );
    Ok(())
}

/// The smallest slice: what it costs when nobody disturbs.
fn best(slices: &mut [f64]) -> f64 {
    slices.sort_by(f64::total_cmp);
    slices.first().copied().unwrap_or(f64::NAN)
}

impl Lane {
    async fn open(name: &str, judge: Judge) -> Result<Self> {
        let mut topology = Topology::create(&[world::node()], &[]).await?;
        let specs = [world::local(1)?, world::local(2)?];
        let mut agents = None;
        match judge {
            Judge::Nothing => {}
            Judge::Control => load_control(&topology.node(0)?.namespace)?,
            Judge::Ours {
                policies,
                anti_spoof,
            } => {
                let over = json!({"policy": {"anti_spoof": anti_spoof}});
                let mut started = Agents::start(&topology.nodes, &over).await?;
                started.publish(&documents(policies)?);
                started.settle().await?;
                agents = Some(started);
            }
        }
        let mut pods = Vec::new();
        for spec in &specs {
            let pod = topology.sandbox(spec)?;
            topology.raise(pod.clone()).await?;
            if let Some(agents) = &mut agents {
                agents.ready(&pod).await?;
            }
            pods.push(pod);
        }
        let [source, target] = &specs;
        let source = source.v4.context("pods have IPv4")?;
        let target = target.v4.context("pods have IPv4")?;
        let namespace = |n: usize| pods.get(n).map(|p| p.namespace.clone());
        let (from, to) = namespace(0).zip(namespace(1)).context("two pods")?;
        let receiver = to.enter(move || bind(target, PORT))??;
        let sender = from.enter(move || bind(source, 0))??;
        sender.connect((target, PORT))?;
        let raw = from.enter(|| {
            socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Udp,
            )
        })??;
        let mut lane = Self {
            name: name.to_owned(),
            sender,
            receiver,
            raw,
            target,
            next_port: 10_000,
            established: Vec::new(),
            new: Vec::new(),
            _topology: topology,
            _agents: agents,
        };
        lane.greet()
            .with_context(|| format!("greet through {name}"))?;
        Ok(lane)
    }

    /// One packet in either direction, so that the flow is established.
    fn greet(&mut self) -> Result<()> {
        let mut buffer = [0; 64];
        self.sender.send(&buffer)?;
        let (_, from) = self.receiver.recv_from(&mut buffer)?;
        self.receiver.send_to(&buffer, from)?;
        self.sender.recv(&mut buffer)?;
        Ok(())
    }

    fn round(&mut self) -> Result<()> {
        let mut buffer = [0; 64];
        for _ in 0..SLICES {
            let start = thread_cpu()?;
            for _ in 0..SLICE {
                self.sender.send(&buffer)?;
                self.receiver.recv(&mut buffer)?;
            }
            self.established.push(per_packet(start)?);
        }
        let to = SockaddrIn::from(SocketAddrV4::new(self.target, 0));
        let count = SLICE / 5;
        for _ in 0..SLICES {
            let start = thread_cpu()?;
            for _ in 0..count {
                let packet = datagram(self.next_port);
                let sent = sendto(self.raw.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
                ensure!(sent == packet.len(), "half a packet was sent");
                self.next_port = self.next_port.checked_add(1).unwrap_or(10_000);
                self.receiver.recv(&mut buffer)?;
            }
            let whole = per_packet(start)? * f64::from(SLICE) / f64::from(count);
            self.new.push(whole);
        }
        Ok(())
    }
}

/// A UDP header without checksum and its 64 bytes.
fn datagram(source: u16) -> [u8; 72] {
    let mut packet = [0; 72];
    let fields = [source, PORT, 72, 0];
    for (to, from) in packet.chunks_exact_mut(2).zip(fields) {
        to.copy_from_slice(&from.to_be_bytes());
    }
    packet
}

fn bind(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

fn thread_cpu() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(
        ClockId::CLOCK_THREAD_CPUTIME_ID,
    )?))
}

fn per_packet(start: Duration) -> Result<f64> {
    let spent = thread_cpu()?.saturating_sub(start);
    Ok(spent.as_secs_f64() * 1e9 / f64::from(SLICE))
}

/// What every stateful firewall pays.
fn load_control(node: &Namespace) -> Result<()> {
    let rules = "table inet control {\n\
        chain forward {\n\
        type filter hook forward priority 0; policy accept;\n\
        ct state established,related accept\n\
        }\n}\n";
    crate::policy::events::run_nft(node, rules).context("load the control")
}

/// Two pods; policies select the second, and only the last one lets the first in.
fn documents(policies: u32) -> Result<Vec<Value>> {
    let (a, b) = (world::local(1)?, world::local(2)?);
    let mut documents = vec![
        world::node_document(),
        world::namespace("local"),
        world::local_document(&a, &json!({"app": "app-1"})),
        world::local_document(&b, &json!({"role": "server"})),
    ];
    let subject = json!({"role": "server"});
    for n in 1..policies {
        let name = format!("p-{n:04}");
        documents.push(world::policy(
            "local",
            &name,
            &subject,
            &[n + 1],
            20_000 + n,
        ));
    }
    let last = world::policy("local", "p-last", &subject, &[1], u32::from(PORT));
    documents.push(last);
    Ok(documents)
}
