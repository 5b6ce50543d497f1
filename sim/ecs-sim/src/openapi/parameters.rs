//! Parameters of a request, read in the conventions of the RPC style.

use std::collections::BTreeMap;
use std::str::FromStr;

use ecs_api::action::{MAX_CLIENT_TOKEN_LEN, MAX_TAGS};

use crate::refusal::Refusal;
use crate::wire::Inbound;

/// Parameters that are not the action's own.
const COMMON: [&str; 12] = [
    "Action",
    "Version",
    "Format",
    "AccessKeyId",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "SignatureType",
    "SignatureVersion",
    "Timestamp",
    "SecurityToken",
    "ClientToken",
];

/// The parameters of one request. When query and form name the same one, the query counts.
#[derive(Debug, Clone)]
pub struct Parameters {
    all: BTreeMap<String, String>,
}

impl Parameters {
    /// Reads query and form.
    pub fn read(inbound: &Inbound) -> Self {
        let mut all = BTreeMap::new();
        for (key, value) in inbound.parameters() {
            all.entry(key.to_owned())
                .or_insert_with(|| value.to_owned());
        }
        Self { all }
    }

    /// Those that two calls under one ClientToken must have in common.
    pub fn business(&self) -> BTreeMap<String, String> {
        self.all
            .iter()
            .filter(|(key, _)| !COMMON.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Names of those that are the action's own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all
            .keys()
            .map(String::as_str)
            .filter(|key| !COMMON.contains(key))
    }

    /// A parameter; empty is absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.all
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// `MissingParameter`.
    pub fn required(&self, name: &str) -> Result<&str, Refusal> {
        self.text(name).ok_or_else(|| Refusal::missing(name))
    }

    /// The values of `name.1 … name.N`, in the order of their numbers.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let mut values: Vec<(u32, &str)> = self
            .all
            .iter()
            .filter_map(|(key, value)| {
                let number = key.strip_prefix(name)?.strip_prefix('.')?;
                Some((number.parse().ok()?, value.as_str()))
            })
            .filter(|(_, value)| !value.is_empty())
            .collect();
        values.sort_unstable();
        values.into_iter().map(|(_, value)| value).collect()
    }

    /// The same, each parsed.
    ///
    /// # Errors
    /// `code` in the name of the parameter when one does not parse.
    pub fn parsed_list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, Refusal> {
        self.list(name)
            .into_iter()
            .map(|text| {
                text.parse()
                    .map_err(|_| Refusal::invalid(name, "malformed"))
            })
            .collect()
    }

    /// A parameter, parsed.
    ///
    /// # Errors
    /// `InvalidParameter`.
    pub fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        self.text(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| Refusal::invalid(name, "malformed"))
            })
            .transpose()
    }

    /// A truth value, in any case.
    ///
    /// # Errors
    /// `InvalidParameter`.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.text(name)
            .map(|text| {
                text.to_ascii_lowercase()
                    .parse()
                    .map_err(|_| Refusal::invalid(name, "neither true nor false"))
            })
            .transpose()
    }

    /// `Tag.N.Key` with `Tag.N.Value`.
    ///
    /// # Errors
    /// More than 20, a key twice, or a key the cloud keeps for itself.
    pub fn tags(&self) -> Result<BTreeMap<String, String>, Refusal> {
        let mut tags = BTreeMap::new();
        for (name, key) in &self.all {
            let number = name
                .strip_prefix("Tag.")
                .and_then(|rest| rest.strip_suffix(".Key"));
            let Some(number) = number else {
                continue;
            };
            let reserved = key.starts_with("aliyun") || key.starts_with("acs:");
            if key.is_empty() || key.chars().count() > 128 || reserved {
                return Err(Refusal::bad(
                    "InvalidTagKey.Malformed",
                    "The Tag.N.Key is malformed.",
                ));
            }
            let value = self
                .text(&format!("Tag.{number}.Value"))
                .unwrap_or_default();
            if value.chars().count() > 128 {
                return Err(Refusal::bad(
                    "InvalidTagValue.Malformed",
                    "The Tag.N.Value is malformed.",
                ));
            }
            if tags.insert(key.clone(), value.to_owned()).is_some() {
                return Err(Refusal::bad(
                    "Duplicate.TagKey",
                    "The Tag.N.Key contain duplicate key.",
                ));
            }
        }
        if tags.len() > MAX_TAGS {
            return Err(Refusal::forbidden("QuotaExceed.Tags", "Too many tags."));
        }
        Ok(tags)
    }

    /// The `ClientToken`.
    ///
    /// # Errors
    /// Longer than 64 characters, or not ASCII.
    pub fn client_token(&self) -> Result<Option<&str>, Refusal> {
        let token = self.text("ClientToken");
        if token.is_some_and(|token| token.len() > MAX_CLIENT_TOKEN_LEN || !token.is_ascii()) {
            return Err(Refusal::invalid(
                "ClientToken",
                "longer than 64 characters or not ASCII",
            ));
        }
        Ok(token)
    }
}
