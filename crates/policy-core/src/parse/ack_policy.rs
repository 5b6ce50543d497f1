//! GlobalNetworkPolicy of `network.alibabacloud.com`.
//!
//! Its documented meaning is that of NetworkPolicy over the whole cluster: policies add, a pod that one selects for a
//! direction is isolated there. `podSelector` and `namespaceSelector` of the subject are joined by AND, and each
//! selects everything when absent; peers likewise. Another version, or a spec with other fields, has a meaning that is
//! not known: refused with a problem, and without effect. Inside of what is known, bad parts fail closed.
//!
//! Source: Alibaba Cloud, "Use ACK GlobalNetworkPolicy" (v1beta2). Its effect on nodes is not taken over: subjects are
//! pods.

use std::sync::Arc;

use serde_json::Value;

use super::closed::widened;
use super::field::{Broken, Meta, Notes, Place};
use super::label_selector;
use super::network_policy::{Home, directions, subject_pods};
use crate::policy::{NamespaceScope, Policy, PolicyId, PolicyKind, Tier};
use crate::selector::Selector;

/// Reads a policy.
pub(super) fn read(meta: &Meta<'_>, version: Option<&str>, spec: &Value, at: &Place<'_>) -> Policy {
    let mut notes = Notes::default();
    let known = is_known(version, spec, at, &mut notes);
    let fields = spec.as_object();
    let pods = subject_pods(fields, at, &mut notes);
    let namespaces = fields.ok_or(Broken).and_then(|fields| {
        let selector = label_selector::optional(fields, "namespaceSelector", at, &mut notes)?;
        Ok(selector.map_or(NamespaceScope::Any, |selector| {
            NamespaceScope::Matching(Arc::new(selector))
        }))
    });
    let (subject, readable) = widened(namespaces, pods, Ok(Selector::Everything));
    let home = Home {
        namespaces: NamespaceScope::Any,
    };
    let (ingress, egress) = match known {
        Ok(()) => directions(fields, readable, &home, at, &mut notes),
        Err(Broken) => (None, None),
    };
    Policy {
        id: PolicyId {
            kind: PolicyKind::AckGlobal,
            namespace: Arc::from(""),
            name: Arc::clone(&meta.name),
        },
        tier: Tier::Namespaced,
        order: Policy::KUBERNETES_ORDER,
        subject,
        ingress,
        egress,
        problems: notes.into_problems(),
    }
}

/// The version whose meaning is documented.
const VERSION: &str = "network.alibabacloud.com/v1beta2";

/// Whether the meaning of the document as a whole is known.
fn is_known(
    version: Option<&str>,
    spec: &Value,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<(), Broken> {
    if version != Some(VERSION) {
        return Err(notes.broken(
            &Place::root("apiVersion"),
            format!("is not {VERSION}, whose meaning is known: the policy has no effect"),
        ));
    }
    let fields = notes.as_object(spec, at)?;
    let known = [
        "podSelector",
        "namespaceSelector",
        "policyTypes",
        "ingress",
        "egress",
    ];
    notes.only(fields, &known, at)
}
