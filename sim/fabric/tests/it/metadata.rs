//! The router's own addresses, at which services of the cloud answer.

use std::net::SocketAddr;

use fabric::vpc::{METADATA, OPENAPI};

use crate::world::{World, connect};

/// Answers each connection with its peer's address, as a service that tells instances apart does.
async fn answer_with_peer(listener: tokio::net::TcpListener, times: usize) {
    for _ in 0..times {
        let (stream, peer) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        stream.try_write(peer.ip().to_string().as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn metadata_and_openapi_see_each_instances_own_address() {
    let world = World::new().await;

    for address in [METADATA, OPENAPI] {
        let SocketAddr::V4(v4) = address else {
            panic!("the cloud's own services speak IPv4")
        };
        let listener = world.fabric.listen(address).await.unwrap();
        let (a, b) = (world.a.clone(), world.b.clone());
        let asking = tokio::task::spawn_blocking(move || {
            let ask = |from| connect(from, &v4.ip().to_string(), v4.port()).unwrap();
            (ask(&a).to_string(), ask(&b).to_string())
        });
        answer_with_peer(listener, 2).await;

        assert_eq!(
            asking.await.unwrap(),
            ("10.0.1.5".to_owned(), "10.0.2.5".to_owned())
        );
    }
}
