//! Bad input: each gets the specification's code and a message that names the thing.

use rstest::rstest;
use serde_json::json;

use crate::plugin::Bench;

#[rstest]
#[case::command("CNI_COMMAND", "CNI_COMMAND is missing")]
#[case::container("CNI_CONTAINERID", "CNI_CONTAINERID is missing")]
#[case::netns("CNI_NETNS", "CNI_NETNS is missing")]
#[case::ifname("CNI_IFNAME", "CNI_IFNAME is missing")]
#[case::args("CNI_ARGS", "CNI_ARGS: K8S_POD_NAMESPACE is missing")]
fn add_without_a_variable_names_it(#[case] variable: &'static str, #[case] message: &str) {
    let bench = Bench::new();

    let said = bench.call("ADD", "1.0.0", |_| {}).without(variable).run();

    assert_eq!(said.failure(), (4, message.to_owned()));
}

#[rstest]
#[case("CNI_COMMAND", "FLY", "CNI_COMMAND \"FLY\" is not a command")]
#[case(
    "CNI_CONTAINERID",
    "../etc",
    "CNI_CONTAINERID may hold letters, digits, '_', '.', '-' alone"
)]
#[case("CNI_IFNAME", "a/b", "CNI_IFNAME may not hold '/', ':' or white space")]
#[case("CNI_IFNAME", "abcdefghijklmnop", "CNI_IFNAME is longer than 15 bytes")]
#[case("CNI_ARGS", "K8S_POD_NAME=a;FOO=1", "CNI_ARGS: FOO is not known")]
#[case(
    "CNI_ARGS",
    "K8S_POD_NAME",
    "CNI_ARGS: \"K8S_POD_NAME\" is not KEY=value"
)]
#[case("CNI_ARGS", "K8S_POD_NAMESPACE=a", "CNI_ARGS: K8S_POD_NAME is missing")]
fn add_with_a_wrong_variable_names_it(
    #[case] variable: &'static str,
    #[case] value: &str,
    #[case] message: &str,
) {
    let bench = Bench::new();

    let said = bench
        .call("ADD", "1.0.0", |_| {})
        .with(variable, value)
        .run();

    assert_eq!(said.failure(), (4, message.to_owned()));
}

#[test]
fn several_missing_variables_are_all_named() {
    let bench = Bench::new();

    let said = bench
        .call("CHECK", "1.0.0", |_| {})
        .without("CNI_NETNS")
        .without("CNI_IFNAME")
        .run();

    assert_eq!(
        said.failure(),
        (4, "CNI_NETNS, CNI_IFNAME are missing".to_owned())
    );
}

#[rstest]
#[case::empty(b"".as_slice())]
#[case::cut(b"{\"cniVersion\": \"1.0.0\"".as_slice())]
#[case::list(b"[]".as_slice())]
#[case::binary(b"\xff\xfe".as_slice())]
fn input_that_is_no_json_object_is_code_6(#[case] input: &[u8]) {
    let bench = Bench::new();

    let said = bench.call("ADD", "1.0.0", |_| {}).input(input).run();

    let (code, message) = said.failure();
    assert_eq!(code, 6);
    assert!(message.contains("not a JSON object"), "{message}");
    assert_eq!(said.json()["cniVersion"], "1.1.0");
}

#[rstest]
#[case::old("ADD", "0.2.0", "cniVersion \"0.2.0\" is not supported")]
#[case::future("ADD", "2.0.0", "cniVersion \"2.0.0\" is not supported")]
#[case::words("DEL", "latest", "cniVersion \"latest\" is not supported")]
#[case::check("CHECK", "0.3.1", "CHECK needs cniVersion 0.4.0 or later, not 0.3.1")]
#[case::gc("GC", "1.0.0", "GC needs cniVersion 1.1.0 or later, not 1.0.0")]
#[case::status("STATUS", "0.4.0", "STATUS needs cniVersion 1.1.0 or later, not 0.4.0")]
fn version_that_does_not_fit_is_code_1(
    #[case] verb: &str,
    #[case] version: &str,
    #[case] message: &str,
) {
    let bench = Bench::new();

    let said = bench.call(verb, version, |_| {}).run();

    assert_eq!(said.failure(), (1, message.to_owned()));
    assert_eq!(said.json()["cniVersion"], version);
}

