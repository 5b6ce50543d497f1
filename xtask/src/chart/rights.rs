//! What the chart's components may do: in the cluster, and on their node.

use serde_json::Value;

use crate::chart::{Rendered, title};

/// Verbs of those that only look.
const LOOKING: &[&str] = &["get", "list", "watch"];
/// What may be made, and by whom, without a name known before: nothing else in the cluster.
const MAKING: &[&str] = &["events", "tokenreviews"];
/// Verbs that nobody needs.
const NEVER: &[&str] = &[
    "*",
    "delete",
    "deletecollection",
    "escalate",
    "bind",
    "impersonate",
];
/// Components that only look. Others are named in `IDLE`, or are the control plane and its Job.
const LOOKERS: &[&str] = &["node", "relay"];
/// Components without any right in the cluster.
const IDLE: &[&str] = &["gateway", "ipam", "etcd"];
/// Containers with capabilities, and which.
const CAPABLE: &[(&str, &[&str])] = &[
    ("node-agent", &["NET_ADMIN", "SYS_ADMIN"]),
    ("policy-agent", &["NET_ADMIN", "SYS_ADMIN"]),
    ("remove-policy", &["NET_ADMIN"]),
];

/// Tells every breach in every set.
pub(crate) fn check(sets: &[Rendered]) -> Vec<String> {
    let mut breaches = Vec::new();
    for set in sets {
        for object in &set.objects {
            let mut found = Vec::new();
            match object.get("kind").and_then(Value::as_str) {
                Some("Role" | "ClusterRole") => role(object, &mut found),
                Some("RoleBinding" | "ClusterRoleBinding") => binding(object, &mut found),
                Some("Deployment" | "StatefulSet" | "DaemonSet" | "Job") => pod(object, &mut found),
                Some(_) | None => {}
            }
            let title = title(object);
            breaches.extend(
                found
                    .iter()
                    .map(|what| format!("{}: {title}: {what}", set.name)),
            );
        }
    }
    breaches
}

fn component(object: &Value) -> &str {
    object
        .pointer("/metadata/labels/app.kubernetes.io~1component")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn role(object: &Value, breaches: &mut Vec<String>) {
    let rules = object.get("rules").and_then(Value::as_array);
    for rule in rules.into_iter().flatten() {
        let (verbs, resources) = (texts(rule, "verbs"), texts(rule, "resources"));
        let named = rule.get("resourceNames").is_some();
        let what = format!("{} of {}", verbs.join(", "), resources.join(", "));
        if verbs.is_empty() || resources.is_empty() || verbs.iter().any(|v| NEVER.contains(v)) {
            breaches.push(format!("{what}: nobody needs that"));
        }
        if resources.contains(&"*") || texts(rule, "apiGroups").contains(&"*") {
            breaches.push(format!("{what}: everything is too much"));
        }
        let looks = verbs.iter().all(|verb| LOOKING.contains(verb));
        if !looks && LOOKERS.contains(&component(object)) {
            breaches.push(format!("{what}: this component only looks"));
        }
        if verbs.contains(&"create") && resources.iter().any(|r| !MAKING.contains(r)) {
            breaches.push(format!("{what}: nothing of that is to be made"));
        }
        if resources
            .iter()
            .any(|r| ["secrets", "configmaps"].contains(r))
            && !named
        {
            breaches.push(format!("{what}: without names that is everybody's"));
        }
    }
}

fn binding(object: &Value, breaches: &mut Vec<String>) {
    let subjects = object.get("subjects").and_then(Value::as_array);
    for subject in subjects.into_iter().flatten() {
        let name = subject
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let idle = IDLE.iter().any(|idle| name.ends_with(&format!("-{idle}")));
        if idle || subject.get("kind").and_then(Value::as_str) != Some("ServiceAccount") {
            breaches.push(format!("{name} needs no right"));
        }
    }
}

fn pod(object: &Value, breaches: &mut Vec<String>) {
    let Some(spec) = object.pointer("/spec/template/spec") else {
        breaches.push("it has no pod".to_owned());
        return;
    };
    if spec.get("automountServiceAccountToken") != Some(&Value::Bool(false)) {
        breaches.push("its token is mounted everywhere".to_owned());
    }
    for key in ["hostPID", "hostIPC"] {
        if spec.get(key).is_some() {
            breaches.push(format!("{key} is not needed"));
        }
    }
    for list in ["initContainers", "containers"] {
        for container in spec
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = container.get("name").and_then(Value::as_str).unwrap_or("?");
            let mut found = Vec::new();
            contain(name, container, &mut found);
            breaches.extend(found.iter().map(|what| format!("{name}: {what}")));
        }
    }
}

