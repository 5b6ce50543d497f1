//! Follows one resource: reads the whole, then changes from there, and again when that place is lost.
//!
//! Of what was told, names and hashes are kept: enough to leave out what is not news (a node's heartbeat) and to find
//! what vanished while nobody watched. Nothing is taken back before a whole was read to its end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::documents::{Change, DocumentKey};
use crate::health::{Phase, Reason};
use crate::server::api::{Api, Failure, Lines, Query};
use crate::server::kinds::{Kind, Place};
use crate::server::note::{LIST, Note, WATCH};
use crate::server::pace::Pace;
use crate::server::wire::{Document, Event, Name, Page, Reader};

/// The first release that serves streamed lists without being asked to.
const STREAMS_SINCE: (u32, u32) = (1, 32);
/// A resource that had objects is believed to be gone when it was not found this often in a row.
const GONE_AFTER: u32 = 3;
/// A watch that stayed open this long was good.
const GOOD_WATCH: Duration = Duration::from_secs(5);
/// So many watches in a row on which nothing came at all: the place itself is doubted, and the whole read again.
const DOUBT_AFTER: u32 = 3;

/// What a follower tells.
#[derive(Debug)]
pub(super) enum Told {
    /// A change.
    Change(Change),
    /// All that was there has been told, and what is no longer there was taken back.
    Whole(usize),
}

/// Nobody reads any more.
#[derive(Debug)]
struct Unread;