#[test]
fn missing_version_is_code_1() {
    let bench = Bench::new();

    let said = bench
        .call("ADD", "1.0.0", |c| {
            drop(c.as_object_mut().unwrap().remove("cniVersion"));
        })
        .run();

    assert_eq!(
        said.failure(),
        (1, "cniVersion is missing, which means 0.1.0".to_owned())
    );
}

#[rstest]
#[case("mtu", json!("1500"), "mtu must be a whole number")]
#[case("mtu", json!(20), "mtu 20 is not within 68 and 65535")]
#[case("mtu", json!(1_000_000_000), "mtu 1000000000 is not within 68 and 65535")]
#[case("veth_prefix", json!(7), "veth_prefix must be a string")]
#[case("name", json!(""), "name is missing")]
#[case("debug", json!("yes"), "debug must be true or false")]
#[case("host_stack_cidrs", json!("10.0.0.0/8"), "host_stack_cidrs must be a list")]
#[case("capabilities", json!([]), "capabilities must be an object")]
#[case("runtimeConfig", json!(1), "runtimeConfig must be an object")]
#[case("prevResult", json!("x"), "prevResult must be an object")]
#[case("agent_socket", json!(false), "agent_socket must be a string")]
#[case("eniip_virtual_type", json!("macvlan"), "eniip_virtual_type \"macvlan\" is not known")]
fn key_with_a_wrong_value_is_named_with_code_7(
    #[case] key: &str,
    #[case] value: serde_json::Value,
    #[case] message: &str,
) {
    let bench = Bench::new();

    let said = bench.call("ADD", "1.0.0", |c| c[key] = value).run();

    assert_eq!(said.failure(), (7, message.to_owned()));
}

#[test]
fn mode_that_is_not_here_is_code_2() {
    let bench = Bench::new();

    let said = bench
        .call("ADD", "1.0.0", |c| {
            c["eniip_virtual_type"] = json!("IPVlan");
        })
        .run();

    let message = "eniip_virtual_type \"IPVlan\" is not supported; veth is";
    assert_eq!(said.failure(), (2, message.to_owned()));
}

#[test]
fn keys_of_terway_and_unknown_keys_are_accepted() {
    let bench = Bench::new();
    let agent = bench.agent();

    let said = bench
        .call("ADD", "0.4.0", |c| {
            c["eniip_virtual_type"] = json!("Veth");
            c["host_stack_cidrs"] = json!(["169.254.20.10/32"]);
            c["cilium_args"] = json!("x");
            c["somebody.else/key"] = json!([1, 2]);
            c["mtu"] = json!(8500);
            c["veth_prefix"] = json!("veth");
        })
        .run();

    assert!(said.succeeded, "{}", said.output);
    let link = agent.seen(|s| s.add.clone()).unwrap().link.unwrap();
    assert_eq!((link.veth_prefix.as_str(), link.mtu), ("veth", 8500));
}

#[test]
fn check_without_prev_result_is_code_7() {
    let bench = Bench::new();

    let said = bench.call("CHECK", "1.0.0", |_| {}).run();

    let message = "prevResult is missing, which CHECK needs";
    assert_eq!(said.failure(), (7, message.to_owned()));
}

// A GC that took a missing list for an empty one would free every pod of the node.
#[test]
fn gc_without_its_list_is_code_7() {
    let bench = Bench::new();
    let agent = bench.agent();

    let said = bench.call("GC", "1.1.0", |_| {}).run();

    assert_eq!(said.failure().0, 7);
    assert!(agent.seen(|s| s.gc.is_none()));
}

#[test]
fn gc_with_a_broken_entry_names_its_place() {
    let bench = Bench::new();

    let said = bench
        .call("GC", "1.1.0", |c| {
            c["cni.dev/valid-attachments"] =
                json!([{"containerID": "a", "ifname": "eth0"}, {"ifname": "x"}]);
        })
        .run();

    let message = "cni.dev/valid-attachments[1] needs containerID and ifname";
    assert_eq!(said.failure(), (7, message.to_owned()));
}
