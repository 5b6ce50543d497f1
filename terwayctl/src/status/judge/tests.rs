//! A healthy installation, and one line by name for everything that can be wrong with it.

use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use mesh::ca::{Authority, Leaf};
use mesh::identity::Identity;
use serde_json::{Value, json};

use super::*;
use crate::status::objects::{Event, Node, Pod, Workload};
use crate::status::picture::{Blind, Kind, Scrape};
use crate::status::samples;

const DAY: Duration = Duration::from_hours(24);

/// Noon of the day of the picture.
fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> String {
    (now() - SignedDuration::from_secs(seconds)).to_string()
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn labels(component: &str) -> Value {
    json!({"app.kubernetes.io/instance": "terway", "app.kubernetes.io/component": component})
}

fn workload(kind: Kind, component: &str, ready: u32, wanted: u32) -> (Kind, Workload) {
    let workload = json!({
        "metadata": {"name": format!("terway-{component}"), "labels": labels(component)},
        "spec": {"replicas": wanted},
        "status": {"readyReplicas": ready, "desiredNumberScheduled": wanted, "numberReady": ready},
    });
    (kind, read(workload))
}

fn our_pod(component: &str, node: &str) -> Pod {
    read(json!({
        "metadata": {"name": format!("terway-{component}-{node}"), "uid": format!("{component}-{node}"),
            "labels": labels(component)},
        "spec": {"nodeName": node, "hostNetwork": true},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": component, "ready": true, "restartCount": 0, "state": {"running": {}}}]},
    }))
}

fn node(name: &str) -> Node {
    read(
        json!({"metadata": {"name": name}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady"},
            {"type": "TerwayReady", "status": "True", "reason": "TerwayReady", "message": "pods can be started",
                "lastHeartbeatTime": ago(60)},
            {"type": "SufficientIP", "status": "True", "reason": "SufficientIP"},
        ]}}),
    )
}

fn scrape(component: &str, text: &str) -> Scrape {
    Scrape {
        component: component.to_owned(),
        pod: format!("terway-{component}-n1"),
        samples: Ok(samples::parse(text)),
    }
}

/// An authority that ends so long after the picture.
fn trust(left: i64) -> crate::status::objects::ConfigMap {
    mesh::tls::install_provider();
    // The authority signs something with the end that is wanted; that it is no authority itself does not matter here.
    let authority = Authority::new(DAY).unwrap();
    let end = now() + SignedDuration::from_secs(left);
    let end = SystemTime::from(end);
    let leaf = Leaf::new(&Identity::gateway("x"), DAY).valid(end - 2 * DAY, end);
    let pem = authority.issue(&leaf).unwrap().certificate;
    read(json!({"metadata": {"name": "terway-trust"}, "data": {"ca.crt": pem}}))
}

fn healthy() -> Picture {
    let until = now().as_second() + 20 * 3600;
    let expiry = format!("terway_tls_cert_not_after_seconds {until}\n");
    Picture {
        namespace: "kube-system".to_owned(),
        release: "terway".to_owned(),
        now: now(),
        workloads: vec![
            workload(Kind::Deployment, "gateway", 1, 1),
            workload(Kind::StatefulSet, "ipam", 1, 1),
            workload(Kind::Deployment, "controlplane", 1, 1),
            workload(Kind::DaemonSet, "node", 2, 2),
        ],
        pods: vec![
            our_pod("gateway", "n1"),
            our_pod("ipam", "n1"),
            our_pod("controlplane", "n1"),
            our_pod("node", "n1"),
            our_pod("node", "n2"),
        ],
        phase: Some(read(
            json!({"metadata": {"name": "terway-phase"}, "data": {"phase": "serve"}}),
        )),
        trust: Some(trust(365 * 86_400)),
        lease: Some(read(
            json!({"metadata": {"name": "terway-controlplane"}, "spec": {
            "holderIdentity": "terway-controlplane-n1", "renewTime": ago(3), "leaseDurationSeconds": 15}}),
        )),
        nodes: vec![node("n1"), node("n2"), node("virtual")],
        scrapes: vec![
            scrape(
                "gateway",
                &format!(
                    "{expiry}terway_gateway_credentials_usable{{source=\"credentials.dir\",place=\"/var/x\",secret=\"alibaba-addon-secret\"}} 1\n"
                ),
            ),
            scrape(
                "ipam",
                &format!(
                    "{expiry}terway_ipam_slots{{vswitch=\"vsw-1\",family=\"v4\",state=\"free\",shard=\"0\"}} 4000\n\
                     terway_ipam_slots{{vswitch=\"vsw-1\",family=\"v4\",state=\"held\",shard=\"0\"}} 96\n"
                ),
            ),
            scrape("controlplane", &expiry),
            scrape(
                "node",
                &format!("{expiry}terway_agent_pool_used 3\nterway_agent_pool_free 2\n"),
            ),
        ],
        ..Picture::default()
    }
}

