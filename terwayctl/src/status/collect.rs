//! Reads everything that is judged, from the API server.

use std::collections::BTreeSet;

use futures::future::join_all;
use jiff::Timestamp;
use mesh::clock;
use serde::de::DeserializeOwned;

use crate::status::objects::{ConfigMap, Lease, Pod};
use crate::status::picture::{Blind, COMPONENT, INSTANCE, Kind, NODE, PART_OF, Picture, Scrape};
use crate::status::samples;
use crate::status::source::{ReadError, Source};

/// Components whose metrics are looked at, and the port they are at.
///
/// Source: docs/install.md, "Needed".
const SCRAPED: [(&str, u16); 4] = [
    ("gateway", 7202),
    ("ipam", 7302),
    ("controlplane", 7502),
    (NODE, 7402),
];

/// Pods of it whose metrics are looked at: the conditions of nodes tell of all.
const NODES_MAX: usize = 50;

/// Which installation is meant.
#[derive(Debug, Clone)]
pub struct Which {
    /// Its namespace.
    pub namespace: String,
    /// Name of the release; nothing means the only one.
    pub release: Option<String>,
}

/// Looks at everything. What an account may not see is noted and left out.
///
/// # Errors
/// When the API server does not answer at all, or does not show what runs.
pub async fn collect(source: &Source, which: &Which) -> Result<Picture, ReadError> {
    let namespace = &which.namespace;
    let mut picture = Picture {
        namespace: namespace.clone(),
        now: Timestamp::try_from(clock::wall()).unwrap_or_default(),
        ..Picture::default()
    };
    for kind in Kind::ALL {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/{}", kind.plural());
        let query = format!("labelSelector={}", encoded(PART_OF));
        let found = source.list(&path, &query).await?;
        picture
            .workloads
            .extend(found.into_iter().map(|one| (kind, one)));
    }
    choose(&mut picture, which.release.as_deref());
    read_ours(source, &mut picture).await;
    read_cluster(source, &mut picture).await;
    picture.scrapes = scrape(source, &picture).await;
    Ok(picture)
}

/// Keeps one release: the one that is asked for, or the first by name.
fn choose(picture: &mut Picture, asked: Option<&str>) {
    let releases: BTreeSet<String> = picture
        .workloads
        .iter()
        .filter_map(|(_, one)| one.metadata.labels.get(INSTANCE))
        .cloned()
        .collect();
    let chosen = match asked {
        Some(asked) => asked.to_owned(),
        None => releases.first().cloned().unwrap_or_default(),
    };
    let is_ours = |labels: &crate::status::objects::Texts| labels.get(INSTANCE) == Some(&chosen);
    picture
        .workloads
        .retain(|(_, one)| is_ours(&one.metadata.labels));
    picture.others = releases.into_iter().filter(|one| *one != chosen).collect();
    picture.release = chosen;
}

/// What of the release is more than one object: found by the labels, since names can be changed.
async fn read_ours(source: &Source, picture: &mut Picture) {
    let namespace = picture.namespace.clone();
    let selector = format!(
        "app.kubernetes.io/name=terway,{INSTANCE}={}",
        picture.release
    );
    let query = format!("labelSelector={}", encoded(&selector));
    let core = format!("/api/v1/namespaces/{namespace}");
    let pods = source.list(&format!("{core}/pods"), &query).await;
    picture.pods = seen(picture, "pods of the release", pods);
    let maps: Result<Vec<ConfigMap>, _> = source.list(&format!("{core}/configmaps"), &query).await;
    for map in seen(picture, "ConfigMaps of the release", maps) {
        if map.metadata.name.ends_with("-phase") {
            picture.phase = Some(map);
        } else if map.metadata.name.ends_with("-trust") {
            picture.trust = Some(map);
        }
    }
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    let leases: Result<Vec<Lease>, _> = source.list(&path, &query).await;
    picture.lease = seen(picture, "Leases of the release", leases)
        .into_iter()
        .next();
}

async fn read_cluster(source: &Source, picture: &mut Picture) {
    let nodes = source.list("/api/v1/nodes", "").await;
    picture.nodes = seen(picture, "nodes", nodes);
    let pending = format!(
        "fieldSelector={}",
        encoded("status.phase=Pending,spec.nodeName!=")
    );
    let pods: Result<Vec<Pod>, _> = source.list("/api/v1/pods", &pending).await;
    picture.pending = seen(picture, "pods that do not run", pods);
    for kind in ["Node", "Pod"] {
        let selector = format!("involvedObject.kind={kind},type=Warning");
        let query = format!("fieldSelector={}", encoded(&selector));
        let events = source.list("/api/v1/events", &query).await;
        let events = seen(picture, &format!("events of {kind}s"), events);
        picture.events.extend(events);
    }
}

/// What was read; a refusal is noted.
fn seen<T: DeserializeOwned>(
    picture: &mut Picture,
    what: &str,
    read: Result<Vec<T>, ReadError>,
) -> Vec<T> {
    match read {
        Ok(objects) => objects,
        Err(error) => {
            picture.blind.push(Blind {
                what: what.to_owned(),
                why: error.to_string(),
            });
            Vec::new()
        }
    }
}

/// Asks services for their metrics, through the API server.
async fn scrape(source: &Source, picture: &Picture) -> Vec<Scrape> {
    let mut nodes = 0;
    let wanted = picture.pods.iter().filter_map(|pod| {
        let component = pod.metadata.labels.get(COMPONENT)?;
        let (_, port) = SCRAPED.iter().find(|(name, _)| name == component)?;
        nodes += usize::from(component == NODE);
        let is_wanted = pod.status.phase == "Running" && (component != NODE || nodes <= NODES_MAX);
        is_wanted.then_some((component, *port, &pod.metadata.name))
    });
    let asked = wanted.map(|(component, port, name)| async move {
        let namespace = &picture.namespace;
        let path = format!("/api/v1/namespaces/{namespace}/pods/http:{name}:{port}/proxy/metrics");
        let text = source.text(&path).await;
        Scrape {
            component: component.clone(),
            pod: name.clone(),
            samples: match text {
                Ok(text) => Ok(samples::parse(&text)),
                Err(error) => Err(error.to_string()),
            },
        }
    });
    join_all(asked).await
}

/// For a query: names and selectors have few odd letters.
fn encoded(selector: &str) -> String {
    selector
        .replace('%', "%25")
        .replace('=', "%3D")
        .replace(',', "%2C")
        .replace('!', "%21")
        .replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::objects::{Meta, Workload};

    fn workload(release: &str) -> (Kind, Workload) {
        let metadata = Meta {
            labels: [(INSTANCE.to_owned(), release.to_owned())].into(),
            ..Meta::default()
        };
        let workload = Workload {
            metadata,
            ..Workload::default()
        };
        (Kind::Deployment, workload)
    }

    fn chosen(asked: Option<&str>) -> (String, usize, Vec<String>) {
        let mut picture = Picture {
            workloads: vec![workload("b"), workload("a"), workload("b")],
            ..Picture::default()
        };
        choose(&mut picture, asked);
        (picture.release, picture.workloads.len(), picture.others)
    }

    #[test]
    fn release_that_is_asked_for_is_kept_and_others_are_told() {
        assert_eq!(chosen(Some("b")), ("b".to_owned(), 2, vec!["a".to_owned()]));
        assert_eq!(chosen(None), ("a".to_owned(), 1, vec!["b".to_owned()]));
        let (release, kept, _) = chosen(Some("c"));
        assert_eq!((release.as_str(), kept), ("c", 0));
    }
}
