//! One plugged ENI: the names and scripts that follow from it. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use ecs_sim::plane::Port;
use ipnet::IpNet;
use types::address::{MacAddr, vswitch_gateway};

/// The link-local address that a link with this MAC gives itself (modified EUI-64).
pub(crate) fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [oui @ .., n1, n2, n3] = mac.0;
    let [first, second, third] = oui;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(first ^ 2, second),
        word(third, 0xff),
        word(0xfe, n1),
        word(n2, n3),
    )
}

/// A line for a script.
macro_rules! line {
    ($script:ident, $($arg:tt)*) => {{
        // Writing to a string can not fail.
        let _infallible = writeln!($script, $($arg)*);
    }};
}

/// More queues than one are useless for a simulation, and each change of their number waits for the kernel's
/// readers, which takes long on a busy machine.
const ONE_QUEUE: &str = "numtxqueues 1 numrxqueues 1";

/// Gateways of the port's vSwitch.
pub(crate) fn gateways(port: &Port) -> Vec<IpAddr> {
    let v6 = port.vswitch_v6.map(IpNet::V6);
    [Some(IpNet::V4(port.vswitch_v4)), v6]
        .into_iter()
        .flatten()
        .map(vswitch_gateway)
        .collect()
}

/// Router side: the pair, the gateway, and a neighbour that needs no answer from the guest.
///
/// The real VPC delivers to the ENI's MAC by its own tables and asks nobody; hence the permanent neighbour, by
/// which all addresses of the ENI are reached.
pub(crate) fn pair(port: &Port, outer: &str, inner: &str) -> String {
    let mut script = String::new();
    let mac = port.mac;
    line!(
        script,
        "link add {outer} {ONE_QUEUE} type veth peer name {inner} address {mac} {ONE_QUEUE}"
    );
    for gateway in gateways(port) {
        match gateway {
            // One per port: neighbour solicitations are answered by the port's own addresses alone.
            IpAddr::V6(gateway) => line!(script, "addr add {gateway}/128 dev {outer} nodad"),
            // Any port answers ARP for any address of the router; repeating it is harmless.
            IpAddr::V4(gateway) => line!(script, "addr replace {gateway}/32 dev lo"),
        }
    }
    line!(script, "link set {outer} up");
    let guest = link_local(mac);
    line!(
        script,
        "neigh replace {guest} lladdr {mac} dev {outer} nud permanent"
    );
    script
}

/// Router side: what is routed to the port changes.
pub(crate) fn routes(mac: MacAddr, outer: &str, added: &[IpAddr], removed: &[IpAddr]) -> String {
    let mut script = String::new();
    let guest = link_local(mac);
    for ip in removed {
        line!(script, "route del {} dev {outer}", host_route(*ip));
    }
    for ip in added {
        // An IPv4 route by way of an IPv6 neighbour: one neighbour entry serves both families.
        let via = match ip {
            IpAddr::V4(_) => "via inet6",
            IpAddr::V6(_) => "via",
        };
        line!(
            script,
            "route replace {} {via} {guest} dev {outer} onlink",
            host_route(*ip)
        );
    }
    script
}

fn host_route(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}/32"),
        IpAddr::V6(ip) => format!("{ip}/128"),
    }
}

/// Guest side of a primary ENI, as a cloud image's DHCP clients leave it.
pub(crate) fn primary_guest(port: &Port, ifname: &str) -> String {
    let mut script = String::new();
    let v4 = port.addresses.iter().find(|ip| ip.is_ipv4());
    if let Some(ip) = v4 {
        line!(
            script,
            "addr add {ip}/{} dev {ifname}",
            port.vswitch_v4.prefix_len()
        );
    }
    // DHCPv6 hands out single addresses.
    for ip in port.addresses.iter().filter(|ip| ip.is_ipv6()) {
        line!(script, "addr add {ip}/128 dev {ifname} nodad");
    }
    line!(script, "link set {ifname} up");
    for gateway in gateways(port) {
        let family = match gateway {
            IpAddr::V4(_) => "inet",
            IpAddr::V6(_) => "inet6",
        };
        line!(
            script,
            "route replace default via {family} {gateway} dev {ifname} onlink"
        );
    }
    script
}

/// What is in `wanted` and not in `have`.
pub(crate) fn missing(wanted: &[IpAddr], have: &[IpAddr]) -> Vec<IpAddr> {
    wanted
        .iter()
        .filter(|ip| !have.contains(ip))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> Port {
        Port {
            eni: "eni-1".parse().unwrap(),
            mac: "00:16:3e:00:00:07".parse().unwrap(),
            instance: "i-1".parse().unwrap(),
            vswitch: "vsw-1".parse().unwrap(),
            vswitch_v4: "10.0.1.0/24".parse().unwrap(),
            vswitch_v6: Some("2001:db8::/64".parse().unwrap()),
            addresses: vec!["10.0.1.5".parse().unwrap(), "2001:db8::5".parse().unwrap()],
            primary: true,
        }
    }

    #[test]
    fn link_local_of_a_mac_is_modified_eui64() {
        assert_eq!(
            link_local("00:16:3e:00:00:07".parse().unwrap()).to_string(),
            "fe80::216:3eff:fe00:7"
        );
    }

    #[test]
    fn routes_go_by_way_of_the_guests_link_local_address() {
        let script = routes(port().mac, "p7", &port().addresses, &[]);

        assert_eq!(
            script,
            "route replace 10.0.1.5/32 via inet6 fe80::216:3eff:fe00:7 dev p7 onlink\n\
             route replace 2001:db8::5/128 via fe80::216:3eff:fe00:7 dev p7 onlink\n"
        );
    }

    #[test]
    fn primary_guest_gets_the_gateways_of_its_vswitch() {
        let script = primary_guest(&port(), "eth0");

        assert!(script.contains("addr add 10.0.1.5/24 dev eth0"));
        assert!(script.contains("route replace default via inet 10.0.1.253 dev eth0 onlink"));
        assert!(script.contains("via inet6 2001:db8::ffff:ffff:ffff:fff7 dev eth0"));
    }

    #[test]
    fn missing_is_the_difference() {
        let a = port().addresses;

        assert_eq!(missing(&a, &a[..1]), a[1..].to_vec());
    }
}
