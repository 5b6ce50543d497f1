//! The simulated cloud over the fabric: its instances ask who they are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ecs_sim::config::SimConfig;
use ecs_sim::sim::Sim;
use ecs_sim::spec::{InstanceSpec, SecurityGroupKind, SecurityGroupSpec, VSwitchSpec, VpcSpec};
use fabric::namespace::Namespace;
use fabric::vpc::{Fabric, FabricConfig, METADATA, OPENAPI};

const LIMIT: Duration = Duration::from_secs(5);

fn world(fabric: &Fabric) -> Sim {
    let config = SimConfig::new("cn-hangzhou".parse().unwrap());
    let sim = Sim::new(config, Arc::new(fabric.clone()));
    sim.add_zone("cn-hangzhou-h".parse().unwrap()).unwrap();
    sim.add_vpc(VpcSpec {
        id: "vpc-1".parse().unwrap(),
        ipv4_cidr: "10.0.0.0/8".parse().unwrap(),
        ipv6_cidr: None,
    })
    .unwrap();
    sim.add_vswitch(VSwitchSpec {
        id: "vsw-1".parse().unwrap(),
        vpc: "vpc-1".parse().unwrap(),
        zone: "cn-hangzhou-h".parse().unwrap(),
        ipv4_cidr: "10.0.1.0/24".parse().unwrap(),
        ipv6_cidr: None,
    })
    .unwrap();
    sim.add_security_group(SecurityGroupSpec {
        id: "sg-1".parse().unwrap(),
        vpc: "vpc-1".parse().unwrap(),
        kind: SecurityGroupKind::Normal,
    })
    .unwrap();
    sim
}

async fn run_instance(sim: &Sim, fabric: &Fabric, name: &str) -> Namespace {
    let id = format!("i-{name}").parse().unwrap();
    let namespace = fabric.add_instance(&id, name).await.unwrap();
    sim.run_instance(InstanceSpec {
        id,
        instance_type: "ecs.g7.xlarge".parse().unwrap(),
        vswitch: "vsw-1".parse().unwrap(),
        security_groups: vec!["sg-1".parse().unwrap()],
        primary_ip: None,
        name: name.to_owned(),
    })
    .await
    .unwrap();
    namespace
}

async fn get(from: &Namespace, at: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&at, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    from.enter_async(ask).await.unwrap()
}

#[tokio::test]
async fn metadata_tells_instances_apart_by_their_source() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let sim = world(&fabric);
    let a = run_instance(&sim, &fabric, "a").await;
    let b = run_instance(&sim, &fabric, "b").await;
    let listener = fabric.listen(METADATA).await.unwrap();
    let service = sim
        .metadata_router()
        .into_make_service_with_connect_info::<SocketAddr>();
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move { axum::serve(listener, service).await });

    let path = "/latest/meta-data/instance-id";
    let answers = [get(&a, METADATA, path).await, get(&b, METADATA, path).await];

    assert!(answers[0].ends_with("i-a"), "{}", answers[0]);
    assert!(answers[1].ends_with("i-b"), "{}", answers[1]);
}

#[tokio::test]
async fn openapi_answers_inside_the_vpc() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();
    let sim = world(&fabric);
    let a = run_instance(&sim, &fabric, "a").await;
    let listener = fabric.listen(OPENAPI).await.unwrap();
    let mut server = tokio::task::JoinSet::new();
    let router = sim.openapi_router();
    server.spawn(async move { axum::serve(listener, router).await });

    let answer = get(&a, OPENAPI, "/?Action=DescribeVSwitches").await;

    // Unsigned, so refused, but by the API itself.
    assert!(answer.contains("RequestId"), "{answer}");
}
