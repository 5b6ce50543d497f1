//! Instances: they run, stop and go.

use ecs_api::model::Pick;
use ecs_api::model::eni::{EniKind, EniStatus};
use types::cloud::{EniId, InstanceId};
use types::time::Tick;

use crate::account::create::NewEni;
use crate::account::instance::{Instance, InstanceStatus, no_instance};
use crate::account::{Account, exists, missing};
use crate::refusal::Refusal;
use crate::spec::{InstanceSpec, InstanceView, WorldError};

impl Account {
    /// Makes an instance with its primary ENI.
    ///
    /// # Errors
    /// [`WorldError`] when something it needs is missing, or its primary ENI cannot be made.
    pub fn add_instance(
        &mut self,
        spec: &InstanceSpec,
        now: Tick,
    ) -> Result<InstanceView, WorldError> {
        if self.instances.contains_key(&spec.id) {
            return Err(exists(&spec.id));
        }
        if !self.types.contains_key(&spec.instance_type) {
            return Err(missing(&spec.id, &spec.instance_type));
        }
        let Some(vswitch) = self.vswitches.get(&spec.vswitch) else {
            return Err(missing(&spec.id, &spec.vswitch));
        };
        let (zone, vpc) = (vswitch.spec.zone.clone(), vswitch.spec.vpc.clone());
        let refused = |refusal: Refusal| WorldError::Refused {
            id: spec.id.to_string(),
            code: refusal.code,
            message: refusal.message,
        };
        let new = NewEni {
            vswitch: spec.vswitch.clone(),
            security_groups: spec.security_groups.clone(),
            primary: spec.primary_ip,
            ipv4: Pick::Nothing,
            ipv6: Pick::Nothing,
            kind: EniKind::Primary,
            tags: std::collections::BTreeMap::new(),
            name: String::new(),
            description: String::new(),
            delete_on_release: true,
        };
        let eni = self.create_eni(new, now).map_err(refused)?.id.clone();
        let instance = Instance {
            id: spec.id.clone(),
            instance_type: spec.instance_type.clone(),
            name: spec.name.clone(),
            zone: zone.clone(),
            vpc: vpc.clone(),
            vswitch: spec.vswitch.clone(),
            security_groups: spec.security_groups.clone(),
            status: InstanceStatus::Running,
            primary_eni: eni.clone(),
            created_at: now,
        };
        self.instances.insert(spec.id.clone(), instance);
        if let Some(primary) = self.enis.get_mut(&eni) {
            primary.status = EniStatus::InUse;
            primary.instance = Some(spec.id.clone());
        }
        self.record(&eni, now);
        let primary = self.port(&eni).ok_or_else(|| missing(&spec.id, &eni))?;
        Ok(InstanceView {
            id: spec.id.clone(),
            instance_type: spec.instance_type.clone(),
            zone,
            vpc,
            primary,
        })
    }

    /// Sets whether the instance runs.
    ///
    /// # Errors
    /// `InvalidEcsId.NotFound`.
    pub fn set_instance_status(
        &mut self,
        id: &InstanceId,
        status: InstanceStatus,
    ) -> Result<(), Refusal> {
        self.instances.get_mut(id).ok_or_else(no_instance)?.status = status;
        Ok(())
    }

    /// The ENIs an instance has, to unplug them before it goes.
    pub fn enis_of(&self, id: &InstanceId) -> Vec<EniId> {
        self.on_instance(id).map(|eni| eni.id.clone()).collect()
    }

    /// Removes an instance with its primary ENI and those that go with it; the others become `Available`.
    ///
    /// # Errors
    /// `InvalidEcsId.NotFound`.
    pub fn remove_instance(&mut self, id: &InstanceId, now: Tick) -> Result<(), Refusal> {
        self.instances.remove(id).ok_or_else(no_instance)?;
        for eni_id in self.enis_of(id) {
            let Some(eni) = self.enis.get_mut(&eni_id) else {
                continue;
            };
            if eni.delete_on_release || eni.kind == EniKind::Primary {
                self.remove_eni(&eni_id, now);
            } else {
                eni.status = EniStatus::Available;
                eni.instance = None;
                eni.trunk = None;
                eni.change = eni.change.saturating_add(1);
                self.record(&eni_id, now);
            }
        }
        Ok(())
    }
}
