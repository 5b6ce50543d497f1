//! Settings under `/proc/sys` of the namespace that the thread is in. Read first; written only where
//! they differ.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::desired::HostDesired;
use crate::error::DatapathError;

/// Where the kernel keeps settings.
const ROOT: &str = "/proc/sys";

/// Another place where they can be reached.
static OTHER: OnceLock<PathBuf> = OnceLock::new();

/// Reads and writes settings below `root` for the rest of the process: in a container `/proc/sys` is read-only, and the
/// node's `/proc/sys/net` is mounted elsewhere. What is read there is still that of the namespace that the thread is
/// in. To be called once, before anything else; says whether it took effect.
pub fn set_root(root: &Path) -> bool {
    OTHER.set(root.to_owned()).is_ok() || OTHER.get().is_some_and(|set| set == root)
}

fn root() -> &'static Path {
    OTHER.get().map_or(Path::new(ROOT), PathBuf::as_path)
}

/// The value of a setting, trimmed; nothing when the kernel does not have it.
pub(crate) fn read(key: &str) -> Option<String> {
    let text = std::fs::read_to_string(root().join(key)).ok()?;
    Some(text.trim_end().to_owned())
}

/// Writes a setting.
pub(crate) fn write(key: &str, value: &str) -> Result<(), DatapathError> {
    std::fs::write(root().join(key), value).map_err(|source| DatapathError::Setting {
        key: key.to_owned(),
        source,
    })
}

/// Writes a setting if it has another value. Says whether it did.
pub(crate) fn ensure(key: &str, value: &str) -> Result<bool, DatapathError> {
    if read(key).as_deref() == Some(value) {
        return Ok(false);
    }
    write(key, value)?;
    Ok(true)
}

/// Settings that hold for the node as a whole. New links are born with the defaults among them.
pub fn node_settings(host: &HostDesired) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/forwarding", "1"),
        ("net/ipv4/conf/default/forwarding", "1"),
        // The kernel takes the greater of `all` and the link's own.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ];
    if host.v6 {
        settings.extend([
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
            // An ENI that has just been plugged in must not learn a default route by itself.
            ("net/ipv6/conf/default/accept_ra", "0"),
        ]);
    }
    settings
}

/// Brings the settings of the node and `rp_filter` of each of its links to what pods need. Returns
/// what it wrote.
pub(crate) fn ensure_node(host: &HostDesired) -> Result<Vec<String>, DatapathError> {
    let mut written = Vec::new();
    for (key, value) in node_settings(host) {
        if ensure(key, value)? {
            written.push(format!("node: setting {key} = {value}"));
        }
    }
    for link in links()? {
        let key = format!("net/ipv4/conf/{link}/rp_filter");
        match ensure(&key, "0") {
            Ok(true) => written.push(format!("node: setting {key} = 0")),
            Ok(false) => {}
            // The link went away while we looked.
            Err(DatapathError::Setting { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(written)
}

fn links() -> Result<Vec<String>, DatapathError> {
    let key = "net/ipv4/conf";
    let failed = |source| DatapathError::Setting {
        key: key.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join(key)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|n| *n != "all" && *n != "default") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
