//! Our own certificate authority: a root, and leaves for identities.
//!
//! The sandbox and the tests use it through `terwayctl ca`; in a cluster the control plane issues.
//! Keys are ECDSA P-256.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, string::Ia5String,
};

use crate::clock;
use crate::identity::Identity;
use crate::secret::Secret;

/// File of the CA's certificate, in its own folder and in each leaf's.
pub const CA_CERT: &str = "ca.crt";
/// File of the CA's private key, in its own folder only.
pub const CA_KEY: &str = "ca.key";
/// File of a leaf's certificate.
pub const LEAF_CERT: &str = "tls.crt";
/// File of a leaf's private key.
pub const LEAF_KEY: &str = "tls.key";

/// How far back a certificate starts: clocks of one site differ by less.
const BACKDATE: Duration = Duration::from_mins(5);

/// Why the authority could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is an authority in that folder; a new one would orphan all its leaves.
    #[error("{} holds a certificate authority already", dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{verb} {}", path.display())]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The CA's files do not hold what they should.
    #[error("{} holds no usable {wanted}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What the parser said.
        #[source]
        source: rcgen::Error,
    },
    /// A subject alternative name is neither an address nor a DNS name.
    #[error("{text:?} is neither an IP address nor a DNS name")]
    BadName {
        /// As given.
        text: String,
    },
    /// The request for a certificate is not one, its signature is not made with its own key, or
    /// the key is not on P-256.
    #[error("the request for a certificate can not be used: {why}")]
    BadRequest {
        /// What is wrong.
        why: String,
    },
    /// Making the key or the certificate failed.
    #[error("make {what}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

/// A certificate authority that can issue.
pub struct Authority {
    certificate: String,
    key: Secret,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a root that lives for `lifetime`, in memory.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn new(lifetime: Duration) -> Result<Self, CaError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Terway Mesh CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = clock::wall();
        params.not_before = backdated(now).into();
        params.not_after = (now + lifetime).into();
        let certificate = params
            .self_signed(&key)
            .map_err(|source| CaError::Make {
                what: "the CA's certificate",
                source,
            })?
            .pem();
        let secret = Secret::new(key.serialize_pem());
        Ok(Self {
            certificate,
            key: secret,
            issuer: Issuer::new(params, key),
        })
    }

    /// Makes a root and writes it to `dir`, which is created if it is not there.
    ///
    /// # Errors
    /// [`CaError::Exists`] when there is one; nothing is changed then.
    pub fn init(dir: &Path, lifetime: Duration) -> Result<Self, CaError> {
        if [CA_CERT, CA_KEY]
            .iter()
            .any(|name| dir.join(name).symlink_metadata().is_ok())
        {
            return Err(CaError::Exists {
                dir: dir.to_owned(),
            });
        }
        let authority = Self::new(lifetime)?;
        make_dir(dir)?;
        write_private(&dir.join(CA_KEY), authority.key.expose())?;
        write_private(&dir.join(CA_CERT), &authority.certificate)?;
        Ok(authority)
    }

    /// Reads the root that [`Authority::init`] wrote.
    ///
    /// # Errors
    /// [`CaError::File`] or [`CaError::Malformed`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let certificate = read(&cert_path)?;
        let key = Secret::new(read(&key_path)?);
        Self::of_pem(certificate, key, (&cert_path, &key_path))
    }

    /// Takes a root or an intermediate that is kept elsewhere. `certificate` is PEM; the issuer's own
    /// comes first.
    ///
    /// # Errors
    /// [`CaError::Malformed`], naming `tls.crt` or `tls.key`. That the two belong together is not checked.
    pub fn from_pem(certificate: String, key: Secret) -> Result<Self, CaError> {
        Self::of_pem(
            certificate,
            key,
            (Path::new(LEAF_CERT), Path::new(LEAF_KEY)),
        )
    }

    fn of_pem(
        certificate: String,
        secret: Secret,
        (cert_path, key_path): (&Path, &Path),
    ) -> Result<Self, CaError> {
        let malformed = |path: &Path, wanted| {
            let path = path.to_owned();
            move |source| CaError::Malformed {
                path,
                wanted,
                source,
            }
        };
        let key = KeyPair::from_pem(secret.expose()).map_err(malformed(key_path, "private key"))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(malformed(cert_path, "CA certificate"))?;
        Ok(Self {
            certificate,
            key: secret,
            issuer,
        })
    }

    /// The private key, PEM, for whoever keeps the authority.
    pub const fn key(&self) -> &Secret {
        &self.key
    }

    /// The root's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Issues a certificate with a fresh key.
    ///
    /// # Errors
    /// [`CaError::BadName`] or [`CaError::Make`].
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued, CaError> {
        let key = new_key()?;
        Ok(Issued {
            ca: self.certificate.clone(),
            certificate: self.certify(&key, leaf)?,
            key: Secret::new(key.serialize_pem()),
        })
    }

    /// Issues a certificate for the key of a request (PKCS#10, DER). Nothing else of the request is
    /// used: what the certificate says is `leaf`. Gives PEM.
    ///
    /// # Errors
    /// [`CaError::BadRequest`], [`CaError::BadName`] or [`CaError::Make`].
    pub fn sign(&self, request: &[u8], leaf: &Leaf) -> Result<String, CaError> {
        // This checks that the request was signed with the key that it holds.
        let request = CertificateSigningRequestParams::from_der(&request.into())
            .map_err(|error| bad_request(&error))?;
        let key = &request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(bad_request("its key is not on P-256"));
        }
        self.certify(key, leaf)
    }

    fn certify(&self, key: &impl PublicKeyData, leaf: &Leaf) -> Result<String, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&leaf.name);
        params.subject_alt_names = leaf.names()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = leaf.purpose.usages();
        params.use_authority_key_identifier_extension = true;
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.into();
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(|source| CaError::Make {
                what: "a certificate",
                source,
            })?;
        Ok(certificate.pem())
    }
}