fn contain(name: &str, container: &Value, breaches: &mut Vec<String>) {
    let security = container.get("securityContext").unwrap_or(&Value::Null);
    let is = |key: &str, wanted: bool| security.get(key) == Some(&Value::Bool(wanted));
    if !is("readOnlyRootFilesystem", true) {
        breaches.push("its root can be written".to_owned());
    }
    if !is("allowPrivilegeEscalation", false) || security.get("privileged").is_some() {
        breaches.push("it can gain privileges".to_owned());
    }
    let capabilities = security.get("capabilities").unwrap_or(&Value::Null);
    if texts(capabilities, "drop") != ["ALL"] {
        breaches.push("it keeps capabilities".to_owned());
    }
    let allowed = CAPABLE.iter().find(|(who, _)| *who == name);
    let allowed = allowed.map_or(&[][..], |(_, capabilities)| capabilities);
    for capability in texts(capabilities, "add") {
        if !allowed.contains(&capability) {
            breaches.push(format!("it does not need {capability}"));
        }
    }
    if container.pointer("/resources/limits/memory").is_none() {
        breaches.push("its memory has no bound".to_owned());
    }
    if container.pointer("/resources/limits/cpu").is_some() {
        breaches.push("its CPU is throttled".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(object: Value) -> Vec<String> {
        let set = Rendered {
            name: "s".to_owned(),
            text: String::new(),
            objects: vec![object],
        };
        check(&[set])
    }

    fn role_of(component: &str, rule: &Value) -> Value {
        json!({"kind": "ClusterRole", "rules": [rule], "metadata": {
            "name": "x", "labels": {"app.kubernetes.io/component": component}}})
    }

    // I12
    #[test]
    fn right_that_is_too_much_is_named() {
        for (component, rule, why) in [
            (
                "node",
                json!({"resources": ["pods"], "verbs": ["get", "patch"]}),
                "only looks",
            ),
            (
                "controlplane",
                json!({"resources": ["pods"], "verbs": ["create"]}),
                "to be made",
            ),
            (
                "controlplane",
                json!({"resources": ["pods"], "verbs": ["*"]}),
                "nobody needs",
            ),
            (
                "controlplane",
                json!({"resources": ["secrets"], "verbs": ["get"]}),
                "without names",
            ),
            (
                "controlplane",
                json!({"resources": ["*"], "verbs": ["get"]}),
                "too much",
            ),
            (
                "controlplane",
                json!({"resources": ["nodes"], "verbs": []}),
                "nobody needs",
            ),
        ] {
            let told = told(role_of(component, &rule));
            assert!(told.iter().any(|t| t.contains(why)), "{rule}: {told:?}");
        }
        let good = json!({"resources": ["pods"], "verbs": ["get", "list", "watch"]});
        assert_eq!(told(role_of("node", &good)), [""; 0]);
    }

    #[test]
    fn binding_of_a_component_without_rights_is_named() {
        let bound = |name: &str| {
            told(json!({"kind": "RoleBinding", "metadata": {"name": "x"},
                "subjects": [{"kind": "ServiceAccount", "name": name}]}))
        };

        assert_eq!(bound("terway-node"), [""; 0]);
        assert_eq!(
            bound("terway-gateway"),
            ["s: RoleBinding x: terway-gateway needs no right"]
        );
    }

    #[test]
    fn container_that_can_do_more_than_it_needs_is_named() {
        let with = |name: &str, more: Value| {
            let mut container = json!({"name": name, "resources": {"limits": {"memory": "1Gi"}},
                "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}}});
            for (key, value) in more.as_object().unwrap() {
                container["securityContext"][key] = value.clone();
            }
            told(
                json!({"kind": "Deployment", "metadata": {"name": "x"}, "spec": {"template": {"spec":
                {"automountServiceAccountToken": false, "containers": [container]}}}}),
            )
        };

        assert_eq!(with("gateway", json!({})), [""; 0]);
        let admin = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}});
        assert_eq!(with("policy-agent", admin.clone()), [""; 0]);
        assert_eq!(with("gateway", admin).len(), 1);
        assert_eq!(with("gateway", json!({"privileged": true})).len(), 1);
        assert_eq!(with("gateway", json!({"capabilities": {}})).len(), 1);
        assert_eq!(
            with("gateway", json!({"readOnlyRootFilesystem": false})).len(),
            1
        );
    }
}
