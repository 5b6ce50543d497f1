//! The control plane's binary against a real API server, with the objects, rights and configuration that the chart
//! makes.

#[cfg(test)]
#[expect(
    dead_code,
    reason = "some of it is for the tests that it was written for"
)]
#[path = "../../../crates/cluster/tests/it/bare.rs"]
mod bare;
#[cfg(test)]
mod bed;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod gone;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod reports;
#[cfg(test)]
mod story;

/// What the API server's bed asks of its reader.
#[cfg(test)]
mod reader {
    /// Longest time for anything, on a machine that is busy.
    pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_mins(2);
}
