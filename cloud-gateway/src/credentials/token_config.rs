//! ACK's token file: temporary keys, each value encrypted with a key that lies beside it.
//!
//! The encryption hides the values from a glance and from nobody else: whoever may read the file has the keys.
//!
//! Source: ACK's Secret `addon.network.token`, key `token-config`. A value is
//! `base64(iv[16] || AES-CBC(PKCS#7))`, its key the bytes of `keyring`.

use std::fs;
use std::path::PathBuf;

use aes::{Aes128, Aes192, Aes256};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use ecs_api::sign::Credentials;
use mesh::secret::Secret;
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;

use super::{CredentialError, Issued, Source, aside, left_until, unreadable};

/// Bytes of an AES block, and of the initialisation vector before each value.
const BLOCK: usize = 16;

/// Largest file that is read. Reason: a real one has two kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// The file.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
}

impl TokenFile {
    /// Reads from `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn read(path: &std::path::Path) -> Result<Issued, CredentialError> {
        let size = fs::metadata(path).map_err(|source| unreadable(path, source))?;
        let malformed = |why: String| CredentialError::Malformed {
            what: path.display().to_string(),
            why,
        };
        if size.len() > MAX_FILE {
            return Err(malformed(format!("{} bytes are too many", size.len())));
        }
        let text = fs::read(path).map_err(|source| unreadable(path, source))?;
        parse(&Zeroizing::new(text)).map_err(|bad| match bad {
            Bad::Malformed(why) => malformed(why),
            Bad::Refused(why) => CredentialError::Refused {
                what: path.display().to_string(),
                why,
            },
        })
    }
}

#[async_trait]
impl Source for TokenFile {
    async fn fetch(&self) -> Result<Issued, CredentialError> {
        let path = self.path.clone();
        aside(&self.path, move || Self::read(&path)).await
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "access.key.id", default)]
    id: String,
    #[serde(rename = "access.key.secret", default)]
    secret: String,
    #[serde(rename = "security.token", default)]
    token: String,
    #[serde(default)]
    expiration: String,
    keyring: Option<Secret>,
    error: Option<Failed>,
}

/// Who wrote the file could not assume the role.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Failed {
    role_name: String,
    code: String,
    message: String,
}

#[derive(Debug)]
enum Bad {
    Malformed(String),
    Refused(String),
}

fn parse(text: &[u8]) -> Result<Issued, Bad> {
    // What serde would say holds the text that did not fit.
    let document: Document = serde_json::from_slice(text).map_err(|error| {
        Bad::Malformed(format!(
            "is not the JSON of a token-config (line {}, column {})",
            error.line(),
            error.column()
        ))
    })?;
    if let Some(failed) = document.error {
        return Err(Bad::Refused(format!(
            "role {} could not be assumed: {}: {}",
            failed.role_name, failed.code, failed.message
        )));
    }
    let keyring = document
        .keyring
        .ok_or_else(|| Bad::Malformed("keyring is missing".to_owned()))?;
    let open = |name: &str, value: &str| {
        decrypt(keyring.expose().as_bytes(), value)
            .map_err(|why| Bad::Malformed(format!("{name} {why}")))
    };
    let id = open("access.key.id", &document.id)?;
    let secret = open("access.key.secret", &document.secret)?;
    let token = open("security.token", &document.token)?;
    let left = left_until(&document.expiration)
        .map_err(|why| Bad::Malformed(format!("expiration {why}")))?;
    Ok(Issued {
        credentials: Credentials {
            access_key_id: id.as_str().to_owned(),
            access_key_secret: SecretString::from(secret.as_str()),
            security_token: Some(SecretString::from(token.as_str())),
        },
        left: Some(left),
    })
}

/// Never says more than what is wrong with the form: a value may be nearly right.
fn decrypt(key: &[u8], value: &str) -> Result<Zeroizing<String>, &'static str> {
    let bytes = STANDARD.decode(value.trim()).map_err(|_| "is not base64")?;
    let mut bytes = Zeroizing::new(bytes);
    if bytes.len() < 2 * BLOCK || !bytes.len().is_multiple_of(BLOCK) {
        return Err("has no whole number of blocks behind its initialisation vector");
    }
    let (iv, data) = bytes.split_at_mut_checked(BLOCK).ok_or("is too short")?;
    let plain = match key.len() {
        16 => unpad::<Decryptor<Aes128>>(key, iv, data),
        24 => unpad::<Decryptor<Aes192>>(key, iv, data),
        32 => unpad::<Decryptor<Aes256>>(key, iv, data),
        _ => return Err("can not be decrypted: keyring has not 16, 24 or 32 characters"),
    };
    let plain = plain.ok_or("can not be decrypted with keyring")?;
    let text = std::str::from_utf8(plain).map_err(|_| "is no text when decrypted")?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("is no printable ASCII when decrypted");
    }
    Ok(Zeroizing::new(text.to_owned()))
}

