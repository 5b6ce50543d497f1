//! What is read out of a namespace, and that failing to read is not "nothing there".

use fabric::error::FabricError;
use fabric::namespace::Namespace;
use fabric::shell;
use fabric::vpc::{Fabric, FabricConfig};
use sandbox::kernel;

#[tokio::test]
async fn look_shows_links_addresses_and_host_routes() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let namespace = fabric.create_namespace("look").unwrap();
    let script = "link add d0 type veth peer name p0\n\
        addr add 10.9.9.1/24 dev d0\n\
        link set d0 up\n\
        link set p0 up\n\
        route add 10.9.8.7/32 dev d0\n";
    shell::ip_batch(&namespace, script).await.unwrap();

    let view = kernel::look(&namespace).await.unwrap();

    let addresses: Vec<_> = view.addresses_of("d0").into_iter().collect();
    assert_eq!(addresses, ["10.9.9.1".parse::<std::net::IpAddr>().unwrap()]);
    let routed: Vec<_> = view.routed_to("d").into_iter().collect();
    assert_eq!(routed, ["10.9.8.7".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test]
async fn look_that_fails_is_an_error() {
    let nowhere = Namespace::named("twnowhere");

    let error = kernel::look(&nowhere).await.unwrap_err();

    assert!(matches!(error, FabricError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("twnowhere"), "{error}");
}

#[tokio::test]
async fn question_that_ip_refuses_is_an_error_with_the_question() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    // A table that does not exist: `ip` exits with 2.
    let question = ["-4", "route", "show", "table", "4711"];

    let error = shell::ip_json(fabric.vpc(), &question).await.unwrap_err();

    assert!(error.to_string().contains("table 4711"), "{error}");
}
