//! Which source of credentials is configured: exactly one.

use std::path::PathBuf;

use mesh::config::Invalid;
use serde::{Deserialize, Serialize};
use types::cloud::RegionId;

use crate::credentials::{oidc, ram_role};

/// Where credentials come from. One of `dir`, `token_config`, `ram_role`, `oidc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Folder with `access-key-id`, `access-key-secret` and, for temporary keys, `security-token`.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// File of ACK's encrypted token.
    #[serde(default)]
    pub token_config: Option<PathBuf>,
    /// Name of the instance's role, or `auto`.
    #[serde(default)]
    pub ram_role: Option<String>,
    /// A role for the service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// Name of the Secret behind the files, for complaints.
    #[serde(default)]
    pub secret: String,
    /// `http://host[:port]` of the metadata service.
    #[serde(default = "default_metadata")]
    pub metadata: String,
    /// How often files are looked at.
    #[serde(default = "default_reread")]
    pub reread_ms: u64,
}

/// A role for the service account. What is empty comes from the variables of ack-pod-identity-webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Oidc {
    /// `acs:ram::<account>:role/<name>`.
    pub role_arn: String,
    /// `acs:ram::<account>:oidc-provider/<name>`.
    pub provider_arn: String,
    /// The service account's token.
    pub token_file: PathBuf,
    /// Who we are in the cloud's audit log.
    pub session: String,
    /// `http(s)://host[:port]` of STS; empty: the region's endpoint inside the VPC.
    pub sts_endpoint: String,
}

/// The source that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// Access keys in a folder.
    Dir(PathBuf),
    /// ACK's token file.
    TokenConfig(PathBuf),
    /// The instance's role, by the metadata service.
    RamRole {
        /// Its name, or `auto`.
        role: String,
        /// `http://host[:port]`.
        metadata: String,
    },
    /// The service account's role.
    Oidc(oidc::Settings),
}

/// Source: ECS user guide, instance metadata.
fn default_metadata() -> String {
    "http://100.100.100.200".to_owned()
}

fn default_reread() -> u64 {
    5_000
}