/// A condition of node n1 in the place of the one of that type.
fn condition(picture: &mut Picture, kind: &str, is: bool, reason: &str, message: &str) {
    let status = if is { "True" } else { "False" };
    let condition = json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": ago(60)});
    let conditions = &mut picture.nodes[0].status.conditions;
    conditions.retain(|one| one.kind != kind);
    conditions.push(read(condition));
}

fn pending(name: &str, since: i64) -> Pod {
    read(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(since)},
            {"type": "PodReadyToStartContainers", "status": "False"}]},
    }))
}

fn event(kind: &str, object: &str, reason: &str, message: &str) -> Event {
    read(
        json!({"involvedObject": {"kind": kind, "name": object, "uid": object}, "reason": reason,
        "message": message, "lastTimestamp": ago(30)}),
    )
}

fn not_ready(picture: &mut Picture, component: &str, status: &Value) {
    for (_, workload) in &mut picture.workloads {
        if workload.metadata.name == format!("terway-{component}") {
            workload.status.ready_replicas = 0;
            workload.status.number_ready = 0;
        }
    }
    for pod in &mut picture.pods {
        if pod
            .metadata
            .name
            .starts_with(&format!("terway-{component}-"))
        {
            pod.status = read(status.clone());
        }
    }
}

fn waiting(reason: &str) -> Value {
    json!({"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "main", "state": {"waiting": {"reason": reason}},
            "lastState": {"terminated": {"reason": "Error", "exitCode": 64}}}]})
}

#[test]
fn healthy_installation_has_nothing_to_mend() {
    let lines = judge(&healthy());

    let odd: Vec<&Line> = lines
        .iter()
        .filter(|line| line.level != Level::Good)
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
    assert!(is_healthy(&lines));
    for area in Area::ALL {
        assert!(lines.iter().any(|line| line.area == area), "{area:?}");
    }
    assert!(lines.iter().all(|line| line.todo.is_empty()));
}

type Break = fn(&mut Picture);

