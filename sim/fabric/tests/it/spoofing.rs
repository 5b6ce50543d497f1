//! What an ENI sends with a source it does not own.

use crate::world::{World, ip, udp};

/// Sends one datagram from a foreign source of each family; returns how many arrive.
fn spoof(world: &World) -> usize {
    let receiver = udp(&world.b, "[::]:0");
    let port = receiver.local_addr().unwrap().port();
    let mut arrived = 0;
    for (source, target) in [
        ("10.0.1.66:0", format!("10.0.2.5:{port}")),
        ("[2001:db8:0:1::66]:0", format!("[2001:db8:0:2::5]:{port}")),
    ] {
        udp(&world.a, source).send_to(b"hello", target).unwrap();
        let mut buffer = [0; 16];
        arrived += usize::from(receiver.recv_from(&mut buffer).is_ok());
    }
    arrived
}

#[tokio::test]
async fn spoofed_source_is_dropped_and_counted_then_passes_with_the_check_off() {
    let world = World::new().await;
    ip(&world.a, "addr add 10.0.1.66/32 dev eth0");
    ip(&world.a, "addr add 2001:db8:0:1::66/128 dev eth0 nodad");
    let before = world.fabric.spoof_drops().await.unwrap();

    assert_eq!(spoof(&world), 0);
    assert_eq!(world.fabric.spoof_drops().await.unwrap(), before + 2);

    world.fabric.set_source_check(false).await.unwrap();
    assert_eq!(spoof(&world), 2);

    world.fabric.set_source_check(true).await.unwrap();
    assert_eq!(spoof(&world), 0);
}

#[tokio::test]
async fn own_source_is_never_counted() {
    let world = World::new().await;
    let before = world.fabric.spoof_drops().await.unwrap();
    let receiver = udp(&world.b, "[::]:0");
    let port = receiver.local_addr().unwrap().port();

    udp(&world.a, "[::]:0")
        .send_to(b"hello", format!("[2001:db8:0:2::5]:{port}"))
        .unwrap();
    receiver.recv_from(&mut [0; 16]).unwrap();

    assert_eq!(world.fabric.spoof_drops().await.unwrap(), before);
}
