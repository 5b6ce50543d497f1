//! The tokens that the metadata service gives out. Not to be confused with the client tokens of the OpenAPI.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use types::cloud::InstanceId;
use types::time::Tick;

use crate::config::MetadataTokens;

/// Tokens remembered; the oldest go first.
///
/// Reason: bounds memory against a caller that never keeps its token.
const MAX_TOKENS: usize = 100_000;

/// Tokens that were given out.
#[derive(Debug)]
pub struct Passes {
    mode: MetadataTokens,
    tokens: BTreeMap<String, Token>,
    rng: StdRng,
}

#[derive(Debug)]
struct Token {
    instance: InstanceId,
    until: Tick,
}

impl Passes {
    /// No tokens yet.
    pub fn new(mode: MetadataTokens, seed: u64) -> Self {
        Self {
            mode,
            tokens: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed.wrapping_add(2)),
        }
    }

    /// Whether the service answers nobody.
    pub fn are_disabled(&self) -> bool {
        self.mode == MetadataTokens::Disabled
    }

    /// A new token for the instance, good for `ttl`.
    pub fn issue(&mut self, instance: &InstanceId, ttl: Duration, now: Tick) -> String {
        self.tokens.retain(|_, token| now < token.until);
        while self.tokens.len() >= MAX_TOKENS {
            self.tokens.pop_first();
        }
        let text = format!("{:032x}", self.rng.random::<u128>());
        let token = Token {
            instance: instance.clone(),
            until: now.after(ttl),
        };
        self.tokens.insert(text.clone(), token);
        text
    }

    /// Whether the instance may ask with that token, or with none.
    pub fn accepts(&self, given: Option<&str>, instance: &InstanceId, now: Tick) -> bool {
        match (given, self.mode) {
            (_, MetadataTokens::Disabled) | (None, MetadataTokens::Required) => false,
            (None, MetadataTokens::Optional) => true,
            (Some(text), MetadataTokens::Optional | MetadataTokens::Required) => self
                .tokens
                .get(text)
                .is_some_and(|token| token.instance == *instance && now < token.until),
        }
    }
}
