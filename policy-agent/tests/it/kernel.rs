//! The sockets against a kernel, in network namespaces that are made and removed here.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, what can not go on may stop where it stands"
)]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use datapath::owner;
use nft_wire::build::{Ip, Line, Load};
use nft_wire::chain::{Chain, Hook};
use nft_wire::change::Change;
use nft_wire::conntrack::{End, Filter, Flow, Mark};
use nft_wire::element::{Element, Elements};
use nft_wire::key::{Field, Key};
use nft_wire::name::{Family, TableRef};
use nft_wire::set::Set;
use nft_wire::table::Table;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use policy_agent::kernel::monitor::{Event, Group, Listener};
use policy_agent::kernel::nft::{Claim, CommitError, QueryError, Socket};
use policy_agent::kernel::{OpenError, conntrack, owner as agent, probe};

static NEXT: AtomicU32 = AtomicU32::new(0);
const BIT: u32 = 0x0800_0000;
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace.
struct Place {
    name: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(
            Command::new("ip")
                .args(["netns", "del", &self.name])
                .status(),
        );
    }
}

impl Place {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nftk{}-{number}", std::process::id());
        let place = Self { name };
        Self::ip(&["netns", "add", &place.name]);
        Self::ip(&["-n", &place.name, "link", "set", "lo", "up"]);
        place
    }

    fn ip(arguments: &[&str]) {
        let output = Command::new("ip").args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "ip {arguments:?}: {error} (needs root)"
        );
    }

    /// Runs `nft` inside; what it said when it failed.
    fn nft(&self, words: &str) -> Result<String, String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft"])
            .args(words.split_whitespace())
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(String::from_utf8(output.stderr).unwrap())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/netns/{}", self.name))
    }

    fn socket(&self) -> Socket {
        Socket::open_at(&self.path()).unwrap()
    }

    /// Runs on a thread inside.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

fn at() -> TableRef {
    TableRef::new(Family::Inet, "nftk")
}

fn table(owner: bool, persist: bool) -> Table {
    let mut table = Table::new(at());
    table.flags.owner = owner;
    table.flags.persist = persist;
    table
}

fn members(set: &str, addresses: impl IntoIterator<Item = u32>) -> Elements {
    let key = |n| Key::address(IpAddr::V4(Ipv4Addr::from_bits(n)));
    Elements {
        table: at(),
        set: set.into(),
        elements: addresses
            .into_iter()
            .map(|n| Element::member(key(n)))
            .collect(),
    }
}

/// A table with a set, a chain and a base chain.
fn content() -> Vec<Change> {
    let rule = Line::new(Family::Inet)
        .member(&[Load::Source(Ip::V4)], "s")
        .counter()
        .drop();
    vec![
        Change::CreateSet(Set::plain(&at(), "s", &[Field::Ipv4])),
        Change::CreateChain(Chain::regular(&at(), "c")),
        Change::CreateChain(Chain::filter(&at(), "base", Hook::Forward, 0)),
        Change::AddRule(rule.rule(&at(), "c")),
        Change::AddRule(Line::new(Family::Inet).jump("c").rule(&at(), "base")),
        Change::AddElements(members("s", [0x0a00_0001, 0x0a00_0002])),
    ]
}

fn create(table: Table) -> Vec<Change> {
    let mut changes = vec![Change::CreateTable(table)];
    changes.extend(content());
    changes
}

#[test]
fn committed_transaction_moves_the_generation_by_one_and_is_dumped_as_sent() {
    let place = Place::new();
    let mut socket = place.socket();
    let before = socket.generation().unwrap().id;
    let committed = socket.commit(&create(table(false, false))).unwrap();
    assert_eq!(committed.generation, before + 1);
    let dumped = socket.dump(&at()).unwrap().unwrap();
    assert_eq!(dumped.generation, committed.generation);
    assert_eq!(
        (dumped.chains.len(), dumped.sets["s"].elements.len()),
        (2, 2)
    );
    assert!(!dumped.foreign);
    assert_eq!(socket.rules(&at(), Some("c")).unwrap().len(), 1);
    socket.remove(&at()).unwrap();
    assert_eq!(socket.dump(&at()).unwrap(), None);
    socket.remove(&at()).unwrap();
    assert_eq!(
        socket.elements(&at(), "s", &mut |_| {}),
        Err(QueryError::Missing)
    );
}

