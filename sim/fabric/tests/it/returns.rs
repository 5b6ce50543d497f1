//! A namespace that goes away gives back the ENIs that were moved to it.

use std::time::Duration;

use ecs_sim::plane::{DataPlane, Port};
use fabric::namespace::Namespace;
use fabric::shell::{ip_batch, ip_json};

use crate::world::{World, connect, port, serve};

const LIMIT: Duration = Duration::from_secs(20);

/// The name of the link with the port's hardware address.
async fn link(namespace: &Namespace, port: &Port) -> Option<String> {
    let text = ip_json(namespace, &["link"]).await.unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mac = port.mac.to_string();
    let found = links
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["address"] == mac.as_str())?;
    Some(found["ifname"].as_str().unwrap().to_owned())
}

async fn until_link(namespace: &Namespace, port: &Port) -> String {
    let wait = async {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        loop {
            every.tick().await;
            if let Some(name) = link(namespace, port).await {
                return name;
            }
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .expect("the link is there")
}

async fn give(node: &Namespace, name: &str, pod: &Namespace) {
    let script = format!("link set dev {name} netns {} name eth0\n", pod.name());
    ip_batch(node, &script).await.unwrap();
}

async fn configure(pod: &Namespace) {
    let script = "link set eth0 up\naddr add 10.0.1.9/32 dev eth0\n\
                  route add default via 10.0.1.253 dev eth0 onlink\n";
    ip_batch(pod, script).await.unwrap();
}

#[tokio::test]
async fn link_of_a_namespace_that_went_away_is_back_in_its_instance() {
    let world = World::new().await;
    let second = Port {
        primary: false,
        ..port(3, 1, &["10.0.1.9"])
    };
    world.fabric.plug(&second).await.unwrap();
    let answers = serve(&world.b);
    for round in 0..3 {
        let pod = world
            .fabric
            .create_namespace(&format!("pod{round}"))
            .unwrap();
        let name = until_link(&world.a, &second).await;
        give(&world.a, &name, &pod).await;
        configure(&pod).await;
        let seen = connect(&pod, "10.0.2.5", answers).unwrap();
        assert_eq!(seen.to_string(), "10.0.1.9");
        assert_eq!(link(&world.a, &second).await, None);

        pod.delete().unwrap();
    }
    until_link(&world.a, &second).await;
    // What was unplugged in good order stays away.
    world.fabric.unplug(&second.eni).await.unwrap();
    assert_eq!(link(&world.a, &second).await, None);
    world.fabric.stop().await.unwrap();
}
