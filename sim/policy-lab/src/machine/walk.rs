//! One packet on its way through the hooks, one small step at a time.
//!
//! A step is one thing that a packet reads: the list of base chains of a hook, the generation at the start of a base
//! chain, the rules of a chain it enters, or one expression. Between any two of them a transaction may go on. The
//! packet keeps the parity of the generation that it read at the start of the base chain; lookups in sets always use
//! the present generation. That difference is what a badly ordered change leaks through.

mod load;

use std::sync::Arc;

use nft_wire::chain::{Hook, Policy};
use nft_wire::expr::{ByteorderOp, CmpOp, CtKey, DynsetOp, Expr, Register, Reject};
use nft_wire::key::key_len;
use nft_wire::name::Name;
use nft_wire::verdict::Verdict;

use crate::machine::conntrack::{Conntrack, Sight};
use crate::machine::packet::{Packet, Path};
use crate::machine::tables::{Laws, Tables};

const WORDS: usize = 16;

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It left by its way.
    Passed,
    /// A chain dropped it.
    Dropped {
        /// Which one.
        chain: Name,
    },
    /// A chain refused it with an answer.
    Rejected {
        /// Which one.
        chain: Name,
        /// How.
        with: Reject,
    },
}

impl Fate {
    /// Whether it left by its way.
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Passed)
    }
}

/// What a packet does to the machine, once it is through.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// A counter of a rule: the rule's number and the expression's place in it.
    Count(u64, usize),
    /// An element of a dynamic set.
    Element(u64, Vec<u8>, DynsetOp),
    /// The flow's mark.
    Mark(u32),
}

/// What a packet reads besides the tables.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The connection tracker of the namespace.
    pub conntrack: &'a Conntrack,
    /// Where the packet's destination is translated to on its way.
    pub translated: Option<(std::net::IpAddr, u16)>,
}

#[derive(Debug, Clone)]
struct Frame {
    chain: u64,
    laws: Arc<Laws>,
    rule: usize,
    expr: usize,
}

/// Where a walk stands; equal positions go on alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    stage: usize,
    queue: Vec<u64>,
    base: Option<u64>,
    parity: Option<usize>,
    entering: Option<u64>,
    frames: Vec<(u64, u64, usize, usize)>,
    registers: [[u8; 4]; WORDS],
}

/// A packet on its way.
#[derive(Debug, Clone)]
pub struct Walk {
    packet: Packet,
    path: Path,
    stages: Vec<Stage>,
    stage: usize,
    queue: Vec<u64>,
    base: Option<u64>,
    parity: Option<usize>,
    entering: Option<u64>,
    frames: Vec<Frame>,
    registers: [[u8; 4]; WORDS],
    sight: Option<Sight>,
    /// What it did so far.
    pub effects: Vec<Effect>,
    /// Chains that it entered, for people.
    pub trail: Vec<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ingress,
    Track,
    Hook(Hook),
    Translate,
    Egress,
}

enum Next {
    Expr,
    Rule,
    Verdict(Verdict, Option<u64>),
    Reject(Reject),
}

impl Walk {
    /// A packet at the beginning of its way.
    pub fn new(packet: &Packet, path: &Path) -> Self {
        let stages = match path {
            Path::Forward { .. } => vec![
                Stage::Ingress,
                Stage::Track,
                Stage::Hook(Hook::Prerouting),
                Stage::Translate,
                Stage::Hook(Hook::Forward),
                Stage::Hook(Hook::Postrouting),
                Stage::Egress,
            ],
            Path::Input { .. } => vec![
                Stage::Ingress,
                Stage::Track,
                Stage::Hook(Hook::Prerouting),
                Stage::Translate,
                Stage::Hook(Hook::Input),
            ],
            Path::Output { .. } => vec![
                Stage::Track,
                Stage::Translate,
                Stage::Hook(Hook::Output),
                Stage::Hook(Hook::Postrouting),
                Stage::Egress,
            ],
        };
        Self {
            packet: packet.clone(),
            path: path.clone(),
            stages,
            stage: 0,
            queue: Vec::new(),
            base: None,
            parity: None,
            entering: None,
            frames: Vec::new(),
            registers: [[0; 4]; WORDS],
            sight: None,
            effects: Vec::new(),
            trail: Vec::new(),
        }
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        Position {
            stage: self.stage,
            queue: self.queue.clone(),
            base: self.base,
            parity: self.parity,
            entering: self.entering,
            frames: self
                .frames
                .iter()
                .map(|f| (f.chain, f.laws.version, f.rule, f.expr))
                .collect(),
            registers: self.registers,
        }
    }

    /// The packet as it is now, translated or not.
    pub const fn packet(&self) -> &Packet {
        &self.packet
    }

    /// To the end, while the tables stand still.
    pub fn run(&mut self, tables: &Tables, around: Surroundings<'_>) -> Fate {
        loop {
            if let Some(fate) = self.step(tables, around) {
                return fate;
            }
        }
    }

