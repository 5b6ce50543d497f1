//! Tokens of the selector language.

use std::fmt;

use super::InvalidSelector;

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'t> {
    /// A label's name or a word of the language.
    Word(&'t str),
    /// A text, without its quotes.
    Text(&'t str),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `{`
    OpenSet,
    /// `}`
    CloseSet,
    /// `,`
    Comma,
    /// `!`
    Not,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Word(word) => word,
            Self::Text(text) => return write!(f, "{text:?}"),
            Self::Open => "(",
            Self::Close => ")",
            Self::OpenSet => "{",
            Self::CloseSet => "}",
            Self::Comma => ",",
            Self::Not => "!",
            Self::And => "&&",
            Self::Or => "||",
            Self::Equal => "==",
            Self::Unequal => "!=",
        })
    }
}

/// The tokens of a text, and the one that comes next.
#[derive(Debug)]
pub(super) struct Tokens<'t> {
    list: Vec<(usize, Token<'t>)>,
    next: usize,
    end: usize,
}

impl<'t> Tokens<'t> {
    /// Cuts a text into tokens.
    pub(super) fn read(text: &'t str) -> Result<Self, InvalidSelector> {
        let mut tokens = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let at = text.len().saturating_sub(rest.len());
            let (token, after) = first(rest).map_err(|why| InvalidSelector {
                at,
                why: why.to_owned(),
            })?;
            tokens.push((at, token));
            rest = after.trim_start();
        }
        Ok(Self {
            list: tokens,
            next: 0,
            end: text.len(),
        })
    }

    /// The next token.
    pub(super) fn peek(&self) -> Option<Token<'t>> {
        self.list.get(self.next).map(|(_, token)| *token)
    }

    /// Where the next token stands.
    pub(super) fn at(&self) -> usize {
        self.list.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    /// Takes the next token.
    pub(super) fn next(&mut self) -> Option<Token<'t>> {
        let token = self.peek()?;
        self.next = self.next.saturating_add(1);
        Some(token)
    }

    /// Takes the next token if it is this one.
    pub(super) fn take(&mut self, token: &Token<'_>) -> bool {
        let same = self.peek().as_ref() == Some(token);
        if same {
            self.next = self.next.saturating_add(1);
        }
        same
    }
}

/// The first token of a text that does not start with white space, and what comes after.
fn first(text: &str) -> Result<(Token<'_>, &str), &'static str> {
    const SIGNS: [(&str, Token<'static>); 10] = [
        ("&&", Token::And),
        ("||", Token::Or),
        ("==", Token::Equal),
        ("!=", Token::Unequal),
        ("!", Token::Not),
        ("(", Token::Open),
        (")", Token::Close),
        ("{", Token::OpenSet),
        ("}", Token::CloseSet),
        (",", Token::Comma),
    ];
    for (sign, token) in SIGNS {
        if let Some(after) = text.strip_prefix(sign) {
            return Ok((token, after));
        }
    }
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner
                .split_once(quote)
                .map(|(inside, after)| (Token::Text(inside), after))
                .ok_or("a quote that does not end");
        }
    }
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-')))
        .unwrap_or(text.len());
    match text.split_at_checked(end) {
        Some((word, after)) if !word.is_empty() => Ok((Token::Word(word), after)),
        _ => Err("a character that means nothing here"),
    }
}
