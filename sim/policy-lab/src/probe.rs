//! Probes: real packets between stations of the bed, from one thread that visits their namespaces.
//!
//! "Denied" is never a time-out. Each node's books ([`ledger`]) count probes that entered and probes that
//! left; when what the nodes kept equals what did not arrive, and a marker has gone through the queue of the CPU that
//! carried everything (so that nothing can be on its way), the missing probes are denied. A probe that was lost
//! elsewhere (a full queue or socket) makes the sums differ: such a run is repeated, and is an error in the end.

pub mod ledger;
pub mod packet;
mod run;
pub mod station;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::probe::ledger::{Books, Ledger};
use crate::probe::packet::{Chunk, Echo, Portless, Sctp, Solicitation};
use crate::probe::run::{
    Flight, Outcome, Run, connect, hear, kept_is_fine, payload, send_raw, sender,
};
use crate::probe::station::{Ears, Station};
use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, setns};
use nix::unistd::Pid;

/// How long the sums may take to meet.
const PATIENCE: Duration = Duration::from_secs(5);
/// The kernel sends a SYN again after one second, and the books would count it twice: a run with connections that
/// took longer says nothing and is repeated.
const SYN_AGAIN: Duration = Duration::from_millis(900);
/// Runs that are repeated because their sums did not meet in time.
const RUNS: u32 = 3;
/// So few probes are not divided any more.
const FEWEST: usize = 16;
/// Rounds of the marker: more than there are queues on the longest way (pod, node, router, node, pod).
const MARKER_ROUNDS: u32 = 8;
/// Source ports start here: above those of the servers and of everybody's services.
const FIRST_PORT: u16 = 20_000;
/// Source ports that are used in turn, one per run, so that no flow of an earlier run is met again.
const PORTS: u16 = 40_000;

/// Runs of this process: a prober that takes the place of another goes on counting.
static ROUND: AtomicU16 = AtomicU16::new(0);

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A connection to a port.
    Tcp(u16),
    /// A datagram to a port, which is answered.
    Udp(u16),
    /// The same in several fragments: [`packet::LARGE_BYTES`] of data. The answer is short.
    Large(u16),
    /// A datagram to a port that nobody answers, because its sender does not own its address; to arrive is enough.
    OneWay(u16),
    /// An INIT to a port, which is answered by an INIT-ACK.
    Sctp(u16),
    /// An echo request.
    Echo,
    /// A packet of protocol 47, which has no ports; it is answered. Nodes forget all flows before a run with one,
    /// and a run must not have it both ways between two addresses: the second would be an answer to the first.
    Portless,
    /// IPv6 only: a neighbour solicitation with an ordinary hop limit. It has no answer; to arrive is enough.
    Solicitation,
}

impl Kind {
    /// Whether its sender needs a socket of its own.
    const fn makes_sockets(self) -> bool {
        match self {
            Self::Tcp(_) | Self::Udp(_) | Self::Large(_) | Self::OneWay(_) => true,
            Self::Sctp(_) | Self::Echo | Self::Portless | Self::Solicitation => false,
        }
    }

    /// Whether somebody answers it.
    const fn is_answered(self) -> bool {
        match self {
            Self::Tcp(_)
            | Self::Udp(_)
            | Self::Large(_)
            | Self::Sctp(_)
            | Self::Echo
            | Self::Portless => true,
            Self::OneWay(_) | Self::Solicitation => false,
        }
    }
}

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Number of the station that sends.
    pub from: usize,
    /// The address that it sends with.
    pub source: IpAddr,
    /// Where to; of the same family, and held by a station or translated to one.
    pub destination: IpAddr,
    /// What.
    pub kind: Kind,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It arrived and its answer came back.
    Allowed,
    /// A node kept it.
    Denied,
    /// A node kept it and said so (a reset, an ICMP error).
    Refused,
    /// It arrived, and its answer did not come back.
    Deaf,
}