#[test]
fn refused_change_is_named_by_its_index_and_the_others_are_not_done() {
    let place = Place::new();
    let mut socket = place.socket();
    socket.commit(&create(table(false, false))).unwrap();
    // The kernel's order of elements means nothing.
    let sorted = |socket: &mut Socket| {
        let mut snapshot = socket.dump(&at()).unwrap().unwrap();
        snapshot.sets.get_mut("s").unwrap().elements.sort();
        snapshot
    };
    let before = sorted(&mut socket);
    let name = "absent".into();
    // Many elements in front are several messages of one change.
    let many = Change::AddElements(members("s", 0x0b00_0000..0x0b00_0000 + 9_000));
    let refused = socket
        .commit(&[
            many,
            Change::DeleteChain { table: at(), name },
            Change::AddElements(members("s", [0x0a00_0009])),
        ])
        .unwrap_err();
    let CommitError::Refused {
        index, errno, what, ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!((index, errno), (Some(1), Errno::ENOENT));
    assert_eq!(what, "delete chain inet nftk absent");
    assert_eq!(sorted(&mut socket), before);
    // A loop is refused too, by one errno or another.
    let back = Line::new(Family::Inet).jump("c").rule(&at(), "c");
    let refused = socket.commit(&[Change::AddRule(back)]).unwrap_err();
    assert!(
        matches!(
            refused,
            CommitError::Refused {
                errno: Errno::ELOOP | Errno::EMLINK,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(socket.commit(&[]).unwrap().generation, before.generation);
}

#[test]
fn rule_that_the_kernel_has_no_form_for_is_refused_before_it_is_sent() {
    let place = Place::new();
    let mut socket = place.socket();
    let line = (0..3_000).fold(Line::new(Family::Inet), |line, _| line.counter());
    let refused = socket
        .commit(&[Change::AddRule(line.rule(&at(), "c"))])
        .unwrap_err();
    assert!(matches!(refused, CommitError::Encode(_)), "{refused}");
}

#[test]
fn owned_table_withstands_others_and_persistent_one_outlives_its_socket() {
    let place = Place::new();
    let mut socket = place.socket();
    let can = probe::ownership(&mut socket).unwrap();
    assert!(
        can.owner && can.persist,
        "this test wants a kernel from 6.9 on: {can:?}"
    );
    assert_eq!(socket.claim(&table(true, true)).unwrap(), Claim::Created);
    socket.commit(&content()).unwrap();
    assert_eq!(socket.claim(&table(true, true)).unwrap(), Claim::Kept);

    for attempt in [
        "delete table inet nftk",
        "flush chain inet nftk c",
        "delete set inet nftk s",
    ] {
        let error = place.nft(attempt).unwrap_err();
        assert!(error.contains("Operation not permitted"), "{error}");
    }
    place.nft("flush ruleset").unwrap();
    let mut other = place.socket();
    let foreign = other
        .commit(&[Change::AddElements(members("s", [1]))])
        .unwrap_err();
    assert!(
        matches!(foreign, CommitError::Owned { index: 0, .. }),
        "{foreign}"
    );
    let foreign = other.claim(&table(true, true)).unwrap_err();
    assert!(matches!(foreign, CommitError::Owned { .. }), "{foreign}");
    let before = socket.dump(&at()).unwrap().unwrap();
    assert_eq!(before.table.owner, Some(socket.port()));
    assert_eq!(before.sets["s"].elements.len(), 2);

    // The orphan keeps its content, and is adopted as it is.
    drop(socket);
    let orphan = other.dump(&at()).unwrap().unwrap();
    assert_eq!(
        (orphan.table.owner, orphan.table.flags.persist),
        (None, true)
    );
    assert_eq!(orphan.chains, before.chains);
    assert_eq!(other.claim(&table(true, true)).unwrap(), Claim::Adopted);
    assert_eq!(other.dump(&at()).unwrap().unwrap().sets, before.sets);
    place.nft("delete table inet nftk").unwrap_err();

    // Without persist it goes with its socket.
    other.remove(&at()).unwrap();
    assert_eq!(other.claim(&table(true, false)).unwrap(), Claim::Created);
    drop(other);
    assert_eq!(place.socket().table(&at()).unwrap(), None);
}

#[test]
fn table_without_an_owner_is_found_with_its_content_and_left_unowned() {
    let place = Place::new();
    place.nft("add table inet nftk").unwrap();
    let mut socket = place.socket();
    assert_eq!(socket.claim(&table(true, true)).unwrap(), Claim::Unowned);
    socket.commit(&content()).unwrap();
}

#[tokio::test]
async fn owner_socket_in_two_hands_keeps_the_table_owned_while_the_agent_is_gone() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owner.sock");
    let mut holder = owner::Holder::new();

    // The first agent: the holder has nothing to offer and is given the socket.
    let mut socket = place.socket();
    socket.commit(&create(table(true, false))).unwrap();
    let listener = agent::Listener::bind(&path).unwrap();
    let agent_life = async {
        let mut peer = listener.accept_within(PATIENCE).await.unwrap().unwrap();
        assert!(peer.take_offer().is_none());
        peer.hand(Some(std::os::fd::AsFd::as_fd(&socket)))
            .await
            .unwrap();
    };
    let (attended, ()) = tokio::join!(holder.attend(&path), agent_life);
    attended.unwrap();
    assert!(holder.held().is_some());
    drop(listener);
    drop(socket);

    // Nobody but the holder is there: still owned, although the table would not outlive its socket.
    let error = place.nft("delete table inet nftk").unwrap_err();
    assert!(error.contains("Operation not permitted"), "{error}");
    place.nft("flush ruleset").unwrap();
    let mut stranger = place.socket();
    let refused = stranger.claim(&table(true, false)).unwrap_err();
    assert!(matches!(refused, CommitError::Owned { .. }), "{refused}");

    // The second agent gets it back, and goes on writing.
    let listener = agent::Listener::bind(&path).unwrap();
    let next_life = async {
        let mut peer = listener.accept_within(PATIENCE).await.unwrap().unwrap();
        let mut socket = Socket::from_fd(peer.take_offer().unwrap()).unwrap();
        assert_eq!(socket.claim(&table(true, false)).unwrap(), Claim::Kept);
        socket
            .commit(&[Change::AddElements(members("s", [7]))])
            .unwrap();
        assert_eq!(
            socket.dump(&at()).unwrap().unwrap().sets["s"]
                .elements
                .len(),
            3
        );
        // A holder that comes meanwhile gets a copy as well.
        let second = async {
            let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            let mut second = owner::Peer::new(stream);
            second.send(None).await.unwrap();
            second.receive().await.unwrap().unwrap().unwrap()
        };
        tokio::select! {
            kept = agent::keep(&listener, Some(peer), &socket) => panic!("{kept:?}"),
            copy = second => assert_eq!(Socket::from_fd(copy).unwrap().port(), socket.port()),
        }
        socket.remove(&at()).unwrap();
    };
    let (attended, ()) = tokio::join!(holder.attend(&path), next_life);
    attended.unwrap();
}

#[tokio::test]
async fn something_else_than_an_owner_socket_is_not_taken_for_one() {
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(matches!(
        Socket::from_fd(other.into()),
        Err(OpenError::Stranger)
    ));
    let route = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    let route = std::os::fd::AsFd::as_fd(&route)
        .try_clone_to_owned()
        .unwrap();
    assert!(matches!(Socket::from_fd(route), Err(OpenError::Stranger)));

    // A connection that speaks something else is turned away, and the next one is served.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owner.sock");
    let listener = agent::Listener::bind(&path).unwrap();
    let mut garbled = tokio::net::UnixStream::connect(&path).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut garbled, b"GET / HTTP/1.1\r\n")
        .await
        .unwrap();
    let mut holder = owner::Holder::new();
    let serve = async {
        let mut peer = listener.accept_within(PATIENCE).await.unwrap().unwrap();
        assert!(peer.take_offer().is_none());
        peer.hand(None).await.unwrap();
    };
    let (attended, ()) = tokio::join!(holder.attend(&path), serve);
    attended.unwrap();
    assert!(holder.held().is_none());
}

#[test]
fn features_of_this_kernel_are_all_there_and_the_probe_leaves_nothing() {
    let place = Place::new();
    let mut socket = place.socket();
    probe::features(&mut socket).unwrap();
    // One that died half way is no hindrance.
    place.nft("add table inet terway_probe").unwrap();
    probe::features(&mut socket).unwrap();
    assert_eq!(socket.tables().unwrap(), []);
}

#[test]
fn namespace_that_is_gone_is_told_from_other_failures() {
    let place = Place::new();
    let path = place.path();
    drop(place);
    assert!(matches!(
        Socket::open_at(&path),
        Err(OpenError::NamespaceGone(_))
    ));
    assert!(matches!(
        Socket::open_at("/proc/version".as_ref()),
        Err(OpenError::Refused { .. })
    ));
}

#[test]
fn million_elements_are_loaded_in_transactions_and_dumped_to_the_last() {
    const MILLION: u32 = 1_000_000;
    let place = Place::new();
    let mut socket = place.socket();
    let mut changes = vec![Change::CreateTable(table(false, false))];
    for n in 0..4 {
        let mut set = Set::plain(&at(), &format!("s{n}"), &[Field::Ipv4]);
        set.size = Some(MILLION);
        changes.push(Change::CreateSet(set));
    }
    socket.commit(&changes).unwrap();
    let mut sum = 0_u64;
    for n in 0..4_u32 {
        let share = MILLION / 4;
        let range = n * share..(n + 1) * share;
        sum += range.clone().map(u64::from).sum::<u64>();
        let more = Change::AddElements(members(&format!("s{n}"), range));
        socket.commit(&[more]).unwrap();
    }
    let dumped = socket.dump(&at()).unwrap().unwrap();
    let mut count = 0;
    for state in dumped.sets.values() {
        for element in &state.elements {
            let bytes = element.key.as_bytes().first_chunk::<4>().unwrap();
            sum -= u64::from(u32::from_be_bytes(*bytes));
            count += 1;
        }
    }
    assert_eq!((count, sum), (MILLION, 0));
}

#[test]
fn monitor_tells_who_changed_which_table() {
    let place = Place::new();
    let mut listener = Listener::open_at(&place.path(), Group::Rules).unwrap();
    let mut socket = place.socket();
    socket.commit(&create(table(false, false))).unwrap();
    let events = listener.read(PATIENCE).unwrap();
    let ours = Event::Changed {
        table: Some(at()),
        port: socket.port(),
    };
    assert_eq!(events, std::slice::from_ref(&ours));
    place.nft("delete table inet nftk").unwrap();
    let events = listener.read(PATIENCE).unwrap();
    assert!(!events.contains(&ours));
    let about: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Changed { table, .. } => table.as_ref(),
            Event::Trace(_) | Event::Lost => None,
        })
        .collect();
    assert!(about.contains(&&at()), "{events:?}");
    assert_eq!(listener.read(Duration::ZERO).unwrap(), []);
}

