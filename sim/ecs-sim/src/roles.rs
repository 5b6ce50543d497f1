//! RAM roles: temporary keys for instances, by the metadata service, and for service accounts, by STS.
//!
//! Source: ECS instance metadata, `ram/security-credentials/`; STS, `AssumeRoleWithOIDC`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ecs_api::sign::Credentials;
use ecs_api::sign::encode::{parse_timestamp, timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use types::cloud::InstanceId;
use types::time::Tick;

use crate::refusal::Refusal;
use crate::signature::Keys;
use crate::wire::Inbound;

/// The one action of STS that is simulated.
pub const ASSUME: &str = "AssumeRoleWithOIDC";
/// Version of STS.
pub const STS_VERSION: &str = "2015-04-01";
/// What names of items of roles begin with, below `meta-data/`.
pub const ITEMS: &str = "ram/security-credentials/";

/// How long before the end of a set the metadata service gives the next one.
///
/// Source: ECS instance metadata: at least 30 minutes.
const NEXT_SET: Duration = Duration::from_mins(30);
/// Life of a service account's keys, in seconds.
///
/// Source: STS, `DurationSeconds`, of a role whose longest session is the default.
const DURATIONS: std::ops::RangeInclusive<u64> = 900..=3_600;

/// A role, as a world file and the admin port have it. What it says replaces what was there before.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// Its name.
    pub name: String,
    /// Instances that have it.
    #[serde(default)]
    pub instances: Vec<InstanceId>,
    /// The provider whose tokens it trusts, `acs:ram::<account>:oidc-provider/<name>`.
    #[serde(default)]
    pub oidc_provider: Option<String>,
    /// Tokens that count as the provider's. They open nothing but this simulator.
    #[serde(default)]
    pub oidc_tokens: Vec<String>,
    /// Life of the keys that an instance gets, in seconds.
    #[serde(default = "six_hours")]
    pub life_seconds: u64,
}

fn six_hours() -> u64 {
    6 * 3_600
}

impl RoleSpec {
    /// A role that nobody has.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            instances: Vec::new(),
            oidc_provider: None,
            oidc_tokens: Vec::new(),
            life_seconds: six_hours(),
        }
    }

    /// `acs:ram::<account>:role/<name>`.
    pub fn arn(&self) -> String {
        format!("acs:ram::{ACCOUNT}:role/{}", self.name)
    }
}

impl fmt::Debug for RoleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoleSpec")
            .field("name", &self.name)
            .field("instances", &self.instances)
            .field("oidc_provider", &self.oidc_provider)
            .field("life_seconds", &self.life_seconds)
            .finish_non_exhaustive()
    }
}

/// The account that roles belong to.
pub const ACCOUNT: &str = "1234567890123456";

#[derive(Debug)]
struct Set {
    credentials: Credentials,
    made: Tick,
    end: Tick,
}

/// The roles, and the sets of keys that instances were given last.
#[derive(Debug)]
pub struct Roles {
    by_name: BTreeMap<String, RoleSpec>,
    given: BTreeMap<(InstanceId, String), Set>,
    rng: StdRng,
}

