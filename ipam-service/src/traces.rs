//! Which trace caused an operation or a grant, for as long as this process remembers.
//!
//! Traces are no part of the log: after a restart an operation goes on without its trace. The writer of the shard
//! notes a trace before it shows the record, so whoever sees the record finds the trace.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipam_core::eni::EniKey;
use ipam_core::record::Record;
use types::op::Seq;

/// Most entries of each sort; the oldest go first.
///
/// Reason: a shard of 4,096 addresses has at most some hundred ENIs and operations.
const MAX: usize = 1_024;

/// Traceparents by operation and by ENI.
#[derive(Debug, Default)]
pub struct Traces {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ops: BTreeMap<Seq, String>,
    enis: BTreeMap<EniKey, String>,
}

impl Traces {
    /// Notes what caused `record`, number `seq`.
    pub fn note(&self, seq: Seq, record: &Record, traceparent: &str) {
        let mut inner = self.lock();
        if record.is_intent() {
            put(&mut inner.ops, seq, traceparent);
        }
        if let Record::Held { eni, .. } | Record::Revoke { eni, .. } = record {
            put(&mut inner.enis, *eni, traceparent);
        }
    }

    /// What caused an operation; empty if that is not known.
    pub fn of_op(&self, op: Seq) -> String {
        self.lock().ops.get(&op).cloned().unwrap_or_default()
    }

    /// What caused the newest grant or revoke on an ENI; empty if that is not known.
    pub fn of_eni(&self, eni: EniKey) -> String {
        self.lock().enis.get(&eni).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put(map: &mut BTreeMap<Seq, String>, key: Seq, traceparent: &str) {
    map.insert(key, traceparent.to_owned());
    if map.len() > MAX {
        map.pop_first();
    }
}
