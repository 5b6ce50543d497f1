//! Follows packets of one flow through the rules, for a while.
//!
//! A table of its own, with base chains in front of all others, marks the packets as traced; the kernel then tells
//! each rule that has a say about them. The table is removed at the end, also after an error; and since it belongs to
//! the socket that made it, it goes with the process at the latest.

use std::sync::Arc;
use std::time::Duration;

use nft_wire::build::Line;
use nft_wire::chain::{Chain, Hook, Policy};
use nft_wire::change::Change;
use nft_wire::name::{Family, TableRef};
use nft_wire::table::Table;
use nft_wire::trace::{Step, Trace};
use nft_wire::verdict::Verdict;
use policy_core::flow::Flow;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

/// The table that marks packets.
pub const TABLE: &str = "terway_trace";
/// In front of `raw`, which is -300.
const PRIORITY: i32 = -301;
/// Lines that wait for a slow reader.
const AHEAD: usize = 256;
/// Most lines of one trace: a busy flow has millions of packets.
const LINES: usize = 2_000;
/// How long one wait for a message takes at most, so that an end is noticed.
const WAIT: Duration = Duration::from_millis(200);
/// Traces at a time.
const AT_ONCE: usize = 2;

/// No trace.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TraceError {
    /// The kernel refused.
    #[error("{0}")]
    Kernel(String),
    /// Others trace already.
    #[error("{AT_ONCE} traces run already")]
    Busy,
}

/// What a trace needs of the kernel. Calls block.
pub trait Packets {
    /// Does all changes or none.
    ///
    /// # Errors
    /// What the kernel said.
    fn commit(&mut self, changes: &[Change]) -> Result<(), String>;

    /// Messages that came within `wait`; none when there were none.
    ///
    /// # Errors
    /// What the kernel said.
    fn read(&mut self, wait: Duration) -> Result<Vec<Trace>, String>;
}

/// Opens a socket that hears of traced packets.
pub type OpenPackets = Arc<dyn Fn() -> Result<Box<dyn Packets + Send>, String> + Send + Sync>;

