//! Pods, sandboxes and attachments.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Namespace and name of a pod. Names are reused: never use it alone to free anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl PodKey {
    /// Joins the two.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One CNI attachment: a sandbox and an interface in it. kubelet makes a new sandbox id on each retry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// Container id of the sandbox (`CNI_CONTAINERID`).
    pub sandbox: String,
    /// Interface name inside (`CNI_IFNAME`), at most 15 bytes.
    pub ifname: String,
}

/// Text that can not name an attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub struct InvalidAttachment {
    /// `CNI_CONTAINERID` or `CNI_IFNAME`.
    pub field: &'static str,
    /// The rule that is broken.
    pub why: &'static str,
}

impl AttachmentKey {
    /// Checks both parts.
    ///
    /// # Errors
    /// [`InvalidAttachment`] by the CNI specification: a container id starts with a letter or digit and
    /// goes on with letters, digits, `_`, `.`, `-`; an interface name has 1–15 bytes, is not `.` or `..`,
    /// and holds no `/`, `:` or white space.
    pub fn new(
        sandbox: impl Into<String>,
        ifname: impl Into<String>,
    ) -> Result<Self, InvalidAttachment> {
        let (sandbox, ifname) = (sandbox.into(), ifname.into());
        let fail = |field, why| Err(InvalidAttachment { field, why });
        if sandbox.is_empty() {
            return fail("CNI_CONTAINERID", "is empty");
        }
        if sandbox.len() > 128 {
            return fail("CNI_CONTAINERID", "is longer than 128 bytes");
        }
        if !sandbox
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            || !sandbox.starts_with(|c: char| c.is_ascii_alphanumeric())
        {
            return fail(
                "CNI_CONTAINERID",
                "may hold letters, digits, '_', '.', '-' alone",
            );
        }
        if ifname.is_empty() {
            return fail("CNI_IFNAME", "is empty");
        }
        if ifname.len() > 15 {
            return fail("CNI_IFNAME", "is longer than 15 bytes");
        }
        if ifname == "." || ifname == ".." {
            return fail("CNI_IFNAME", "may not be '.' or '..'");
        }
        if ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            return fail("CNI_IFNAME", "may not hold '/', ':' or white space");
        }
        Ok(Self { sandbox, ifname })
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.sandbox, self.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachment_with_a_long_ifname_names_the_field() {
        let err = AttachmentKey::new("abc", "a234567890123456").unwrap_err();

        assert_eq!(err.field, "CNI_IFNAME");
    }

    #[test]
    fn attachment_with_a_path_as_sandbox_is_refused() {
        assert_eq!(
            AttachmentKey::new("../x", "eth0").unwrap_err().field,
            "CNI_CONTAINERID"
        );
    }
}
