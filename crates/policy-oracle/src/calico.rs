//! Calico's policies: GlobalNetworkPolicy and its NetworkPolicy.

use std::cmp::Ordering;

use serde_json::Value;

use crate::calico_rule::{self, Action, Namespaces, Pods, Rule};
use crate::calico_selector::Selector;
use crate::document::{self, Object};
use crate::flow::{Direction, Flow};
use crate::inventory::{Inventory, Pod};

/// The order at which a Kubernetes NetworkPolicy stands among Calico's policies.
pub(crate) const KUBERNETES_ORDER: f64 = 1000.0;

/// A policy that stands in one tier with the NetworkPolicies.
#[derive(Debug, Clone)]
pub(crate) struct CalicoPolicy {
    /// Lower first; infinite when the policy has none.
    pub(crate) order: f64,
    /// Namespace and name, for order among equals.
    identity: (Option<String>, String),
    pub(crate) title: String,
    /// `None`: every pod, since the selector could not be read.
    subjects: Option<Pods>,
    ingress: Option<Vec<(usize, Rule)>>,
    egress: Option<Vec<(usize, Rule)>>,
}

impl CalicoPolicy {
    /// Reads a policy; `Err` with a sentence when it is refused as a whole, since it is about hosts.
    ///
    /// A rule that cannot be read allows nothing, or denies all if it was to deny or to pass. A
    /// policy whose subjects or order cannot be read governs all pods of its namespace (of the
    /// cluster, when global) as one that only denies. A list of rules that is no list, and a spec
    /// that is no object, deny all.
    pub(crate) fn parse(document: &Object, global: bool) -> Result<(Self, Vec<String>), String> {
        let (namespace, name) = document::identity(document);
        let namespace = match (global, namespace.is_empty()) {
            (true, _) => None,
            (false, true) => Some("default".to_owned()),
            (false, false) => Some(namespace),
        };
        let empty = Object::new();
        let mut complaints = Vec::new();
        let mut open = true;
        let spec = document::object(document, "spec").unwrap_or_else(|complaint| {
            complaints.push(complaint);
            None
        });
        let readable = complaints.is_empty();
        let spec = spec.unwrap_or(&empty);
        for key in ["doNotTrack", "preDNAT", "applyOnForward"] {
            if document::field(spec, key).is_some_and(|value| *value != Value::Bool(false)) {
                return Err(format!(
                    "{key} is about hosts, which is not supported; no effect"
                ));
            }
        }
        let mut doubt = |complaint: String| {
            complaints.push(format!("{complaint}; the policy can only deny"));
            open = false;
        };
        let known = [
            "tier",
            "order",
            "selector",
            "namespaceSelector",
            "serviceAccountSelector",
            "types",
            "ingress",
            "egress",
            "doNotTrack",
            "preDNAT",
            "applyOnForward",
            "performanceHints",
        ];
        if let Err(complaint) = document::only(spec, &known, "spec") {
            doubt(complaint);
        }
        if !matches!(
            document::text(spec, "tier"),
            Ok(None | Some("" | "default"))
        ) {
            doubt("tiers other than default are not supported".to_owned());
        }
        let order = match document::field(spec, "order").map(Value::as_f64) {
            None if !readable => f64::NEG_INFINITY,
            None => f64::INFINITY,
            Some(Some(order)) => order,
            Some(None) => {
                doubt("order is not a number".to_owned());
                f64::NEG_INFINITY
            }
        };
        let subjects = subjects(spec, namespace.as_deref()).map(Some);
        let subjects = subjects.unwrap_or_else(|complaint| {
            doubt(complaint);
            namespace.clone().map(|own| Pods {
                namespaces: Namespaces::One(own),
                selector: Selector::All,
                account_names: Vec::new(),
                account_selector: Selector::All,
            })
        });
        let (ingress, egress) = if readable {
            types(spec, &mut doubt)
        } else {
            (true, true)
        };
        let mut rules = |key: &str| {
            if !readable {
                return vec![(1, Rule::denies_all())];
            }
            read_rules(spec, key, namespace.as_deref(), open, &mut |complaint| {
                complaints.push(complaint);
            })
        };
        let policy = Self {
            order,
            title: match &namespace {
                None => format!("Calico's GlobalNetworkPolicy {name}"),
                Some(namespace) => format!("Calico's NetworkPolicy {namespace}/{name}"),
            },
            ingress: ingress.then(|| rules("ingress")),
            egress: egress.then(|| rules("egress")),
            subjects,
            identity: (namespace, name),
        };
        Ok((policy, complaints))
    }

