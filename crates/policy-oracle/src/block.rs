//! Address ranges.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::document;

/// A range of addresses with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    range: IpNet,
    holes: Vec<IpNet>,
}

impl Block {
    /// Reads a NetworkPolicy's `ipBlock`.
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        let object = document::as_object(value, "ipBlock")?;
        document::only(object, &["cidr", "except"], "ipBlock")?;
        let range = document::text(object, "cidr")?.ok_or("ipBlock has no cidr")?;
        Ok(Self {
            range: range_of(range)?,
            holes: document::texts(object, "except")?
                .into_iter()
                .map(range_of)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether the address is inside. Families never cross.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.range.contains(&address) && !self.holes.iter().any(|hole| hole.contains(&address))
    }
}

/// Reads `10.0.0.0/8`; bits of the host part are ignored.
pub(crate) fn range_of(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| format!("{text:?} is not an address range"))
}

/// Reads an address range, or an address as the range of that address alone.
pub(crate) fn range_or_address(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => range_of(text),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn block(value: &Value) -> Block {
        Block::parse(value).unwrap()
    }

    // C2, C3
    #[rstest]
    #[case(json!({"cidr": "10.0.0.0/24"}), "10.0.0.255", true)]
    #[case(json!({"cidr": "10.0.0.0/24"}), "10.0.1.0", false)]
    #[case(json!({"cidr": "10.0.0.9/8"}), "10.200.0.1", true)]
    #[case(json!({"cidr": "0.0.0.0/0"}), "fd00::1", false)]
    #[case(json!({"cidr": "::/0"}), "10.0.0.1", false)]
    #[case(json!({"cidr": "10.0.0.0/24", "except": ["10.0.0.0/28"]}), "10.0.0.15", false)]
    #[case(json!({"cidr": "10.0.0.0/24", "except": ["10.0.0.0/28"]}), "10.0.0.16", true)]
    #[case(json!({"cidr": "10.0.0.0/24", "except": ["10.0.0.0/24"]}), "10.0.0.1", false)]
    #[case(json!({"cidr": "10.0.0.0/24", "except": null}), "10.0.0.1", true)]
    fn block_contains_its_range_without_holes(
        #[case] value: Value,
        #[case] address: IpAddr,
        #[case] inside: bool,
    ) {
        assert_eq!(block(&value).contains(address), inside);
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"cidr": "10.0.0.0"}))]
    #[case(json!({"cidr": "10.0.0.0/33"}))]
    #[case(json!({"cidr": "10.0.0.0/8", "except": ["x"]}))]
    #[case(json!({"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}))]
    #[case(json!({"cidr": "10.0.0.0/8", "not": 1}))]
    fn block_that_cannot_be_read_is_refused(#[case] value: Value) {
        assert!(Block::parse(&value).is_err());
    }
}
