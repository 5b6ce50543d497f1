//! The authority: from a Secret, made and renewed by us or by somebody else; what it signs, and whom everybody trusts.
//!
//! Every replica reads the Secret; whoever leads takes the steps of its life and writes the trust bundle. Two
//! replicas that begin at once make one authority, since the second write is refused by its resource version.

pub mod plan;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret as KubeSecret};
use kube::api::PostParams;
use mesh::ca::{Authority as Ca, Issued, Leaf};
use mesh::clock;
use mesh::health::Condition;
use mesh::identity::Identity;
use mesh::secret::Secret;
use mesh::tls::TlsMaterial;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::plan::{Kept, Pair, Step, Times};
use crate::config::{Authority as Source, Certificates, Config};
use crate::kubernetes::{Failure, Kubernetes};
use crate::metrics::Metrics;

/// Keys of the Secret and of the ConfigMap.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const TRUST: &str = "ca.crt";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// Milliseconds since 1970 of the last step.
const STEP: &str = "step-ms";

/// Between two looks at the Secret.
const LOOK: Duration = Duration::from_secs(15);
/// Between two looks while there is no authority yet.
const LOOK_SOON: Duration = Duration::from_secs(1);

/// An authority that can sign.
#[derive(Debug)]
pub struct Signer {
    ca: Ca,
    /// What goes behind a certificate that it signs: intermediates, PEM. Empty where it is trusted itself.
    intermediates: String,
    /// All that are trusted, PEM.
    pub bundle: String,
    /// End of its own certificate: nothing that it signs lives longer.
    pub not_after: SystemTime,
}

/// What was signed.
#[derive(Debug)]
pub struct Signed {
    /// Leaf first, PEM.
    pub chain: String,
    /// All that are trusted, PEM.
    pub bundle: String,
    /// When it ends.
    pub not_after: SystemTime,
}

impl Signer {
    fn new(pair: Pair, bundle: String) -> anyhow::Result<Self> {
        let not_after = plan::not_after(&pair.certificate).context("tls.crt is no certificate")?;
        if not_after <= clock::wall() {
            bail!("the authority's certificate has ended");
        }
        if plan::split(&bundle).is_empty() {
            bail!("ca.crt holds no certificate");
        }
        // One that everybody trusts itself need not be shown.
        let trusted = plan::split(&bundle);
        let intermediates: String = plan::split(&pair.certificate)
            .into_iter()
            .filter(|one| !trusted.contains(one))
            .collect();
        let ca = Ca::from_pem(pair.certificate, pair.key)?;
        Ok(Self {
            ca,
            intermediates,
            bundle,
            not_after,
        })
    }

    fn end(&self, lifetime: Duration) -> (SystemTime, SystemTime) {
        let now = clock::wall();
        // Clocks of one cluster differ by less.
        let from = now.checked_sub(Duration::from_mins(5)).unwrap_or(now);
        (from, self.not_after.min(now + lifetime))
    }

    /// Signs a request (PKCS#10, DER) for `identity` with the addresses `hosts`.
    ///
    /// # Errors
    /// [`mesh::ca::CaError`].
    pub fn sign(
        &self,
        request: &[u8],
        identity: &Identity,
        hosts: &[String],
        lifetime: Duration,
    ) -> Result<Signed, mesh::ca::CaError> {
        let (from, until) = self.end(lifetime);
        let leaf = Leaf::new(identity, lifetime).valid(from, until);
        let leaf = hosts.iter().fold(leaf, Leaf::host);
        let certificate = self.ca.sign(request, &leaf)?;
        Ok(Signed {
            chain: format!("{certificate}{}", self.intermediates),
            bundle: self.bundle.clone(),
            not_after: until,
        })
    }

    /// Our own certificate, with its key.
    fn own(&self, identity: &Identity, lifetime: Duration) -> anyhow::Result<Issued> {
        let (from, until) = self.end(lifetime);
        let issued = self
            .ca
            .issue(&Leaf::new(identity, lifetime).valid(from, until))?;
        Ok(Issued {
            ca: self.bundle.clone(),
            certificate: format!("{}{}", issued.certificate, self.intermediates),
            key: issued.key,
        })
    }
}

/// Keeps the authority.
#[derive(Debug)]
pub struct Keeper {
    kubernetes: Kubernetes,
    namespace: String,
    certificates: Certificates,
    metrics: Metrics,
    signer: watch::Sender<Option<Arc<Signer>>>,
    /// Who signs, and whom to trust, as last read.
    read: Option<(Pair, String)>,
}

impl Keeper {
    /// Keeps it once it runs.
    pub fn new(kubernetes: Kubernetes, config: &Config, metrics: Metrics) -> Self {
        Self {
            kubernetes,
            namespace: config.cluster.namespace.clone(),
            certificates: config.certificates.clone(),
            metrics,
            signer: watch::Sender::new(None),
            read: None,
        }
    }