/// A request for a certificate, with the key that stays with who asks.
#[derive(Debug, Clone)]
#[must_use = "the key exists nowhere else"]
pub struct Request {
    /// The private key, PEM.
    pub key: Secret,
    /// PKCS#10, DER. It names nobody: the name comes from the proof that goes with it.
    pub der: Vec<u8>,
}

impl Request {
    /// Makes a key and asks for a certificate of it.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn new() -> Result<Self, CaError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&key)
            .map_err(|source| CaError::Make {
                what: "a request for a certificate",
                source,
            })?;
        Ok(Self {
            key: Secret::new(key.serialize_pem()),
            der: request.der().to_vec(),
        })
    }
}

/// Bytes of an uncompressed point on P-256.
const P256_POINT: usize = 65;

fn bad_request(why: &(impl ToString + ?Sized)) -> CaError {
    CaError::BadRequest {
        why: why.to_string(),
    }
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// By a server and by a client, as all of ours are.
    Both,
    /// By a client only.
    Client,
    /// By a server only.
    Server,
}

impl Purpose {
    fn usages(self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Self::Both => {
                vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ]
            }
            Self::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Self::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        }
    }
}

/// What a certificate is to say.
#[derive(Debug, Clone)]
pub struct Leaf {
    name: String,
    uris: Vec<String>,
    hosts: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    purpose: Purpose,
}

impl Leaf {
    /// For `identity`, valid from now (backdated by five minutes) for `lifetime`.
    pub fn new(identity: &Identity, lifetime: Duration) -> Self {
        let now = clock::wall();
        Self {
            name: identity.kind().name().to_owned(),
            uris: vec![identity.to_string()],
            hosts: Vec::new(),
            not_before: backdated(now),
            not_after: now + lifetime,
            purpose: Purpose::Both,
        }
    }

    /// Adds a DNS name or an IP address, as etcd's clients want it.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Replaces the time for which the certificate is valid.
    #[must_use]
    pub const fn valid(mut self, from: SystemTime, until: SystemTime) -> Self {
        self.not_before = from;
        self.not_after = until;
        self
    }

    /// Replaces the URI names, whatever they are: for what a foreign or careless issuer would
    /// sign. Our peers refuse anything but exactly one identity of ours.
    #[must_use]
    pub fn uris(mut self, uris: impl IntoIterator<Item = String>) -> Self {
        self.uris = uris.into_iter().collect();
        self
    }

    /// Replaces what the certificate may be used for.
    #[must_use]
    pub const fn purpose(mut self, purpose: Purpose) -> Self {
        self.purpose = purpose;
        self
    }

    fn names(&self) -> Result<Vec<SanType>, CaError> {
        let mut names = Vec::with_capacity(self.uris.len() + self.hosts.len());
        for uri in &self.uris {
            names.push(SanType::URI(ia5(uri)?));
        }
        for host in &self.hosts {
            names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if is_dns_name(host) => SanType::DnsName(ia5(host)?),
                Err(_) => return Err(CaError::BadName { text: host.clone() }),
            });
        }
        Ok(names)
    }
}

fn ia5(text: &str) -> Result<Ia5String, CaError> {
    text.try_into().map_err(|_| CaError::BadName {
        text: text.to_owned(),
    })
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A certificate with its key, not written yet.
#[derive(Debug, Clone)]
#[must_use = "the key exists nowhere else"]
pub struct Issued {
    /// The CA's certificate, PEM.
    pub ca: String,
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PEM.
    pub key: Secret,
}

impl Issued {
    /// Writes `ca.crt`, `tls.key` and `tls.crt` to `dir`, each whole or not at all and readable by
    /// the owner only. The certificate comes last: a reader in between sees a key that does not
    /// match, keeps what it has and looks again.
    ///
    /// # Errors
    /// [`CaError::File`], naming the file.
    pub fn write(&self, dir: &Path) -> Result<(), CaError> {
        make_dir(dir)?;
        write_private(&dir.join(CA_CERT), &self.ca)?;
        write_private(&dir.join(LEAF_KEY), self.key.expose())?;
        write_private(&dir.join(LEAF_CERT), &self.certificate)
    }
}

fn new_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| CaError::Make {
        what: "a key",
        source,
    })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn backdated(now: SystemTime) -> SystemTime {
    now.checked_sub(BACKDATE).unwrap_or(now)
}

fn make_dir(dir: &Path) -> Result<(), CaError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| CaError::File {
            verb: "create",
            path: dir.to_owned(),
            source,
        })
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|source| CaError::File {
        verb: "read",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file of mode 0600 under another name first, so that nobody reads half of it.
fn write_private(path: &Path, text: &str) -> Result<(), CaError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = PathBuf::from(name);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, path));
    written.map_err(|source| CaError::File {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
