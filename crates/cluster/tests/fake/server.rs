//! A small API server: it keeps objects and their history, serves lists and watches of them over HTTP as a real one
//! does, and can be told to misbehave.

mod answer;
mod follow;
pub(crate) mod made_up;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use answer::{Body, bookmark, cut_off, event, item, refusal, whole};
use follow::Follow;

/// Time between bookmarks.
const BOOKMARKS: Duration = Duration::from_millis(100);

/// Where a kind is served: `apiVersion`, `kind`, and what it is called in paths.
pub(crate) const RESOURCES: &[(&str, &str, &str)] = &[
    ("v1", "Pod", "pods"),
    ("v1", "Namespace", "namespaces"),
    ("v1", "Node", "nodes"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    (
        "crd.projectcalico.org/v1",
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
    ),
    (
        "crd.projectcalico.org/v1",
        "NetworkPolicy",
        "networkpolicies",
    ),
    (
        "projectcalico.org/v3",
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
    ),
    (
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
    ),
];

/// Path of a collection.
pub(crate) fn path(api_version: &str, plural: &str) -> String {
    if api_version.contains('/') {
        format!("/apis/{api_version}/{plural}")
    } else {
        format!("/api/{api_version}/{plural}")
    }
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) accept: String,
}

impl Asked {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }
}

#[derive(Debug)]
struct Happened {
    version: u64,
    path: String,
    kind: &'static str,
    object: Value,
}

#[derive(Debug)]
struct State {
    version: u64,
    /// What happened up to here is forgotten.
    compacted: u64,
    objects: BTreeMap<(String, String, String), Value>,
    history: VecDeque<Happened>,
    served: BTreeSet<String>,
    /// Answered to whoever uses this verb on this path.
    refused: HashMap<(&'static str, String), u16>,
    /// Answered to the next requests, whatever they are.
    troubles: VecDeque<(u16, Option<u64>)>,
    minor: u32,
    /// What streamed lists are refused with.
    no_streams: Option<u16>,
    bookmarks: bool,
    /// Pages of lists end their connection in the middle.
    cut: u32,
    asked: Vec<Asked>,
    /// Pods that are made up as they are asked for.
    made_up: usize,
}

/// The server.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    address: SocketAddr,
    /// Ends all connections when cancelled.
    up: Arc<Mutex<CancellationToken>>,
    /// Watches stay open and say nothing.
    mute: Arc<watch::Sender<bool>>,
}