fn unpad<'a, D: BlockModeDecrypt + KeyIvInit>(
    key: &[u8],
    iv: &[u8],
    data: &'a mut [u8],
) -> Option<&'a [u8]> {
    D::new_from_slices(key, iv)
        .ok()?
        .decrypt_padded::<Pkcs7>(data)
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Made with the `cryptography` package of Python, after the decoder that Terway uses.
    fn vector() -> Value {
        json!({
            "access.key.id": "AAECAwQFBgcICQoLDA0ODw1wbLEpVtC08kiTQOTD/OudYQBCfPKGEUrQEF4G8Hk/",
            "access.key.secret": "EBESExQVFhcYGRobHB0eHzG8eq69R+3VobjOVxhh6RrZM/O37pF6F/lasu2oWPgl",
            "security.token": "ICEiIyQlJicoKSorLC0uL/2Ej9N7Ph6UySe2vi7zi2qT+5BNz8jL4gsRF9Ltzbm7pEEW83YQ5LEtXqEbtCNelQ==",
            "expiration": "2999-01-02T09:04:05Z",
            "keyring": "0123456789abcdef0123456789abcdef",
        })
    }

    fn read(file: &Value) -> Result<Issued, String> {
        parse(file.to_string().as_bytes()).map_err(|bad| match bad {
            Bad::Malformed(why) | Bad::Refused(why) => why,
        })
    }

    #[test]
    fn file_of_the_vector_has_its_plain_values() {
        let issued = read(&vector()).unwrap();

        let credentials = issued.credentials;
        assert_eq!(credentials.access_key_id, "STS.NUxampleKeyId");
        assert_eq!(credentials.secret(), "exampleSecret0123456789");
        assert_eq!(
            credentials.token(),
            Some("CAISexampleSTS/Token+with=chars==")
        );
        assert!(issued.left.is_some());
    }

    #[test]
    fn file_with_an_error_names_the_role_and_what_it_lacks() {
        let file = json!({"error": {
            "roleName": "AliyunCSManagedNetworkRole",
            "code": "EntityNotExist.Role",
            "message": "The role not exists.",
        }});

        let why = read(&file).unwrap_err();

        assert!(
            why.contains("AliyunCSManagedNetworkRole") && why.contains("EntityNotExist.Role"),
            "{why}"
        );
    }

    #[test]
    fn spoilt_file_is_refused_by_its_key_without_its_values() {
        for (key, value, says) in [
            (
                "access.key.id",
                json!("AAECAwQFBgcICQoLDA0ODw=="),
                "access.key.id has no whole number",
            ),
            (
                "access.key.id",
                json!("AAECAwQFBgcICQoLDA0ODw1wbLEp"),
                "access.key.id has no whole number",
            ),
            (
                "security.token",
                json!("hush-hush!"),
                "security.token is not base64",
            ),
            ("keyring", json!("short"), "keyring has not 16, 24 or 32"),
            (
                "keyring",
                json!("0123456789abcdef0123456789abcdeX"),
                "access.key.id ",
            ),
            ("keyring", Value::Null, "keyring is missing"),
            ("expiration", json!("tomorrow"), "expiration "),
            ("expiration", json!("2001-01-02T09:04:05Z"), "expiration "),
            (
                "access.key.id",
                json!(["hush-hush"]),
                "is not the JSON of a token-config",
            ),
        ] {
            let mut file = vector();
            file[key] = value;

            let why = read(&file).unwrap_err();

            assert!(why.contains(says), "{key}: {why}");
            assert!(
                !why.contains("hush") && !why.contains("0123456789"),
                "{why}"
            );
        }
    }

    #[test]
    fn changed_bytes_of_a_value_are_refused_or_give_other_text_but_never_stop_us() {
        let whole = vector();
        let value = whole["security.token"].as_str().unwrap();
        let bytes = STANDARD.decode(value).unwrap();
        for n in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[n] ^= 0x41;
            let mut file = whole.clone();
            file["security.token"] = json!(STANDARD.encode(&changed));

            let read = read(&file).map(|issued| issued.credentials.token().map(str::to_owned));

            let plain = Ok(Some("CAISexampleSTS/Token+with=chars==".to_owned()));
            assert_ne!(read, plain, "byte {n}");
        }
    }
}
