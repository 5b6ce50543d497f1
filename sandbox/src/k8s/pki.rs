//! Certificates of the test bed's Kubernetes: one authority, and who is who to the API server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use serde_json::{Value, json};

use crate::run_dir::write_secret;

/// Issues into one folder.
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Pki {
    /// Makes the authority, and the keys by which tokens of service accounts are signed.
    ///
    /// # Errors
    /// When a key can not be made or a file not be written.
    pub fn create(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let key = key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("terway-test-bed", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let root = params.self_signed(&key)?.pem();
        fs::write(dir.join("ca.crt"), root)?;
        let accounts = self::key()?;
        write_secret(&dir.join("sa.key"), accounts.serialize_pem().as_bytes())?;
        fs::write(dir.join("sa.pub"), accounts.public_key_pem())?;
        Ok(Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A file of the folder, such as `ca.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes `<file>.crt` and `<file>.key` of a user with a group.
    ///
    /// # Errors
    /// As for [`Pki::create`].
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> anyhow::Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.write(file, params)
    }

    /// Writes `<file>.crt` and `<file>.key` of a server with these names and addresses.
    ///
    /// # Errors
    /// As for [`Pki::create`].
    pub fn server(&self, file: &str, names: &[&str]) -> anyhow::Result<()> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = subject(file, None);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.write(file, params)
    }

    fn write(&self, file: &str, mut params: CertificateParams) -> anyhow::Result<()> {
        let key = key()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.dir.join(format!("{file}.crt")), certificate.pem())?;
        write_secret(
            &self.dir.join(format!("{file}.key")),
            key.serialize_pem().as_bytes(),
        )?;
        Ok(())
    }
}

fn key() -> anyhow::Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")
}

fn subject(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

/// A kubeconfig that names files: `<dir>/ca.crt`, `<dir>/<user>.crt`, `<dir>/<user>.key`.
pub fn kubeconfig(server: &str, dir: &Path, user: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {
            "server": server,
            "certificate-authority": dir.join("ca.crt"),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": dir.join(format!("{user}.crt")),
            "client-key": dir.join(format!("{user}.key")),
        }}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": user}}],
        "current-context": "bed",
    })
}