impl Fake {
    /// Starts a server that has all of [`RESOURCES`] but Calico's third version.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let served = RESOURCES
            .iter()
            .map(|(version, _, plural)| path(version, plural));
        let state = State {
            version: 10,
            compacted: 0,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            served: served.filter(|path| !path.contains("/v3/")).collect(),
            refused: HashMap::new(),
            troubles: VecDeque::new(),
            minor: 34,
            no_streams: None,
            bookmarks: true,
            cut: 0,
            asked: Vec::new(),
            made_up: 0,
        };
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(watch::Sender::new(0)),
            address: listener.local_addr().unwrap(),
            up: Arc::default(),
            mute: Arc::new(watch::Sender::new(false)),
        };
        fake.serve(listener);
        fake
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> CancellationToken {
        self.up
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a server of a test lives as long as its runtime"
    )]
    fn serve(&self, listener: TcpListener) {
        let up = CancellationToken::new();
        *self.up.lock().unwrap() = up.clone();
        let fake = self.clone();
        tokio::spawn(up.clone().run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = fake.clone();
                let service = hyper::service::service_fn(move |request| {
                    let fake = fake.clone();
                    async move { Ok::<_, Infallible>(fake.answer(&request)) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(up.clone().run_until_cancelled_owned(connection));
            }
        }));
    }

    /// A kubeconfig file for this server.
    pub(crate) fn kubeconfig(&self, dir: &std::path::Path) -> std::path::PathBuf {
        let file = dir.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{token: secret}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.address
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Ends the server; what it keeps stays.
    pub(crate) fn stop(&self) {
        self.up().cancel();
    }

    /// Starts it again at the same address.
    pub(crate) async fn go_on(&self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        self.serve(listener);
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, mut object: Value) {
        let path = path_of(&object);
        let mut state = self.lock();
        assert!(state.served.contains(&path), "{path} is not served");
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = Value::from(version.to_string());
        object["metadata"]["managedFields"] = json!([{"manager": "test", "fieldsV1": {"f:x": {}}}]);
        let key = key_of(&path, &object);
        let kind = match state.objects.insert(key, object.clone()) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        state.happened(version, path, kind, object);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, object: &Value) {
        let path = path_of(object);
        let mut state = self.lock();
        let mut object = state.objects.remove(&key_of(&path, object)).unwrap();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = Value::from(version.to_string());
        state.happened(version, path, "DELETED", object);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Forgets what happened until now: nobody can go on from there.
    pub(crate) fn compact(&self) {
        let mut state = self.lock();
        // Something happened that nobody here looks at.
        state.version += 1;
        state.compacted = state.version;
        state.history.clear();
    }

    /// Serves a collection from now on, or no longer: its objects are gone then.
    pub(crate) fn set_served(&self, path: &str, served: bool) {
        let mut state = self.lock();
        if served {
            state.served.insert(path.to_owned());
        } else {
            state.served.remove(path);
            state.objects.retain(|(at, ..), _| at != path);
        }
    }

    /// Refuses a verb on a path with this code; `None`: no longer.
    pub(crate) fn refuse(&self, verb: &'static str, path: &str, code: Option<u16>) {
        let mut state = self.lock();
        let key = (verb, path.to_owned());
        match code {
            Some(code) => state.refused.insert(key, code),
            None => state.refused.remove(&key),
        };
    }

    /// Refuses the next requests with these codes; those with code 0 are answered as ever.
    pub(crate) fn trouble(&self, troubles: &[(u16, Option<u64>)]) {
        self.lock().troubles.extend(troubles);
    }

    /// Breaks the connections of the next answers to lists in the middle.
    pub(crate) fn cut(&self, answers: u32) {
        self.lock().cut = answers;
    }

    /// What release it is, and what streamed lists are refused with.
    pub(crate) fn set_release(&self, minor: u32, no_streams: Option<u16>) {
        let mut state = self.lock();
        state.minor = minor;
        state.no_streams = no_streams;
    }

    /// Whether watches tell where they are.
    pub(crate) fn set_bookmarks(&self, bookmarks: bool) {
        self.lock().bookmarks = bookmarks;
    }

    /// Lets open watches say nothing more, as a connection that died without a word.
    pub(crate) fn set_mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }

    /// So many pods are there beside the others, made up as they are asked for.
    pub(crate) fn make_up(&self, pods: usize) {
        self.lock().made_up = pods;
    }

    /// What was asked until now.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// Forgets what was asked.
    pub(crate) fn forget(&self) {
        self.lock().asked.clear();
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let asked = Asked {
            path: request.uri().path().to_owned(),
            accept: request.headers()[http::header::ACCEPT]
                .to_str()
                .unwrap()
                .to_owned(),
            query: percent_encoding::percent_decode_str(&query)
                .decode_utf8()
                .unwrap()
                .into_owned(),
        };
        let parameters = parameters(&query);
        let mut state = self.lock();
        state.asked.push(asked.clone());
        if let Some((code, after)) = state.troubles.pop_front()
            && code > 0
        {
            return refusal(code, "Trouble", after);
        }
        if asked.path == "/version" {
            return whole(json!({"major": "1", "minor": format!("{}+", state.minor)}).to_string());
        }
        let verb = if asked.is_watch() { "watch" } else { "list" };
        if let Some(code) = state.refused.get(&(verb, asked.path.clone())) {
            return refusal(*code, "Refused", None);
        }
        if !state.served.contains(&asked.path) {
            return refusal(404, "NotFound", None);
        }
        if !asked.is_watch() {
            return state.list(&asked, &parameters);
        }
        let streams = parameters.contains_key("sendInitialEvents");
        if let Some(code) = state.no_streams
            && streams
        {
            return refusal(code, "Invalid", None);
        }
        let metadata = asked.accept.contains("as=PartialObjectMetadata;");
        let from = parameters
            .get("resourceVersion")
            .and_then(|text| text.parse().ok());
        let mut first = Vec::new();
        let mut made_up = 0;
        if streams {
            let objects = state.matching(&asked.path, &parameters);
            first.extend(objects.map(|object| event("ADDED", object, metadata)));
            made_up = state.made_up_in(&asked.path);
        } else if from.is_none_or(|from: u64| from < state.compacted) {
            return refusal(410, "Expired", None);
        }
        let follow = Follow {
            fake: self.clone(),
            version: from.unwrap_or(state.version),
            path: asked.path,
            parameters,
            metadata,
        };
        let end = streams.then(|| bookmark(state.version, true));
        drop(state);
        let made_up = (0..made_up).map(move |n| event("ADDED", &made_up::pod(n), metadata));
        follow.start(first.into_iter().chain(made_up).chain(end))
    }
}

