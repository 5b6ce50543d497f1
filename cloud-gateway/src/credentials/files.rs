//! Access keys in a directory, as a Kubernetes secret is mounted.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use ecs_api::sign::Credentials;
use secrecy::SecretString;

use super::{CredentialError, Issued, Source, aside, unreadable};

/// File with the AccessKey id.
pub const FILE_ID: &str = "access-key-id";
/// File with the AccessKey secret.
pub const FILE_SECRET: &str = "access-key-secret";
/// File with the session token of temporary keys; absent with lasting ones.
pub const FILE_TOKEN: &str = "security-token";

/// The link under which a secret's mount holds its files: all of them change in one step behind it.
const MOUNT_LINK: &str = "..data";

/// `access-key-id`, `access-key-secret`, and `security-token` for temporary keys.
#[derive(Debug)]
pub struct KeyFiles {
    dir: PathBuf,
}

impl KeyFiles {
    /// Reads from `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

#[async_trait]
impl Source for KeyFiles {
    async fn fetch(&self) -> Result<Issued, CredentialError> {
        let dir = self.dir.clone();
        let credentials = aside(&self.dir, move || read(&dir)).await?;
        // The files do not say when temporary keys end; the cloud does.
        Ok(Issued {
            credentials,
            left: None,
        })
    }
}

fn read(dir: &Path) -> Result<Credentials, CredentialError> {
    // Behind the link the three files are of one age.
    let from = fs::canonicalize(dir.join(MOUNT_LINK)).unwrap_or_else(|_| dir.to_owned());
    let id = read_file(dir, &from, FILE_ID)?;
    let secret = read_file(dir, &from, FILE_SECRET)?;
    let token = match read_file(dir, &from, FILE_TOKEN) {
        Ok(token) => Some(SecretString::from(token)),
        Err(CredentialError::Unreadable { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            None
        }
        Err(error) => return Err(error),
    };
    Ok(Credentials {
        access_key_id: id,
        access_key_secret: SecretString::from(secret),
        security_token: token,
    })
}

/// Complaints name the file where people see it, not behind the link.
fn read_file(dir: &Path, from: &Path, name: &str) -> Result<String, CredentialError> {
    let shown = dir.join(name);
    let text = fs::read_to_string(from.join(name)).map_err(|source| unreadable(&shown, source))?;
    let text = text.trim();
    let malformed = |why: &str| CredentialError::Malformed {
        what: shown.display().to_string(),
        why: why.to_owned(),
    };
    if text.is_empty() {
        return Err(malformed("the file is empty"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed("only printable ASCII without spaces is allowed"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, id: &str, secret: &str) {
        fs::write(dir.join(FILE_ID), id).unwrap();
        fs::write(dir.join(FILE_SECRET), secret).unwrap();
    }

    async fn fetch(dir: &Path) -> Result<Credentials, CredentialError> {
        let issued = KeyFiles::new(dir.to_owned()).fetch().await?;
        Ok(issued.credentials)
    }

    #[tokio::test]
    async fn keys_are_read_without_their_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "id-1\n", "hush\n");

        let read = fetch(dir.path()).await.unwrap();

        assert_eq!(read.access_key_id, "id-1");
        assert_eq!((read.secret(), read.token()), ("hush", None));
    }

    #[tokio::test]
    async fn missing_and_empty_files_are_named() {
        let dir = tempfile::tempdir().unwrap();

        let missing = fetch(dir.path()).await.unwrap_err().to_string();
        write(dir.path(), "id-1", "");
        let empty = fetch(dir.path()).await.unwrap_err().to_string();

        assert!(missing.contains(FILE_ID), "{missing}");
        assert!(
            empty.contains(FILE_SECRET) && empty.contains("empty"),
            "{empty}"
        );
    }

    #[tokio::test]
    async fn mounted_secret_is_read_behind_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("..2026");
        fs::create_dir(&inner).unwrap();
        write(&inner, "id-1", "hush");
        fs::write(inner.join(FILE_TOKEN), "token").unwrap();
        std::os::unix::fs::symlink(&inner, dir.path().join(MOUNT_LINK)).unwrap();

        let read = fetch(dir.path()).await.unwrap();

        assert_eq!(read.token(), Some("token"));
    }
}