    /// Which of two comes first.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        self.order
            .total_cmp(&other.order)
            .then_with(|| self.identity.1.cmp(&other.identity.1))
            .then_with(|| self.identity.0.cmp(&other.identity.0))
    }

    /// Whether the policy governs the pod in that direction.
    pub(crate) fn governs(&self, pod: &Pod, direction: Direction, inventory: &Inventory) -> bool {
        self.rules(direction).is_some()
            && self
                .subjects
                .as_ref()
                .is_none_or(|subjects| subjects.admit(pod, inventory))
    }

    fn rules(&self, direction: Direction) -> Option<&[(usize, Rule)]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// What the first rule that matches does; rules that only log go by.
    pub(crate) fn judge(&self, flow: Flow<'_>, reasons: &mut Vec<String>) -> Option<Action> {
        for (number, rule) in self.rules(flow.direction).unwrap_or_default() {
            if rule.action == Action::Log || !rule.matches(flow) {
                continue;
            }
            let does = match rule.action {
                Action::Allow => "allows it",
                Action::Deny => "denies it",
                Action::Pass => "passes it on",
                Action::Log => "logs it",
            };
            let (title, direction) = (&self.title, flow.direction);
            reasons.push(format!("{title} {direction} rule {number} {does}"));
            return Some(rule.action);
        }
        reasons.push(format!("{} has no rule that matches", self.title));
        None
    }
}

fn subjects(spec: &Object, namespace: Option<&str>) -> Result<Pods, String> {
    let labelled = calico_rule::selector(spec, "namespaceSelector")?;
    let accounts = calico_rule::selector(spec, "serviceAccountSelector")?;
    Ok(Pods {
        namespaces: match (namespace, labelled) {
            (Some(own), None) => Namespaces::One(own.to_owned()),
            (Some(_), Some(_)) => {
                return Err("namespaceSelector in a policy that has a namespace".to_owned());
            }
            (None, Some(selector)) => Namespaces::Labelled(selector),
            (None, None) => Namespaces::All,
        },
        selector: calico_rule::selector(spec, "selector")?.unwrap_or(Selector::All),
        account_names: Vec::new(),
        account_selector: accounts.unwrap_or(Selector::All),
    })
}

/// Which directions the policy governs; when it does not say, those that it has rules for, or
/// ingress if it has none.
fn types(spec: &Object, doubt: &mut impl FnMut(String)) -> (bool, bool) {
    let has = |key: &str| {
        document::field(spec, key)
            .is_some_and(|list| list.as_array().is_none_or(|list| !list.is_empty()))
    };
    match document::texts(spec, "types") {
        Ok(types) if types.is_empty() => (has("ingress") || !has("egress"), has("egress")),
        Ok(types) if types.iter().all(|t| matches!(*t, "Ingress" | "Egress")) => {
            (types.contains(&"Ingress"), types.contains(&"Egress"))
        }
        Ok(_) | Err(_) => {
            doubt("types has something other than Ingress and Egress".to_owned());
            (true, true)
        }
    }
}

/// The rules of one direction; of a policy that is not `open`, none allows or passes.
fn read_rules(
    spec: &Object,
    key: &str,
    namespace: Option<&str>,
    open: bool,
    note: &mut impl FnMut(String),
) -> Vec<(usize, Rule)> {
    let values = match document::list(spec, key) {
        Ok(values) => values,
        Err(complaint) => {
            note(format!("{complaint}; denies all"));
            return vec![(1, Rule::denies_all())];
        }
    };
    let mut rules = Vec::new();
    for (number, value) in (1_usize..).zip(values) {
        let rule = match Rule::parse(value, namespace) {
            Ok(rule) => Some(rule),
            Err(complaint) => {
                let rule = Rule::unreadable(value);
                let effect = if rule.is_some() {
                    "denies all"
                } else {
                    "allows nothing"
                };
                note(format!("{key} rule {number}: {complaint}; it {effect}"));
                rule
            }
        };
        let Some(mut rule) = rule else { continue };
        match (open, rule.action) {
            (true, _) | (false, Action::Deny | Action::Log) => {}
            (false, Action::Allow) => continue,
            (false, Action::Pass) => rule.action = Action::Deny,
        }
        rules.push((number, rule));
    }
    rules
}
