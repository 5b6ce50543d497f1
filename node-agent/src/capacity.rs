//! What the instance type allows, as ipam told it.

/// Facts about the node that ipam told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Pods that the instance type allows.
    pub max_pods: u32,
    /// Addresses that a further ENI brings.
    pub per_eni: u32,
}

impl Capacity {
    /// ENIs that the type allows beside the primary one.
    pub fn secondary_enis(&self) -> u32 {
        self.max_pods.checked_div(self.per_eni).unwrap_or_default()
    }
}
