//! Facts about instances, their types and vSwitches: read once, kept for a while.
//!
//! Whoever asks while a read is under way waits for it and then finds the answer: one call serves all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use ecs_api::action::{MAX_DESCRIBE_IDS, MAX_DESCRIBE_PAGE, MAX_VSWITCH_IDS, MAX_VSWITCH_PAGE};
use ecs_api::model::Request;
use ecs_api::model::inventory::{
    DescribeInstanceTypes, DescribeInstances, DescribeVSwitches, Instance, VSwitch,
};
use tokio::sync::Mutex;
use tokio::time::Instant;
use types::cloud::{InstanceId, InstanceType, VSwitchId};
use types::quota::EniQuota;

use crate::call::{Caller, Terms};
use crate::failure::{Failure, Subject};

/// Entries per table. Reason: more instances than a region's account has; bounds the memory.
const MAX_ENTRIES: usize = 100_000;
/// Instance types in one call. Reason: not published; the length of a page.
const MAX_TYPES: usize = 100;

/// How long facts are kept.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Instances: their state may matter soon.
    pub instances: Duration,
    /// Types: they do not change.
    pub types: Duration,
    /// vSwitches: their free counts do change, and lag anyway.
    pub vswitches: Duration,
}

/// Facts with their age.
#[derive(Debug)]
struct Table<K, V> {
    keep: Duration,
    rows: HashMap<K, (Instant, V)>,
}

impl<K: Eq + Hash + Clone, V: Clone> Table<K, V> {
    fn new(keep: Duration) -> Self {
        Self {
            keep,
            rows: HashMap::new(),
        }
    }

    fn get(&self, key: &K) -> Option<&V> {
        let (read, value) = self.rows.get(key)?;
        (read.elapsed() < self.keep).then_some(value)
    }

    fn missing(&self, keys: &[K]) -> Vec<K> {
        let absent = keys.iter().filter(|key| self.get(key).is_none());
        absent.cloned().collect()
    }

    fn put(&mut self, key: K, value: V) {
        if self.rows.len() >= MAX_ENTRIES {
            let keep = self.keep;
            self.rows.retain(|_, (read, _)| read.elapsed() < keep);
        }
        if self.rows.len() < MAX_ENTRIES {
            self.rows.insert(key, (Instant::now(), value));
        }
    }
}

/// An instance with what its type allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFacts {
    /// The instance.
    pub instance: Instance,
    /// The limits of its type.
    pub quota: EniQuota,
}

/// The facts.
#[derive(Debug)]
pub struct Facts {
    caller: Arc<Caller>,
    instances: Mutex<Table<InstanceId, Instance>>,
    types: Mutex<Table<InstanceType, EniQuota>>,
    vswitches: Mutex<Table<VSwitchId, VSwitch>>,
}

impl Facts {
    /// Knows nothing yet.
    pub fn new(caller: Arc<Caller>, settings: Settings) -> Self {
        Self {
            caller,
            instances: Mutex::new(Table::new(settings.instances)),
            types: Mutex::new(Table::new(settings.types)),
            vswitches: Mutex::new(Table::new(settings.vswitches)),
        }
    }

    /// Instances with the limits of their types. Those that do not exist are absent.
    pub async fn instances(
        &self,
        ids: &[InstanceId],
        terms: &Terms,
    ) -> Result<Vec<InstanceFacts>, Failure> {
        let found = within(terms, self.read_instances(ids, terms)).await?;
        let types: Vec<_> = found.iter().map(|i| i.instance_type.clone()).collect();
        let quotas = within(terms, self.read_types(&types, terms)).await?;
        found
            .into_iter()
            .map(|instance| match quotas.get(&instance.instance_type) {
                Some(quota) => Ok(InstanceFacts {
                    quota: *quota,
                    instance,
                }),
                None => Err(Failure::NotFound {
                    id: instance.instance_type.to_string(),
                    what: format!("the type of {} is not known to the cloud", instance.id),
                }),
            })
            .collect()
    }

    /// vSwitches. Those that do not exist are absent.
    pub async fn vswitches(
        &self,
        ids: &[VSwitchId],
        terms: &Terms,
    ) -> Result<Vec<VSwitch>, Failure> {
        within(terms, self.read_vswitches(ids, terms)).await
    }

    async fn read_instances(
        &self,
        ids: &[InstanceId],
        terms: &Terms,
    ) -> Result<Vec<Instance>, Failure> {
        let mut table = self.instances.lock().await;
        for chunk in table.missing(ids).chunks(MAX_DESCRIBE_IDS) {
            let mut request = DescribeInstances {
                instances: chunk.to_vec(),
                max_results: Some(MAX_DESCRIBE_PAGE),
                next_token: None,
            };
            // As many pages as rows were asked for, and one: a cloud that goes on is not followed.
            for _ in 0..=chunk.len() {
                let page = ask(&self.caller, &request, terms).await?;
                for instance in page.instances {
                    table.put(instance.id.clone(), instance);
                }
                request.next_token = page.next_token.filter(|token| !token.is_empty());
                if request.next_token.is_none() {
                    break;
                }
            }
        }
        Ok(ids.iter().filter_map(|id| table.get(id).cloned()).collect())
    }

    async fn read_types(
        &self,
        ids: &[InstanceType],
        terms: &Terms,
    ) -> Result<HashMap<InstanceType, EniQuota>, Failure> {
        let mut table = self.types.lock().await;
        let mut missing = table.missing(ids);
        missing.sort_unstable();
        missing.dedup();
        for chunk in missing.chunks(MAX_TYPES) {
            let request = DescribeInstanceTypes {
                instance_types: chunk.to_vec(),
                max_results: Some(MAX_DESCRIBE_PAGE),
                next_token: None,
            };
            let page = ask(&self.caller, &request, terms).await?;
            for row in page.instance_types {
                table.put(row.id, row.quota);
            }
        }
        let known = ids
            .iter()
            .filter_map(|id| Some((id.clone(), *table.get(id)?)));
        Ok(known.collect())
    }

    async fn read_vswitches(
        &self,
        ids: &[VSwitchId],
        terms: &Terms,
    ) -> Result<Vec<VSwitch>, Failure> {
        let mut table = self.vswitches.lock().await;
        for chunk in table.missing(ids).chunks(MAX_VSWITCH_IDS) {
            let request = DescribeVSwitches {
                vswitches: chunk.to_vec(),
                page_size: Some(MAX_VSWITCH_PAGE),
                ..DescribeVSwitches::default()
            };
            let page = ask(&self.caller, &request, terms).await?;
            for vswitch in page.vswitches {
                table.put(vswitch.id.clone(), vswitch);
            }
        }
        Ok(ids.iter().filter_map(|id| table.get(id).cloned()).collect())
    }
}

async fn ask<R: Request + Sync>(
    caller: &Caller,
    request: &R,
    terms: &Terms,
) -> Result<R::Reply, Failure> {
    let answer = caller.call(request, terms).await;
    answer
        .map(|answer| answer.reply)
        .map_err(|error| Failure::of_call(R::ACTION, &error, &Subject::default()))
}

/// Bounds the wait for another reader's call too.
async fn within<T>(
    terms: &Terms,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout_at(terms.deadline, work)
        .await
        .unwrap_or_else(|_| {
            Err(Failure::Unavailable {
                what: "no answer before the deadline".to_owned(),
            })
        })
}
