//! The account as others see it: dumps, and who an address belongs to.

use std::net::IpAddr;

use ecs_api::model::eni::EniKind;
use types::cloud::InstanceId;

use crate::account::Account;
use crate::account::eni::Eni;
use crate::dump::{EniDump, InstanceDump, VSwitchDump};

impl Account {
    /// All ENIs, by id.
    pub fn dump_enis(&self) -> Vec<EniDump> {
        self.enis.values().map(dump_eni).collect()
    }

    /// All vSwitches, by id.
    pub fn dump_vswitches(&self) -> Vec<VSwitchDump> {
        self.vswitches
            .values()
            .map(|vswitch| VSwitchDump {
                id: vswitch.spec.id.clone(),
                vpc: vswitch.spec.vpc.clone(),
                zone: vswitch.spec.zone.clone(),
                ipv4_cidr: vswitch.spec.ipv4_cidr,
                ipv6_cidr: vswitch.spec.ipv6_cidr,
                available_ipv4: vswitch.v4.available(),
            })
            .collect()
    }

    /// All instances, by id.
    pub fn dump_instances(&self) -> Vec<InstanceDump> {
        self.instances
            .values()
            .map(|instance| {
                let mut enis: Vec<_> = self.on_instance(&instance.id).collect();
                enis.sort_by_key(|eni| (eni.kind != EniKind::Primary, &eni.id));
                InstanceDump {
                    id: instance.id.clone(),
                    instance_type: instance.instance_type.clone(),
                    zone: instance.zone.clone(),
                    status: instance.status.name().to_owned(),
                    enis: enis.into_iter().map(|eni| eni.id.clone()).collect(),
                }
            })
            .collect()
    }

    /// The instance that has `ip` on one of its ENIs.
    pub fn instance_at(&self, ip: IpAddr) -> Option<&InstanceId> {
        self.enis
            .values()
            .find(|eni| eni.addresses().contains(&ip))
            .and_then(|eni| eni.instance.as_ref())
    }
}

fn dump_eni(eni: &Eni) -> EniDump {
    EniDump {
        id: eni.id.clone(),
        mac: eni.mac,
        status: eni.status.name().to_owned(),
        kind: eni.kind.name().to_owned(),
        instance: eni.instance.clone(),
        vswitch: eni.vswitch.clone(),
        zone: eni.zone.clone(),
        security_groups: eni.security_groups.clone(),
        ipv4: eni.all_ipv4().collect(),
        ipv6: eni.ipv6.clone(),
        tags: eni.tags.clone(),
        foreign: eni.foreign,
    }
}
