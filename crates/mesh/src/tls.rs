//! TLS material: who we are, whom we trust, reloaded without a restart.
//!
//! TLS 1.3 only, one provider. Servers check client certificates against the bundle of the
//! moment; clients check the server's chain and what its identity is, not its name: addresses
//! change, identities do not. Nothing is resumed, so every connection checks certificates anew.

pub mod lifetime;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock;
use crate::identity::{Identity, IdentityError};
use crate::metrics::Registry;
use crate::tasks::Tasks;
use crate::tls::verify::{ClientIdentity, Expect, ServerIdentity};

/// The application protocol of gRPC.
const H2: &[u8] = b"h2";

/// Makes ring the provider of the process, for libraries that ask for a default. Call it first
/// thing; a second call changes nothing.
pub fn install_provider() {
    // The error says that a provider is installed: ours, since nothing else installs one.
    drop(rustls::crypto::ring::default_provider().install_default());
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Where certificates are, as a configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Bundle of trusted CA certificates, PEM. During a rotation it holds the old and the new one.
    pub ca: PathBuf,
    /// Our certificate and its intermediates, PEM.
    pub cert: PathBuf,
    /// Our private key, PEM.
    pub key: PathBuf,
}

impl TlsConfig {
    /// The files of a directory as [`Issued::write`](crate::ca::Issued::write) names them.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            ca: dir.join("ca.crt"),
            cert: dir.join("tls.crt"),
            key: dir.join("tls.key"),
        }
    }
}

/// Why TLS material cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no PEM of the expected sort.
    #[error("{} holds no usable {wanted}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// The certificate is past its end.
    #[error("certificate in {} expired {ago:?} ago", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// How long ago, in whole seconds.
        ago: Duration,
    },
    /// The certificate's time has not come. Often a clock that is wrong.
    #[error("certificate in {} becomes valid in {ahead:?}", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// How far ahead, in whole seconds.
        ahead: Duration,
    },
    /// No CA of the bundle signed the certificate.
    #[error("certificate in {} is not signed by any CA in {}", path.display(), ca.display())]
    Foreign {
        /// The certificate's file.
        path: PathBuf,
        /// The bundle's file.
        ca: PathBuf,
    },
    /// The certificate is for another key.
    #[error("key in {} is not the key of the certificate in {}", path.display(), cert.display())]
    KeyMismatch {
        /// The key's file.
        path: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// The certificate names no identity of ours.
    #[error("certificate in {} names no identity", path.display())]
    NoIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with its names.
        #[source]
        source: IdentityError,
    },
    /// The certificate cannot serve as ours for another reason, such as its key usage.
    #[error("certificate in {} can not be used: {detail}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What the verifier said.
        detail: String,
    },
}

