//! Calico's selector language.
//!
//! `all()`, `global()`, `has(key)`, `!has(key)`, `key == 'value'`, `!=`, `in { 'a', 'b' }`, `not in`, `contains`,
//! `starts with`, `ends with`, `!`, `&&`, `||`, parentheses. `!=` and `not in` match when the key is absent.
//!
//! Source: Calico documentation, "Selectors" of NetworkPolicy.

use std::sync::Arc;

use crate::selector::Selector;

mod token;

use token::{Token, Tokens};

/// Text that is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {why}")]
pub struct InvalidSelector {
    /// Where, counted in bytes from 0.
    pub at: usize,
    /// What is wrong.
    pub why: String,
}

/// Longest text that is read, bytes.
const LONGEST: usize = 64 * 1024;

/// How deep parentheses and negations may stand in each other.
const DEEPEST: usize = 64;

/// Reads a selector; an empty text matches everything.
///
/// `global()` speaks of what is in no namespace. No pod is, so it matches nothing.
///
/// # Errors
/// [`InvalidSelector`] for a text that is not of the language, is longer than 64 KiB, or is nested deeper than 64.
pub fn selector(text: &str) -> Result<Selector, InvalidSelector> {
    if text.len() > LONGEST {
        return Err(InvalidSelector {
            at: LONGEST,
            why: "longer than 64 KiB".to_owned(),
        });
    }
    let mut reader = Reader {
        tokens: Tokens::read(text)?,
        depth: 0,
    };
    if reader.tokens.peek().is_none() {
        return Ok(Selector::Everything);
    }
    let selector = reader.either()?;
    match reader.tokens.peek() {
        None => Ok(selector),
        Some(_) => Err(reader.unexpected("&&, || or the end")),
    }
}

struct Reader<'t> {
    tokens: Tokens<'t>,
    depth: usize,
}

impl<'t> Reader<'t> {
    fn unexpected(&self, wanted: &str) -> InvalidSelector {
        InvalidSelector {
            at: self.tokens.at(),
            why: match self.tokens.peek() {
                Some(token) => format!("{token} instead of {wanted}"),
                None => format!("the end instead of {wanted}"),
            },
        }
    }

    fn either(&mut self) -> Result<Selector, InvalidSelector> {
        let mut parts = vec![self.both()?];
        while self.tokens.take(&Token::Or) {
            parts.push(self.both()?);
        }
        Ok(Selector::any(parts))
    }

    fn both(&mut self) -> Result<Selector, InvalidSelector> {
        let mut parts = vec![self.unary()?];
        while self.tokens.take(&Token::And) {
            parts.push(self.unary()?);
        }
        Ok(Selector::all(parts))
    }

    fn unary(&mut self) -> Result<Selector, InvalidSelector> {
        let mut negations = 0_usize;
        while self.tokens.take(&Token::Not) {
            negations = negations.saturating_add(1);
        }
        let selector = self.operand()?;
        Ok(if negations % 2 == 1 {
            selector.negated()
        } else {
            selector
        })
    }

    fn operand(&mut self) -> Result<Selector, InvalidSelector> {
        match self.tokens.next() {
            Some(Token::Open) => {
                self.depth = self.depth.saturating_add(1);
                if self.depth > DEEPEST {
                    return Err(self.unexpected("fewer parentheses in each other"));
                }
                let inner = self.either()?;
                self.close()?;
                self.depth = self.depth.saturating_sub(1);
                Ok(inner)
            }
            Some(Token::Word(word)) if self.tokens.take(&Token::Open) => {
                let selector = match word {
                    "all" => Selector::Everything,
                    "global" => Selector::Nothing,
                    "has" => match self.tokens.next() {
                        Some(Token::Word(key)) => Selector::Has(Arc::from(key)),
                        _ => return Err(self.unexpected("a label's name")),
                    },
                    _ => return Err(self.unexpected("all(), global() or has()")),
                };
                self.close()?;
                Ok(selector)
            }
            Some(Token::Word(key)) => self.comparison(key),
            _ => Err(self.unexpected("a condition")),
        }
    }

    fn comparison(&mut self, key: &'t str) -> Result<Selector, InvalidSelector> {
        let key: Arc<str> = Arc::from(key);
        match self.tokens.next() {
            Some(Token::Equal) => Ok(is_in(key, vec![self.text()?])),
            Some(Token::Unequal) => Ok(is_in(key, vec![self.text()?]).negated()),
            Some(Token::Word("in")) => Ok(is_in(key, self.set()?)),
            Some(Token::Word("contains")) => Ok(Selector::Contains(key, self.text()?)),
            Some(Token::Word(word @ ("not" | "starts" | "ends"))) => {
                let Some(Token::Word(second)) = self.tokens.next() else {
                    return Err(self.unexpected("the operator's second word"));
                };
                match (word, second) {
                    ("not", "in") => Ok(is_in(key, self.set()?).negated()),
                    ("starts", "with") => Ok(Selector::StartsWith(key, self.text()?)),
                    ("ends", "with") => Ok(Selector::EndsWith(key, self.text()?)),
                    _ => Err(self.unexpected("not in, starts with or ends with")),
                }
            }
            _ => Err(self.unexpected("an operator")),
        }
    }