    /// One step; the packet's fate when that was the last.
    pub fn step(&mut self, tables: &Tables, around: Surroundings<'_>) -> Option<Fate> {
        if let Some(chain) = self.entering {
            return self.enter(tables, chain);
        }
        if !self.frames.is_empty() {
            return self.expression(tables, around);
        }
        if let Some(base) = self.base {
            // The generation is read; the next step reads the rules.
            if self.parity.is_none() {
                self.parity = Some(tables.parity);
                self.entering = Some(base);
                return None;
            }
            return self.end_of_base(tables, base);
        }
        if !self.queue.is_empty() {
            self.base = Some(self.queue.remove(0));
            self.parity = None;
            return None;
        }
        self.next_stage(tables, around)
    }

    fn next_stage(&mut self, tables: &Tables, around: Surroundings<'_>) -> Option<Fate> {
        let Some(stage) = self.stages.get(self.stage).copied() else {
            return Some(Fate::Passed);
        };
        self.stage += 1;
        match stage {
            Stage::Ingress => self.queue = tables.hooked(Hook::Ingress, self.path.from()),
            Stage::Egress => self.queue = tables.hooked(Hook::Egress, self.path.to()),
            Stage::Hook(hook) => self.queue = tables.hooked(hook, None),
            Stage::Track => self.sight = Some(around.conntrack.look(&self.packet)),
            Stage::Translate => {
                if let Some((address, port)) = around.translated {
                    self.packet.destination = address;
                    if !self.packet.is_icmp() {
                        self.packet.destination_port = port;
                    }
                }
            }
        }
        None
    }

    fn enter(&mut self, tables: &Tables, chain: u64) -> Option<Fate> {
        self.entering = None;
        // A chain that is gone is still in the memory of those that hold it, with no rules of this generation.
        let state = tables.chain(chain)?;
        let parity = self.parity.unwrap_or(tables.parity);
        self.trail.push(Arc::clone(&state.chain.name));
        let laws = Arc::clone(state.slots.get(parity).unwrap_or(&state.slots[0]));
        self.frames.push(Frame {
            chain,
            laws,
            rule: 0,
            expr: 0,
        });
        None
    }

    fn end_of_base(&mut self, tables: &Tables, base: u64) -> Option<Fate> {
        self.base = None;
        self.parity = None;
        let state = tables.chain(base)?;
        let policy = state.chain.base.as_ref().map(|b| b.policy);
        (policy == Some(Policy::Drop)).then(|| Fate::Dropped {
            chain: Arc::clone(&state.chain.name),
        })
    }

    fn expression(&mut self, tables: &Tables, around: Surroundings<'_>) -> Option<Fate> {
        let frame = self.frames.last_mut()?;
        let Some(law) = frame.laws.list.get(frame.rule).map(Arc::clone) else {
            self.frames.pop();
            return None;
        };
        let index = frame.expr;
        let Some(expr) = law.rule.exprs.get(index) else {
            frame.rule += 1;
            frame.expr = 0;
            return None;
        };
        frame.expr += 1;
        let refers = law.refers.get(index).copied().flatten();
        match self.evaluate(tables, around, expr, refers, (law.handle, index)) {
            Next::Expr => None,
            Next::Rule => {
                self.skip_rule();
                None
            }
            Next::Reject(with) => Some(Fate::Rejected {
                chain: Arc::clone(&law.rule.chain),
                with,
            }),
            Next::Verdict(verdict, target) => self.decide(&verdict, target, &law.rule.chain),
        }
    }

