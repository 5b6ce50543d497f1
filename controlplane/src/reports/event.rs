//! Events: one object for each key, counted up when it comes again, and not more of them than a node may make.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use mesh::status::{OVERLOADED, Refusal};
use proto::control::v1::PostEventRequest;
use proto::control::v1::post_event_request::About;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::Code;

use crate::kubernetes::{self, Failure, Kubernetes};
use crate::metrics::Outcome;
use crate::nodes::Nodes;
use crate::reports::pod::Bindings;
use crate::reports::{Caller, Unwritten, bad_field, component, cut, unknown_node, word};

/// Longest message, in bytes.
///
/// Source: Kubernetes' validation of events, noteLengthLimit.
const MESSAGE_MAX: usize = 1_024;
/// Events of one node at once, and how often it gets one more.
const BURST: u32 = 50;
const ONE_MORE: Duration = Duration::from_secs(1);
/// Keys that are remembered.
const REMEMBERED: usize = 8_192;
/// Where events of nodes are, since they have no namespace.
const NODE_NAMESPACE: &str = "default";

/// How much of its room one node has used: it fills by one with each event, and empties with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: u32,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { used: 0, at: now }
    }

    fn drained(mut self, now: Instant) -> Self {
        let ms = now.duration_since(self.at).as_millis();
        let more = u32::try_from(ms / ONE_MORE.as_millis().max(1)).unwrap_or(u32::MAX);
        self.used = self.used.saturating_sub(more);
        if self.used == 0 {
            self.at = now;
        } else {
            self.at += ONE_MORE.saturating_mul(more);
        }
        self
    }
}

/// What is known of one event object. Held while it is written, so that none is counted twice.
type Count = Arc<tokio::sync::Mutex<Option<i32>>>;

#[derive(Debug, Default)]
struct Known {
    counts: HashMap<String, Count>,
    order: VecDeque<String>,
    buckets: HashMap<String, Bucket>,
}

impl Known {
    fn count(&mut self, name: &str) -> Count {
        if let Some(count) = self.counts.get(name) {
            return Arc::clone(count);
        }
        let count = Count::default();
        self.counts.insert(name.to_owned(), Arc::clone(&count));
        self.order.push_back(name.to_owned());
        while self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
        count
    }

    /// Takes one from the node's room, or says when there is some.
    fn admit(&mut self, instance: &str, now: Instant) -> Result<(), Duration> {
        if self.buckets.len() >= REMEMBERED {
            self.buckets
                .retain(|_, bucket| bucket.drained(now).used > 0);
        }
        let bucket = self
            .buckets
            .entry(instance.to_owned())
            .or_insert_with(|| Bucket::new(now));
        *bucket = bucket.drained(now);
        if bucket.used >= BURST {
            return Err(ONE_MORE);
        }
        bucket.used += 1;
        Ok(())
    }
}

/// Writes events.
#[derive(Debug)]
pub struct Events {
    kubernetes: Kubernetes,
    nodes: Nodes,
    bindings: Bindings,
    known: Mutex<Known>,
}

/// The object that an event is about.
#[derive(Debug)]
struct Subject {
    reference: ObjectReference,
    namespace: String,
    /// The node's name.
    host: String,
}

impl Events {
    /// Writes through `kubernetes`.
    pub fn new(kubernetes: Kubernetes, nodes: Nodes) -> Self {
        Self {
            bindings: Bindings::new(kubernetes.clone(), nodes.clone()),
            kubernetes,
            nodes,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What is guarded is plain data: a panic leaves it usable.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn post(
        &self,
        caller: &Caller,
        request: PostEventRequest,
    ) -> Result<Outcome, Unwritten> {
        let component = component(&request.component)?;
        word("reason", &request.reason)?;
        if !matches!(request.r#type.as_str(), "Normal" | "Warning") {
            return Err(bad_field("type", "is neither Normal nor Warning"));
        }
        if request.key.len() > 1_024 {
            return Err(bad_field("key", "has more than 1024 bytes"));
        }
        self.known()
            .admit(&caller.instance, Instant::now())
            .map_err(|wait| {
                let why = "this node says too much";
                let refusal = Refusal::new(Code::ResourceExhausted, OVERLOADED, why);
                Unwritten::Later(refusal.retry_after(wait).into_status())
            })?;
        let subject = self.subject(caller, request.about.as_ref()).await?;
        let name = name_of(&subject, component, &request);
        let count = self.known().count(&name);
        let mut count = count.lock().await;
        let written = self.write(&name, &subject, component, &request, *count);
        *count = Some(written.await?);
        Ok(Outcome::Written)
    }

    async fn subject(&self, caller: &Caller, about: Option<&About>) -> Result<Subject, Unwritten> {
        let host = self
            .nodes
            .now()
            .name_of(&caller.instance)
            .map(str::to_owned);
        let host = host.ok_or_else(|| unknown_node(&caller.instance))?;
        match about {
            Some(About::Pod(pod)) => {
                let place = (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str());
                self.bindings.check(caller, place).await?;
                Ok(Subject {
                    reference: ObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Pod".to_owned()),
                        namespace: Some(pod.namespace.clone()),
                        name: Some(pod.name.clone()),
                        uid: Some(pod.uid.clone()),
                        ..ObjectReference::default()
                    },
                    namespace: pod.namespace.clone(),
                    host,
                })
            }
            Some(About::Node(_)) => {
                let uid = self.nodes.now().uid_of(&host).map(str::to_owned);
                Ok(Subject {
                    reference: ObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Node".to_owned()),
                        name: Some(host.clone()),
                        uid,
                        ..ObjectReference::default()
                    },
                    namespace: NODE_NAMESPACE.to_owned(),
                    host,
                })
            }
            None => Err(bad_field("about", "is missing")),
        }
    }

