use std::time::Duration;
use bed_scratch::talk::*;
use fabric::namespace::Namespace;
#[tokio::test]
async fn talks() {
    let ns = Namespace::create("tw1-0-zz").unwrap();
    let talks = Talks::start().unwrap();
    let mut port = 4000;
    for over in [Over::Tcp, Over::Udp] { for speaker in [Speaker::Client, Speaker::Server] {
        port += 1;
        talks.begin(&Topic { name: "a".into(), client: ns.clone(), client_address: "127.0.0.1".parse().unwrap(), call: ([127,0,0,1],port).into(), server: ns.clone(), listen: ([127,0,0,1],port).into(), over, speaker }).unwrap();
    }}
    tokio::time::sleep(Duration::from_millis(500)).await;
    for h in talks.heard() { assert!(h.last.elapsed() < Duration::from_millis(50), "{h:?}"); }
    ns.delete().unwrap();
}
