//! The result of an ADD, in the format of the version that was asked for.

use proto::node::v1::{AddResponse, Interface, IpConfig, RouteConfig};
use serde_json::{Map, Value, json};

use crate::config::NetConf;
use crate::version::{self, Version};

/// The JSON of a result.
///
/// Source: CNI specification, section 5 "Result types"; before 1.0.0 each IP names its version,
/// from 1.1.0 on interfaces have an MTU.
pub(crate) fn add(conf: &NetConf, response: &AddResponse) -> String {
    let interfaces: Vec<Value> = response
        .interfaces
        .iter()
        .map(|i| interface(conf.version, i))
        .collect();
    let ips: Vec<Value> = response.ips.iter().map(|i| ip(conf.version, i)).collect();
    let routes: Vec<Value> = response.routes.iter().map(route).collect();
    json!({
        "cniVersion": conf.version.as_str(),
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": conf.dns,
    })
    .to_string()
}

fn interface(version: Version, interface: &Interface) -> Value {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(interface.name));
    if !interface.mac.is_empty() {
        object.insert("mac".to_owned(), json!(interface.mac));
    }
    if version >= Version::V110 && interface.mtu != 0 {
        object.insert("mtu".to_owned(), json!(interface.mtu));
    }
    if !interface.sandbox.is_empty() {
        object.insert("sandbox".to_owned(), json!(interface.sandbox));
    }
    Value::Object(object)
}

fn ip(version: Version, ip: &IpConfig) -> Value {
    let mut object = Map::new();
    if version < Version::V100 {
        let family = if ip.address.contains(':') { "6" } else { "4" };
        object.insert("version".to_owned(), json!(family));
    }
    object.insert("interface".to_owned(), json!(ip.interface));
    object.insert("address".to_owned(), json!(ip.address));
    if !ip.gateway.is_empty() {
        object.insert("gateway".to_owned(), json!(ip.gateway));
    }
    Value::Object(object)
}

fn route(route: &RouteConfig) -> Value {
    let mut object = Map::new();
    object.insert("dst".to_owned(), json!(route.dst));
    if !route.gw.is_empty() {
        object.insert("gw".to_owned(), json!(route.gw));
    }
    Value::Object(object)
}

/// The answer to VERSION. `asked` is what the runtime wrote, if anything.
pub(crate) fn versions(asked: Option<&str>) -> String {
    json!({
        "cniVersion": asked.unwrap_or(version::NEWEST),
        "supportedVersions": version::names(),
    })
    .to_string()
}