/// Why a request has ended.
#[derive(Debug)]
enum End {
    /// The server closed the watch.
    Closed,
    Failed(&'static str, Failure),
    Unread,
}

impl From<Unread> for End {
    fn from(_: Unread) -> Self {
        Self::Unread
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    hash: u64,
    round: u32,
}

/// Which part of a resource is followed.
#[derive(Debug, Clone)]
pub(super) enum Part {
    All,
    /// Pods of this node.
    Node(String),
    /// The one object of this name; of this namespace, if the kind has them.
    Named {
        namespace: Option<String>,
        name: String,
    },
}

/// Follows one resource.
#[derive(Debug)]
pub(super) struct Follower {
    /// Its number among those of a source.
    pub(super) number: usize,
    pub(super) api: Api,
    pub(super) kind: &'static Kind,
    pub(super) part: Part,
    pub(super) pace: Pace,
    pub(super) note: Note,
    pub(super) out: mpsc::Sender<Told>,
    pub(super) state: State,
}

/// What a follower remembers.
#[derive(Debug)]
pub(super) struct State {
    seen: HashMap<Name, Seen>,
    hashes: RandomState,
    /// Grows with each reading of the whole.
    round: u32,
    /// Where changes go on; nothing: the whole must be read.
    version: Option<String>,
    /// Whether the server streams lists; nothing: not asked yet.
    streams: Option<bool>,
    /// Objects in a page.
    page: u32,
    /// Where it is asked for, or was found.
    place: Place,
    /// How often in a row it was not found in any place.
    missing: u32,
    /// Watches in a row on which nothing came.
    silent: u32,
}

impl State {
    pub(super) fn new(kind: &Kind, pace: &Pace) -> Self {
        Self {
            seen: HashMap::new(),
            hashes: RandomState::new(),
            round: 0,
            version: None,
            streams: None,
            page: pace.page.max(1),
            place: kind.place,
            missing: 0,
            silent: 0,
        }
    }
}

impl Follower {
    /// Follows until nobody reads.
    pub(super) async fn run(mut self) {
        let mut backoff = self.pace.backoff();
        loop {
            let begun = Instant::now();
            let end = match self.once().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let good = begun.elapsed() >= GOOD_WATCH;
            if good {
                backoff.reset();
            }
            let pause = match end {
                End::Unread => return,
                End::Closed if good => Duration::ZERO,
                End::Closed => backoff.next_wait(),
                End::Failed(verb, failure) => match self.failed(verb, &failure).await {
                    Ok(Some(pause)) => pause,
                    Ok(None) => backoff
                        .next_wait()
                        .max(failure.retry_after().unwrap_or_default().min(LONGEST_WISH)),
                    Err(Unread) => return,
                },
            };
            tokio::select! {
                biased;
                () = self.out.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What is done about a failure, and the pause before the next request; nothing when the usual one will do.
    async fn failed(
        &mut self,
        verb: &'static str,
        failure: &Failure,
    ) -> Result<Option<Duration>, Unread> {
        let reason = failure.reason();
        // 422: told not to stream lists. 500: its etcd is too old for them.
        if let Failure::Refused {
            code: 400 | 422 | 500,
            ..
        } = failure
            && self.state.version.is_none()
            && self.state.streams == Some(true)
        {
            self.state.streams = Some(false);
            return Ok(Some(Duration::ZERO));
        }
        if reason == Reason::Missing
            && self.kind.optional
            && let Some(pause) = self.not_found().await?
        {
            return Ok(Some(pause));
        }
        if self.note.failed(reason, verb, failure.to_string()) {
            let resource = self.note.resource();
            match reason {
                Reason::Forbidden | Reason::Unauthenticated => {
                    tracing::error!(verb, resource, %failure, "the API server refuses us");
                }
                Reason::Expired => tracing::info!(resource, "the place in the history is gone"),
                Reason::Unreachable | Reason::Overloaded | Reason::Missing | Reason::Odd => {
                    tracing::warn!(verb, resource, %failure, "the API server does not serve us");
                }
            }
        }
        match failure {
            Failure::Refused { code: 410, .. } => {
                let first = self.state.version.take().is_some();
                // It may be another server by now.
                self.state.streams = None;
                // A list whose continuation expired was slow: it has had its pause.
                return Ok(first.then(|| self.pace.spread()));
            }
            Failure::TooLong => self.state.page = (self.state.page / 2).max(1),
            Failure::Silent(_) => {
                self.state.silent = self.state.silent.saturating_add(1);
                if self.state.silent >= DOUBT_AFTER {
                    self.state.version = None;
                }
            }
            // A line that is not understood would come again and again.
            Failure::Garbled(_) => self.state.version = None,
            Failure::Unreachable(_) | Failure::Refused { .. } => {}
        }
        Ok(None)
    }

    /// One way through: the whole when it must be read, and changes until the server ends it.
    async fn once(&mut self) -> Result<std::convert::Infallible, End> {
        if let Some(version) = self.state.version.clone() {
            let lines = self
                .watch(&self.query().with("resourceVersion", &version))
                .await?;
            return self.read(lines, false).await;
        }
        self.note.phase(Phase::Listing);
        self.state.round = self.state.round.wrapping_add(1);
        if self.does_stream().await? {
            let query = self
                .query()
                .with("sendInitialEvents", "true")
                .with("resourceVersionMatch", "NotOlderThan");
            let lines = self.watch(&query).await?;
            return self.read(lines, true).await;
        }
        let version = self.list().await?;
        self.whole(LIST, version).await?;
        let version = self.state.version.clone().unwrap_or_default();
        let lines = self
            .watch(&self.query().with("resourceVersion", &version))
            .await?;
        self.read(lines, false).await
    }

    /// Whether the server streams lists: asked before each reading of the whole until it is known.
    async fn does_stream(&mut self) -> Result<bool, End> {
        if let Some(known) = self.state.streams {
            return Ok(known);
        }
        let text = self.api.get("/version", &Query::default(), JSON).await;
        let streams = match text {
            Ok(text) => release(&text).is_some_and(|release| release >= STREAMS_SINCE),
            // Who may list need not be allowed to ask that.
            Err(Failure::Refused {
                code: 401 | 403 | 404,
                ..
            }) => false,
            Err(failure) => return Err(End::Failed(LIST, failure)),
        };
        self.state.streams = Some(streams);
        Ok(streams)
    }

    fn query(&self) -> Query {
        match &self.part {
            Part::All => Query::default(),
            Part::Node(node) => {
                Query::default().with("fieldSelector", &format!("spec.nodeName={node}"))
            }
            // By this selector RBAC knows that it is about one object.
            Part::Named { name, .. } => {
                Query::default().with("fieldSelector", &format!("metadata.name={name}"))
            }
        }
    }

    fn path(&self) -> String {
        let namespace = match &self.part {
            Part::Named { namespace, .. } => namespace.as_deref(),
            Part::All | Part::Node(_) => None,
        };
        self.state.place.path(namespace, self.kind.plural)
    }

    async fn watch(&mut self, query: &Query) -> Result<Lines, End> {
        let path = self.path();
        let seconds = self.pace.watch().as_secs().max(1).to_string();
        let query = query
            .clone()
            .with("watch", "true")
            .with("allowWatchBookmarks", "true")
            .with("timeoutSeconds", &seconds);
        let accept = if self.kind.metadata_only {
            METADATA
        } else {
            JSON
        };
        let lines = self
            .api
            .follow(&path, &query, accept, self.pace.silence)
            .await;
        lines.map_err(|failure| End::Failed(WATCH, failure))
    }

    /// Reads a watch to its end. `filling`: it begins with everything there is.
    async fn read(
        &mut self,
        mut lines: Lines,
        mut filling: bool,
    ) -> Result<std::convert::Infallible, End> {
        let api_version = self.state.place.api_version();
        let reader = self.reader(&api_version);
        let fail = |failure: Failure| End::Failed(WATCH, failure);
        if !filling {
            self.note.phase(Phase::Watching);
            self.note.contact(WATCH, self.state.seen.len());
        }
        loop {
            let line = lines.next().await.map_err(fail)?.ok_or(End::Closed)?;
            self.state.silent = 0;
            self.state.missing = 0;
            let event = reader
                .event(&line)
                .map_err(|garbled| fail(garbled.into()))?;
            let version = match event {
                Event::Put(document) => {
                    let version = document.version.clone();
                    self.put(document).await?;
                    version
                }
                Event::Gone(document) => {
                    self.gone(&document.name).await?;
                    document.version
                }
                Event::Bookmark {
                    version,
                    initial_end,
                } => {
                    if filling && initial_end {
                        filling = false;
                        self.whole(WATCH, version.clone()).await?;
                        self.note.phase(Phase::Watching);
                    }
                    version
                }
                Event::Refused(refusal) => return Err(fail(refusal.into())),
            };
            self.note.contact(WATCH, self.state.seen.len());
            // While filling, objects come in no order of versions.
            if !filling {
                self.state.version = Some(version);
            }
        }
    }

    /// Reads the whole page by page, and says as of when it is.
    async fn list(&mut self) -> Result<String, End> {
        let path = self.path();
        let api_version = self.state.place.api_version();
        let accept = if self.kind.metadata_only {
            METADATA_LIST
        } else {
            JSON
        };
        let mut more: Option<String> = None;
        loop {
            let query = match (&self.part, &more) {
                // From the server's memory, where pods are sorted by node; from the disk it would read all of them.
                (Part::Node(_), _) => self.query().with("resourceVersion", "0"),
                (Part::All | Part::Named { .. }, None) => {
                    self.query().with("limit", &self.state.page.to_string())
                }
                (Part::All | Part::Named { .. }, Some(more)) => self
                    .query()
                    .with("limit", &self.state.page.to_string())
                    .with("continue", more),
            };
            let text = self.api.get(&path, &query, accept).await;
            let text = text.map_err(|failure| End::Failed(LIST, failure))?;
            let page = self.reader(&api_version).page(&text);
            let page: Page = page.map_err(|garbled| End::Failed(LIST, garbled.into()))?;
            drop(text);
            for document in page.items {
                self.put(document).await?;
            }
            self.state.missing = 0;
            self.note.contact(LIST, self.state.seen.len());
            more = page.more;
            if more.is_none() {
                return Ok(page.version);
            }
        }
    }

    fn reader<'a>(&self, api_version: &'a str) -> Reader<'a> {
        Reader {
            api_version,
            kind: self.kind.name,
            shape: self.kind.shape,
        }
    }

    async fn put(&mut self, document: Document) -> Result<(), Unread> {
        let hash = self.state.hashes.hash_one(&document.value);
        let round = self.state.round;
        let now = Seen { hash, round };
        match self.state.seen.entry(document.name) {
            Entry::Occupied(mut known) => {
                if known.insert(now).hash == hash {
                    return Ok(());
                }
            }
            Entry::Vacant(place) => {
                place.insert(now);
            }
        }
        self.tell(Told::Change(Change::Upsert(document.value)))
            .await
    }

    async fn gone(&mut self, name: &Name) -> Result<(), Unread> {
        if self.state.seen.remove(name).is_none() {
            return Ok(());
        }
        let key = DocumentKey {
            api_version: self.state.place.api_version(),
            kind: self.kind.name.to_owned(),
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
        };
        self.tell(Told::Change(Change::Delete(key))).await
    }

    /// The whole was told, as of `version`.
    async fn whole(&mut self, verb: &'static str, version: String) -> Result<(), Unread> {
        self.sweep().await?;
        self.state.version = Some(version);
        self.note.whole(verb, self.state.seen.len());
        self.tell(Told::Whole(self.number)).await
    }

    /// Takes back what this round did not see.
    async fn sweep(&mut self) -> Result<(), Unread> {
        let round = self.state.round;
        let seen = self.state.seen.iter();
        let vanished: Vec<Name> = seen
            .filter(|(_, seen)| seen.round != round)
            .map(|(name, _)| name.clone())
            .collect();
        for name in vanished {
            self.gone(&name).await?;
        }
        Ok(())
    }

    /// What is done when a resource that need not be there is not there; nothing when that is not believed yet.
    async fn not_found(&mut self) -> Result<Option<Duration>, Unread> {
        if !self.state.seen.is_empty() {
            // A server that has just started does not know all of its resources.
            self.state.missing = self.state.missing.saturating_add(1);
            if self.state.missing < GONE_AFTER {
                return Ok(None);
            }
            self.state.round = self.state.round.wrapping_add(1);
            self.sweep().await?;
        }
        self.state.version = None;
        self.state.missing = 0;
        let mut others = self.kind.elsewhere.iter();
        if self.state.place != self.kind.place {
            others.find(|place| **place == self.state.place);
        }
        if let Some(next) = others.next() {
            self.state.place = *next;
            return Ok(Some(Duration::ZERO));
        }
        self.state.place = self.kind.place;
        self.note.absent();
        self.tell(Told::Whole(self.number)).await?;
        Ok(Some(self.pace.absent()))
    }

    async fn tell(&self, told: Told) -> Result<(), Unread> {
        self.out.send(told).await.map_err(|_| Unread)
    }
}

/// Longest time that a server's wish to be left alone is followed.
const LONGEST_WISH: Duration = Duration::from_mins(1);

const JSON: &str = "application/json";
const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Major and minor number of what `/version` says; a minor number can end in `+`.
fn release(text: &[u8]) -> Option<(u32, u32)> {
    let version: Value = serde_json::from_slice(text).ok()?;
    let number = |key: &str| {
        let text = version.get(key)?.as_str()?;
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        text.get(..digits)?.parse().ok()
    };
    Some((number("major")?, number("minor")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_is_read_with_and_without_a_plus() {
        let of = |text: &str| release(text.as_bytes());

        assert_eq!(of(r#"{"major": "1", "minor": "34"}"#), Some((1, 34)));
        assert_eq!(of(r#"{"major": "1", "minor": "31+"}"#), Some((1, 31)));
        assert_eq!(of(r#"{"major": "", "minor": ""}"#), None);
        assert_eq!(of("<html>"), None);
    }
}
