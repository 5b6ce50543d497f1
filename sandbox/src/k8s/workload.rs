//! What runs on the test bed, of every kind that people have.

use serde_json::{Value, json};

/// The image of all pods.
pub const IMAGE: &str = "terway-mesh/test-probe:1";
/// Where pods answer; HTTP is one above.
pub const PORT: u16 = 7000;
/// The same for pods of the host network, which share it with others.
pub const HOST_PORT: u16 = 7100;
/// A port of the node that leads to a pod.
pub const MAPPED_PORT: u16 = 7200;
/// The port of nodes that leads to the Service `web`.
pub const NODE_PORT: u16 = 30700;

/// A namespace.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A container that serves.
fn server(port: u16) -> Value {
    json!({
        "name": "probe",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["serve", port.to_string()],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
    })
}

/// A pod's specification that serves.
pub fn serving(port: u16) -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "containers": [server(port)],
    })
}

/// A workload of this kind, such as `Deployment`, whose pods have this specification.
pub fn workload(kind: &str, name: &str, replicas: Option<u32>, pod: &Value) -> Value {
    let labels = json!({"app": name});
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    });
    if let Some(replicas) = replicas {
        set(&mut object, "/spec", "replicas", json!(replicas));
    }
    if kind == "StatefulSet" {
        set(&mut object, "/spec", "serviceName", json!(name));
        set(
            &mut object,
            "/spec",
            "podManagementPolicy",
            json!("Parallel"),
        );
    }
    object
}

/// Puts `value` at a key of the object at `pointer`, which must be there.
pub fn set(object: &mut Value, pointer: &str, key: &str, value: Value) {
    if let Some(map) = object.pointer_mut(pointer).and_then(Value::as_object_mut) {
        map.insert(key.to_owned(), value);
    }
}

/// A single pod.
pub fn pod(name: &str, labels: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    })
}

/// A Service of the pods of a workload.
fn service(name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": spec,
    });
    set(&mut object, "/spec", "selector", json!({"app": name}));
    object
}

/// A container that waits until somebody is reached.
fn waiter(name: &str, kind: &str, target: &str) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["await", "60", kind, target],
    })
}

/// One of each kind, with `web` pods in the Deployment, on `nodes` nodes. All in one namespace, which is given to
/// kubectl.
pub fn everything(web: u32, nodes: u32) -> Vec<Value> {
    let mut objects = vec![
        workload("Deployment", "web", Some(web), &serving(PORT)),
        service(
            "web",
            &json!({
                "type": "NodePort",
                "ports": [
                    {"name": "tcp", "port": PORT, "nodePort": NODE_PORT},
                    {"name": "udp", "port": PORT, "nodePort": NODE_PORT, "protocol": "UDP"},
                    {"name": "http", "port": 80, "targetPort": PORT.saturating_add(1)},
                ],
            }),
        ),
        stateful(),
        service(
            "db",
            &json!({"clusterIP": "None", "ports": [{"port": PORT}]}),
        ),
        workload("DaemonSet", "each", None, &serving(PORT)),
    ];
    let mut host = serving(HOST_PORT);
    set(&mut host, "", "hostNetwork", json!(true));
    objects.push(workload("DaemonSet", "host", None, &host));
    let mut waits = serving(PORT);
    let first = [
        waiter("by-name", "tcp", "web:7000"),
        waiter("by-http", "http", "web.bed.svc.cluster.local:80"),
    ];
    set(&mut waits, "", "initContainers", json!(first));
    objects.push(workload("Deployment", "waits", Some(4), &waits));
    let mut mapped = serving(PORT);
    let ports = json!([{"containerPort": PORT, "hostPort": MAPPED_PORT}]);
    set(&mut mapped, "/containers/0", "ports", ports);
    objects.push(workload("Deployment", "mapped", Some(nodes), &mapped));
    objects.push(job());
    objects
}

fn stateful() -> Value {
    let mut pod = serving(PORT);
    let probe =
        json!({"httpGet": {"path": "/", "port": PORT.saturating_add(1)}, "periodSeconds": 5});
    set(&mut pod, "/containers/0", "readinessProbe", probe);
    workload("StatefulSet", "db", Some(4), &pod)
}

fn job() -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {
            "completions": 4,
            "parallelism": 4,
            "backoffLimit": 0,
            "template": {"spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "containers": [waiter("once", "tcp", "web:7000")],
            }},
        },
    })
}