/// Everything that can be wrong: name, level, area, a word of the line, what is done to the picture.
const FAULTS: &[(&str, Level, Area, &str, Break)] = &[
    // Wrong vSwitch.
    ("VswitchInvalid", Level::Bad, Area::Nodes, "vsw-nope", |p| {
        condition(
            p,
            "TerwayReady",
            false,
            "VswitchInvalid",
            "vSwitch vsw-nope can not be used",
        );
    }),
    ("NoVSwitch", Level::Bad, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            false,
            "NoVSwitch",
            "no vSwitch in the zone",
        );
    }),
    // Missing permission.
    (
        "CloudForbidden",
        Level::Bad,
        Area::Nodes,
        "ecs:CreateNetworkInterface",
        |p| {
            condition(
                p,
                "TerwayReady",
                false,
                "CloudForbidden",
                "ecs:CreateNetworkInterface is not allowed",
            );
        },
    ),
    // Wrong security group.
    (
        "SecurityGroupInvalid",
        Level::Bad,
        Area::Nodes,
        "sg-nope",
        |p| {
            condition(
                p,
                "TerwayReady",
                false,
                "SecurityGroupInvalid",
                "security group sg-nope",
            );
        },
    ),
    ("SecurityGroupFull", Level::Note, Area::Nodes, "n1", |p| {
        condition(p, "TerwayReady", true, "SecurityGroupFull", "no room");
    }),
    // Exhausted vSwitch: by the node, by ipam.
    ("VswitchExhausted", Level::Bad, Area::Nodes, "n1", |p| {
        let why = "VswitchExhausted: vsw-1 has no free address";
        condition(p, "SufficientIP", false, "InsufficientIP", why);
    }),
    (
        "VswitchExhausted",
        Level::Bad,
        Area::Addresses,
        "vsw-1",
        |p| {
            p.scrapes[1] = scrape(
                "ipam",
                "terway_ipam_slots{vswitch=\"vsw-1\",family=\"v4\",state=\"held\"} 4096\n\
             terway_ipam_slots{vswitch=\"vsw-1\",family=\"v4\",state=\"free\"} 0\n",
            );
        },
    ),
    (
        "VswitchNearlyFull",
        Level::Note,
        Area::Addresses,
        "3 of 103",
        |p| {
            p.scrapes[1] = scrape(
                "ipam",
                "terway_ipam_slots{vswitch=\"vsw-1\",family=\"v4\",state=\"held\"} 100\n\
             terway_ipam_slots{vswitch=\"vsw-1\",family=\"v4\",state=\"free\"} 3\n",
            );
        },
    ),
    (
        "AddressQuarantined",
        Level::Bad,
        Area::Addresses,
        "vsw-1",
        |p| {
            p.scrapes[1] = scrape(
                "ipam",
                "terway_ipam_slots{vswitch=\"vsw-1\",family=\"v4\",state=\"quarantine\"} 1\n\
             terway_ipam_slots{vswitch=\"vsw-1\",family=\"v4\",state=\"free\"} 3\n",
            );
        },
    ),
    // Expired certificate: of a service, of a node, of the authority.
    (
        "CertificateExpired",
        Level::Bad,
        Area::Certificates,
        "terway-gateway-n1",
        |p| {
            let text = format!(
                "terway_tls_cert_not_after_seconds {}\n",
                p.now.as_second() - 60
            );
            p.scrapes[0] = scrape("gateway", &text);
        },
    ),
    (
        "CertificateEndsSoon",
        Level::Note,
        Area::Certificates,
        "terway-gateway-n1",
        |p| {
            let text = format!(
                "terway_tls_cert_not_after_seconds {}\n",
                p.now.as_second() + 600
            );
            p.scrapes[0] = scrape("gateway", &text);
        },
    ),
    ("CertificateExpired", Level::Note, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            true,
            "CertificateExpired",
            "the certificate has ended",
        );
    }),
    (
        "CertificateExpired",
        Level::Bad,
        Area::Certificates,
        "terway-trust",
        |p| p.trust = Some(trust(-60)),
    ),
    (
        "AuthorityEndsSoon",
        Level::Note,
        Area::Certificates,
        "terway-trust",
        |p| p.trust = Some(trust(86_400)),
    ),
    (
        "TrustEmpty",
        Level::Bad,
        Area::Certificates,
        "terway-trust",
        |p| {
            p.trust = Some(read(json!({"metadata": {"name": "terway-trust"}})));
        },
    ),
    // Wrong name of a Secret, or of a ConfigMap.
    (
        "SecretMissing",
        Level::Bad,
        Area::Components,
        "my-keys",
        |p| {
            not_ready(p, "gateway", &waiting("ContainerCreating"));
            let message = "MountVolume.SetUp failed for volume \"credentials\" : secret \"my-keys\" not found";
            p.events
                .push(event("Pod", "gateway-n1", "FailedMount", message));
        },
    ),
    (
        "ConfigMissing",
        Level::Bad,
        Area::Components,
        "eni-config",
        |p| {
            not_ready(p, "node", &waiting("ContainerCreating"));
            let message = "MountVolume.SetUp failed for volume \"eni-config\" : configmap \"eni-config\" not found";
            p.events
                .push(event("Pod", "node-n1", "FailedMount", message));
        },
    ),
    (
        "CloudCredentials",
        Level::Bad,
        Area::Cloud,
        "alibaba-addon-secret",
        |p| {
            p.scrapes[0] = scrape(
                "gateway",
                "terway_gateway_credentials_usable{source=\"credentials.dir\",place=\"/var/x\",secret=\"alibaba-addon-secret\"} 0\n",
            );
        },
    ),
    // The gateway has seen a fault, and no node says so any more.
    (
        "CloudForbidden",
        Level::Note,
        Area::Cloud,
        "seen 3 times",
        |p| {
            p.scrapes[0] = scrape(
                "gateway",
                "terway_gateway_faults_total{reason=\"REASON_CLOUD_FORBIDDEN\"} 3\n\
             terway_gateway_faults_total{reason=\"REASON_CLOUD_THROTTLED\"} 9\n",
            );
        },
    ),
    // Unreachable API server, as a node sees it.
    ("ApiServerUnreachable", Level::Bad, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            false,
            "ApiServerUnreachable",
            "connection refused",
        );
    }),
    ("ApiServerForbidden", Level::Bad, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            false,
            "ApiServerForbidden",
            "list pods: 403",
        );
    }),
    // Other faults of nodes.
    ("IpamUnreachable", Level::Note, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            true,
            "IpamUnreachable",
            "connection refused",
        );
    }),
    ("IdentityMismatch", Level::Bad, Area::Nodes, "n1", |p| {
        condition(p, "TerwayReady", false, "IdentityMismatch", "i-1 and i-2");
    }),
    ("PolicyNotReady", Level::Bad, Area::Nodes, "n1", |p| {
        condition(p, "TerwayReady", false, "PolicyNotReady", "away");
    }),
    ("Starting", Level::Bad, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            false,
            "Starting",
            "pods of this node are not known yet",
        );
    }),
    ("NotReported", Level::Bad, Area::Nodes, "n2", |p| {
        p.nodes[1]
            .status
            .conditions
            .retain(|one| one.kind != "TerwayReady");
    }),
    ("Silent", Level::Note, Area::Nodes, "n1", |p| {
        p.nodes[0].status.conditions[1].last_heartbeat_time = Some(ago(3600).parse().unwrap());
    }),
    (
        "CloudThrottled",
        Level::Note,
        Area::Nodes,
        "30 s ago",
        |p| {
            p.events
                .push(event("Node", "n2", "CloudThrottled", "Throttling.User"));
        },
    ),
    ("OddButNew", Level::Bad, Area::Nodes, "n1", |p| {
        condition(
            p,
            "TerwayReady",
            false,
            "OddButNew",
            "a reason of a later release",
        );
    }),
    // What runs.
    (
        "NotInstalled",
        Level::Bad,
        Area::Components,
        "kube-system",
        |p| {
            (p.workloads, p.release) = (Vec::new(), String::new());
        },
    ),
    (
        "Crashing",
        Level::Bad,
        Area::Components,
        "ended with 64",
        |p| {
            not_ready(p, "ipam", &waiting("CrashLoopBackOff"));
        },
    ),
    (
        "ImageMissing",
        Level::Bad,
        Area::Components,
        "ImagePullBackOff",
        |p| {
            not_ready(p, "ipam", &waiting("ImagePullBackOff"));
        },
    ),
    (
        "NotScheduled",
        Level::Bad,
        Area::Components,
        "0/3 nodes",
        |p| {
            not_ready(
                p,
                "gateway",
                &json!({"conditions": [{"type": "PodScheduled", "status": "False",
            "message": "0/3 nodes are available"}]}),
            );
        },
    ),
    (
        "NotReadyYet",
        Level::Bad,
        Area::Components,
        "container gateway is not ready",
        |p| {
            not_ready(
                p,
                "gateway",
                &json!({"phase": "Running", "containerStatuses": [
            {"name": "gateway", "ready": false, "state": {"running": {}}}]}),
            );
        },
    ),
    (
        "TakesNoNode",
        Level::Bad,
        Area::Components,
        "daemonset terway-node",
        |p| {
            p.workloads[3] = workload(Kind::DaemonSet, "node", 0, 0);
        },
    ),
    (
        "NoLeader",
        Level::Bad,
        Area::Components,
        "terway-controlplane",
        |p| {
            p.lease.as_mut().unwrap().spec.renew_time = Some(ago(600).parse().unwrap());
        },
    ),
    (
        "NoLeader",
        Level::Bad,
        Area::Components,
        "nobody has led yet",
        |p| {
            p.lease = Some(read(json!({"metadata": {"name": "terway-controlplane"}})));
        },
    ),
    (
        "Leaving",
        Level::Note,
        Area::Components,
        "terway-phase",
        |p| {
            p.phase = Some(read(
                json!({"metadata": {"name": "terway-phase"}, "data": {"phase": "leave"}}),
            ));
        },
    ),
    (
        "NotLookedAt",
        Level::Unseen,
        Area::Components,
        "nodes",
        |p| {
            p.blind.push(Blind {
                what: "nodes".to_owned(),
                why: "403 forbidden".to_owned(),
            });
        },
    ),
    (
        "NotLookedAt",
        Level::Unseen,
        Area::Addresses,
        "terway-ipam-n1",
        |p| {
            p.scrapes[1].samples = Err("503 no route".to_owned());
        },
    ),
    // Pods.
    (
        "VswitchExhausted",
        Level::Bad,
        Area::Pods,
        "pod shop/web",
        |p| {
            p.pending.push(pending("web", 90));
            let message = "VswitchExhausted: vsw-1 has no free address";
            p.events.push(event("Pod", "web", "AllocIPFailed", message));
        },
    ),
    (
        "CloudForbidden",
        Level::Bad,
        Area::Pods,
        "pod shop/web",
        |p| {
            p.pending.push(pending("web", 90));
            let message = "Failed to create pod sandbox: plugin type=\"terway\" failed (add): node-agent: no; REASON_CLOUD_FORBIDDEN";
            p.events
                .push(event("Pod", "web", "FailedCreatePodSandBox", message));
        },
    ),
    (
        "NoNetwork",
        Level::Bad,
        Area::Pods,
        "nobody says why",
        |p| p.pending.push(pending("web", 90)),
    ),
];

