//! Whether the Node object speaks of the instance that we are. Pure.
//!
//! Source: Alibaba's cloud controller manager, `spec.providerID`: `<region>.<instance id>`; with a scheme
//! (`alicloud://`) in newer releases of it.

use cluster::object::Seen;
use types::cloud::{InstanceId, RegionId};

use crate::standing::Identity;

/// Compares the Node object with what metadata service and certificate say.
///
/// A node without `providerID` contradicts nobody: clusters without a cloud controller manager have none.
pub fn compare(seen: &Seen, region: &RegionId, instance: &InstanceId) -> Identity {
    match seen {
        Seen::Unknown => return Identity::Unknown,
        Seen::Absent => return Identity::Agrees,
        Seen::There(_) => {}
    }
    let provider = seen.text("/spec/providerID").unwrap_or_default();
    if provider.is_empty() {
        return Identity::Agrees;
    }
    let bare = provider
        .split_once("://")
        .map_or(provider, |(_, bare)| bare);
    let expected = format!("{region}.{instance}");
    if bare == expected {
        return Identity::Agrees;
    }
    Identity::Differs(format!(
        "spec.providerID of the Node object is {provider:?}, but metadata service and certificate say {expected:?}: \
         the Node object belongs to another instance"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn node(provider: &str) -> Seen {
        Seen::There(Arc::new(json!({
            "kind": "Node", "metadata": {"name": "a"}, "spec": {"providerID": provider},
        })))
    }

    fn judged(seen: &Seen) -> Identity {
        let (region, instance) = ("cn-hangzhou".parse().unwrap(), "i-1".parse().unwrap());
        compare(seen, &region, &instance)
    }

    #[test]
    fn node_of_this_instance_agrees_in_every_form_of_its_name() {
        let bare = json!({"kind": "Node", "metadata": {"name": "a"}});
        for seen in [
            node("cn-hangzhou.i-1"),
            node("alicloud://cn-hangzhou.i-1"),
            node(""),
            Seen::There(Arc::new(bare)),
            Seen::Absent,
        ] {
            assert_eq!(judged(&seen), Identity::Agrees, "{seen:?}");
        }
        assert_eq!(judged(&Seen::Unknown), Identity::Unknown);
    }

    #[test]
    fn node_of_another_instance_or_region_differs_and_both_are_named() {
        for provider in ["cn-hangzhou.i-2", "cn-beijing.i-1", "i-1", "alicloud://i-1"] {
            let Identity::Differs(why) = judged(&node(provider)) else {
                panic!("{provider}")
            };
            assert!(
                why.contains(provider) && why.contains("cn-hangzhou.i-1"),
                "{why}"
            );
        }
    }
}
