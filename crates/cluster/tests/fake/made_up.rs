//! Pods out of thin air, for large clusters.

use serde_json::{Value, json};

/// The pod of this number, as large as pods are.
pub(crate) fn pod(n: usize) -> Value {
    let env: Vec<Value> = (0..20)
        .map(
            |k| json!({"name": format!("SOME_VARIABLE_{k}"), "value": format!("value-{k}-of-{n}")}),
        )
        .collect();
    let fields = json!({"f:metadata": {"f:labels": {"f:app": {}, "f:tier": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {"f:env": {}, "f:image": {}, "f:ports": {}}}}});
    let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .iter()
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("made-up-{n:06}"), "namespace": format!("ns-{:03}", n % 500),
            "uid": format!("00000000-0000-0000-0000-{n:012}"), "resourceVersion": "5",
            "labels": {"app": format!("app-{}", n % 2_000), "tier": "web", "pod-template-hash": "7d5c4f9b6d",
                "team": format!("t{}", n % 40)},
            "managedFields": [{"manager": "kubelet", "fieldsV1": fields}, {"manager": "kcm", "fieldsV1": fields}],
            "ownerReferences": [{"kind": "ReplicaSet", "name": "made-up", "uid": "1"}],
        },
        "spec": {
            "nodeName": format!("node-{}", n % 1_000),
            "containers": [{"name": "main", "image": "registry.example.com/team/app:1.2.3", "env": env,
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "volumeMounts": [{"name": "v", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
            "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {}}]}}],
            "tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "podIP": format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255),
            "podIPs": [{"ip": format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)}],
            "conditions": conditions,
            "containerStatuses": [{"name": "main", "ready": true, "imageID": "sha256:0123456789abcdef",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        },
    })
}
