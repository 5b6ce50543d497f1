//! The folder and the API server as sources: one contract for both, and what only a server can do wrong.

#[cfg(test)]
mod bare;
#[cfg(test)]
mod contract;
#[cfg(test)]
#[expect(dead_code, reason = "some of it is for the other test")]
#[path = "../fake/server.rs"]
mod fake;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod folder;
#[cfg(test)]
mod kubernetes;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod server;