    /// Who signs, once somebody does.
    pub fn signer(&self) -> watch::Receiver<Option<Arc<Signer>>> {
        self.signer.subscribe()
    }

    /// Keeps it until `drain` is cancelled.
    pub async fn run(
        mut self,
        mut leads: watch::Receiver<bool>,
        ready: Condition,
        drain: CancellationToken,
    ) {
        loop {
            let leading = *leads.borrow_and_update();
            let pause = match Box::pin(self.round(leading)).await {
                Ok(()) => LOOK,
                Err(error) => {
                    let why = format!("{error:#}");
                    if self.signer.borrow().is_none() {
                        ready.unmet(&why);
                    }
                    tracing::warn!(error = why, "authority");
                    LOOK_SOON
                }
            };
            if self.signer.borrow().is_some() {
                ready.met();
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                // The candidate lives as long as we do.
                changed = leads.changed() => if changed.is_err() { return drain.cancelled().await; },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn round(&mut self, leading: bool) -> anyhow::Result<()> {
        let api = self.kubernetes.secrets(&self.namespace);
        let name = self.certificates.secret.clone();
        let get = self.kubernetes.ask("read the authority", api.get(&name));
        let secret = get.await.with_context(|| format!("Secret {name}"))?;
        let (pair, bundle) = match self.certificates.authority {
            Source::Own => {
                let kept = self.stepped(secret, leading).await?;
                let bundle = kept.bundle();
                (kept.current.context("there is no authority yet")?, bundle)
            }
            Source::Secret => foreign(&secret).with_context(|| format!("Secret {name}"))?,
        };
        self.use_it(pair, bundle.clone())?;
        if leading {
            self.publish(&bundle).await?;
        }
        Ok(())
    }

    /// Takes the step that is due, if it is ours to take, and gives what the Secret holds then.
    async fn stepped(&self, secret: KubeSecret, leading: bool) -> anyhow::Result<Kept> {
        let kept = own(&secret)?;
        let times = Times {
            leaf: self.certificates.lifetime(),
            authority: self.certificates.authority_lifetime(),
        };
        let now = clock::wall();
        let step = plan::step(&kept, &times, now);
        // Nobody can do anything before there is one: whoever comes first makes it.
        if step == Step::Rest || (!leading && step != Step::Begin) {
            return Ok(kept);
        }
        let after = plan::take(step, kept, now, || {
            let made = Ca::new(times.authority)?;
            Ok::<_, mesh::ca::CaError>(Pair {
                certificate: made.certificate().to_owned(),
                key: made.key().clone(),
            })
        })?;
        let changed = KubeSecret {
            data: Some(data(&after)),
            ..secret
        };
        let api = self.kubernetes.secrets(&self.namespace);
        let params = PostParams::default();
        let replaced = api.replace(&self.certificates.secret, &params, &changed);
        match self.kubernetes.ask("keep the authority", replaced).await {
            Ok(_) => {
                tracing::info!(?step, "authority");
                Ok(after)
            }
            Err(failure) if failure.is_conflict() => Err(anyhow!(
                "another replica changed the authority at the same time"
            )),
            Err(failure) => Err(failure.into()),
        }
    }

    fn use_it(&mut self, pair: Pair, bundle: String) -> anyhow::Result<()> {
        let read = (pair, bundle);
        if self.read.as_ref() == Some(&read) {
            return Ok(());
        }
        let (pair, bundle) = read.clone();
        let signer = Signer::new(pair, bundle)?;
        self.metrics.authority_ends(signer.not_after);
        self.signer.send_replace(Some(Arc::new(signer)));
        self.read = Some(read);
        Ok(())
    }

    /// Writes the bundle where everybody reads whom to trust.
    async fn publish(&self, bundle: &str) -> Result<(), Failure> {
        let api = self.kubernetes.config_maps(&self.namespace);
        let name = &self.certificates.trust;
        let get = self.kubernetes.ask("read the trust bundle", api.get(name));
        let map = get.await?;
        let data = map.data.clone().unwrap_or_default();
        if data.get(TRUST).is_some_and(|now| now == bundle) {
            return Ok(());
        }
        let changed = ConfigMap {
            data: Some(BTreeMap::from([(TRUST.to_owned(), bundle.to_owned())])),
            ..map
        };
        let params = PostParams::default();
        let replaced = api.replace(name, &params, &changed);
        let written = self.kubernetes.ask("write the trust bundle", replaced);
        match written.await {
            Ok(_) => {
                tracing::info!(name, "trust bundle is written");
                Ok(())
            }
            Err(failure) if failure.is_conflict() => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

fn text(secret: &KubeSecret, key: &str) -> anyhow::Result<Option<String>> {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    let Some(ByteString(bytes)) = value.filter(|value| !value.0.is_empty()) else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes.clone()).map_err(|_| anyhow!("{key} is no text"))?;
    Ok(Some(text))
}

fn pair(secret: &KubeSecret, certificate: &str, key: &str) -> anyhow::Result<Option<Pair>> {
    match (text(secret, certificate)?, text(secret, key)?) {
        (Some(certificate), Some(key)) => Ok(Some(Pair {
            certificate,
            key: Secret::new(key),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(anyhow!("{certificate} is there without {key}")),
        (None, Some(_)) => Err(anyhow!("{key} is there without {certificate}")),
    }
}

/// What a Secret holds that we keep.
fn own(secret: &KubeSecret) -> anyhow::Result<Kept> {
    let current = pair(secret, CERTIFICATE, KEY)?;
    let next = pair(secret, NEXT_CERTIFICATE, NEXT_KEY)?;
    let ours = [&current, &next];
    let is_ours = |one: &String| {
        let mut pairs = ours.iter().copied().flatten();
        pairs.any(|pair| pair.certificate.trim() == one.trim())
    };
    let bundle = text(secret, TRUST)?.unwrap_or_default();
    let old = plan::split(&bundle)
        .into_iter()
        .filter(|one| !is_ours(one))
        .collect();
    let ms = text(secret, STEP)?.and_then(|text| text.parse().ok());
    let step = ms.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    Ok(Kept {
        current,
        next,
        old,
        step,
    })
}

/// What a Secret holds that somebody else keeps: who issues, and whom to trust. The latter may be above the former;
/// then who issues is shown with each certificate.
fn foreign(secret: &KubeSecret) -> anyhow::Result<(Pair, String)> {
    let current = pair(secret, CERTIFICATE, KEY)?.context("tls.crt and tls.key are missing")?;
    let above = text(secret, TRUST)?;
    let bundle = plan::split(above.as_deref().unwrap_or(&current.certificate));
    Ok((current, bundle.concat()))
}

fn data(kept: &Kept) -> BTreeMap<String, ByteString> {
    let mut data = BTreeMap::new();
    let mut put = |key: &str, text: &str| {
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
    };
    if let Some(current) = &kept.current {
        put(CERTIFICATE, &current.certificate);
        put(KEY, current.key.expose());
    }
    if let Some(next) = &kept.next {
        put(NEXT_CERTIFICATE, &next.certificate);
        put(NEXT_KEY, next.key.expose());
    }
    put(TRUST, &kept.bundle());
    if let Some(step) = kept.step {
        let ms = step.duration_since(UNIX_EPOCH).unwrap_or_default();
        put(STEP, &ms.as_millis().to_string());
    }
    data
}

/// Issues our own certificate, and again when two thirds of its life are over or another authority issues.
#[derive(Debug)]
pub struct OwnCertificate {
    signer: watch::Receiver<Option<Arc<Signer>>>,
    identity: Identity,
    dir: PathBuf,
    lifetime: Duration,
}

impl OwnCertificate {
    /// Writes to `dir`.
    pub const fn new(
        signer: watch::Receiver<Option<Arc<Signer>>>,
        identity: Identity,
        dir: PathBuf,
        lifetime: Duration,
    ) -> Self {
        Self {
            signer,
            identity,
            dir,
            lifetime,
        }
    }

    /// Waits for an authority and writes the first one.
    ///
    /// # Errors
    /// When it can not be written.
    pub async fn first(&mut self) -> anyhow::Result<()> {
        let signer = self.signer.wait_for(Option::is_some).await;
        let signer = signer.context("the authority is gone")?.clone();
        // Always there, since it was waited for.
        match signer {
            Some(signer) => self.write(&signer),
            None => Ok(()),
        }
    }

    fn write(&self, signer: &Signer) -> anyhow::Result<()> {
        signer
            .own(&self.identity, self.lifetime)?
            .write(&self.dir)?;
        Ok(())
    }

    /// Renews it until `drain` is cancelled; `material` then has it at once.
    pub async fn run(mut self, material: TlsMaterial, drain: CancellationToken) {
        loop {
            let left = material.not_after().duration_since(clock::wall());
            let left = left.unwrap_or_default();
            let pause = left.saturating_sub(self.lifetime / 3).max(LOOK);
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                // The keeper lives as long as we do.
                changed = self.signer.changed() => if changed.is_err() { return drain.cancelled().await; },
                () = tokio::time::sleep(pause) => {}
            }
            let Some(signer) = self.signer.borrow_and_update().clone() else {
                continue;
            };
            let renewed = self
                .write(&signer)
                .and_then(|()| Ok(material.reload_now()?));
            match renewed {
                Ok(_) => tracing::info!("our certificate is renewed"),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "our certificate is not renewed"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