    fn skip_rule(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.rule += 1;
            frame.expr = 0;
        }
    }

    fn decide(&mut self, verdict: &Verdict, target: Option<u64>, chain: &Name) -> Option<Fate> {
        match verdict {
            Verdict::Accept => {
                self.frames.clear();
                self.base = None;
                self.parity = None;
            }
            Verdict::Drop => {
                return Some(Fate::Dropped {
                    chain: Arc::clone(chain),
                });
            }
            Verdict::Continue | Verdict::Break => self.skip_rule(),
            Verdict::Return => {
                self.frames.pop();
            }
            Verdict::Jump(_) => {
                self.skip_rule();
                self.entering = target;
            }
            Verdict::Goto(_) => {
                self.frames.pop();
                self.entering = target;
            }
        }
        None
    }

    fn bytes(&self, from: Register, len: usize) -> Vec<u8> {
        let start = usize::from(from.word()) * 4;
        self.registers
            .iter()
            .flatten()
            .copied()
            .skip(start)
            .take(len)
            .collect()
    }

    /// Loads bytes; the rest of the last word becomes zero.
    fn load(&mut self, to: Register, data: &[u8]) -> Next {
        let start = usize::from(to.word());
        for (word, chunk) in self.registers.iter_mut().skip(start).zip(data.chunks(4)) {
            *word = [0; 4];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
        }
        Next::Expr
    }

    fn evaluate(
        &mut self,
        tables: &Tables,
        around: Surroundings<'_>,
        expr: &Expr,
        refers: Option<u64>,
        place: (u64, usize),
    ) -> Next {
        match expr {
            Expr::Meta { key, to } => match self.meta(*key) {
                Some(data) => self.load(*to, &data),
                None => Next::Rule,
            },
            Expr::Ct { key, direction, to } => match self.ct(around, *key, *direction) {
                Some(data) => self.load(*to, &data),
                None => Next::Rule,
            },
            Expr::MetaSet { .. } => Next::Expr,
            Expr::CtSet { key, from } => {
                if *key == CtKey::Mark {
                    let mark = self
                        .bytes(*from, 4)
                        .try_into()
                        .map_or(0, u32::from_ne_bytes);
                    self.effects.push(Effect::Mark(mark));
                }
                Next::Expr
            }
            Expr::Payload {
                base,
                offset,
                len,
                to,
            } => match self.payload(*base, *offset, *len) {
                Some(data) => self.load(*to, &data),
                None => Next::Rule,
            },
            Expr::Cmp { op, from, data } => yes(compare(*op, &self.bytes(*from, data.len()), data)),
            Expr::Range {
                inverted,
                from,
                low,
                high,
            } => {
                let value = self.bytes(*from, low.len());
                let inside =
                    low.as_slice() <= value.as_slice() && value.as_slice() <= high.as_slice();
                yes(inside != *inverted)
            }
            Expr::Bitwise {
                from,
                to,
                mask,
                xor,
            } => {
                let value = self.bytes(*from, mask.len());
                let out: Vec<u8> = value
                    .iter()
                    .zip(mask)
                    .zip(xor)
                    .map(|((v, m), x)| (v & m) ^ x)
                    .collect();
                self.load(*to, &out)
            }
            Expr::Byteorder {
                from,
                to,
                op: ByteorderOp::ToHost | ByteorderOp::ToNetwork,
                len,
                size,
            } => {
                let len = usize::try_from(*len).unwrap_or(0);
                let size = usize::try_from(*size).unwrap_or(1).max(1);
                let mut out = self.bytes(*from, len);
                if cfg!(target_endian = "little") {
                    out.chunks_mut(size).for_each(<[u8]>::reverse);
                }
                self.load(*to, &out)
            }
            Expr::Immediate { data, to } => self.load(*to, data),
            Expr::Lookup { from, inverted, .. } => {
                yes(self.find(tables, refers, *from).is_some() != *inverted)
            }
            Expr::Vmap { from, .. } => match self.find(tables, refers, *from) {
                Some((Some(verdict), target)) => Next::Verdict(verdict, target),
                _ => Next::Rule,
            },
            Expr::Verdict(verdict) => Next::Verdict(verdict.clone(), refers),
            Expr::Counter { .. } => {
                self.effects.push(Effect::Count(place.0, place.1));
                Next::Expr
            }
            Expr::Dynset {
                op, key, inverted, ..
            } => self.dynset(tables, refers, *op, *key, *inverted),
            Expr::Reject(with) => Next::Reject(*with),
            // Below every rate.
            Expr::Limit { inverted, .. } => yes(!inverted),
            Expr::CounterRef { .. } | Expr::CounterMap { .. } | Expr::Other { .. } => Next::Rule,
        }
    }

    fn find(
        &self,
        tables: &Tables,
        set: Option<u64>,
        from: Register,
    ) -> Option<(Option<Verdict>, Option<u64>)> {
        let state = tables.set(set?)?;
        let key = self.bytes(from, key_len(&state.set.key));
        let member = state.members.find(&state.set, &key)?;
        Some((member.verdict.clone(), member.target))
    }

    /// A set that is full ends the rule, and so does nothing else but the inverted form.
    fn dynset(
        &mut self,
        tables: &Tables,
        set: Option<u64>,
        op: DynsetOp,
        key: Register,
        inverted: bool,
    ) -> Next {
        let Some((id, state)) = set.and_then(|id| Some((id, tables.set(id)?))) else {
            return Next::Rule;
        };
        let key = self.bytes(key, key_len(&state.set.key));
        let there = state.members.find(&state.set, &key).is_some();
        let full = state
            .set
            .size
            .and_then(|most| usize::try_from(most).ok())
            .is_some_and(|most| state.members.len() >= most);
        if !there && full && op != DynsetOp::Delete {
            return Next::Rule;
        }
        self.effects.push(Effect::Element(id, key, op));
        yes(!inverted)
    }
}

const fn yes(matches: bool) -> Next {
    if matches { Next::Expr } else { Next::Rule }
}

fn compare(op: CmpOp, left: &[u8], right: &[u8]) -> bool {
    match op {
        CmpOp::Eq => left == right,
        CmpOp::Neq => left != right,
        CmpOp::Lt => left < right,
        CmpOp::Lte => left <= right,
        CmpOp::Gt => left > right,
        CmpOp::Gte => left >= right,
    }
}
