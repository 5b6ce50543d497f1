//! Dials from namespaces, and who answers.

use std::time::Duration;

use fabric::vpc::{Fabric, FabricConfig};
use sandbox::echo::{Dial, EchoServer, Outcome, dial_all};
use sandbox::reachability::{Place, all_pairs};

const LIMIT: Duration = Duration::from_secs(5);

fn dial(target: &str, expect: &str) -> Dial {
    Dial {
        source: None,
        target: target.parse().unwrap(),
        expect: expect.to_owned(),
    }
}

#[tokio::test]
async fn server_answers_both_families_with_its_name() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let vpc = fabric.vpc();
    let server = EchoServer::start(vpc, "default/a").await.unwrap();

    let dials = vec![
        dial("127.0.0.1", "default/a"),
        dial("::1", "default/a"),
        dial("127.0.0.1", "default/b"),
    ];
    let outcomes = dial_all(vpc, dials.clone(), LIMIT).await.unwrap();
    drop(server);
    let after = dial_all(vpc, dials, LIMIT).await.unwrap();

    let wrong = Outcome::Wrong {
        name: "default/a".to_owned(),
    };
    assert_eq!(outcomes, [Outcome::Reached, Outcome::Reached, wrong]);
    assert!(after.iter().all(|o| matches!(o, Outcome::Failed { .. })));
}

#[tokio::test]
async fn pair_that_cannot_connect_is_named() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let place = |name: &str, ip: &str| Place {
        name: name.to_owned(),
        namespace: fabric.create_namespace(name).unwrap(),
        addresses: vec![ip.parse().unwrap()],
    };
    let places = [place("a", "10.9.9.1"), place("b", "10.9.9.2")];

    let matrix = all_pairs(&places, &places, LIMIT).await.unwrap();

    assert_eq!(matrix.attempts.len(), 2);
    let text = matrix.failures().first().unwrap().to_string();
    assert!(text.contains("did not reach"), "{text}");
}