impl Roles {
    /// None yet.
    pub fn new(seed: u64) -> Self {
        Self {
            by_name: BTreeMap::new(),
            given: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed.wrapping_add(3)),
        }
    }

    /// Adds a role, or replaces it.
    pub fn set(&mut self, spec: RoleSpec) {
        self.given
            .retain(|(instance, name), _| *name != spec.name || spec.instances.contains(instance));
        self.by_name.insert(spec.name.clone(), spec);
    }

    /// Removes a role. False if there is none of that name. Keys that were given live on, as in the real cloud.
    pub fn remove(&mut self, name: &str) -> bool {
        self.given.retain(|(_, of), _| of != name);
        self.by_name.remove(name).is_some()
    }

    /// The item of the metadata service behind [`ITEMS`]: the role's name, or its keys.
    pub fn item(
        &mut self,
        instance: &InstanceId,
        name: &str,
        keys: &mut Keys,
        now: Tick,
    ) -> Option<String> {
        let mut of_instance = self
            .by_name
            .values()
            .filter(|role| role.instances.contains(instance));
        if name.is_empty() {
            return of_instance.next().map(|role| role.name.clone());
        }
        let role = of_instance.find(|role| role.name == name)?;
        let life = Duration::from_secs(role.life_seconds);
        let place = (instance.clone(), role.name.clone());
        let fresh = |set: &Set| set.end.since(now) > NEXT_SET.min(life / 2);
        if !self.given.get(&place).is_some_and(fresh) {
            let set = make(&mut self.rng, keys, now, now.after(life));
            self.given.insert(place.clone(), set);
        }
        let set = self.given.get(&place)?;
        let text = json!({
            "AccessKeyId": set.credentials.access_key_id,
            "AccessKeySecret": set.credentials.secret(),
            "Expiration": timestamp(set.end),
            "SecurityToken": set.credentials.token(),
            "LastUpdated": timestamp(set.made),
            "Code": "Success",
        });
        Some(text.to_string())
    }

    /// Answers `AssumeRoleWithOIDC`. It is not signed: the token is the proof.
    ///
    /// Reason: its codes beside those of roles are not in the public table; clients tell them on as they are.
    ///
    /// # Errors
    /// A parameter that is missing or malformed, an unknown role, a token that the role does not trust.
    pub fn assume(
        &mut self,
        inbound: &Inbound,
        keys: &mut Keys,
        now: Tick,
    ) -> Result<Value, Refusal> {
        let needed = |name: &str| {
            inbound
                .parameter(name)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Refusal::missing(name))
        };
        if inbound.method != "POST" {
            return Err(Refusal::bad(
                "UnsupportedHTTPMethod",
                "This http method is not supported.",
            ));
        }
        let at = parse_timestamp(needed("Timestamp")?)
            .ok_or_else(|| Refusal::invalid("Timestamp", "not well formatted"))?;
        if now.since(at).max(at.since(now)) > Duration::from_mins(15) {
            return Err(Refusal::bad(
                "InvalidTimeStamp.Expired",
                "Specified time stamp or date value is expired.",
            ));
        }
        let arn = needed("RoleArn")?;
        let provider = needed("OIDCProviderArn")?;
        let session = needed("RoleSessionName")?;
        let token = needed("OIDCToken")?;
        if !(2..=64).contains(&session.len()) {
            return Err(Refusal::invalid(
                "RoleSessionName",
                "not 2 to 64 characters",
            ));
        }
        if !(4..=20_000).contains(&token.len()) {
            return Err(Refusal::invalid("OIDCToken", "not 4 to 20000 characters"));
        }
        let life = match inbound.parameter("DurationSeconds") {
            None => *DURATIONS.end(),
            Some(text) => text
                .parse()
                .ok()
                .filter(|life| DURATIONS.contains(life))
                .ok_or_else(|| Refusal::invalid("DurationSeconds", "not 900 to 3600"))?,
        };
        let role = self
            .by_name
            .values()
            .find(|role| role.arn() == arn)
            .ok_or_else(|| Refusal::not_found("EntityNotExist.Role", "The role not exists."))?;
        if role.oidc_provider.as_deref() != Some(provider) {
            return Err(Refusal::forbidden(
                "NoPermission",
                "You are not authorized to do this action. You should be authorized by RAM.",
            ));
        }
        if !role.oidc_tokens.iter().any(|known| known == token) {
            return Err(Refusal::bad(
                "AuthenticationFail.OIDCToken.Invalid",
                "The OIDC token is invalid or has expired.",
            ));
        }
        let name = role.name.clone();
        let set = make(
            &mut self.rng,
            keys,
            now,
            now.after(Duration::from_secs(life)),
        );
        Ok(json!({
            "AssumedRoleUser": {
                "Arn": format!("acs:ram::{ACCOUNT}:assumed-role/{name}/{session}"),
                "AssumedRoleId": format!("3{ACCOUNT}:{session}"),
            },
            "Credentials": {
                "AccessKeyId": set.credentials.access_key_id,
                "AccessKeySecret": set.credentials.secret(),
                "SecurityToken": set.credentials.token(),
                "Expiration": timestamp(set.end),
            },
            "OIDCTokenInfo": {
                "Issuer": "https://oidc.sim",
                "Subject": "system:serviceaccount:kube-system:terway",
                "ClientIds": "sts.aliyuncs.com",
                "VerificationInfo": "Success",
            },
        }))
    }
}

/// Whether the request is one for [`Roles::assume`].
pub fn is_assume(inbound: &Inbound) -> bool {
    inbound.parameter("Action") == Some(ASSUME) && inbound.parameter("Version") == Some(STS_VERSION)
}

/// New keys, known from now on.
fn make(rng: &mut StdRng, keys: &mut Keys, now: Tick, end: Tick) -> Set {
    let id = format!("STS.{:032x}", rng.random::<u128>());
    let secret = format!("{:032x}", rng.random::<u128>());
    let token = format!(
        "CAIS{:032x}/+{:032x}==",
        rng.random::<u128>(),
        rng.random::<u128>()
    );
    let credentials = Credentials::temporary(&id, &secret, &token);
    keys.forget_ended(now);
    keys.add(credentials.clone(), Some(end));
    Set {
        credentials,
        made: now,
        end,
    }
}