#[test]
fn every_fault_has_its_line_by_name_and_says_what_to_do() {
    for (name, level, area, word, break_it) in FAULTS {
        let mut picture = healthy();
        break_it(&mut picture);

        let lines = judge(&picture);

        let found = lines
            .iter()
            .find(|line| line.name == *name && line.area == *area);
        let found = found.unwrap_or_else(|| panic!("no line {name} among {lines:#?}"));
        assert_eq!(found.level, *level, "{found:#?}");
        assert!(
            format!("{} {}", found.subject, found.what).contains(word),
            "{found:#?}"
        );
        assert!(!found.todo.is_empty(), "{found:#?}");
        assert_eq!(
            is_healthy(&lines),
            *level != Level::Bad,
            "{name}: {lines:#?}"
        );
    }
}

#[test]
fn pools_of_nodes_are_added_up_and_their_certificates_are_told_when_they_end() {
    let mut picture = healthy();
    let until = picture.now.as_second() - 60;
    let more = format!(
        "terway_tls_cert_not_after_seconds {until}\nterway_agent_pool_used 4\nterway_agent_pool_free 1\n"
    );
    picture.scrapes.push(scrape("node", &more));
    picture.scrapes[3].pod = "terway-node-n1".to_owned();
    picture.scrapes[4].pod = "terway-node-n2".to_owned();

    let lines = judge(&picture);

    let pools = lines.iter().find(|line| line.subject.starts_with("pools"));
    let pools = pools.unwrap();
    assert_eq!(pools.subject, "pools of 2 nodes");
    assert_eq!(
        pools.what,
        "7 pods with addresses, 3 more could start at once"
    );
    let told: Vec<&str> = lines
        .iter()
        .filter(|line| line.area == Area::Certificates && line.subject.contains("node"))
        .map(|line| line.subject.as_str())
        .collect();
    assert_eq!(told, ["pod terway-node-n2"]);
}

