//! The addresses of a namespace's own links.

use std::net::IpAddr;

/// The addresses of all links in the namespace of the calling thread, loopback included.
///
/// # Errors
/// What the system said.
pub fn local() -> Result<Vec<IpAddr>, std::io::Error> {
    let mut addresses = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses.push(IpAddr::V6(v6.ip()));
        }
    }
    Ok(addresses)
}
