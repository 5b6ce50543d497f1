//! The resource `aliyun/eni` at a kubelet that comes and goes.

use std::sync::Arc;

use mesh::drain::Drain;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::tasks::Tasks;
use node_agent::device_plugin::{DevicePlugin, KUBELET, Offer, RESOURCE, SOCKET};
use node_agent::metrics::Metrics;
use tokio::sync::watch;

use crate::kubelet::Kubelet;
use crate::lab::{PATIENCE, until};

#[tokio::test]
async fn resource_is_registered_followed_and_registered_again_with_a_new_kubelet() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new();
    let (tell, offer) = watch::channel(Offer::of(3, 1));
    let plugin = DevicePlugin {
        dir: dir.path().to_owned(),
        offer,
        rpc: RpcMetrics::register(&registry),
        metrics: Arc::new(Metrics::register(&registry)),
    };
    let tasks = Tasks::new(Drain::new());
    // It is there before kubelet is.
    tasks.spawn("device plugin", plugin.run(tasks.stopping()));

    let kubelet = Kubelet::start(dir.path());
    until("registered", || kubelet.resource(RESOURCE) == Some((3, 2))).await;
    assert_eq!(kubelet.allocate("eni-0").await, 1);
    tell.send_replace(Offer::of(3, 3));
    until("the pool's are taken out", || {
        kubelet.resource(RESOURCE) == Some((3, 0))
    })
    .await;
    tell.send_replace(Offer::of(3, 0));
    kubelet.end().await;
    assert!(!dir.path().join(KUBELET).exists());

    let kubelet = Kubelet::start(dir.path());
    until("registered again", || {
        kubelet.resource(RESOURCE) == Some((3, 2))
    })
    .await;
    let text = registry.encode();
    assert!(
        text.contains("terway_agent_device_plugin_registrations_total 2"),
        "{text}"
    );

    // Somebody removes our socket alone: kubelet is told again.
    std::fs::remove_file(dir.path().join(SOCKET)).unwrap();
    until("the socket is back", || dir.path().join(SOCKET).exists()).await;
    until("and listed", || kubelet.resource(RESOURCE) == Some((3, 2))).await;

    tasks.drain().start("end");
    tasks.drain().stop();
    assert!(tasks.wait(PATIENCE).await);
    until("gone", || kubelet.resource(RESOURCE) == Some((3, 0))).await;
    kubelet.end().await;
}