#[test]
fn fault_of_many_nodes_is_one_line() {
    let mut picture = healthy();
    for number in 0..100 {
        let mut many = node(&format!("m{number:03}"));
        many.status
            .conditions
            .retain(|one| one.kind != "TerwayReady");
        picture.pods.push(our_pod("node", &many.metadata.name));
        picture.nodes.push(many);
    }

    let lines = judge(&picture);

    let found: Vec<&Line> = lines
        .iter()
        .filter(|line| line.name == "NotReported")
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].subject,
        "100 nodes: m000, m001, m002, m003, m004 and 95 more"
    );
}

#[test]
fn pod_that_waits_for_something_else_is_not_ours() {
    let mut picture = healthy();
    let mut with_sandbox = pending("image", 900);
    with_sandbox.status.conditions[1].status = "True".to_owned();
    let mut of_the_host = pending("host", 900);
    of_the_host.spec.host_network = true;
    let with_volume = pending("volume", 900);
    picture.events.push(event(
        "Pod",
        "volume",
        "FailedMount",
        "secret \"x\" not found",
    ));
    picture.pending = vec![with_sandbox, of_the_host, with_volume, pending("young", 20)];

    let lines = judge(&picture);

    assert!(is_healthy(&lines), "{lines:#?}");
}

#[test]
fn more_stuck_pods_than_fit_are_counted() {
    let mut picture = healthy();
    picture.pending = (0..25)
        .map(|n| pending(&format!("p{n}"), 100 + n))
        .collect();

    let lines = judge(&picture);

    let of_pods: Vec<&Line> = lines
        .iter()
        .filter(|line| line.area == Area::Pods)
        .collect();
    assert_eq!(of_pods.len(), 11);
    assert!(
        of_pods[0].subject.ends_with("p24"),
        "the longest wait comes first"
    );
    assert_eq!(of_pods[10].what, "15 pods more wait for their network");
}

#[test]
fn old_event_of_a_node_is_history() {
    let mut picture = healthy();
    let mut old = event("Node", "n1", "CloudForbidden", "ecs:DescribeInstances");
    old.last_timestamp = Some(ago(3600).parse().unwrap());
    picture.events.push(old);
    picture
        .events
        .push(event("Node", "n1", "NodeNotReady", "of somebody else"));

    let lines = judge(&picture);

    assert!(
        lines.iter().all(|line| line.level == Level::Good),
        "{lines:#?}"
    );
}

#[test]
fn durations_read_as_people_say_them() {
    for (seconds, text) in [
        (5, "5 s"),
        (119, "119 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (260_000, "3 d"),
        (-3, "0 s"),
    ] {
        assert_eq!(duration(seconds), text);
    }
}
