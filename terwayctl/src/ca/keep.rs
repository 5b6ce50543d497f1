//! `terwayctl ca keep`: a certificate that is always there, fetched and renewed until the process is ended.
//!
//! It runs beside a service and shares nothing with it but a folder. A clock that jumps, a laptop that slept and a
//! token that was replaced are all met by looking again every second, which costs one small read.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use mesh::backoff::Backoff;
use mesh::clock;
use mesh::identity::Identity;
use mesh::telemetry::{self, Telemetry};
use rand::RngExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::ca::ask::Asker;
use crate::ca::folder::{Folder, Held};
use crate::ca::proof::{self, Proof};
use crate::ca::schedule::{self, CALM, URGENT};

/// How often the trust and the clock are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// When the authorities change for a whole cluster, certificates are asked for within so many milliseconds and not at
/// once.
const SPREAD_MS: u64 = 10_000;

/// Arguments of `terwayctl ca keep`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The control plane
    #[arg(long, value_name = "HOST:PORT")]
    controlplane: String,
    /// File with a token of the service account, for the control plane's audience
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    /// File with the authorities that are trusted (PEM)
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Folder for ca.crt, tls.crt and tls.key; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Send the instance's signed identity document as well, where there is a metadata service
    #[arg(long)]
    instance_proof: bool,
    /// The metadata service
    #[arg(long, value_name = "URL", default_value = proof::ENDPOINT)]
    metadata: String,
}

/// Keeps a certificate until SIGTERM or SIGINT.
///
/// # Errors
/// When the folder can not be used. That there is no certificate yet is no error: it is tried again.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let telemetry = Telemetry::install(&telemetry::Params::default(), "terwayctl")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut keeper = Keeper::new(args).await?;
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = keeper.keep() => {}
        }
        telemetry.flush().await;
        Ok(())
    })
}

struct Keeper<'a> {
    asker: Asker,
    folder: Folder,
    /// Where the metadata service is, if the instance's word is wanted.
    metadata: Option<&'a str>,
    /// What the trust file held when it was looked at last.
    trust: Vec<u8>,
    held: Option<Held>,
    /// When the next certificate is asked for; nothing means now.
    due: Option<SystemTime>,
    /// Not before that, after a failure.
    rest: Instant,
    urgent: Backoff,
    calm: Backoff,
}

impl<'a> Keeper<'a> {
    async fn new(args: &'a Args) -> Result<Self> {
        let mut keeper = Self {
            asker: Asker {
                controlplane: args.controlplane.clone(),
                token: args.token.clone(),
                trust: args.trust.clone(),
            },
            folder: Folder::open(&args.out)?,
            metadata: args.instance_proof.then_some(args.metadata.as_str()),
            trust: Vec::new(),
            held: None,
            due: None,
            rest: Instant::now(),
            urgent: Backoff::try_new(URGENT)?,
            calm: Backoff::try_new(CALM)?,
        };
        keeper.take_up().await?;
        Ok(keeper)
    }

    /// A certificate of a former process is used on, unless it is another instance's: a disk that was copied.
    async fn take_up(&mut self) -> Result<()> {
        let Some(held) = self.folder.held() else {
            return Ok(());
        };
        if let Identity::Node { instance, .. } = &held.identity
            && let Some(here) = self.proof().await.instance()
            && here != **instance
        {
            tracing::warn!(identity = %held.identity, here, "the certificate is another instance's: thrown away");
            return self.folder.discard();
        }
        // The bundle of that process; the file may have changed since.
        self.trust = self.folder.trust().unwrap_or_default();
        self.hold(held, "certificate is there already");
        Ok(())
    }

    async fn keep(&mut self) {
        loop {
            self.look_at_trust();
            let is_due = self.due.is_none_or(|due| due <= clock::wall());
            if is_due && self.rest <= Instant::now() {
                self.renew().await;
            }
            let until_rest = self.rest.saturating_duration_since(Instant::now());
            let wait = if until_rest.is_zero() {
                LOOK
            } else {
                until_rest.min(LOOK)
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn renew(&mut self) {
        let proof = self.proof().await;
        let put = match self.asker.ask(proof).await {
            Ok(issued) => self.folder.put(&issued),
            Err(error) => Err(error),
        };
        match put {
            Ok(held) => {
                self.urgent.reset();
                self.calm.reset();
                self.hold(held, "certificate issued");
            }
            Err(error) => {
                // One that was valid may have come to its end meanwhile.
                let is_urgent = self.folder.held().is_none();
                let backoff = if is_urgent {
                    &mut self.urgent
                } else {
                    &mut self.calm
                };
                let wait = backoff.next_wait();
                self.rest = Instant::now() + wait;
                tracing::warn!(
                    error = format!("{error:#}"),
                    controlplane = self.asker.controlplane,
                    wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                    has_certificate = !is_urgent,
                    "no new certificate"
                );
            }
        }
    }

    fn hold(&mut self, held: Held, what: &'static str) {
        let due = schedule::due(&held.life, rand::rng().random_range(0.0..=1.0));
        let now = clock::wall();
        tracing::info!(
            identity = %held.identity,
            valid_s = schedule::until(held.life.not_after, now).as_secs(),
            renewed_in_s = schedule::until(due, now).as_secs(),
            controlplane = self.asker.controlplane,
            "{what}"
        );
        self.held = Some(held);
        self.due = Some(due);
    }

    /// Takes over authorities that have changed: services trust them at once if their certificate is still good then;
    /// else a new certificate comes with them.
    fn look_at_trust(&mut self) {
        let path: &Path = &self.asker.trust;
        let Ok(now) = std::fs::read(path) else {
            // Whoever asks with it says so.
            return;
        };
        if now == self.trust {
            return;
        }
        self.trust.clone_from(&now);
        if self.held.is_none() {
            return;
        }
        if !self.folder.accepts(path) {
            let spread = Duration::from_millis(rand::rng().random_range(0..=SPREAD_MS));
            tracing::info!(
                "the certificate comes from an authority that is not trusted any more: another one is needed"
            );
            self.due = None;
            self.rest = Instant::now() + spread;
            return;
        }
        match self.folder.put_trust(&now).context("take over the trust") {
            Ok(()) => tracing::info!("the authorities that are trusted have changed"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "trust kept as it was"),
        }
    }

    /// The instance's word; empty where it is not wanted or not to be had: then the control plane decides.
    async fn proof(&self) -> Proof {
        let Some(metadata) = self.metadata else {
            return Proof::default();
        };
        match Proof::read(metadata).await {
            Ok(proof) => proof,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(
                    error = format!("{error:#}"),
                    "no word of the instance itself"
                );
                Proof::default()
            }
        }
    }
}
