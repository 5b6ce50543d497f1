//! Commands to effects: the state first, the data plane where it has to know, tasks for what takes time.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use types::cloud::EniId;

use crate::account::eni::Started;
use crate::config::Span;
use crate::openapi::command::{Command, Placement};
use crate::openapi::render;
use crate::plane::{PlaneError, Port};
use crate::refusal::Refusal;
use crate::sim::Sim;
use crate::sim::answer::Repeatable;
use crate::sim::state::{State, behind};

impl Sim {
    pub(crate) async fn execute(
        &self,
        command: Command,
        token: Option<Repeatable>,
        read_lag: Duration,
    ) -> Result<Value, Refusal> {
        match command {
            Command::DescribeEnis(filter) => {
                let now = self.now();
                let state = self.state();
                if read_lag.is_zero() {
                    Ok(render::enis(state.account.enis.values(), &filter))
                } else {
                    let seen = state.account.history.at(behind(now, read_lag));
                    Ok(render::enis(seen, &filter))
                }
            }
            Command::CreateEni(new) => {
                let now = self.now();
                let mut state = self.state();
                if let Some(reply) = state.recall(token.as_ref(), now)? {
                    return Ok(reply);
                }
                let reply = render::created(state.account.create_eni(*new, now)?);
                state.remember(token, &reply, now);
                Ok(reply)
            }
            Command::AttachEni(at) => self.attach(&at),
            Command::DetachEni(at) => self.detach(&at),
            Command::DeleteEni(eni) => self.delete(&eni),
            Command::AssignV4(..) | Command::AssignV6(..) => self.assign(command, token).await,
            Command::UnassignV4(eni, ips) => {
                let ips: Vec<_> = ips.into_iter().map(IpAddr::V4).collect();
                self.unassign(&eni, &ips).await
            }
            Command::UnassignV6(eni, ips) => {
                let ips: Vec<_> = ips.into_iter().map(IpAddr::V6).collect();
                self.unassign(&eni, &ips).await
            }
            Command::DescribeInstances { .. }
            | Command::DescribeInstanceTypes { .. }
            | Command::DescribeVSwitches { .. }
            | Command::DescribeSecurityGroups { .. } => {
                render::inventory(&self.state().account, &command).ok_or_else(Refusal::internal)
            }
        }
    }

    fn attach(&self, at: &Placement) -> Result<Value, Refusal> {
        let now = self.now();
        let mut state = self.state();
        let trunk = at.trunk.as_ref();
        let started = state
            .account
            .attach_eni(&at.eni, &at.instance, trunk, now)?;
        let span = if started.member {
            state.latency.attach_member
        } else {
            state.latency.attach
        };
        let wait = state.draw(span);
        drop(state);
        let sim = self.clone();
        self.inner
            .running
            .spawn(async move { sim.finish_attach(started, wait).await });
        Ok(json!({}))
    }

    async fn finish_attach(&self, started: Started, wait: Duration) {
        tokio::time::sleep(wait).await;
        let lock = self.state().lock_of(&started.eni);
        let _guard = lock.lock().await;
        let Some(port) = self.running_port(&started) else {
            return;
        };
        let plugged = self.inner.plane.plug(&port).await;
        let now = self.now();
        match plugged {
            Ok(()) => self.state().account.finish_attach(&started, now),
            Err(err) => {
                tracing::error!(eni = %started.eni, %err, "attach failed in the data plane");
                self.state().account.fail_attach(&started, now);
            }
        }
    }

    fn running_port(&self, started: &Started) -> Option<Port> {
        let state = self.state();
        if !state.account.is_running(started) {
            return None;
        }
        state.account.port(&started.eni)
    }

    fn detach(&self, at: &Placement) -> Result<Value, Refusal> {
        let now = self.now();
        let mut state = self.state();
        let trunk = at.trunk.as_ref();
        let started = state
            .account
            .detach_eni(&at.eni, &at.instance, trunk, now)?;
        let span = state.latency.detach;
        let wait = state.draw(span);
        drop(state);
        if let Some(started) = started {
            let sim = self.clone();
            self.inner.running.spawn(async move {
                // A failure leaves the ENI in Detaching, as a stuck one is in the real cloud.
                if let Err(err) = sim.finish_detach(started, wait).await {
                    tracing::error!(%err, "detach failed");
                }
            });
        }
        Ok(json!({}))
    }

    pub(crate) async fn finish_detach(
        &self,
        started: Started,
        wait: Duration,
    ) -> Result<(), Refusal> {
        tokio::time::sleep(wait).await;
        let lock = self.state().lock_of(&started.eni);
        let _guard = lock.lock().await;
        if !self.state().account.is_running(&started) {
            return Ok(());
        }
        self.inner
            .plane
            .unplug(&started.eni)
            .await
            .map_err(|err| plane_failed(&started.eni, &err))?;
        let now = self.now();
        self.state().account.finish_detach(&started, now);
        Ok(())
    }

    fn delete(&self, eni: &EniId) -> Result<Value, Refusal> {
        let now = self.now();
        let mut state = self.state();
        let started = state.account.delete_eni(eni, now)?;
        let span: Span = state.latency.delete;
        let wait = state.draw(span);
        drop(state);
        if let Some(started) = started {
            let sim = self.clone();
            self.inner.running.spawn(async move {
                tokio::time::sleep(wait).await;
                let now = sim.now();
                let mut state = sim.state();
                state.account.finish_delete(&started, now);
                state.prune_locks();
            });
        }
        Ok(json!({}))
    }