impl Credentials {
    /// The source, with what variables of the environment add to it.
    ///
    /// # Errors
    /// [`Invalid`] naming the key, when none or more than one is given, or one is incomplete.
    pub fn chosen(
        &self,
        region: &RegionId,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Chosen, Invalid> {
        let given: Vec<(&'static str, Chosen)> = [
            self.dir
                .clone()
                .map(|dir| ("credentials.dir", Chosen::Dir(dir))),
            self.token_config
                .clone()
                .map(|path| ("credentials.token_config", Chosen::TokenConfig(path))),
            self.ram_role.clone().map(|role| {
                let metadata = self.metadata.clone();
                ("credentials.ram_role", Chosen::RamRole { role, metadata })
            }),
            self.oidc
                .as_ref()
                .map(|oidc| {
                    Ok::<_, Invalid>(("credentials.oidc", oidc.resolved(region, &variable)?))
                })
                .transpose()?
                .map(|(key, settings)| (key, Chosen::Oidc(settings))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut given = given.into_iter();
        let Some((first, chosen)) = given.next() else {
            return Err(Invalid::new(
                "credentials",
                "one source is needed: credentials.dir, credentials.token_config, \
                 credentials.ram_role or credentials.oidc",
            ));
        };
        if let Some((second, _)) = given.next() {
            return Err(Invalid::new(
                second,
                format!("excludes {first}: there is one source of credentials at a time"),
            ));
        }
        check(&chosen)?;
        Ok(chosen)
    }
}

fn check(chosen: &Chosen) -> Result<(), Invalid> {
    match chosen {
        Chosen::Dir(_) | Chosen::TokenConfig(_) | Chosen::Oidc(_) => Ok(()),
        Chosen::RamRole { role, metadata } => {
            if !ram_role::is_role(role) {
                return Err(Invalid::new(
                    "credentials.ram_role",
                    format!("{role:?} is neither the name of a role nor \"auto\""),
                ));
            }
            base("credentials.metadata", metadata).map(drop)
        }
    }
}

/// `text` as an address that paths can be put behind.
fn base(key: &str, text: &str) -> Result<String, Invalid> {
    let invalid = || {
        Invalid::new(
            key,
            format!("{text:?} is not http://host[:port] or https://host[:port]"),
        )
    };
    super::base(text)
        .map(|_| text.trim_end_matches('/').to_owned())
        .ok_or_else(invalid)
}

impl Oidc {
    fn resolved(
        &self,
        region: &RegionId,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<oidc::Settings, Invalid> {
        let text = |key: &str, given: &str, name: &str| {
            let found = Some(given.to_owned()).filter(|text| !text.is_empty());
            found
                .or_else(|| variable(name).filter(|text| !text.is_empty()))
                .ok_or_else(|| {
                    Invalid::new(
                        key,
                        format!(
                            "is not given, and {name} is not set: ack-pod-identity-webhook sets it for pods \
                             whose service account names a role, in namespaces that it is switched on for"
                        ),
                    )
                })
        };
        let arn = |key: &str, given: &str, name: &str, kind: &str| {
            let arn = text(key, given, name)?;
            if is_arn(&arn, kind) {
                return Ok(arn);
            }
            Err(Invalid::new(
                key,
                format!("{arn:?} is not acs:ram::<account>:{kind}/<name>"),
            ))
        };
        let session = text(
            "credentials.oidc.session",
            &self.session,
            oidc::VARIABLE_SESSION,
        )
        .unwrap_or_else(|_| oidc::SESSION.to_owned());
        if !is_session(&session) {
            return Err(Invalid::new(
                "credentials.oidc.session",
                format!("{session:?} is not 2 to 64 letters, digits, '.', '@', '-', '_'"),
            ));
        }
        let given = text(
            "credentials.oidc.sts_endpoint",
            &self.sts_endpoint,
            oidc::VARIABLE_ENDPOINT,
        );
        // Source: STS endpoint list, access from inside a VPC.
        let endpoint = given.unwrap_or_else(|_| format!("sts-vpc.{region}.aliyuncs.com"));
        let endpoint = if endpoint.contains("://") {
            endpoint
        } else {
            format!("https://{endpoint}")
        };
        let token_file = text(
            "credentials.oidc.token_file",
            &self.token_file.to_string_lossy(),
            oidc::VARIABLE_TOKEN_FILE,
        )?;
        Ok(oidc::Settings {
            endpoint: base("credentials.oidc.sts_endpoint", &endpoint)?,
            role_arn: arn(
                "credentials.oidc.role_arn",
                &self.role_arn,
                oidc::VARIABLE_ROLE,
                "role",
            )?,
            provider_arn: arn(
                "credentials.oidc.provider_arn",
                &self.provider_arn,
                oidc::VARIABLE_PROVIDER,
                "oidc-provider",
            )?,
            session,
            token_file: PathBuf::from(token_file),
        })
    }
}

/// `acs:ram::<account>:<kind>/<name>`.
fn is_arn(text: &str, kind: &str) -> bool {
    let rest = text.strip_prefix("acs:ram::");
    let Some((account, named)) = rest.and_then(|rest| rest.split_once(':')) else {
        return false;
    };
    let name = named
        .strip_prefix(kind)
        .and_then(|name| name.strip_prefix('/'));
    let number = !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_digit());
    number && name.is_some_and(|name| !name.is_empty())
}

/// Source: STS, AssumeRoleWithOIDC, RoleSessionName.
fn is_session(text: &str) -> bool {
    (2..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".@-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn chosen(text: &str, variables: &[(&str, &str)]) -> Result<Chosen, Invalid> {
        let credentials: Credentials = toml_of(text);
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        credentials.chosen(&"cn-hangzhou".parse().unwrap(), |name| {
            variables.get(name).map(|value| (*value).to_owned())
        })
    }

    fn toml_of(json: &str) -> Credentials {
        serde_json::from_str(json).unwrap()
    }

    const ROLE: &str = "acs:ram::1234:role/terway";
    const PROVIDER: &str = "acs:ram::1234:oidc-provider/ack";

    #[test]
    fn variables_of_the_webhook_fill_what_is_not_given() {
        let variables = [
            (oidc::VARIABLE_ROLE, ROLE),
            (oidc::VARIABLE_PROVIDER, PROVIDER),
            (oidc::VARIABLE_TOKEN_FILE, "/token"),
        ];

        let all = chosen(r#"{"oidc": {}}"#, &variables).unwrap();
        let own = chosen(r#"{"oidc": {"token_file": "/own"}}"#, &variables).unwrap();

        let Chosen::Oidc(settings) = all else {
            panic!("{all:?}");
        };
        assert_eq!(settings.role_arn, ROLE);
        assert_eq!(
            settings.endpoint,
            "https://sts-vpc.cn-hangzhou.aliyuncs.com"
        );
        assert_eq!(settings.session, oidc::SESSION);
        assert!(
            matches!(&own, Chosen::Oidc(settings) if settings.token_file.to_str() == Some("/own")),
            "{own:?}"
        );
    }

    #[test]
    fn contradictions_and_gaps_are_named_by_their_keys() {
        for (text, key, says) in [
            ("{}", "credentials", "credentials.dir"),
            (
                r#"{"dir": "/a", "token_config": "/b"}"#,
                "credentials.token_config",
                "credentials.dir",
            ),
            (
                r#"{"dir": "/a", "ram_role": "auto"}"#,
                "credentials.ram_role",
                "credentials.dir",
            ),
            (
                r#"{"ram_role": "a/../b"}"#,
                "credentials.ram_role",
                "neither",
            ),
            (
                r#"{"ram_role": "auto", "metadata": "100.100.100.200"}"#,
                "credentials.metadata",
                "http://",
            ),
            (
                r#"{"oidc": {}}"#,
                "credentials.oidc.token_file",
                oidc::VARIABLE_TOKEN_FILE,
            ),
            (
                r#"{"oidc": {"token_file": "/t"}}"#,
                "credentials.oidc.role_arn",
                oidc::VARIABLE_ROLE,
            ),
            (
                r#"{"oidc": {"token_file": "/t", "role_arn": "terway"}}"#,
                "credentials.oidc.role_arn",
                "terway",
            ),
            (
                r#"{"oidc": {"token_file": "/t", "session": "a b"}}"#,
                "credentials.oidc.session",
                "a b",
            ),
        ] {
            let invalid = chosen(text, &[]).unwrap_err();

            assert_eq!(invalid.key, key, "{text}: {invalid}");
            assert!(invalid.message.contains(says), "{text}: {invalid}");
        }
    }
}