/// All stations of a bed, with open ears.
#[derive(Debug)]
pub struct Prober {
    stations: Vec<Station>,
    ears: Vec<Ears>,
    ledgers: Vec<Ledger>,
    marker: UdpSocket,
}

impl Prober {
    /// Opens the ears of the stations; `ledgers` are those of all nodes, `home` any namespace with a loopback.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn open(
        stations: Vec<Station>,
        ledgers: Vec<Ledger>,
        ports: &[u16],
        home: &fabric::namespace::Namespace,
    ) -> anyhow::Result<Self> {
        let mut ears = Vec::new();
        for station in &stations {
            ears.push(Ears::open(station, ports)?);
        }
        let marker = home.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(socket.local_addr()?)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            io::Result::Ok(socket)
        })??;
        Ok(Self {
            stations,
            ears,
            ledgers,
            marker,
        })
    }

    /// The stations, by number.
    pub fn stations(&self) -> &[Station] {
        &self.stations
    }

    /// Puts another station in the place of `number`, for instance after its pod got a new link.
    ///
    /// # Errors
    /// What the kernel refused, or there is no such number.
    pub fn replace(
        &mut self,
        number: usize,
        station: Station,
        ports: &[u16],
    ) -> anyhow::Result<()> {
        let ears = Ears::open(&station, ports)?;
        *self.stations.get_mut(number).context("no such station")? = station;
        *self.ears.get_mut(number).context("no such station")? = ears;
        Ok(())
    }

    /// The number of the station that holds an address.
    pub fn holder(&self, address: IpAddr) -> Option<usize> {
        self.stations
            .iter()
            .position(|s| s.addresses.contains(&address))
    }

    /// Sends all probes and says what became of each. Blocks the calling thread for some tenths of a second.
    ///
    /// # Errors
    /// The sums did not meet, however often: some probe neither arrived nor was kept by a node, or one was kept that
    /// arrived. The same connection twice.
    pub fn run(&mut self, probes: &[Probe]) -> anyhow::Result<Vec<Verdict>> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("prober".to_owned());
            let thread = thread.spawn_scoped(scope, || self.run_here(probes))?;
            match thread.join() {
                Ok(outcome) => outcome,
                Err(payload) => std::panic::resume_unwind(payload),
            }
        })
    }

    fn run_here(&mut self, probes: &[Probe]) -> anyhow::Result<Vec<Verdict>> {
        let mut known = HashSet::new();
        let mut connections = probes.iter().filter(|p| matches!(p.kind, Kind::Tcp(_)));
        if let Some(twice) = connections.find(|p| !known.insert(**p)) {
            bail!("{twice:?} is asked twice, and a connection can be opened once");
        }
        let mut cpus = CpuSet::new();
        cpus.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        self.judge(probes)
    }

    /// Runs again, and then in halves, while the machine is too slow or loses packets: neither says anything about
    /// policy.
    fn judge(&self, probes: &[Probe]) -> anyhow::Result<Vec<Verdict>> {
        let mut why = String::new();
        for _ in 0..RUNS {
            match self.attempt(probes)? {
                Outcome::Settled(verdicts) => return Ok(verdicts),
                Outcome::Unsettled(text) => why = text,
            }
        }
        if probes.len() <= FEWEST {
            bail!("{RUNS} runs did not settle; the last: {why}");
        }
        let (first, second) = probes.split_at(probes.len() / 2);
        let mut verdicts = self.judge(first)?;
        verdicts.extend(self.judge(second)?);
        Ok(verdicts)
    }

    /// One run.
    fn attempt(&self, probes: &[Probe]) -> anyhow::Result<Outcome> {
        let round = ROUND.fetch_add(1, Ordering::Relaxed) % PORTS;
        let port = FIRST_PORT + round;
        if probes.iter().any(|p| p.kind == Kind::Portless) {
            // Without ports every run would be the same flow.
            for ledger in &self.ledgers {
                ledger.forget_flows()?;
            }
        }
        // What an earlier run left in the queues must not come into the books of this one.
        self.send_marker()?;
        let before = self.read_books()?;
        let mut run = Run {
            probes,
            flights: Vec::with_capacity(probes.len()),
            senders: HashMap::new(),
            accepted: Vec::new(),
            port,
        };
        run.flights.resize_with(probes.len(), Flight::default);
        let patience = if probes.iter().any(|p| matches!(p.kind, Kind::Tcp(_))) {
            SYN_AGAIN
        } else {
            PATIENCE
        };
        let started = Instant::now();
        self.send(&mut run)?;
        // Until all have their answer, or the sums meet before and behind a marker.
        loop {
            let progress = self.collect(&mut run)?;
            if run.flights.iter().all(|f| f.answered) {
                return Ok(Outcome::Settled(run.verdicts()));
            }
            if !progress && self.missing(&run, before)? == 0 {
                self.send_marker()?;
                while self.collect(&mut run)? {}
                let met = self.missing(&run, before)? == 0;
                // Looked at after the books: what they say is from before the first SYN was repeated.
                if met && started.elapsed() < patience {
                    break;
                }
            }
            if started.elapsed() > patience {
                return Ok(Outcome::Unsettled(self.describe(&run, before)?));
            }
        }
        // What is denied is known. Answers of what has arrived may still come.
        while started.elapsed() < PATIENCE && run.flights.iter().any(Flight::waits_for_answer) {
            self.collect(&mut run)?;
        }
        Ok(Outcome::Settled(run.verdicts()))
    }

    /// How many more probes are kept by nodes than are missing; negative when some are nowhere.
    fn missing(&self, run: &Run<'_>, before: Books) -> anyhow::Result<i64> {
        let now = self.read_books()?;
        let entered = i64::try_from(now.entered.saturating_sub(before.entered))?;
        let left = i64::try_from(now.left.saturating_sub(before.left))?;
        let absent = run.flights.iter().filter(|f| !f.arrived).count();
        Ok(entered - left - i64::try_from(absent)?)
    }

    fn describe(&self, run: &Run<'_>, before: Books) -> anyhow::Result<String> {
        let missing = self.missing(run, before)?;
        let absent: Vec<_> = run
            .probes
            .iter()
            .zip(&run.flights)
            .filter(|(_, f)| !f.arrived)
            .take(5)
            .map(|(p, _)| format!("{p:?}"))
            .collect();
        Ok(format!(
            "nodes kept {missing} more of {} probes than did not arrive, which are for instance {}",
            run.probes.len(),
            absent.join(", ")
        ))
    }

    fn read_books(&self) -> anyhow::Result<Books> {
        let mut sum = Books::default();
        for ledger in &self.ledgers {
            let books = ledger.read()?;
            sum.entered = sum.entered.saturating_add(books.entered);
            sum.left = sum.left.saturating_add(books.left);
        }
        Ok(sum)
    }

    /// Sends a datagram through the queue of this CPU and waits for it, as often as a packet can have queues ahead.
    ///
    /// Veths and the loopback share one queue per CPU, first in, first out, and this thread does not leave its CPU:
    /// what was sent before the marker has left the queue before it.
    fn send_marker(&self) -> anyhow::Result<()> {
        for round in 0..MARKER_ROUNDS {
            self.marker.send(&round.to_be_bytes())?;
            let mut back = [0; 4];
            self.marker.recv(&mut back)?;
            if back != round.to_be_bytes() {
                bail!("the marker came back out of order");
            }
        }
        Ok(())
    }

    fn send(&self, run: &mut Run<'_>) -> anyhow::Result<()> {
        let mut order: Vec<_> = (0..run.probes.len()).collect();
        order.sort_by_key(|i| run.probes.get(*i).map(|p| p.from));
        let mut inside = None;
        for index in order {
            let Some(probe) = run.probes.get(index).copied() else {
                continue;
            };
            let makes_sockets = probe.kind.makes_sockets();
            if makes_sockets && inside != Some(probe.from) {
                let station = self.stations.get(probe.from).context("no such station")?;
                setns(
                    &File::open(station.namespace.path())?,
                    CloneFlags::CLONE_NEWNET,
                )?;
                inside = Some(probe.from);
            }
            self.send_one(run, index, probe)
                .with_context(|| format!("send {probe:?}"))?;
        }
        Ok(())
    }

    fn send_one(&self, run: &mut Run<'_>, index: usize, probe: Probe) -> anyhow::Result<()> {
        let number = u32::try_from(index)?;
        let port = run.port;
        match probe.kind {
            Kind::Tcp(to) => {
                let socket = connect(probe.source, port, SocketAddr::new(probe.destination, to))?;
                let flight = run.flights.get_mut(index).context("no such flight")?;
                flight.socket = Some(socket);
            }
            Kind::Udp(to) | Kind::Large(to) | Kind::OneWay(to) => {
                let foreign = matches!(probe.kind, Kind::OneWay(_));
                let socket = match run.senders.entry((probe.from, probe.source, foreign)) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(free) => free.insert(sender(probe.source, port, foreign)?),
                };
                let mut payload = payload(port, number).to_vec();
                if matches!(probe.kind, Kind::Large(_)) {
                    payload.resize(packet::LARGE_BYTES, 0);
                }
                kept_is_fine(socket.send_to(&payload, (probe.destination, to)))?;
            }
            Kind::Sctp(to) => {
                let packet = Sctp {
                    source: port,
                    destination: to,
                    chunk: Chunk::Init,
                    verification: 0,
                    tag: number | 1 << 31,
                    number,
                };
                let socket = &self.ears_of(probe)?.sctp;
                kept_is_fine(send_raw(socket, &packet.encode(), probe.destination))?;
            }
            Kind::Echo => {
                let packet = Echo {
                    v6: probe.destination.is_ipv6(),
                    id: port,
                    number,
                };
                let socket = &self.ears_of(probe)?.echo;
                kept_is_fine(send_raw(socket, &packet.encode(), probe.destination))?;
            }
            Kind::Solicitation => {
                let packet = Solicitation { port, number };
                let socket = &self.ears_of(probe)?.echo;
                kept_is_fine(send_raw(socket, &packet.encode(), probe.destination))?;
            }
            Kind::Portless => {
                let packet = Portless {
                    port,
                    number,
                    answer: false,
                };
                let socket = &self.ears_of(probe)?.portless;
                kept_is_fine(send_raw(socket, &packet.encode(), probe.destination))?;
            }
        }
        Ok(())
    }

    fn ears_of(&self, probe: Probe) -> anyhow::Result<&station::Ear> {
        let ears = self.ears.get(probe.from).context("no such station")?;
        ears.of(probe.source)
            .with_context(|| format!("station {} does not hold {}", probe.from, probe.source))
    }

    /// Takes in whatever has come, waiting a millisecond for something to. Says whether there was anything.
    fn collect(&self, run: &mut Run<'_>) -> anyhow::Result<bool> {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for ear in self.ears.iter().flat_map(Ears::all) {
            let servers = ear.tcp.iter().map(|(_, s)| s.as_fd());
            let servers = servers.chain(ear.udp.iter().map(|(_, s)| s.as_fd()));
            let servers = servers.chain([&ear.sctp, &ear.echo, &ear.portless].map(AsFd::as_fd));
            fds.extend(servers.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        let waiting = |f: &&Flight| !f.arrived && !f.refused;
        let clients = run.flights.iter().filter(waiting);
        let clients = clients.filter_map(|f| f.socket.as_ref());
        fds.extend(clients.map(|s| PollFd::new(s.as_fd(), PollFlags::POLLOUT)));
        fds.extend(
            run.senders
                .values()
                .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, PollTimeout::from(1_u8)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        drop(fds);
        let mut progress = false;
        for ear in self.ears.iter().flat_map(Ears::all) {
            progress |= hear(ear, run)?;
        }
        progress |= run.hear_answers()?;
        progress |= run.look_at_connections();
        Ok(progress)
    }
}