    fn close(&mut self) -> Result<(), InvalidSelector> {
        if self.tokens.take(&Token::Close) {
            Ok(())
        } else {
            Err(self.unexpected("a closing parenthesis"))
        }
    }

    fn text(&mut self) -> Result<Arc<str>, InvalidSelector> {
        match self.tokens.next() {
            Some(Token::Text(text)) => Ok(Arc::from(text)),
            _ => Err(self.unexpected("a text in quotes")),
        }
    }

    fn set(&mut self) -> Result<Vec<Arc<str>>, InvalidSelector> {
        if !self.tokens.take(&Token::OpenSet) {
            return Err(self.unexpected("{"));
        }
        let mut values = Vec::new();
        while !self.tokens.take(&Token::CloseSet) {
            if !values.is_empty() && !self.tokens.take(&Token::Comma) {
                return Err(self.unexpected("a comma or }"));
            }
            values.push(self.text()?);
        }
        Ok(values)
    }
}

/// Membership; an empty set has no members.
fn is_in(key: Arc<str>, mut values: Vec<Arc<str>>) -> Selector {
    values.sort();
    values.dedup();
    if values.is_empty() {
        Selector::Nothing
    } else {
        Selector::In(key, values.into())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::object::Labels;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| (Arc::from(*key), Arc::from(*value)))
            .collect()
    }

    // F7
    #[rstest]
    #[case("", true)]
    #[case("all()", true)]
    #[case("global()", false)]
    #[case("!global()", true)]
    #[case("has(app)", true)]
    #[case("has( app )", true)]
    #[case("!has(app)", false)]
    #[case("!!has(app)", true)]
    #[case("has(none)", false)]
    #[case("app == 'web'", true)]
    #[case("app=='web'", true)]
    #[case("app == \"web\"", true)]
    #[case("app == 'db'", false)]
    #[case("app != 'db'", true)]
    #[case("none != 'db'", true)]
    #[case("none == ''", false)]
    #[case("app in { 'db', 'web' }", true)]
    #[case("app in {'db'}", false)]
    #[case("app in {}", false)]
    #[case("app not in {'db'}", true)]
    #[case("none not in {'db'}", true)]
    #[case("app not in {}", true)]
    #[case("app contains 'e'", true)]
    #[case("app starts with 'we'", true)]
    #[case("app ends with 'b'", true)]
    #[case("none contains ''", false)]
    #[case("app == 'web' && tier == 'front'", true)]
    #[case("app == 'web' && tier == 'back'", false)]
    #[case("app == 'db' || tier == 'front'", true)]
    #[case("app == 'db' && app == 'db' || tier == 'front'", true)]
    #[case("app == 'db' && (app == 'db' || tier == 'front')", false)]
    #[case("!(app == 'web' && tier == 'back')", true)]
    #[case("k8s.io/part-of_x == 'it''", false)]
    #[case("in in {'x'}", true)]
    fn selector_matches_as_documented(#[case] text: &str, #[case] wanted: bool) {
        let labels = labels(&[("app", "web"), ("tier", "front"), ("in", "x")]);
        let got = selector(text).map(|selector| selector.matches(&labels));
        assert_eq!(got.unwrap_or(false), wanted, "{text}");
    }

    #[rstest]
    #[case("app")]
    #[case("app ==")]
    #[case("app == web")]
    #[case("app == 'web")]
    #[case("(app == 'web'")]
    #[case("app == 'web')")]
    #[case("app == 'web' &&")]
    #[case("app == 'web' & tier == 'x'")]
    #[case("app in 'web'")]
    #[case("app in {'web'")]
    #[case("app in {'web' 'db'}")]
    #[case("app not 'web'")]
    #[case("has()")]
    #[case("has('app')")]
    #[case("any()")]
    #[case("all() all()")]
    #[case("app == 'web' $")]
    fn selector_that_is_none_is_refused(#[case] text: &str) {
        assert!(selector(text).is_err(), "{text}");
    }

    #[test]
    fn selector_nested_too_deep_is_refused_without_overflow() {
        let deep = format!("{}all(){}", "(".repeat(30_000), ")".repeat(30_000));
        assert!(selector(&deep).is_err());
        assert!(selector(&format!("{}all()", "!".repeat(60_000))).is_ok());
        assert!(selector(&" ".repeat(100_000)).is_err());
    }
}
