//! Who somebody is who has no certificate: what a service-account token, its pod and the pod's node say together.

use k8s_api::provider;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::PostParams;
use mesh::identity::Identity;
use proto::control::v1::IssueRequest;
use serde_json::Value;

use crate::config::{Accounts, Config};
use crate::kubernetes::{Failure, Kubernetes};

/// What the token says of the pod that it is bound to.
///
/// Source: Kubernetes, "Managing Service Accounts", bound service account tokens (node name since 1.30).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The name in it.
    pub identity: Identity,
    /// Addresses in it.
    pub hosts: Vec<String>,
    /// The pod that asked, for the log.
    pub pod: String,
}

/// Why nobody is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// The API server can not be asked.
    Away(Failure),
    /// The proof is not one.
    Proof(String),
}

impl From<Failure> for Bad {
    fn from(failure: Failure) -> Self {
        Self::Away(failure)
    }
}

fn bad(why: impl Into<String>) -> Bad {
    Bad::Proof(why.into())
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bearer {
    account: String,
    pod: String,
    uid: String,
    node: Option<String>,
}

/// Asks the API server about proofs.
#[derive(Debug)]
pub struct Prover {
    kubernetes: Kubernetes,
    cluster: String,
    namespace: String,
    audience: String,
    accounts: Accounts,
}

impl Prover {
    /// As the configuration says.
    pub fn new(kubernetes: Kubernetes, config: &Config) -> Self {
        Self {
            kubernetes,
            cluster: config.cluster.id.clone(),
            namespace: config.cluster.namespace.clone(),
            audience: config.certificates.audience.clone(),
            accounts: config.certificates.accounts.clone(),
        }
    }

    /// Who asks.
    ///
    /// # Errors
    /// [`Bad`].
    pub async fn proven(&self, request: &IssueRequest) -> Result<Proven, Bad> {
        let bearer = self.bearer(&request.token).await?;
        let kind = self
            .kind(&bearer.account)
            .ok_or_else(|| bad(format!("account {} gets no certificate", bearer.account)))?;
        let node = self.node_of(&bearer).await?;
        let document = (!request.instance_document.is_empty())
            .then(|| instance_in(&request.instance_document))
            .transpose()?;
        let instance = if kind == Kind::Node || document.is_some() {
            Some(self.instance(&node).await?)
        } else {
            None
        };
        if let (Some(document), Some(instance)) = (&document, &instance)
            && document != instance
        {
            return Err(bad(format!(
                "the instance document is of {document}, the pod's node is {instance}"
            )));
        }
        let name = bearer.pod.as_str();
        let mut hosts = Vec::new();
        let identity = match kind {
            Kind::Node => Identity::node(self.cluster.as_str(), instance.unwrap_or_default()),
            Kind::Gateway => Identity::gateway(name),
            Kind::Ipam => Identity::ipam(name),
            Kind::Relay => Identity::relay(name),
            Kind::Etcd => {
                hosts = self.addresses(name).await?;
                Identity::etcd(name)
            }
        };
        // Names of pods may be longer than what names in certificates may have.
        if identity.to_string().parse::<Identity>().as_ref() != Ok(&identity) {
            return Err(bad(format!("{identity} can not stand in a certificate")));
        }
        Ok(Proven {
            identity,
            hosts,
            pod: format!("{}/{name}", self.namespace),
        })
    }

    async fn bearer(&self, token: &str) -> Result<Bearer, Bad> {
        let reviews: Api<TokenReview> = Api::all(self.kubernetes.client());
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let asked = reviews.create(&params, &review);
        let review = self.kubernetes.ask("review a token", asked).await?;
        read_review(&review, &self.audience, &self.namespace).map_err(Bad::Proof)
    }

    fn kind(&self, account: &str) -> Option<Kind> {
        let Accounts {
            node,
            gateway,
            ipam,
            relay,
            etcd,
        } = &self.accounts;
        let kinds = [
            (node, Kind::Node),
            (gateway, Kind::Gateway),
            (ipam, Kind::Ipam),
            (relay, Kind::Relay),
            (etcd, Kind::Etcd),
        ];
        let mut kinds = kinds.into_iter();
        kinds.find_map(|(name, kind)| (name.as_deref() == Some(account)).then_some(kind))
    }

    /// The node of the pod, which must be the one of the token and still there.
    async fn node_of(&self, bearer: &Bearer) -> Result<String, Bad> {
        let pods = self.kubernetes.pods(&self.namespace);
        let get = self.kubernetes.ask("read a pod", pods.get_opt(&bearer.pod));
        let pod = get.await?;
        let pod = pod.ok_or_else(|| bad(format!("pod {} is gone", bearer.pod)))?;
        placed(&pod, bearer).map_err(Bad::Proof)
    }

    async fn instance(&self, node: &str) -> Result<String, Bad> {
        let nodes = self.kubernetes.nodes();
        let get = self.kubernetes.ask("read a node", nodes.get_opt(node));
        let found = get.await?;
        let found = found.ok_or_else(|| bad(format!("node {node} is gone")))?;
        let provider = found.spec.and_then(|spec| spec.provider_id);
        let provider = provider.unwrap_or_default();
        provider::instance_of(&provider)
            .map(str::to_owned)
            .ok_or_else(|| {
                bad(format!(
                    "node {node} has no instance: its providerID is {provider:?}"
                ))
            })
    }

    /// Addresses of the Service that has the pod's name.
    async fn addresses(&self, name: &str) -> Result<Vec<String>, Bad> {
        let services: Api<Service> = Api::namespaced(self.kubernetes.client(), &self.namespace);
        let get = self
            .kubernetes
            .ask("read a service", services.get_opt(name));
        let service = get.await?;
        let spec = service.and_then(|service| service.spec).unwrap_or_default();
        let one = spec.cluster_ip.into_iter();
        let mut all = spec.cluster_ips.unwrap_or_else(|| one.collect());
        all.retain(|address| address != "None" && !address.is_empty());
        if all.is_empty() {
            return Err(bad(format!("Service {name} has no address")));
        }
        Ok(all)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Gateway,
    Ipam,
    Relay,
    Etcd,
}

fn read_review(review: &TokenReview, audience: &str, namespace: &str) -> Result<Bearer, String> {
    let status = review.status.clone().unwrap_or_default();
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_default();
        return Err(format!("the token is not good: {why}"));
    }
    // A server without audiences of its own answers with none; then the token was not checked for ours.
    if !status
        .audiences
        .unwrap_or_default()
        .iter()
        .any(|one| one == audience)
    {
        return Err(format!("the token is not for audience {audience:?}"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let prefix = format!("system:serviceaccount:{namespace}:");
    let account = name
        .strip_prefix(&prefix)
        .filter(|account| !account.is_empty())
        .ok_or_else(|| format!("{name:?} is no service account of namespace {namespace}"))?;
    let extra = user.extra.unwrap_or_default();
    let said = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(Some(one.clone())),
        Some([] | [_]) | None => Ok(None),
        Some([_, _, ..]) => Err(format!("the token says {key} more than once")),
    };
    let unbound = || "the token is not bound to a pod".to_owned();
    Ok(Bearer {
        account: account.to_owned(),
        pod: said(POD_NAME)?.ok_or_else(unbound)?,
        uid: said(POD_UID)?.ok_or_else(unbound)?,
        node: said(NODE_NAME)?,
    })
}

/// The node on which the pod of the token runs.
fn placed(pod: &Pod, bearer: &Bearer) -> Result<String, String> {
    let name = &bearer.pod;
    if pod.metadata.uid.as_deref() != Some(&bearer.uid) {
        return Err(format!("pod {name} is another one than that of the token"));
    }
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.as_deref());
    if account != Some(&bearer.account) {
        return Err(format!(
            "pod {name} has another service account than the token"
        ));
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(format!("pod {name} has ended"));
    }
    let node = spec.and_then(|spec| spec.node_name.clone());
    let node = node.ok_or_else(|| format!("pod {name} is on no node"))?;
    if bearer.node.as_ref().is_some_and(|said| *said != node) {
        return Err(format!("pod {name} is on another node than the token says"));
    }
    Ok(node)
}

/// The instance that an identity document is about.
///
/// Source: ECS, "Instance identities": a JSON object with `instance-id`.
fn instance_in(document: &str) -> Result<String, Bad> {
    let document: Value =
        serde_json::from_str(document).map_err(|_| bad("the instance document can not be read"))?;
    let id = document.get("instance-id").and_then(Value::as_str);
    id.map(str::to_owned)
        .ok_or_else(|| bad("the instance document names no instance"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is said about an object that was changed so.
    type Doubt = (&'static str, fn(&mut Value));

    fn review(change: impl FnOnce(&mut Value)) -> TokenReview {
        let mut review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
            "spec": {},
            "status": {
                "authenticated": true,
                "audiences": ["ours"],
                "user": {
                    "username": "system:serviceaccount:ns:terway-node",
                    "extra": {POD_NAME: ["pod-1"], POD_UID: ["u1"], NODE_NAME: ["n1"]},
                },
            },
        });
        change(&mut review["status"]);
        serde_json::from_value(review).unwrap()
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "pod-1", "uid": "u1"},
            "spec": {"serviceAccountName": "terway-node", "nodeName": "n1", "containers": []},
            "status": {"phase": "Running"},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn good() -> Bearer {
        read_review(&review(|_| {}), "ours", "ns").unwrap()
    }

    #[test]
    fn good_token_names_its_pod_and_node() {
        let bearer = good();

        assert_eq!(bearer.account, "terway-node");
        assert_eq!((bearer.pod.as_str(), bearer.uid.as_str()), ("pod-1", "u1"));
        assert_eq!(bearer.node.as_deref(), Some("n1"));
        assert_eq!(placed(&pod(|_| {}), &bearer).unwrap(), "n1");
    }

    #[test]
    fn review_that_leaves_a_doubt_is_no_proof() {
        let doubts: [Doubt; 8] = [
            ("not good", |s| s["authenticated"] = json!(false)),
            ("not good", |s| *s = json!({"error": "not good"})),
            ("audience", |s| s["audiences"] = json!(["theirs"])),
            ("audience", |s| s["audiences"] = json!(null)),
            ("no service account", |s| {
                s["user"]["username"] = json!("system:serviceaccount:other:terway-node");
            }),
            ("no service account", |s| {
                s["user"]["username"] = json!("admin");
            }),
            ("not bound", |s| s["user"]["extra"] = json!({})),
            ("more than once", |s| {
                s["user"]["extra"][POD_UID] = json!(["u1", "u2"]);
            }),
        ];
        for (why, change) in doubts {
            let said = read_review(&review(change), "ours", "ns").unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
    }

    #[test]
    fn pod_that_is_not_that_of_the_token_is_no_proof() {
        let doubts: [Doubt; 5] = [
            ("another one", |p| p["metadata"]["uid"] = json!("u2")),
            ("service account", |p| {
                p["spec"]["serviceAccountName"] = json!("x");
            }),
            ("has ended", |p| p["status"]["phase"] = json!("Failed")),
            ("on no node", |p| p["spec"]["nodeName"] = json!(null)),
            ("another node", |p| p["spec"]["nodeName"] = json!("n2")),
        ];
        for (why, change) in doubts {
            let said = placed(&pod(change), &good()).unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
    }

    #[test]
    fn instance_document_names_its_instance() {
        let document = r#"{"instance-id": "i-1", "region-id": "cn-x"}"#;

        assert_eq!(instance_in(document), Ok("i-1".to_owned()));
        assert!(instance_in("{}").is_err() && instance_in("x").is_err());
    }
}
