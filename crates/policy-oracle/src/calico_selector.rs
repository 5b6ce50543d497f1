//! Calico's selector language: `a == 'x' && (has(b) || !all())`.

use crate::document::Labels;

/// How deep an expression may nest, so that no text can exhaust the stack.
const DEPTH: usize = 100;

/// A parsed selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    All,
    /// `global()`: things outside of namespaces, which pods never are.
    Global,
    Has(String),
    Equal(String, String),
    In(String, Vec<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
}

impl Selector {
    /// Reads a selector; an empty text selects everything.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens_of(text)?;
        if tokens.is_empty() {
            return Ok(Self::All);
        }
        let mut parser = Parser {
            rest: tokens.as_slice(),
        };
        let selector = parser.any_of(0)?;
        match parser.rest.first() {
            None => Ok(selector),
            Some(token) => Err(format!("selector has {token:?} where it should end")),
        }
    }

    /// Whether labels are selected. A label that is absent is different from every value.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        let value = |key: &str| labels.get(key).map(String::as_str);
        match self {
            Self::All => true,
            Self::Global => false,
            Self::Has(key) => labels.contains_key(key),
            Self::Equal(key, wanted) => value(key) == Some(wanted),
            Self::In(key, wanted) => value(key).is_some_and(|v| wanted.iter().any(|w| w == v)),
            Self::Contains(key, part) => value(key).is_some_and(|v| v.contains(part.as_str())),
            Self::StartsWith(key, part) => value(key).is_some_and(|v| v.starts_with(part.as_str())),
            Self::EndsWith(key, part) => value(key).is_some_and(|v| v.ends_with(part.as_str())),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(all) => all.iter().all(|s| s.matches(labels)),
            Self::Or(any) => any.iter().any(|s| s.matches(labels)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A label's name or a keyword.
    Word(String),
    Quoted(String),
    Sign(&'static str),
}

const SIGNS: [&str; 10] = ["==", "!=", "&&", "||", "!", "(", ")", "{", "}", ","];

fn tokens_of(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            rest = rest.get(sign.len()..).unwrap_or_default();
        } else if first == '\'' || first == '"' {
            let (_, tail) = rest.split_at(1);
            let (quoted, tail) = tail
                .split_once(first)
                .ok_or("selector has a quote that is not closed")?;
            tokens.push(Token::Quoted(quoted.to_owned()));
            rest = tail;
        } else {
            let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            if end == 0 {
                return Err(format!("selector has {first:?}, which means nothing"));
            }
            let (word, tail) = rest.split_at(end);
            tokens.push(Token::Word(word.to_owned()));
            rest = tail;
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

struct Parser<'a> {
    rest: &'a [Token],
}

impl Parser<'_> {
    fn next(&mut self) -> Option<&Token> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        match self.rest.split_first() {
            Some((Token::Sign(next), rest)) if *next == sign => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn take_word(&mut self, word: &str) -> bool {
        match self.rest.split_first() {
            Some((Token::Word(next), rest)) if next == word => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn need_sign(&mut self, sign: &str) -> Result<(), String> {
        if self.take_sign(sign) {
            Ok(())
        } else {
            Err(format!("selector lacks a {sign:?}"))
        }
    }

    fn need_quoted(&mut self) -> Result<String, String> {
        match self.next() {
            Some(Token::Quoted(text)) => Ok(text.clone()),
            _ => Err("selector lacks a quoted value".to_owned()),
        }
    }

    /// `with 'x'`, the rest of `starts with` and `ends with`.
    fn with_quoted(&mut self) -> Result<String, String> {
        if !self.take_word("with") {
            return Err("selector lacks a \"with\"".to_owned());
        }
        self.need_quoted()
    }

    fn any_of(&mut self, depth: usize) -> Result<Selector, String> {
        let mut any = vec![self.all_of(depth)?];
        while self.take_sign("||") {
            any.push(self.all_of(depth)?);
        }
        Ok(Selector::Or(any))
    }

    fn all_of(&mut self, depth: usize) -> Result<Selector, String> {
        let mut all = vec![self.operand(depth)?];
        while self.take_sign("&&") {
            all.push(self.operand(depth)?);
        }
        Ok(Selector::And(all))
    }

    fn operand(&mut self, depth: usize) -> Result<Selector, String> {
        let depth = depth.saturating_add(1);
        if depth > DEPTH {
            return Err("selector nests too deep".to_owned());
        }
        if self.take_sign("!") {
            return Ok(Selector::Not(Box::new(self.operand(depth)?)));
        }
        if self.take_sign("(") {
            let inner = self.any_of(depth)?;
            self.need_sign(")")?;
            return Ok(inner);
        }
        let Some(Token::Word(word)) = self.next() else {
            return Err("selector lacks the name of a label".to_owned());
        };
        let word = word.clone();
        if self.take_sign("(") {
            return self.call(&word);
        }
        self.comparison(word)
    }

    fn call(&mut self, function: &str) -> Result<Selector, String> {
        let selector = match function {
            "all" => Selector::All,
            "global" => Selector::Global,
            "has" => match self.next() {
                Some(Token::Word(key)) => Selector::Has(key.clone()),
                _ => return Err("has() lacks the name of a label".to_owned()),
            },
            _ => return Err(format!("selector has a function {function:?}")),
        };
        self.need_sign(")")?;
        Ok(selector)
    }

    fn comparison(&mut self, key: String) -> Result<Selector, String> {
        if self.take_sign("==") {
            return Ok(Selector::Equal(key, self.need_quoted()?));
        }
        if self.take_sign("!=") {
            let equal = Selector::Equal(key, self.need_quoted()?);
            return Ok(Selector::Not(Box::new(equal)));
        }
        if self.take_word("contains") {
            return Ok(Selector::Contains(key, self.need_quoted()?));
        }
        if self.take_word("starts") {
            return Ok(Selector::StartsWith(key, self.with_quoted()?));
        }
        if self.take_word("ends") {
            return Ok(Selector::EndsWith(key, self.with_quoted()?));
        }
        let negated = self.take_word("not");
        if !self.take_word("in") {
            return Err(format!("selector says nothing about {key:?}"));
        }
        let set = Selector::In(key, self.set()?);
        Ok(if negated {
            Selector::Not(Box::new(set))
        } else {
            set
        })
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        self.need_sign("{")?;
        let mut values = Vec::new();
        if self.take_sign("}") {
            return Ok(values);
        }
        loop {
            values.push(self.need_quoted()?);
            if self.take_sign("}") {
                return Ok(values);
            }
            self.need_sign(",")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn selects(text: &str) -> bool {
        let labels = [("a", "x"), ("role", "front-end"), ("k8s.io/app", "web")]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Selector::parse(text).unwrap().matches(&labels)
    }

    // F7
    #[rstest]
    #[case("", true)]
    #[case("all()", true)]
    #[case("!all()", false)]
    #[case("global()", false)]
    #[case("a == 'x'", true)]
    #[case("a == \"x\"", true)]
    #[case("a=='y'", false)]
    #[case("a != 'y'", true)]
    #[case("absent != 'y'", true)]
    #[case("absent == 'y'", false)]
    #[case("has(k8s.io/app)", true)]
    #[case("!has(absent)", true)]
    #[case("a in {'x', 'y'}", true)]
    #[case("a in {}", false)]
    #[case("a not in {'x'}", false)]
    #[case("absent not in {'x'}", true)]
    #[case("absent in {'x'}", false)]
    #[case("role contains 'nt-e'", true)]
    #[case("role starts with 'front'", true)]
    #[case("role ends with 'end'", true)]
    #[case("role ends with 'front'", false)]
    #[case("absent contains ''", false)]
    #[case("a == 'y' || a == 'x' && has(role)", true)]
    #[case("(a == 'x' || a == 'y') && !has(role)", false)]
    #[case("!(a == 'y') && !!has(a)", true)]
    fn selector_selects_as_calico_says(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(selects(text), expected, "{text}");
    }

    #[rstest]
    #[case("a")]
    #[case("a =")]
    #[case("a == x")]
    #[case("a == 'x")]
    #[case("a == 'x' b == 'y'")]
    #[case("(a == 'x'")]
    #[case("a in ('x')")]
    #[case("a in {'x',}")]
    #[case("has()")]
    #[case("every()")]
    #[case("&& a == 'x'")]
    #[case("a starts 'x'")]
    #[case("a == 'x' ?")]
    fn selector_that_makes_no_sense_is_refused(#[case] text: &str) {
        assert!(Selector::parse(text).is_err(), "{text}");
    }

    #[test]
    fn selector_of_any_depth_ends() {
        let deep = format!("{}all(){}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(Selector::parse(&deep).is_err());
        assert!(Selector::parse(&"!".repeat(100_000)).is_err());
    }
}
