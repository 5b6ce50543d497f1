//! The metadata service, on a real socket: callers are told apart by their source address.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use ecs_api::model::Pick;
use ecs_api::model::eni::CreateNetworkInterface;
use ecs_sim::config::{MetadataTokens, SimConfig};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::world::{WORLD, World, create_in, v6};

/// Loopback addresses serve as the instances' own: vSwitch, instances and callers are all in 127/8.
struct Service {
    world: World,
    at: SocketAddr,
    _server: JoinSet<()>,
}

impl Service {
    async fn new(change: impl FnOnce(&mut SimConfig)) -> Self {
        let text = WORLD
            .replace(
                "ipv4_cidr = \"10.0.0.0/8\"\nipv6",
                "ipv4_cidr = \"127.0.0.0/8\"\nipv6",
            )
            .replace("10.0.0.0/24\"\nipv6", "127.1.0.0/24\"\nipv6")
            .replace("10.0.1.0/24", "127.1.1.0/24")
            .replace("10.0.2.0/29", "127.1.2.0/29");
        let world = World::with(&text, change).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let router = world.sim.metadata_router();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, service).await.unwrap();
        });
        Self {
            world,
            at,
            _server: server,
        }
    }

    async fn ask(
        &self,
        from: Ipv4Addr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, String) {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(from.into()));
        let client: Client<_, Empty<Bytes>> =
            Client::builder(TokioExecutor::new()).build(connector);
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}/latest/{path}", self.at));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = client
            .request(request.body(Empty::new()).unwrap())
            .await
            .unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn item(&self, from: Ipv4Addr, name: &str) -> (u16, String) {
        self.ask(from, "GET", &format!("meta-data/{name}"), &[])
            .await
    }
}

fn ipv4(view: &ecs_sim::spec::InstanceView) -> Ipv4Addr {
    match view.primary.addresses[0] {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(ip) => panic!("{ip}"),
    }
}

const TTL: &str = "X-aliyun-ecs-metadata-token-ttl-seconds";
const TOKEN: &str = "X-aliyun-ecs-metadata-token";

#[tokio::test]
async fn instance_sees_its_own_items() {
    let service = Service::new(|_| {}).await;
    let a = service.world.instance("i-a", "vsw-h").await;
    let b = service.world.instance("i-b", "vsw-i").await;

    for (view, zone, vswitch, cidr) in [
        (&a, "cn-hangzhou-h", "vsw-h", "127.1.0.0/24"),
        (&b, "cn-hangzhou-i", "vsw-i", "127.1.1.0/24"),
    ] {
        let ip = ipv4(view);
        for (name, expected) in [
            ("instance-id", view.id.to_string()),
            ("instance/instance-type", "ecs.g7.xlarge".to_owned()),
            ("region-id", "cn-hangzhou".to_owned()),
            ("zone-id", zone.to_owned()),
            ("vpc-id", "vpc-a".to_owned()),
            ("vpc-cidr-block", "127.0.0.0/8".to_owned()),
            ("vswitch-id", vswitch.to_owned()),
            ("vswitch-cidr-block", cidr.to_owned()),
            ("mac", view.primary.mac.to_string()),
            ("private-ipv4", ip.to_string()),
        ] {
            assert_eq!(service.item(ip, name).await, (200, expected), "{name}");
        }
    }
}

#[tokio::test]
async fn eni_items_have_the_formats_of_the_real_service() {
    let service = Service::new(|_| {}).await;
    let view = service.world.instance("i-a", "vsw-h").await;
    let request = CreateNetworkInterface {
        ipv4: Pick::Count(1),
        ipv6: Pick::Listed(vec![v6("2001:db8:0:100::10"), v6("2001:db8:0:100::11")]),
        ..create_in("vsw-h")
    };
    let eni = service.world.attached(&view.id, &request).await;
    let row = service.world.describe(&eni).await.unwrap();
    let ip = ipv4(&view);

    let (_, macs) = service.item(ip, "network/interfaces/macs/").await;
    assert_eq!(macs, format!("{}/\n{}/", view.primary.mac, row.mac));
    let item = |name: &str| format!("network/interfaces/macs/{}/{name}", row.mac);
    for (name, expected) in [
        ("network-interface-id", eni.to_string()),
        ("primary-ip-address", row.primary_ip.to_string()),
        (
            "private-ipv4s",
            format!("[\"{}\",\"{}\"]", row.ipv4[0], row.ipv4[1]),
        ),
        (
            "ipv6s",
            "[2001:db8:0:100::10,2001:db8:0:100::11]".to_owned(),
        ),
        ("gateway", "127.1.0.253".to_owned()),
        ("netmask", "255.255.255.0".to_owned()),
        (
            "ipv6-gateway",
            "2001:db8:0:100:ffff:ffff:ffff:fff7".to_owned(),
        ),
        ("vswitch-ipv6-cidr-block", "2001:db8:0:100::/64".to_owned()),
        ("vpc-ipv6-cidr-blocks", "[2001:db8:0:100::/56]".to_owned()),
    ] {
        assert_eq!(
            service.item(ip, &item(name)).await,
            (200, expected),
            "{name}"
        );
    }
    let none = format!("network/interfaces/macs/{}/ipv6s", view.primary.mac);
    assert_eq!(service.item(ip, &none).await.0, 404);
}