/// The files as they were read, to tell a change from a touch.
#[derive(PartialEq, Eq)]
struct Files {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

struct Current {
    files: Files,
    identity: Identity,
    not_after: SystemTime,
    roots: Arc<RootCertStore>,
    certified: Arc<SingleCertAndKey>,
    server: Arc<ServerConfig>,
    server_for_strangers: Arc<ServerConfig>,
}

#[derive(Debug, Default, Clone)]
struct Counters {
    reloads: Counter,
    failures: Counter,
    expiry: Gauge<f64, AtomicU64>,
}

struct Shared {
    config: TlsConfig,
    current: ArcSwap<Current>,
    counters: Counters,
}

/// Loaded material. Clones share it, so a reload reaches all of them; connections that stand are
/// not touched.
#[derive(Clone)]
pub struct TlsMaterial {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}

impl TlsMaterial {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`], which names the file and what is wrong with it.
    pub fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let current = Current::of(config, read(config)?)?;
        let counters = Counters::default();
        counters.expiry.set(seconds(current.not_after));
        let current = ArcSwap::from_pointee(current);
        Ok(Self {
            shared: Arc::new(Shared {
                config: config.clone(),
                current,
                counters,
            }),
        })
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.shared.current.load().identity.clone()
    }

    /// When our certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.shared.current.load().not_after
    }

    /// Reads the files again and swaps them in. Says whether they had changed.
    ///
    /// # Errors
    /// [`TlsError`]; the material in use stays, and a counter rises.
    pub fn reload_now(&self) -> Result<bool, TlsError> {
        let Shared {
            config,
            current,
            counters,
        } = &*self.shared;
        let fresh = read(config).and_then(|files| {
            if files == current.load().files {
                return Ok(None);
            }
            Current::of(config, files).map(Some)
        });
        match fresh {
            Ok(None) => Ok(false),
            Ok(Some(fresh)) => {
                counters.reloads.inc();
                counters.expiry.set(seconds(fresh.not_after));
                current.store(Arc::new(fresh));
                Ok(true)
            }
            Err(error) => {
                counters.failures.inc();
                Err(error)
            }
        }
    }

    /// Looks at the files every so often until the process stops. 30 s is a good period: well
    /// below the life of any certificate, and it costs three small reads.
    pub fn watch(&self, every: Duration, tasks: &Tasks) {
        let this = self.clone();
        let stopping = tasks.stopping();
        tasks.spawn("tls reload", async move {
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(every) => {}
                }
                match this.reload_now() {
                    Ok(true) => {
                        tracing::info!(identity = %this.identity(), "certificates reloaded");
                    }
                    Ok(false) => {}
                    Err(error) => {
                        let error = anyhow::Error::from(error);
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "certificates kept as they were"
                        );
                    }
                }
            }
        });
    }

    /// Shows reloads, failures and the end of the certificate among the metrics.
    pub fn register(&self, registry: &Registry) {
        let counters = &self.shared.counters;
        registry.register(
            "tls_reloads",
            "certificates swapped in",
            counters.reloads.clone(),
        );
        registry.register(
            "tls_reload_failures",
            "certificates that could not be used; the ones before stay",
            counters.failures.clone(),
        );
        registry.register(
            "tls_cert_not_after_seconds",
            "end of our certificate, in seconds since 1970",
            counters.expiry.clone(),
        );
    }

    /// How many times a reload failed.
    pub fn reload_failures(&self) -> u64 {
        self.shared.counters.failures.get()
    }

    /// What an acceptor needs right now.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shared.current.load().server)
    }

    /// The same for a server that also lets in who shows no certificate. One that is shown must be
    /// good.
    pub fn server_config_for_strangers(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shared.current.load().server_for_strangers)
    }

    /// What a connector needs right now, to talk to whoever `expect` says.
    ///
    /// # Errors
    /// [`rustls::Error`] if the bundle makes no verifier for a host name.
    pub fn client_config(&self, expect: &Expect) -> Result<Arc<ClientConfig>, rustls::Error> {
        let current = self.shared.current.load();
        let config = client_builder(&current.roots, expect)?.with_client_cert_resolver(Arc::<
            SingleCertAndKey,
        >::clone(
            &current.certified,
        ));
        Ok(finished(config, expect))
    }
}

/// The trust of somebody who has no certificate yet: a bundle, read again for each connection, since who keeps it
/// replaces it.
#[derive(Debug, Clone)]
pub struct Trust {
    bundle: PathBuf,
}

impl Trust {
    /// Trusts the CA certificates in the file, PEM.
    pub fn new(bundle: impl Into<PathBuf>) -> Self {
        Self {
            bundle: bundle.into(),
        }
    }

    /// What a connector needs right now, to talk without a certificate to whoever `expect` says.
    ///
    /// # Errors
    /// [`TlsError`] when the file can not be read or holds no certificate.
    pub fn client_config(&self, expect: &Expect) -> Result<Arc<ClientConfig>, TlsError> {
        let pem = std::fs::read(&self.bundle).map_err(|source| TlsError::Unreadable {
            path: self.bundle.clone(),
            source,
        })?;
        let config = client_builder(&roots(&self.bundle, &pem)?, expect)
            .map_err(|error| malformed(&self.bundle, "CA", &error))?
            .with_no_client_auth();
        Ok(finished(config, expect))
    }
}

fn client_builder(
    roots: &Arc<RootCertStore>,
    expect: &Expect,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let verifier = ServerIdentity::verifier(Arc::clone(roots), provider(), expect.clone())?;
    let builder =
        ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn finished(mut config: ClientConfig, expect: &Expect) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = expect.has_name();
    Arc::new(config)
}

fn read(config: &TlsConfig) -> Result<Files, TlsError> {
    let file = |path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Unreadable {
            path: path.to_owned(),
            source,
        })
    };
    Ok(Files {
        ca: file(&config.ca)?,
        cert: file(&config.cert)?,
        key: file(&config.key)?,
    })
}

impl Current {
    fn of(config: &TlsConfig, files: Files) -> Result<Self, TlsError> {
        let roots = roots(&config.ca, &files.ca)?;
        let chain = certificates(&config.cert, &files.cert)?;
        let Some(leaf) = chain.first() else {
            return Err(malformed(
                &config.cert,
                "certificate",
                "no certificate in it",
            ));
        };
        let not_after = validity(&config.cert, leaf)?;
        let builder =
            || WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let bad_ca = |error: VerifierBuilderError| malformed(&config.ca, "CA", &error);
        let client_verifier = ClientIdentity::verifier(builder().build().map_err(bad_ca)?);
        let lenient =
            ClientIdentity::verifier(builder().allow_unauthenticated().build().map_err(bad_ca)?);
        check_chain(config, &*client_verifier, &roots, &chain)?;
        let identity = Identity::of_certificate(leaf).map_err(|source| TlsError::NoIdentity {
            path: config.cert.clone(),
            source,
        })?;
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|error| malformed(&config.key, "private key", &error))?;
        let certified = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| key_error(config, &error))?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let server = |verifier| {
            let server = server(verifier, &certified);
            server.map_err(|error| unfit(&config.cert, &error))
        };
        let (server, server_for_strangers) = (server(client_verifier)?, server(lenient)?);
        Ok(Self {
            files,
            identity,
            not_after,
            roots,
            certified,
            server,
            server_for_strangers,
        })
    }
}

fn server(
    verifier: Arc<dyn ClientCertVerifier>,
    certified: &Arc<SingleCertAndKey>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::<SingleCertAndKey>::clone(certified));
    server.alpn_protocols = vec![H2.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}

fn roots(path: &Path, pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots
            .add(certificate)
            .map_err(|error| malformed(path, "CA certificate", &error))?;
    }
    if roots.is_empty() {
        return Err(malformed(path, "CA certificate", "no certificate in it"));
    }
    Ok(Arc::new(roots))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(path, "certificate", &error))
}

/// The end of the certificate, if it is valid now.
fn validity(path: &Path, leaf: &CertificateDer<'_>) -> Result<SystemTime, TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| malformed(path, "certificate", &error))?;
    let at =
        |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let not_before = at(parsed.validity().not_before.timestamp());
    let not_after = at(parsed.validity().not_after.timestamp());
    let now = clock::wall();
    if let Ok(ahead) = not_before.duration_since(now)
        && !ahead.is_zero()
    {
        let ahead = Duration::from_secs(ahead.as_secs());
        return Err(TlsError::NotYetValid {
            path: path.to_owned(),
            ahead,
        });
    }
    if let Ok(ago) = now.duration_since(not_after) {
        let ago = Duration::from_secs(ago.as_secs());
        return Err(TlsError::Expired {
            path: path.to_owned(),
            ago,
        });
    }
    Ok(not_after)
}

/// Looks at our own certificate as our peers will, in both roles.
fn check_chain(
    config: &TlsConfig,
    as_client: &dyn ClientCertVerifier,
    roots: &RootCertStore,
    chain: &[CertificateDer<'static>],
) -> Result<(), TlsError> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Ok(());
    };
    let now = UnixTime::now();
    as_client
        .verify_client_cert(leaf, intermediates, now)
        .map(drop)
        .and_then(|()| verify::server_chain(roots, &provider(), leaf, intermediates, now))
        .map_err(|error| chain_error(config, &error))
}

fn chain_error(config: &TlsConfig, error: &rustls::Error) -> TlsError {
    let path = config.cert.clone();
    if let rustls::Error::InvalidCertificate(refusal) = error {
        if matches!(
            refusal,
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        ) {
            return TlsError::Foreign {
                path,
                ca: config.ca.clone(),
            };
        }
        if let CertificateError::Other(ours) = refusal
            && let Some(source) = ours.0.downcast_ref::<IdentityError>()
        {
            return TlsError::NoIdentity {
                path,
                source: source.clone(),
            };
        }
    }
    unfit(&path, error)
}

fn key_error(config: &TlsConfig, error: &rustls::Error) -> TlsError {
    if matches!(error, rustls::Error::InconsistentKeys(_)) {
        return TlsError::KeyMismatch {
            path: config.key.clone(),
            cert: config.cert.clone(),
        };
    }
    malformed(&config.key, "private key", error)
}

fn malformed(path: &Path, wanted: &'static str, detail: &(impl ToString + ?Sized)) -> TlsError {
    TlsError::Malformed {
        path: path.to_owned(),
        wanted,
        detail: detail.to_string(),
    }
}

fn unfit(path: &Path, detail: &(impl ToString + ?Sized)) -> TlsError {
    TlsError::Unfit {
        path: path.to_owned(),
        detail: detail.to_string(),
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// The end of a peer's certificate.
pub(crate) fn not_after(leaf: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