    async fn assign(&self, command: Command, token: Option<Repeatable>) -> Result<Value, Refusal> {
        let (Command::AssignV4(eni, _) | Command::AssignV6(eni, _)) = &command else {
            return Err(Refusal::internal());
        };
        let lock = self.existing_lock(eni)?;
        let _guard = lock.lock().await;
        let now = self.now();
        let (reply, added, port) = {
            let mut state = self.state();
            if let Some(reply) = state.recall(token.as_ref(), now)? {
                return Ok(reply);
            }
            let (reply, added) = state.assign(&command, now)?;
            (reply, added, state.account.port(eni))
        };
        if let Some(port) = port
            && let Err(err) = self.inner.plane.set_addresses(&port).await
        {
            // Nobody routes to the new addresses for sure, so nobody may have them.
            let refusal = plane_failed(eni, &err);
            let (v4, v6) = by_family(&added);
            self.state().account.unassign(eni, &v4, &v6, now)?;
            return Err(refusal);
        }
        self.state().remember(token, &reply, now);
        Ok(reply)
    }

    pub(super) async fn unassign(&self, eni: &EniId, ips: &[IpAddr]) -> Result<Value, Refusal> {
        let lock = self.existing_lock(eni)?;
        let _guard = lock.lock().await;
        let (v4, v6) = by_family(ips);
        let port = {
            let state = self.state();
            state.account.check_unassign_v4(eni, &v4)?;
            state.account.check_unassign_v6(eni, &v6)?;
            state.account.port(eni)
        };
        // The route goes first: once the state is changed, somebody else may be given the address.
        if let Some(mut port) = port {
            port.addresses.retain(|ip| !ips.contains(ip));
            let set = self.inner.plane.set_addresses(&port).await;
            set.map_err(|err| plane_failed(eni, &err))?;
        }
        let now = self.now();
        self.state().account.unassign(eni, &v4, &v6, now)?;
        Ok(json!({}))
    }

    /// The lock of an ENI of ours; asking about others does not make one.
    fn existing_lock(&self, eni: &EniId) -> Result<crate::sim::state::EniLock, Refusal> {
        let mut state = self.state();
        state.account.eni(eni)?;
        Ok(state.lock_of(eni))
    }
}

impl State {
    fn recall(
        &mut self,
        token: Option<&Repeatable>,
        now: types::time::Tick,
    ) -> Result<Option<Value>, Refusal> {
        match token {
            Some(call) => {
                let tokens = &mut self.account.tokens;
                tokens.recall(call.action, &call.token, &call.parameters, now)
            }
            None => Ok(None),
        }
    }

    fn remember(&mut self, token: Option<Repeatable>, reply: &Value, now: types::time::Tick) {
        if let Some(call) = token {
            let until = now.after(self.token_lifetime);
            let tokens = &mut self.account.tokens;
            tokens.remember(
                call.action,
                &call.token,
                call.parameters,
                reply.clone(),
                until,
            );
        }
    }

    fn assign(
        &mut self,
        command: &Command,
        now: types::time::Tick,
    ) -> Result<(Value, Vec<IpAddr>), Refusal> {
        match command {
            Command::AssignV4(eni, pick) => {
                let ips = self.account.assign_v4(eni, pick, now)?;
                let reply = json!({
                    "AssignedPrivateIpAddressesSet": {
                        "NetworkInterfaceId": eni,
                        "PrivateIpSet": {"PrivateIpAddress": ips},
                        "Ipv4PrefixSet": {"Ipv4Prefixes": []},
                    },
                });
                Ok((reply, ips.into_iter().map(IpAddr::V4).collect()))
            }
            Command::AssignV6(eni, pick) => {
                let ips = self.account.assign_v6(eni, pick, now)?;
                let reply = json!({
                    "NetworkInterfaceId": eni,
                    "Ipv6Sets": {"Ipv6Address": ips},
                    "Ipv6PrefixSets": {"Ipv6Prefix": []},
                });
                Ok((reply, ips.into_iter().map(IpAddr::V6).collect()))
            }
            Command::DescribeInstances { .. }
            | Command::DescribeInstanceTypes { .. }
            | Command::DescribeVSwitches { .. }
            | Command::DescribeSecurityGroups { .. }
            | Command::DescribeEnis(_)
            | Command::CreateEni(_)
            | Command::AttachEni(_)
            | Command::DetachEni(_)
            | Command::DeleteEni(_)
            | Command::UnassignV4(..)
            | Command::UnassignV6(..) => Err(Refusal::internal()),
        }
    }
}

fn by_family(ips: &[IpAddr]) -> (Vec<std::net::Ipv4Addr>, Vec<std::net::Ipv6Addr>) {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for ip in ips {
        match ip {
            IpAddr::V4(ip) => v4.push(*ip),
            IpAddr::V6(ip) => v6.push(*ip),
        }
    }
    (v4, v6)
}

fn plane_failed(eni: &EniId, err: &PlaneError) -> Refusal {
    tracing::error!(%eni, %err, "data plane failed");
    Refusal::internal()
}
