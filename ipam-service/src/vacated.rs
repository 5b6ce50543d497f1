//! What happens to the ENIs and addresses of an instance that is proved to be gone.

use std::sync::Arc;

use ipam_core::record::Record;
use ipam_core::shard::Shard;
use tracing::warn;
use types::cloud::InstanceId;

use crate::facts::NodeFacts;
use crate::owned::Owned;
use crate::plan::demand_of_the_gone;

/// Takes back what a node had whose instance is proved to be gone. `facts` are what was known of it last.
pub(crate) async fn take_back(owned: &Owned, instance: &InstanceId, facts: Option<Arc<NodeFacts>>) {
    let of = instance.clone();
    let proposed = owned.handle.propose(Box::new(move |shard, _| {
        if shard.grants_of(&of).is_empty() {
            Vec::new()
        } else {
            vec![Record::NodeGone { instance: of }]
        }
    }));
    if let Err(error) = proposed.await {
        warn!(shard = %owned.id(), %instance, %error, "the end of a node was not written down");
        return;
    }
    let shard = owned.handle.view().shard;
    let facts = facts.unwrap_or_else(|| Arc::new(facts_of_the_gone(instance, &shard)));
    owned.demand.send_modify(|demand| {
        demand.insert(instance.clone(), demand_of_the_gone(facts));
    });
}

/// Enough to plan the end of an instance's ENIs when the cloud can not say more.
fn facts_of_the_gone(instance: &InstanceId, shard: &Shard) -> NodeFacts {
    NodeFacts {
        instance: instance.clone(),
        instance_type: String::new(),
        zone: shard.spec().vswitch().zone.clone(),
        vpc: String::new(),
        vswitch: None,
        quota: types::quota::EniQuota {
            enis: 0,
            enis_total: 0,
            ipv4_per_eni: 0,
            ipv6_per_eni: 0,
            trunk: false,
        },
        stack: types::address::Stack::Ipv4,
        security_groups: Vec::new(),
    }
}
