//! What the kernel holds, as `ip -json` tells: the fourth opinion beside store, shard log and cloud.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::error::FabricError;
use fabric::namespace::Namespace;
use fabric::shell;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    addr_info: Vec<AddrInfo>,
}

#[derive(Debug, Deserialize)]
struct AddrInfo {
    #[serde(default)]
    local: Option<IpAddr>,
    #[serde(default)]
    scope: String,
}

#[derive(Debug, Deserialize)]
struct RouteInfo {
    dst: String,
    #[serde(default)]
    dev: String,
}

/// A link with its global addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkView {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty for loopback.
    pub mac: String,
    /// Its addresses of global scope.
    pub addresses: BTreeSet<IpAddr>,
}

/// What a namespace holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Its links.
    pub links: Vec<LinkView>,
    /// Single addresses that the main table routes to a link: (address, link).
    pub host_routes: BTreeSet<(IpAddr, String)>,
}

impl KernelView {
    /// Global addresses of one link.
    pub fn addresses_of(&self, link: &str) -> BTreeSet<IpAddr> {
        let link = self.links.iter().find(|l| l.name == link);
        link.map(|l| l.addresses.clone()).unwrap_or_default()
    }

    /// Addresses routed to links whose name starts with `prefix`.
    pub fn routed_to(&self, prefix: &str) -> BTreeSet<IpAddr> {
        let ours = self
            .host_routes
            .iter()
            .filter(|(_, link)| link.starts_with(prefix));
        ours.map(|(ip, _)| *ip).collect()
    }
}

/// Reads links, addresses and host routes of a namespace.
pub async fn look(namespace: &Namespace) -> Result<KernelView, FabricError> {
    let links: Vec<Link> = ip(namespace, &["address", "show"]).await?;
    let mut view = KernelView::default();
    for link in links {
        let global = link.addr_info.iter().filter(|a| a.scope == "global");
        view.links.push(LinkView {
            addresses: global.filter_map(|a| a.local).collect(),
            name: link.ifname,
            mac: link.address,
        });
    }
    for family in ["-4", "-6"] {
        let show = [family, "route", "show", "table", "main"];
        let routes: Vec<RouteInfo> = ip(namespace, &show).await?;
        for route in routes {
            // A host route is shown without a prefix length.
            if let Ok(ip) = route.dst.parse() {
                view.host_routes.insert((ip, route.dev));
            }
        }
    }
    Ok(view)
}

async fn ip<T: DeserializeOwned>(
    namespace: &Namespace,
    args: &[&str],
) -> Result<Vec<T>, FabricError> {
    let json = shell::ip_json(namespace, args).await?;
    serde_json::from_str(&json).map_err(|error| FabricError::Refused {
        program: "ip",
        namespace: namespace.name().to_owned(),
        stderr: error.to_string(),
        script: args.join(" "),
    })
}