impl State {
    fn happened(&mut self, version: u64, path: String, kind: &'static str, object: Value) {
        self.history.push_back(Happened {
            version,
            path,
            kind,
            object,
        });
    }

    fn matching<'a>(
        &'a self,
        path: &'a str,
        parameters: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Value> {
        let of_path = self.objects.iter().filter(move |((at, ..), _)| at == path);
        of_path
            .map(|(_, object)| object)
            .filter(move |object| selected(object, parameters))
    }

    fn made_up_in(&self, path: &str) -> usize {
        if path == "/api/v1/pods" {
            self.made_up
        } else {
            0
        }
    }

    fn list(&mut self, asked: &Asked, parameters: &BTreeMap<String, String>) -> Response<Body> {
        let number = |key: &str| {
            parameters
                .get(key)
                .and_then(|text| text.parse::<u64>().ok())
        };
        // A continuation is `version.index`.
        let more = parameters
            .get("continue")
            .map(|text| text.split_once('.').unwrap());
        let (version, from) = match more {
            None => (self.version, 0),
            Some((version, from)) => (version.parse().unwrap(), from.parse().unwrap()),
        };
        if version < self.compacted {
            return refusal(410, "Expired", None);
        }
        let limit = usize::try_from(number("limit").unwrap_or(u64::from(u32::MAX))).unwrap();
        let kept: Vec<&Value> = self.matching(&asked.path, parameters).collect();
        let made_up = self.made_up_in(&asked.path);
        let all = kept.len() + made_up;
        let until = all.min(from + limit);
        let metadata = asked.accept.contains("as=PartialObjectMetadataList;");
        // As text from the start: trees of a page would weigh more than its reader may.
        let items = (from..until).map(|n| match kept.get(n) {
            Some(object) => item(object, metadata).to_string(),
            None => item(&made_up::pod(n - kept.len()), metadata).to_string(),
        });
        let more = if until < all {
            format!("{version}.{until}")
        } else {
            String::new()
        };
        let about = json!({"resourceVersion": version.to_string(), "continue": more});
        let items = items.collect::<Vec<_>>().join(",");
        let page = format!(r#"{{"metadata": {about}, "items": [{items}]}}"#);
        if self.cut > 0 {
            self.cut -= 1;
            return cut_off(&page[..page.len() / 2], page.len());
        }
        whole(page)
    }
}

fn path_of(object: &Value) -> String {
    let word = |key: &str| object[key].as_str().unwrap();
    let (_, _, plural) = RESOURCES
        .iter()
        .find(|(version, kind, _)| *version == word("apiVersion") && *kind == word("kind"))
        .unwrap();
    path(word("apiVersion"), plural)
}

fn key_of(path: &str, object: &Value) -> (String, String, String) {
    let word = |key: &str| {
        object["metadata"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (path.to_owned(), word("namespace"), word("name"))
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let text = percent_encoding::percent_decode_str(text);
        text.decode_utf8().unwrap().into_owned()
    };
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn selected(object: &Value, parameters: &BTreeMap<String, String>) -> bool {
    let Some(selector) = parameters.get("fieldSelector") else {
        return true;
    };
    let node = selector.strip_prefix("spec.nodeName=").unwrap();
    object["spec"]["nodeName"] == node
}
