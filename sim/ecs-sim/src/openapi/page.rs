//! Pages by an opaque token.

use ecs_api::sign::encode::hex;

use crate::openapi::parameters::Parameters;
use crate::refusal::Refusal;

/// Which rows a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// So many rows after the one with this key.
    Token {
        /// How many.
        size: usize,
        /// The last key of the page before.
        after: Option<String>,
    },
    /// The n-th page, from 1.
    Number {
        /// How many.
        size: usize,
        /// Which page.
        number: usize,
    },
}

/// Bounds of the row count.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Fewer are raised to this.
    pub least: usize,
    /// More are cut to this.
    pub most: usize,
    /// Without a wish.
    pub default: usize,
}

/// The rows of a page and where the next one starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Token of the next page; empty on the last one.
    pub next: String,
    /// Rows on all pages.
    pub total: usize,
}

impl Page {
    /// Reads `MaxResults` and `NextToken`, or the older `PageNumber` and `PageSize` when neither is there.
    ///
    /// # Errors
    /// `InvalidParameter` when one of them cannot be read.
    pub fn read(parameters: &Parameters, bounds: Bounds) -> Result<Self, Refusal> {
        let number: Option<usize> = parameters.parsed("PageNumber")?;
        let page_size: Option<usize> = parameters.parsed("PageSize")?;
        let size: Option<usize> = parameters.parsed("MaxResults")?;
        let token = parameters.text("NextToken");
        if size.is_none() && token.is_none() && (number.is_some() || page_size.is_some()) {
            return Ok(Self::Number {
                size: page_size.unwrap_or(bounds.default).clamp(1, bounds.most),
                number: number.unwrap_or(1).max(1),
            });
        }
        Ok(Self::Token {
            size: size
                .unwrap_or(bounds.default)
                .clamp(bounds.least, bounds.most),
            after: token.map(key_of).transpose()?,
        })
    }

    /// Cuts the page out of all rows, which are sorted by key.
    pub fn cut<T>(&self, rows: Vec<(String, T)>) -> Cut<T> {
        let total = rows.len();
        let (size, mut rows): (_, Vec<_>) = match self {
            Self::Token { size, after } => {
                let rest = rows
                    .into_iter()
                    .skip_while(|(key, _)| after.as_ref().is_some_and(|after| key <= after));
                (*size, rest.collect())
            }
            Self::Number { size, number } => {
                let before = number.saturating_sub(1).saturating_mul(*size);
                (*size, rows.into_iter().skip(before).collect())
            }
        };
        let more = rows.len() > size;
        rows.truncate(size);
        let next = match (self, rows.last()) {
            (Self::Token { .. }, Some((key, _))) if more => hex(key.as_bytes()),
            (Self::Token { .. } | Self::Number { .. }, _) => String::new(),
        };
        Cut {
            rows: rows.into_iter().map(|(_, row)| row).collect(),
            next,
            total,
        }
    }
}

fn key_of(token: &str) -> Result<String, Refusal> {
    let invalid = || Refusal::invalid("NextToken", "not one of ours");
    let bytes = token
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let text = str::from_utf8(pair).ok().filter(|text| text.len() == 2)?;
            u8::from_str_radix(text, 16).ok()
        })
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(invalid)?;
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: u32) -> Vec<(String, u32)> {
        (0..n).map(|n| (format!("k{n:03}"), n)).collect()
    }

    #[test]
    fn pages_by_token_cover_all_rows_once() {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = Page::Token { size: 10, after };
            let cut = page.cut(rows(25));
            seen.extend(cut.rows);
            if cut.next.is_empty() {
                break;
            }
            after = Some(key_of(&cut.next).unwrap());
        }

        assert_eq!(seen, (0..25).collect::<Vec<_>>());
    }

    #[test]
    fn page_by_number_starts_where_the_one_before_ended() {
        let cut = Page::Number {
            size: 10,
            number: 3,
        }
        .cut(rows(25));

        assert_eq!(cut.rows, (20..25).collect::<Vec<_>>());
        assert_eq!(cut.total, 25);
    }

    #[test]
    fn token_of_somebody_else_is_refused() {
        assert!(key_of("xyz").is_err());
    }
}