#[test]
fn traced_packet_is_followed_rule_by_rule() {
    let place = Place::new();
    let mut listener = Listener::open_at(&place.path(), Group::Traces).unwrap();
    let mut socket = place.socket();
    let line = || Line::new(Family::Inet);
    socket
        .commit(&[
            Change::CreateTable(table(false, false)),
            Change::CreateChain(Chain::filter(&at(), "base", Hook::Output, -301)),
            Change::CreateChain(Chain::regular(&at(), "next")),
            Change::AddRule(line().protocol(17).dport(9).trace().rule(&at(), "base")),
            Change::AddRule(line().jump("next").rule(&at(), "base")),
            Change::AddRule(line().protocol(17).dport(9).drop().rule(&at(), "next")),
        ])
        .unwrap();
    place.inside(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        drop(socket.send_to(b"x", "127.0.0.1:9"));
    });
    let traces: Vec<_> = listener
        .read(PATIENCE)
        .unwrap()
        .into_iter()
        .filter_map(|event| match event {
            Event::Trace(trace) => Some(trace),
            Event::Changed { .. } | Event::Lost => None,
        })
        .collect();
    let steps: Vec<_> = traces
        .iter()
        .map(|t| (&*t.chain, format!("{:?}", t.step)))
        .collect();
    let last = steps.last().unwrap();
    assert!(last.0 == "next" && last.1.contains("Drop"), "{steps:?}");
    assert!(
        steps.iter().any(|s| s.0 == "base" && s.1.contains("Jump")),
        "{steps:?}"
    );
    let headers = traces.iter().find(|t| !t.network.is_empty()).unwrap();
    assert_eq!(headers.network[0] >> 4, 4);
    assert_eq!(headers.transport[2..4], [0, 9]);
}

