//! Identifiers that the cloud gives to its objects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {why}")]
pub struct InvalidId {
    /// What was wanted, such as `ENI id`.
    pub kind: &'static str,
    /// What was given.
    pub text: String,
    /// Which rule it breaks.
    pub why: &'static str,
}

/// Longest identifier that is accepted, in bytes.
///
/// Reason: the cloud's ids have about 22 characters; this bounds keys and log records.
pub const MAX_ID_LEN: usize = 64;

fn check(kind: &'static str, prefix: &str, text: &str) -> Result<(), InvalidId> {
    let fail = |why| {
        Err(InvalidId {
            kind,
            text: text.chars().take(80).collect(),
            why,
        })
    };
    if text.len() > MAX_ID_LEN {
        return fail("longer than 64 bytes");
    }
    let Some(tail) = text.strip_prefix(prefix) else {
        return fail("wrong prefix");
    };
    if tail.is_empty() {
        return fail("nothing after the prefix");
    }
    if !tail
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.')
    {
        return fail("only letters, digits, '-', '_' and '.' are allowed");
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The text as the cloud writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                check($kind, $prefix, text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// An elastic network interface, such as `eni-bp1abc`.
    EniId,
    "ENI id",
    "eni-"
);
id!(
    /// An instance, such as `i-bp1abc`.
    InstanceId,
    "instance id",
    "i-"
);
id!(
    /// A vSwitch, such as `vsw-bp1abc`.
    VSwitchId,
    "vSwitch id",
    "vsw-"
);
id!(
    /// A VPC, such as `vpc-bp1abc`.
    VpcId,
    "VPC id",
    "vpc-"
);
id!(
    /// A security group, such as `sg-bp1abc`.
    SecurityGroupId,
    "security group id",
    "sg-"
);
id!(
    /// A zone, such as `cn-hangzhou-h`.
    ZoneId,
    "zone id",
    ""
);
id!(
    /// A region, such as `cn-hangzhou`.
    RegionId,
    "region id",
    ""
);
id!(
    /// A cluster, as its operator named it.
    ClusterId,
    "cluster id",
    ""
);
id!(
    /// An instance type, such as `ecs.g7.xlarge`.
    InstanceType,
    "instance type",
    "ecs."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eni_id_with_wrong_prefix_is_refused() {
        let err = "i-1".parse::<EniId>().unwrap_err();

        assert_eq!(err.why, "wrong prefix");
    }

    #[test]
    fn instance_id_with_a_slash_is_refused() {
        assert!("i-a/b".parse::<InstanceId>().is_err());
    }

    #[test]
    fn id_over_64_bytes_is_refused() {
        let text = format!("eni-{}", "a".repeat(61));

        assert_eq!(
            text.parse::<EniId>().unwrap_err().why,
            "longer than 64 bytes"
        );
    }

    #[test]
    fn zone_id_of_the_cloud_is_accepted() {
        assert_eq!(
            "cn-hangzhou-h".parse::<ZoneId>().unwrap().as_str(),
            "cn-hangzhou-h"
        );
    }
}
