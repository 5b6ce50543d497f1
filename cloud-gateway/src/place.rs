//! Where an operator finds what we read.

use std::fmt;

/// Where an operator finds the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Key of the configuration, such as `credentials.dir`.
    pub key: &'static str,
    /// File, folder or address.
    pub at: String,
    /// The Secret behind it, if the configuration says so.
    pub secret: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}", self.key, self.at)?;
        match &self.secret {
            Some(secret) => write!(f, ", from Secret {secret:?}"),
            None => Ok(()),
        }
    }
}
