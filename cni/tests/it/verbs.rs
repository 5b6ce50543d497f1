//! Each verb against an agent: what is asked, what is answered, how refusals are told.

use proto::node::v1::{Attachment, PodRef};
use rstest::rstest;
use serde_json::{Value, json};
use tonic::Code;
use types::journal::Entry;

use crate::plugin::{Bench, NETNS};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn golden(version: &str) -> Value {
    let (v4, v6) = if version < "1.0.0" {
        (json!({"version": "4"}), json!({"version": "6"}))
    } else {
        (json!({}), json!({}))
    };
    let merge = |mut a: Value, b: Value| {
        a.as_object_mut()
            .unwrap()
            .extend(b.as_object().unwrap().clone());
        a
    };
    let mtu = if version == "1.1.0" {
        json!({"mtu": 1500})
    } else {
        json!({})
    };
    json!({
        "cniVersion": version,
        "interfaces": [
            merge(json!({"name": "cali0d7763386da", "mac": "02:00:00:00:00:01"}), mtu.clone()),
            merge(json!({"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": NETNS}), mtu),
        ],
        "ips": [
            merge(v4, json!({"address": "10.9.0.5/32", "gateway": "169.254.1.1", "interface": 1})),
            merge(v6, json!({"address": "fd09::5/128", "gateway": "fe80::1", "interface": 1})),
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
        "dns": {"nameservers": ["10.0.0.10"]},
    })
}

#[rstest]
fn add_answers_in_the_version_that_was_asked_for(
    #[values("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")] version: &str,
) {
    let bench = Bench::new();
    let agent = bench.agent();

    let said = bench
        .call("ADD", version, |c| {
            c["dns"] = json!({"nameservers": ["10.0.0.10"]});
        })
        .run();

    assert!(said.succeeded, "{}", said.output);
    assert_eq!(said.json(), golden(version));
    let request = agent.seen(|s| s.add.clone()).unwrap();
    let attachment = Attachment {
        sandbox_id: "0a1b2c".to_owned(),
        ifname: "eth0".to_owned(),
    };
    let pod = PodRef {
        namespace: "default".to_owned(),
        name: "web-0".to_owned(),
        uid: "u-1".to_owned(),
    };
    assert_eq!(request.attachment, Some(attachment));
    assert_eq!(request.pod, Some(pod));
    assert_eq!(request.netns, NETNS);
    assert_eq!(
        agent.seen(|s| s.timeout.clone()).as_deref(),
        Some("65000000u")
    );
}

#[test]
fn traceparent_of_the_runtime_is_passed_on_with_a_span_of_ours() {
    let bench = Bench::new();
    let agent = bench.agent();
    let file = bench.trace_file();

    bench
        .call("ADD", "1.0.0", |_| {})
        .with("TRACEPARENT", PARENT)
        .with("TERWAY_TRACE_FILE", file.to_str().unwrap())
        .run();

    let sent = agent.seen(|s| s.traceparent.clone()).unwrap();
    let span: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(span["name"], "cni.ADD");
    assert_eq!(span["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span["parent_span_id"], "00f067aa0ba902b7");
    let span_id = span["span_id"].as_str().unwrap();
    assert_eq!(
        sent,
        format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span_id}-01")
    );
    assert_eq!(span["status"], "ok");
    assert_eq!(span["attributes"]["k8s.pod.name"], "web-0");
    let (start, end) = (&span["start_unix_nano"], &span["end_unix_nano"]);
    assert!(start.as_u64().unwrap() < end.as_u64().unwrap());
}

#[test]
fn traceparent_in_the_args_is_used_and_without_any_a_root_is_made() {
    let bench = Bench::new();
    let agent = bench.agent();
    let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;TRACEPARENT={PARENT}");

    bench
        .call("ADD", "1.0.0", |_| {})
        .with("CNI_ARGS", &args)
        .run();
    let from_args = agent.seen(|s| s.traceparent.clone()).unwrap();
    bench.call("ADD", "1.0.0", |_| {}).run();
    let root = agent.seen(|s| s.traceparent.clone()).unwrap();

    assert!(from_args.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert!(
        root.ends_with("-01") && root.len() == PARENT.len(),
        "{root}"
    );
    assert!(!root.contains("4bf92f3577b34da6a3ce929d0e0e4736"));
}

#[rstest]
#[case("REASON_POOL_EMPTY", 11)]
#[case("REASON_POD_UNKNOWN", 11)]
#[case("REASON_BUSY", 11)]
#[case("REASON_VSWITCH_EXHAUSTED", 11)]
#[case("REASON_NOT_READY", 11)]
#[case("REASON_OUTCOME_UNKNOWN", 11)]
#[case("REASON_CLOUD_THROTTLED", 11)]
#[case("REASON_NETNS_GONE", 3)]
#[case("REASON_KERNEL_DRIFT", 101)]
#[case("REASON_CLOUD_FORBIDDEN", 100)]
#[case("REASON_IDENTITY_MISMATCH", 100)]
fn refusal_of_add_has_a_code_by_its_reason(#[case] reason: &str, #[case] code: u64) {
    let bench = Bench::new();
    let agent = bench.agent();
    agent.refuse(Code::FailedPrecondition, reason, &[]);

    let said = bench.call("ADD", "1.0.0", |_| {}).run();

    assert_eq!(
        said.failure(),
        (code, "node-agent: as the test wants".to_owned())
    );
    assert_eq!(said.json()["details"], reason);
}

#[rstest]
#[case("CNI_NETNS", 4)]
#[case("veth_prefix", 7)]
fn refusal_of_a_field_has_a_code_by_where_it_stands(#[case] field: &str, #[case] code: u64) {
    let bench = Bench::new();
    let agent = bench.agent();
    agent.refuse(
        Code::InvalidArgument,
        "REASON_BAD_FIELD",
        &[("field", field)],
    );

    let said = bench.call("ADD", "1.0.0", |_| {}).run();

    assert_eq!(said.failure().0, code);
    assert_eq!(
        said.json()["details"],
        format!("REASON_BAD_FIELD field={field}")
    );
}

#[test]
fn add_without_an_agent_is_code_11_naming_the_socket() {
    let bench = Bench::new();

    let said = bench.call("ADD", "1.0.0", |_| {}).run();

    let (code, message) = said.failure();
    assert_eq!(code, 11);
    assert!(message.contains("agent.sock"), "{message}");
}

#[test]
fn add_whose_agent_dies_is_code_11() {
    let bench = Bench::new();
    let agent = bench.agent();
    agent.die_on_call();

    let said = bench.call("ADD", "1.0.0", |_| {}).run();

    assert_eq!(said.failure().0, 11);
}

#[test]
fn del_is_delivered_without_namespace_and_args() {
    let bench = Bench::new();
    let agent = bench.agent();

    let said = bench
        .call("DEL", "1.0.0", |_| {})
        .without("CNI_NETNS")
        .without("CNI_ARGS")
        .run();

    assert!(said.succeeded && said.output.is_empty(), "{said:?}");
    let request = agent.seen(|s| s.del.clone()).unwrap();
    assert_eq!(request.attachment.unwrap().sandbox_id, "0a1b2c");
    assert!(!bench.journal().exists());
}

// R37: the agent is absent; the DEL succeeds and is written down once.
#[test]
fn del_without_an_agent_is_written_down_and_succeeds() {
    let bench = Bench::new();

    for _ in 0..2 {
        let said = bench.call("DEL", "1.0.0", |_| {}).run();
        assert!(said.succeeded && said.output.is_empty(), "{said:?}");
    }

    let files: Vec<_> = std::fs::read_dir(bench.journal())
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert_eq!(files, [bench.journal().join("0a1b2c@eth0.json")]);
    let entry: Entry = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    assert_eq!(entry.attachment.to_string(), "0a1b2c/eth0");
    assert_eq!(entry.pod.unwrap().to_string(), "default/web-0");
    assert_eq!(entry.netns, NETNS);
    assert!(entry.at_ms > 0);
}

#[test]
fn del_that_the_agent_took_and_did_not_answer_is_written_down() {
    let bench = Bench::new();
    let agent = bench.agent();
    agent.die_on_call();

    let said = bench.call("DEL", "1.0.0", |_| {}).run();

    assert!(said.succeeded, "{said:?}");
    assert!(bench.journal().join("0a1b2c@eth0.json").exists());
}

#[test]
fn del_that_the_agent_refuses_for_now_is_written_down() {
    let bench = Bench::new();
    let agent = bench.agent();
    agent.refuse(Code::Unavailable, "REASON_BUSY", &[]);

    let said = bench.call("DEL", "1.0.0", |_| {}).run();

    assert!(said.succeeded, "{said:?}");
    assert!(bench.journal().join("0a1b2c@eth0.json").exists());
}

#[test]
fn del_with_a_journal_that_can_not_be_written_is_code_5() {
    let bench = Bench::new();
    std::fs::write(bench.journal(), "a file where the folder should be").unwrap();

    let said = bench.call("DEL", "1.0.0", |_| {}).run();

    let (code, message) = said.failure();
    assert_eq!(code, 5);
    assert!(message.contains("journal"), "{message}");
}

#[test]
fn check_passes_the_addresses_of_its_own_interface() {
    let bench = Bench::new();
    let agent = bench.agent();
    let previous = json!({
        "cniVersion": "0.4.0",
        "interfaces": [{"name": "cali1"}, {"name": "eth0", "sandbox": NETNS}, {"name": "net1"}],
        "ips": [
            {"version": "4", "interface": 1, "address": "10.9.0.5/32"},
            {"version": "6", "interface": 1, "address": "fd09::5/128"},
            {"version": "4", "interface": 2, "address": "192.168.0.1/24"},
        ],
    });

    let said = bench
        .call("CHECK", "0.4.0", |c| c["prevResult"] = previous)
        .run();

    assert!(said.succeeded && said.output.is_empty(), "{said:?}");
    let request = agent.seen(|s| s.check.clone()).unwrap();
    assert_eq!(request.expected_ips, ["10.9.0.5/32", "fd09::5/128"]);
}

#[test]
fn check_that_finds_drift_fails_with_what_it_is() {
    let bench = Bench::new();
    let agent = bench.agent();
    let what = "node: rule 512: to 10.9.0.5 lookup main";
    agent.refuse(
        Code::FailedPrecondition,
        "REASON_KERNEL_DRIFT",
        &[("what", what)],
    );

    let said = bench
        .call("CHECK", "1.0.0", |c| {
            c["prevResult"] = json!({"cniVersion": "1.0.0"});
        })
        .run();

    assert_eq!(said.failure().0, 101);
    assert_eq!(
        said.json()["details"],
        format!("REASON_KERNEL_DRIFT what={what}")
    );
}

#[test]
fn gc_passes_the_valid_attachments() {
    let bench = Bench::new();
    let agent = bench.agent();

    let said = bench
        .call("GC", "1.1.0", |c| {
            c["cni.dev/valid-attachments"] =
                json!([{"containerID": "a1", "ifname": "eth0"}, {"containerID": "a2", "ifname": "eth0"}]);
        })
        .without("CNI_CONTAINERID")
        .without("CNI_NETNS")
        .without("CNI_IFNAME")
        .without("CNI_ARGS")
        .run();

    assert!(said.succeeded && said.output.is_empty(), "{said:?}");
    let valid = agent.seen(|s| s.gc.clone()).unwrap().valid;
    let ids: Vec<_> = valid.iter().map(|a| a.sandbox_id.as_str()).collect();
    assert_eq!(ids, ["a1", "a2"]);
}

#[test]
fn gc_with_an_empty_list_is_delivered() {
    let bench = Bench::new();
    let agent = bench.agent();

    let said = bench
        .call("GC", "1.1.0", |c| {
            c["cni.dev/valid-attachments"] = json!([]);
        })
        .run();

    assert!(said.succeeded, "{said:?}");
    assert!(agent.seen(|s| s.gc.clone()).unwrap().valid.is_empty());
}

#[test]
fn status_of_a_ready_agent_is_silent_success() {
    let bench = Bench::new();
    let _agent = bench.agent();

    let said = bench.call("STATUS", "1.1.0", |_| {}).run();

    assert!(said.succeeded && said.output.is_empty(), "{said:?}");
}

#[test]
fn status_of_an_unready_or_absent_agent_is_code_50() {
    let bench = Bench::new();
    let absent = bench.call("STATUS", "1.1.0", |_| {}).run();
    let agent = bench.agent();
    agent.refuse(Code::Unavailable, "REASON_NOT_READY", &[]);
    let unready = bench.call("STATUS", "1.1.0", |_| {}).run();

    assert_eq!(absent.failure().0, 50);
    assert_eq!(unready.failure().0, 50);
}

#[rstest]
#[case(b"{\"cniVersion\": \"0.4.0\"}".as_slice(), "0.4.0")]
#[case(b"{}".as_slice(), "1.1.0")]
#[case(b"".as_slice(), "1.1.0")]
fn version_lists_what_is_supported(#[case] input: &[u8], #[case] version: &str) {
    let bench = Bench::new();

    let said = bench.call("VERSION", "1.0.0", |_| {}).input(input).run();

    assert!(said.succeeded);
    assert_eq!(
        said.json(),
        json!({
            "cniVersion": version,
            "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        })
    );
}