/// Makes traces. Clones share the bound on how many.
#[derive(Clone)]
pub struct Tracer {
    open: OpenPackets,
    tables: Vec<String>,
    room: Arc<Semaphore>,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

impl Tracer {
    /// Traces that tell of these tables alone.
    pub fn new(open: OpenPackets, tables: Vec<String>) -> Self {
        Self {
            open,
            tables,
            room: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Follows packets of a flow for `time`; port 0 is every port. Ends early when nobody reads. Runs on a thread of
    /// its own.
    ///
    /// # Errors
    /// [`TraceError::Busy`]; what the kernel refuses is the last line.
    pub fn start(
        &self,
        flow: Flow,
        time: Duration,
        tasks: &mesh::tasks::Tasks,
    ) -> Result<mpsc::Receiver<Result<String, TraceError>>, TraceError> {
        let room = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| TraceError::Busy)?;
        let (lines, receiver) = mpsc::channel(AHEAD);
        let (open, tables) = (Arc::clone(&self.open), self.tables.clone());
        let until = Instant::now() + time;
        let stopping = tasks.stopping();
        // Its end is seen by the end of its lines.
        drop(tasks.spawn_blocking(move || {
            let _room = room;
            let over = || Instant::now() >= until || lines.is_closed() || stopping.is_cancelled();
            let mut say = |line| lines.blocking_send(Ok(line)).is_ok();
            let end = match open() {
                Ok(mut packets) => follow(&mut *packets, &flow, &tables, &over, &mut say),
                Err(why) => Err(why),
            };
            if let Err(why) = end {
                // Nobody reads any more.
                drop(lines.blocking_send(Err(TraceError::Kernel(why))));
            }
        }));
        Ok(receiver)
    }
}

fn follow(
    packets: &mut dyn Packets,
    flow: &Flow,
    tables: &[String],
    over: &dyn Fn() -> bool,
    say: &mut dyn FnMut(String) -> bool,
) -> Result<(), String> {
    let table = table();
    let result = packets
        .commit(&marking(&table, flow, true))
        // Kernels before 5.12 know no owner of a table.
        .or_else(|_| packets.commit(&marking(&table, flow, false)))
        .and_then(|()| listen(packets, tables, over, say));
    let removed = packets.commit(&[Change::DeleteTable(table)]);
    result.and(removed)
}

fn listen(
    packets: &mut dyn Packets,
    tables: &[String],
    over: &dyn Fn() -> bool,
    say: &mut dyn FnMut(String) -> bool,
) -> Result<(), String> {
    let mut lines = 0;
    while !over() {
        for trace in packets.read(WAIT)? {
            if !tables.iter().any(|t| **t == *trace.table.name) {
                continue;
            }
            lines += 1;
            if lines > LINES {
                say(format!("after {LINES} lines the rest is left out"));
                return Ok(());
            }
            if !say(line(&trace)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn table() -> TableRef {
    // Two traces have two tables.
    TableRef::new(
        Family::Inet,
        &format!("{TABLE}_{:08x}", rand::random::<u32>()),
    )
}

/// The transaction that marks packets of the flow; `owned`: the table is the socket's own.
fn marking(at: &TableRef, flow: &Flow, owned: bool) -> Vec<Change> {
    let mut table = Table::new(at.clone());
    table.flags.owner = owned;
    let mut changes = vec![Change::CreateTable(table)];
    for (name, hook) in [("pre", Hook::Prerouting), ("out", Hook::Output)] {
        let chain = Chain::filter(at, name, hook, PRIORITY);
        changes.push(Change::AddChain(chain));
        let mut line = Line::new(at.family)
            .source(flow.source)
            .destination(flow.destination)
            .protocol(flow.protocol.0);
        if flow.port != 0 && flow.protocol.has_ports() {
            line = line.dport(flow.port);
        }
        changes.push(Change::AddRule(line.trace().rule(at, name)));
    }
    changes
}

/// A step, in words.
fn line(trace: &Trace) -> String {
    let place = format!("{:08x} {} {}", trace.id, trace.table, trace.chain);
    match &trace.step {
        Step::Rule { handle, verdict } => format!("{place} rule {handle}: {}", said(verdict)),
        Step::Return { verdict } => format!("{place} end: {}", said(verdict)),
        Step::Policy(Policy::Accept) => format!("{place} end: accept"),
        Step::Policy(Policy::Drop) => format!("{place} end: drop"),
    }
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Continue => "continue".to_owned(),
        Verdict::Break => "break".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use policy_core::flow::Protocol;

    use super::*;

    #[derive(Default)]
    struct Fake {
        commits: Vec<Vec<Change>>,
        fail: bool,
    }

    impl Packets for Fake {
        fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
            self.commits.push(changes.to_vec());
            Ok(())
        }

        fn read(&mut self, _wait: Duration) -> Result<Vec<Trace>, String> {
            if self.fail {
                return Err("no more".to_owned());
            }
            let of = |table: &str| Trace {
                table: TableRef::new(Family::Inet, table),
                chain: "eg".into(),
                id: 7,
                step: Step::Rule {
                    handle: 3,
                    verdict: Verdict::Goto("eg_1".into()),
                },
                iif: None,
                oif: None,
                mark: None,
                nfproto: None,
                network: Vec::new(),
                transport: Vec::new(),
            };
            Ok(vec![of("terway_policy"), of("filter")])
        }
    }

    fn tcp() -> Flow {
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        Flow {
            source: ip(1),
            destination: ip(2),
            protocol: Protocol::TCP,
            port: 80,
        }
    }

    fn removes(fake: &Fake) -> bool {
        matches!(fake.commits.last().unwrap()[..], [Change::DeleteTable(_)])
    }

    #[test]
    fn trace_tells_of_our_tables_alone_and_is_removed_when_nobody_reads() {
        let mut fake = Fake::default();
        let mut lines = Vec::new();

        follow(
            &mut fake,
            &tcp(),
            &["terway_policy".to_owned()],
            &|| false,
            &mut |line| {
                lines.push(line);
                lines.len() < 3
            },
        )
        .unwrap();

        assert_eq!(lines.len(), 3);
        let first = &lines[0];
        assert_eq!(first, "00000007 inet terway_policy eg rule 3: goto eg_1");
        assert!(removes(&fake));
    }

    #[test]
    fn trace_is_removed_after_an_error() {
        let mut fake = Fake {
            fail: true,
            ..Fake::default()
        };

        let end = follow(&mut fake, &tcp(), &[], &|| false, &mut |_| true);

        assert_eq!(end.unwrap_err(), "no more");
        assert!(removes(&fake));
    }

    #[test]
    fn table_of_a_trace_goes_with_its_socket() {
        let changes = marking(&table(), &tcp(), true);

        let Change::CreateTable(table) = &changes[0] else {
            panic!("{changes:?}");
        };
        assert!(table.flags.owner && !table.flags.persist);
    }
}