#[tokio::test]
async fn absent_items_roles_and_strangers_are_refused() {
    let service = Service::new(|_| {}).await;
    let ip = ipv4(&service.world.instance("i-a", "vsw-h").await);

    assert_eq!(service.item(ip, "moon").await.0, 404);
    assert_eq!(service.item(ip, "ram/security-credentials/").await.0, 404);
    assert_eq!(
        service
            .item(ip, "network/interfaces/macs/00:16:3e:ff:ff:ff/gateway")
            .await
            .0,
        404
    );
    assert_eq!(
        service
            .item(Ipv4Addr::new(127, 9, 9, 9), "instance-id")
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn token_is_needed_where_it_is_required() {
    let required = |config: &mut SimConfig| config.metadata_tokens = MetadataTokens::Required;
    let service = Service::new(required).await;
    let ip = ipv4(&service.world.instance("i-a", "vsw-h").await);
    let other = ipv4(&service.world.instance("i-b", "vsw-h").await);

    assert_eq!(service.item(ip, "instance-id").await.0, 401);
    let (status, token) = service.ask(ip, "PUT", "api/token", &[(TTL, "60")]).await;
    assert_eq!(status, 200);
    let with = |from, token: &str| {
        let (service, token) = (&service, token.to_owned());
        async move {
            service
                .ask(from, "GET", "meta-data/instance-id", &[(TOKEN, &token)])
                .await
        }
    };
    assert_eq!(with(ip, &token).await, (200, "i-a".to_owned()));
    assert_eq!(with(other, &token).await.0, 401);
    assert_eq!(with(ip, "made-up").await.0, 401);
    service.world.clock.advance(Duration::from_mins(1));
    assert_eq!(with(ip, &token).await.0, 401);
}

#[tokio::test]
async fn token_request_that_is_out_of_bounds_or_proxied_is_refused() {
    let service = Service::new(|_| {}).await;
    let ip = ipv4(&service.world.instance("i-a", "vsw-h").await);

    for ttl in ["0", "21601", "x"] {
        assert_eq!(
            service.ask(ip, "PUT", "api/token", &[(TTL, ttl)]).await.0,
            400,
            "{ttl}"
        );
    }
    assert_eq!(service.ask(ip, "PUT", "api/token", &[]).await.0, 400);
    let proxied = [(TTL, "60"), ("X-Forwarded-For", "1.2.3.4")];
    assert_eq!(service.ask(ip, "PUT", "api/token", &proxied).await.0, 403);
    assert_eq!(
        service
            .ask(ip, "PUT", "api/token", &[(TTL, "21600")])
            .await
            .0,
        200
    );
    let bad = [(TOKEN, "made-up")];
    assert_eq!(
        service
            .ask(ip, "GET", "meta-data/instance-id", &bad)
            .await
            .0,
        401
    );
}

#[tokio::test]
async fn disabled_service_refuses_everything() {
    let disabled = |config: &mut SimConfig| config.metadata_tokens = MetadataTokens::Disabled;
    let service = Service::new(disabled).await;
    let ip = ipv4(&service.world.instance("i-a", "vsw-h").await);

    assert_eq!(service.item(ip, "instance-id").await.0, 403);
    assert_eq!(
        service.ask(ip, "PUT", "api/token", &[(TTL, "60")]).await.0,
        403
    );
}

#[tokio::test]
async fn new_eni_appears_after_the_lag() {
    let service = Service::new(|config| config.metadata_lag = Duration::from_secs(3)).await;
    let view = service.world.instance("i-a", "vsw-h").await;
    service.world.clock.advance(Duration::from_mins(1));
    service.world.attached(&view.id, &create_in("vsw-h")).await;
    let ip = ipv4(&view);
    let macs = || async {
        service
            .item(ip, "network/interfaces/macs/")
            .await
            .1
            .lines()
            .count()
    };

    assert_eq!(macs().await, 1);
    service.world.clock.advance(Duration::from_secs(3));
    assert_eq!(macs().await, 2);
}

#[tokio::test]
async fn role_of_an_instance_gives_keys_of_six_hours_and_the_next_ones_half_an_hour_before() {
    let service = Service::new(|_| {}).await;
    let ip = ipv4(&service.world.instance("i-a", "vsw-h").await);
    let stranger = ipv4(&service.world.instance("i-b", "vsw-h").await);
    service.world.sim.set_role(ecs_sim::roles::RoleSpec {
        instances: vec!["i-a".parse().unwrap()],
        ..ecs_sim::roles::RoleSpec::new("terway")
    });
    let keys = || async {
        let (status, text) = service.item(ip, "ram/security-credentials/terway").await;
        assert_eq!(status, 200);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };

    let name = service.item(ip, "ram/security-credentials/").await;
    let first = keys().await;
    service
        .world
        .clock
        .advance(Duration::from_mins(5 * 60 + 29));
    let same = keys().await;
    service.world.clock.advance(Duration::from_mins(1));
    let next = keys().await;

    assert_eq!(name, (200, "terway".to_owned()));
    assert_eq!(first["Code"], "Success");
    assert_eq!(first["Expiration"], "2026-01-02T09:04:05Z");
    assert_eq!(first, same);
    assert_ne!(first["AccessKeyId"], next["AccessKeyId"]);
    for (from, item) in [
        (stranger, "ram/security-credentials/"),
        (stranger, "ram/security-credentials/terway"),
        (ip, "ram/security-credentials/other"),
    ] {
        assert_eq!(service.item(from, item).await.0, 404, "{item}");
    }
}