    /// Makes the event, or counts it up; gives its count.
    async fn write(
        &self,
        name: &str,
        subject: &Subject,
        component: &'static str,
        request: &PostEventRequest,
        known: Option<i32>,
    ) -> Result<i32, Failure> {
        let events = self.kubernetes.events(&subject.namespace);
        let params = PatchParams::default();
        if known.is_none() {
            let event = made(name, subject, component, request);
            let post = PostParams::default();
            let created = events.create(&post, &event);
            match self.kubernetes.ask("make an event", created).await {
                Ok(_) => return Ok(1),
                // By another replica, or by us before we forgot it.
                Err(failure) if failure.is_conflict() => {}
                Err(failure) => return Err(failure),
            }
        }
        let before = if let Some(count) = known {
            count
        } else {
            // We may change events, but not read them: a change of nothing tells what there is.
            let nothing = json!({});
            let touched = Patch::Merge(&nothing);
            let read = events.patch(name, &params, &touched);
            let there = self.kubernetes.ask("count an event", read).await?;
            there.count.unwrap_or(1)
        };
        let count = before.saturating_add(1);
        let change = json!({
            "count": count,
            "lastTimestamp": Time(kubernetes::now()),
            "message": cut(&request.message, MESSAGE_MAX),
        });
        let change = Patch::Merge(&change);
        let patched = events.patch(name, &params, &change);
        match self.kubernetes.ask("count an event", patched).await {
            Ok(_) => Ok(count),
            // The API server forgets events after an hour.
            Err(failure) if failure.is_missing() => {
                let event = made(name, subject, component, request);
                let post = PostParams::default();
                let created = events.create(&post, &event);
                self.kubernetes.ask("make an event", created).await?;
                Ok(1)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// The name of the object: the same for the same key, whoever writes it.
fn name_of(subject: &Subject, component: &str, request: &PostEventRequest) -> String {
    let about = &subject.reference;
    let parts = [
        about.uid.as_deref().unwrap_or_default(),
        component,
        &request.r#type,
        &request.reason,
        &request.key,
    ];
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let mut hash = [0; 8];
    for (to, from) in hash.iter_mut().zip(hasher.finalize()) {
        *to = from;
    }
    let hash = u64::from_be_bytes(hash);
    let of = about.name.as_deref().unwrap_or_default();
    format!("{}.{hash:016x}", cut(of, 236).trim_end_matches(['.', '-']))
}

fn made(name: &str, subject: &Subject, component: &str, request: &PostEventRequest) -> Event {
    let now = Some(Time(kubernetes::now()));
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(subject.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: subject.reference.clone(),
        type_: Some(request.r#type.clone()),
        reason: Some(request.reason.clone()),
        message: Some(cut(&request.message, MESSAGE_MAX)),
        source: Some(EventSource {
            component: Some(format!("terway-{component}")),
            host: Some(subject.host.clone()),
        }),
        reporting_component: Some(format!("terway-{component}")),
        reporting_instance: Some(subject.host.clone()),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(uid: &str) -> Subject {
        Subject {
            reference: ObjectReference {
                name: Some("pod-1".to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            },
            namespace: "n".to_owned(),
            host: "node-1".to_owned(),
        }
    }

    fn request(key: &str) -> PostEventRequest {
        PostEventRequest {
            r#type: "Warning".to_owned(),
            reason: "AllocIPFailed".to_owned(),
            key: key.to_owned(),
            ..PostEventRequest::default()
        }
    }

    #[test]
    fn event_has_one_name_for_one_key_of_one_object() {
        let name = |uid: &str, key: &str| name_of(&subject(uid), "node-agent", &request(key));

        assert_eq!(name("u1", "a"), name("u1", "a"));
        assert_ne!(name("u1", "a"), name("u1", "b"));
        assert_ne!(name("u1", "a"), name("u2", "a"));
        assert!(name("u1", "a").starts_with("pod-1."), "{}", name("u1", "a"));
    }

    #[test]
    fn node_that_says_too_much_waits_and_others_do_not() {
        let (mut known, now) = (Known::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(known.admit("i-1", now), Ok(()));
        }

        assert!(known.admit("i-1", now).is_err());
        assert_eq!(known.admit("i-2", now), Ok(()));
        assert_eq!(known.admit("i-1", now + ONE_MORE), Ok(()));
        assert!(known.admit("i-1", now + ONE_MORE).is_err());
    }

    #[test]
    fn room_of_a_silent_node_is_whole_again() {
        let (mut known, now) = (Known::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(known.admit("i-1", now), Ok(()));
        }

        let later = now + ONE_MORE * BURST * 2;
        for _ in 0..BURST {
            assert_eq!(known.admit("i-1", later), Ok(()));
        }
        assert!(known.admit("i-1", later).is_err());
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut known = Known::default();
        for at in 0..REMEMBERED * 2 {
            drop(known.count(&at.to_string()));
        }

        assert_eq!(known.counts.len(), REMEMBERED);
        assert_eq!(known.order.len(), REMEMBERED);
    }
}
