//! Watches that are open.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::mpsc;

use super::answer::{Body, bookmark, event};
use super::{BOOKMARKS, Fake, selected};

/// A watch that is open.
pub(crate) struct Follow {
    pub(crate) fake: Fake,
    pub(crate) version: u64,
    pub(crate) path: String,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) metadata: bool,
}

impl Follow {
    #[expect(
        clippy::disallowed_methods,
        reason = "a server of a test lives as long as its runtime"
    )]
    pub(crate) fn start(
        mut self,
        first: impl Iterator<Item = String> + Send + 'static,
    ) -> Response<Body> {
        let (out, lines) = mpsc::channel::<String>(64);
        let up = self.fake.up();
        tokio::spawn(up.run_until_cancelled_owned(async move {
            for line in first {
                if out.send(line).await.is_err() {
                    return;
                }
            }
            let end = self
                .parameters
                .get("timeoutSeconds")
                .map(|text| text.parse().unwrap());
            let end = tokio::time::sleep(Duration::from_secs(end.unwrap_or(3_600)));
            tokio::select! {
                () = end => {}
                () = self.run(&out) => {}
            }
        }));
        let frames = tokio_stream::wrappers::ReceiverStream::new(lines);
        let frames = frames.map(|line| Ok(Frame::data(Bytes::from(line))));
        // Two lines may come in pieces that end anywhere.
        let body = BodyExt::boxed(StreamBody::new(frames));
        Response::new(body)
    }

    async fn run(&mut self, out: &mpsc::Sender<String>) {
        let mut changed = self.fake.changed.subscribe();
        let mut mute = self.fake.mute.subscribe();
        let mut bookmarks = tokio::time::interval(BOOKMARKS);
        loop {
            // A connection that died stays so.
            if *mute.borrow_and_update() {
                std::future::pending::<()>().await;
            }
            for line in self.news() {
                if out.send(line).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = out.closed() => return,
                _ = changed.changed() => {}
                _ = mute.changed() => {}
                _ = bookmarks.tick() => if let Some(line) = self.bookmark()
                    && !*mute.borrow()
                    && out.send(line).await.is_err()
                {
                    return;
                },
            }
        }
    }

    /// A bookmark, when everything before it was told.
    fn bookmark(&mut self) -> Option<String> {
        if !self.news_are_told() {
            return None;
        }
        let state = self.fake.lock();
        state.bookmarks.then(|| bookmark(state.version, false))
    }

    fn news_are_told(&self) -> bool {
        let state = self.fake.lock();
        let mut newer = state
            .history
            .iter()
            .filter(|happened| happened.version > self.version);
        self.version >= state.compacted && newer.next().is_none()
    }

    fn news(&mut self) -> Vec<String> {
        let state = self.fake.lock();
        if self.version < state.compacted {
            let gone =
                json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
            let line = json!({"type": "ERROR", "object": gone}).to_string();
            self.version = u64::MAX;
            return vec![line + "\n"];
        }
        let since = self.version;
        let news = state
            .history
            .iter()
            .filter(|happened| happened.version > since);
        let news = news.filter(|happened| happened.path == self.path);
        let news = news.filter(|happened| selected(&happened.object, &self.parameters));
        let lines = news
            .map(|happened| event(happened.kind, &happened.object, self.metadata))
            .collect();
        if self.version != u64::MAX {
            self.version = state.version;
        }
        lines
    }
}