/// A TCP connection over loopback: both of its ends.
fn connection(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// Flows are tracked where some rule asks for their state.
fn track(place: &Place) -> Socket {
    let mut socket = place.socket();
    let state = Line::new(Family::Inet).ct_state(2).accept();
    socket
        .commit(&[
            Change::CreateTable(table(false, false)),
            Change::CreateChain(Chain::filter(&at(), "base", Hook::Output, 0)),
            Change::AddRule(state.rule(&at(), "base")),
        ])
        .unwrap();
    socket
}

fn flows(socket: &mut conntrack::Socket, filter: &Filter) -> Vec<Flow> {
    let mut flows = Vec::new();
    socket.dump(filter, &mut |flow| flows.push(*flow)).unwrap();
    flows
}

fn is(flow: &Flow, client: SocketAddr, server: SocketAddr) -> bool {
    let tuple = flow.original;
    let source = SocketAddr::new(tuple.source, tuple.source_port());
    let destination = SocketAddr::new(tuple.destination, tuple.destination_port());
    (source, destination) == (client, server) && tuple.protocol == 6
}

#[test]
fn mark_is_set_and_cleared_on_real_flows_of_both_families_without_touching_other_bits() {
    let place = Place::new();
    let _rules = track(&place);
    for address in ["127.0.0.1", "::1"] {
        let mut socket = conntrack::Socket::open_at(&place.path()).unwrap();
        let before = socket.count().unwrap();
        let (client, _server) = place.inside(|| connection(address));
        let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert!(socket.count().unwrap() > before, "{before}");
        let filter = Filter {
            address: Some((End::ReplySource, ends.1.ip())),
            ..Filter::default()
        };
        let all = flows(&mut socket, &filter);
        let ours: Vec<_> = all
            .iter()
            .filter(|f| is(f, ends.0, ends.1))
            .copied()
            .collect();
        assert_eq!(ours.len(), 1, "{filter:?} {all:?}");
        let set = |value, mask| Mark { value, mask };
        let done = socket.mark([(&ours[0], set(BIT | 5, BIT | 7))]).unwrap();
        assert_eq!((done.changed, done.gone), (1, 0));
        let marked = Filter {
            mark: Some(set(BIT, BIT)),
            ..filter
        };
        let found = flows(&mut socket, &marked);
        assert!(found.len() == 1 && found[0].mark == BIT | 5, "{found:?}");
        socket.mark([(&found[0], set(0, BIT))]).unwrap();
        assert_eq!(flows(&mut socket, &marked), []);
        let left = flows(&mut socket, &filter);
        let left = left.iter().find(|f| is(f, ends.0, ends.1)).unwrap();
        assert_eq!((left.mark, left.id), (5, ours[0].id));
        // A flow of that name which began later is not meant.
        let older = Flow {
            id: left.id ^ 1,
            ..*left
        };
        assert_eq!(
            socket.delete([&older, left]).unwrap(),
            conntrack::Done {
                changed: 1,
                gone: 1
            }
        );
        assert!(
            !flows(&mut socket, &filter)
                .iter()
                .any(|f| is(f, ends.0, ends.1))
        );
        assert_eq!(socket.mark([(left, set(0, BIT))]).unwrap().gone, 1);
    }
}

#[test]
fn thousands_of_flows_are_marked_in_few_sends_and_filtered_by_address() {
    const FLOWS: u16 = 3_500;
    let place = Place::new();
    let _rules = track(&place);
    let ports = |from: &str| {
        let to = UdpSocket::bind((from, 0)).unwrap().local_addr().unwrap();
        let socket = UdpSocket::bind((from, 0)).unwrap();
        for port in 0..FLOWS {
            drop(socket.send_to(b"x", SocketAddr::new(to.ip(), 20_000 + port)));
        }
    };
    place.inside(|| {
        ports("127.0.0.1");
        ports("127.0.0.2");
    });
    let mut socket = conntrack::Socket::open_at(&place.path()).unwrap();
    let from = |last: u8| Filter {
        address: Some((End::OriginalSource, [127, 0, 0, last].into())),
        ..Filter::default()
    };
    let first = flows(&mut socket, &from(1));
    let mut all = 0;
    socket.dump(&Filter::default(), &mut |_| all += 1).unwrap();
    assert!(
        first.len() >= usize::from(FLOWS) && all >= 2 * usize::from(FLOWS),
        "{}",
        first.len()
    );
    let mark = Mark {
        value: BIT,
        mask: BIT,
    };
    let done = socket.mark(first.iter().map(|flow| (flow, mark))).unwrap();
    assert_eq!(done.changed, first.len());
    let marked = |filter| Filter {
        mark: Some(mark),
        ..filter
    };
    assert_eq!(flows(&mut socket, &marked(from(1))).len(), first.len());
    assert_eq!(flows(&mut socket, &marked(from(2))).len(), 0);
    assert_eq!(socket.delete(&first).unwrap().changed, first.len());
}
