//! ClientToken: the same call twice has one effect.

use std::collections::BTreeMap;

use ecs_api::action::Action;
use serde_json::Value;
use types::time::Tick;

use crate::refusal::Refusal;

/// Remembered calls that succeeded.
#[derive(Debug, Default)]
pub struct Tokens {
    remembered: BTreeMap<(Action, String), Remembered>,
}

#[derive(Debug)]
struct Remembered {
    parameters: BTreeMap<String, String>,
    reply: Value,
    until: Tick,
}

impl Tokens {
    /// The first reply, if the call was made before under this token.
    ///
    /// # Errors
    /// `IdempotentParameterMismatch` when it was made with other parameters.
    pub fn recall(
        &mut self,
        action: Action,
        token: &str,
        parameters: &BTreeMap<String, String>,
        now: Tick,
    ) -> Result<Option<Value>, Refusal> {
        self.remembered.retain(|_, call| now < call.until);
        match self.remembered.get(&(action, token.to_owned())) {
            None => Ok(None),
            Some(call) if call.parameters == *parameters => Ok(Some(call.reply.clone())),
            Some(_) => Err(Refusal::bad(
                "IdempotentParameterMismatch",
                "Request uses a client token in a previous request but is not identical to that request.",
            )),
        }
    }

    /// Remembers a call that succeeded. Calls that fail stay free to be tried again under their token.
    pub fn remember(
        &mut self,
        action: Action,
        token: &str,
        parameters: BTreeMap<String, String>,
        reply: Value,
        until: Tick,
    ) {
        let call = Remembered {
            parameters,
            reply,
            until,
        };
        self.remembered.insert((action, token.to_owned()), call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTION: Action = Action::CreateNetworkInterface;

    fn parameters(value: &str) -> BTreeMap<String, String> {
        [("VSwitchId".to_owned(), value.to_owned())].into()
    }

    #[test]
    fn token_with_same_parameters_recalls_the_reply_until_it_expires() {
        let mut tokens = Tokens::default();
        tokens.remember(ACTION, "t", parameters("a"), Value::from(1), Tick(10));

        let recalled = tokens.recall(ACTION, "t", &parameters("a"), Tick(9));
        assert_eq!(recalled, Ok(Some(Value::from(1))));
        let expired = tokens.recall(ACTION, "t", &parameters("a"), Tick(10));
        assert_eq!(expired, Ok(None));
    }

    #[test]
    fn token_with_other_parameters_is_a_mismatch() {
        let mut tokens = Tokens::default();
        tokens.remember(ACTION, "t", parameters("a"), Value::from(1), Tick(10));

        let refusal = tokens
            .recall(ACTION, "t", &parameters("b"), Tick(1))
            .unwrap_err();

        assert_eq!(refusal.code, "IdempotentParameterMismatch");
    }

    #[test]
    fn token_is_case_sensitive() {
        let mut tokens = Tokens::default();
        tokens.remember(ACTION, "t", parameters("a"), Value::from(1), Tick(10));

        assert_eq!(
            tokens.recall(ACTION, "T", &parameters("b"), Tick(1)),
            Ok(None)
        );
    }
}
