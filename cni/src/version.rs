//! Versions of the CNI specification.

use crate::failure::{Failure, code};

/// A version that we speak. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 0.3.0.
    V030,
    /// 0.3.1.
    V031,
    /// 0.4.0: CHECK.
    V040,
    /// 1.0.0.
    V100,
    /// 1.1.0: GC, STATUS.
    V110,
}

/// All, oldest first.
pub(crate) const ALL: [Version; 5] = [
    Version::V030,
    Version::V031,
    Version::V040,
    Version::V100,
    Version::V110,
];

/// What is written where the caller's version is not known.
pub(crate) const NEWEST: &str = Version::V110.as_str();

impl Version {
    /// As it stands in a configuration.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// The version of that name.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| {
            Failure::new(
                code::INCOMPATIBLE_VERSION,
                format!("cniVersion {text:?} is not supported"),
            )
            .with(format!("supported: {}", names().join(", ")))
        })
    }
}

/// The names of all versions.
pub(crate) fn names() -> Vec<&'static str> {
    ALL.into_iter().map(Version::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_are_greater() {
        assert!(ALL.is_sorted());
        assert_eq!(Version::parse("0.4.0"), Ok(Version::V040));
    }

    #[test]
    fn version_0_2_0_is_refused_with_the_list() {
        let failure = Version::parse("0.2.0").unwrap_err();

        assert_eq!(failure.code, 1);
        assert_eq!(
            failure.details,
            "supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
        );
    }
}
