//! A store in etcd, 3.4 and later: what several replicas share.
//!
//! The client library balances over endpoints in a way that keeps choosing a dead one, so each
//! endpoint has a client of its own here: one is preferred until it fails, a failed one is left out
//! for a while. Only what is safe is sent again: reads, what never left this machine, and calls that
//! are the same when repeated. A write whose answer is lost is [`KvError::Unknown`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client as etcd;

use crate::log::SessionId;
use crate::log::kv::{Compare, KeyValue, Kv, KvError, Op, Txn, TxnReply};

pub mod endpoint;
mod failure;
mod pool;

use endpoint::{Security, SettingsError};
use pool::Pool;

/// One call to one endpoint may take so long.
///
/// Reason: a leader change takes about 1.5 s; a shorter deadline turns more of it into unknown
/// outcomes, a longer one keeps callers waiting on a dead member.
const CALL_DEADLINE: Duration = Duration::from_secs(1);

/// The largest answer that is accepted: a whole shard is read in one.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Where etcd is and how to speak to it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Members as `https://host:port`; `http://` only with [`Security::Insecure`].
    pub endpoints: Vec<String>,
    /// Who is on the other end.
    pub security: Security,
}

/// Keys in etcd.
#[derive(Clone)]
pub struct EtcdKv {
    /// Transactions.
    bulk: Arc<Pool>,
    /// Sessions: on connections of their own, so that a large answer does not delay a renewal.
    leases: Arc<Pool>,
}

impl fmt::Debug for EtcdKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdKv")
            .field("endpoints", &self.bulk.names())
            .finish_non_exhaustive()
    }
}

impl EtcdKv {
    /// Clients for the members; connects when first used, so etcd may be down.
    pub async fn new(settings: &Settings) -> Result<Self, SettingsError> {
        Ok(Self {
            bulk: Arc::new(Pool::new(settings).await?),
            leases: Arc::new(Pool::new(settings).await?),
        })
    }
}

#[async_trait]
impl Kv for EtcdKv {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, KvError> {
        txn.check()?;
        let repeatable = !txn.writes();
        let request = encode(&txn)?;
        let call = |client: etcd::Client| {
            let request = request.clone();
            let mut client = client
                .kv_client()
                .max_decoding_message_size(MAX_ANSWER_BYTES);
            async move { client.txn(request).await }
        };
        let answer = self.bulk.call(repeatable, call).await?;
        decode(&answer)
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, KvError> {
        let seconds = i64::try_from(ttl.as_secs().max(1))
            .map_err(|_| KvError::Invalid("a session for ever".to_owned()))?;
        // One whose answer is lost holds no key and expires by itself.
        let call =
            |client: etcd::Client| async move { client.lease_client().grant(seconds, None).await };
        let answer = self.leases.call(true, call).await?;
        Ok(SessionId(answer.id()))
    }

    async fn renew_session(&self, session: SessionId) -> Result<(), KvError> {
        let call = |client: etcd::Client| async move {
            client.lease_client().keep_alive(session.0).await.map(drop)
        };
        self.leases.call(true, call).await
    }

    async fn close_session(&self, session: SessionId) -> Result<(), KvError> {
        let call = |client: etcd::Client| async move {
            client.lease_client().revoke(session.0).await.map(drop)
        };
        match self.leases.call(true, call).await {
            Err(KvError::SessionEnded) => Ok(()),
            other => other,
        }
    }

    fn kind(&self) -> &'static str {
        "etcd"
    }
}

fn encode(txn: &Txn) -> Result<etcd::Txn, KvError> {
    let mut request = etcd::Txn::new();
    // The library wants them in this order and panics otherwise.
    if !txn.when.is_empty() {
        let when: Result<Vec<_>, _> = txn.when.iter().map(encode_compare).collect();
        request = request.when(when?);
    }
    if !txn.then.is_empty() {
        request = request.and_then(txn.then.iter().map(encode_op).collect::<Vec<_>>());
    }
    if !txn.otherwise.is_empty() {
        request = request.or_else(txn.otherwise.iter().map(encode_op).collect::<Vec<_>>());
    }
    Ok(request)
}

fn encode_compare(compare: &Compare) -> Result<etcd::Compare, KvError> {
    let revision = |wanted: u64| {
        i64::try_from(wanted).map_err(|_| KvError::Invalid(format!("revision {wanted}")))
    };
    Ok(match compare {
        Compare::ModRevision(key, wanted) => {
            etcd::Compare::mod_revision(key.as_str(), etcd::CompareOp::Equal, revision(*wanted)?)
        }
        Compare::CreateRevision(key, wanted) => {
            etcd::Compare::create_revision(key.as_str(), etcd::CompareOp::Equal, revision(*wanted)?)
        }
    })
}

fn encode_op(op: &Op) -> etcd::TxnOp {
    match op {
        Op::Get(key) => etcd::TxnOp::get(key.as_str(), None),
        Op::Range { from, to } => {
            let options = etcd::GetOptions::new().with_range(to.as_str());
            etcd::TxnOp::get(from.as_str(), Some(options))
        }
        Op::Put {
            key,
            value,
            session,
        } => {
            let options = session.map(|s| etcd::PutOptions::new().with_lease(s.0));
            etcd::TxnOp::put(key.as_str(), value.to_vec(), options)
        }
        Op::Delete(key) => etcd::TxnOp::delete(key.as_str(), None),
        Op::DeleteRange { from, to } => {
            let options = etcd::DeleteOptions::new().with_range(to.as_str());
            etcd::TxnOp::delete(from.as_str(), Some(options))
        }
    }
}

/// A write was done when this fails, hence unknown and not unavailable.
fn decode(answer: &etcd::TxnResponse) -> Result<TxnReply, KvError> {
    let revision = answer
        .header()
        .and_then(|header| u64::try_from(header.revision()).ok())
        .ok_or_else(|| KvError::Unknown("an answer without a revision".to_owned()))?;
    let mut reads = Vec::new();
    for response in answer.op_responses() {
        if let etcd::TxnOpResponse::Get(mut found) = response {
            let cells: Result<Vec<_>, _> = found.take_kvs().into_iter().map(decode_cell).collect();
            reads.push(cells?);
        }
    }
    Ok(TxnReply {
        succeeded: answer.succeeded(),
        revision,
        reads,
    })
}

fn decode_cell(cell: etcd::KeyValue) -> Result<KeyValue, KvError> {
    let odd = |what: &str| KvError::Unknown(format!("an answer with {what}"));
    let create_revision =
        u64::try_from(cell.create_revision()).map_err(|_| odd("a negative revision"))?;
    let mod_revision =
        u64::try_from(cell.mod_revision()).map_err(|_| odd("a negative revision"))?;
    let (key, value) = cell.into_key_value();
    Ok(KeyValue {
        key: String::from_utf8(key).map_err(|_| odd("a key that is no text"))?,
        value: Bytes::from(value),
        create_revision,
        mod_revision,
    })
}
