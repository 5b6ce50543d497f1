//! Whether policy is on at this node: our own key, Terway's keys, and whether another Calico is here.
//!
//! `policy.enabled` decides when it is set. Without it Terway's `eni-config` decides (`disable_network_policy`,
//! `network_policy_provider`), and a node of a registered cluster is off. A Calico that lives on the node is not
//! fought: two sets of rules would both have to allow a packet, and each would hide the other's mistakes.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Largest file of Terway's configuration that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The files of `eni-config` that may name the provider; the first one that exists counts, as in Terway.
const NETWORK_FILES: [&str; 2] = ["10-terway.conflist", "10-terway.conf"];
/// Processes that program policy for Calico.
///
/// Source: Calico's image: `calico-node -felix`, and `calico-felix` in older and in Terway's builds.
const CALICO_PROCESSES: [&str; 2] = ["calico-felix", "calico-node"];
/// What chains of Calico begin with.
///
/// Source: felix, chain name prefix.
const CALICO_CHAIN: &str = "cali-";
/// Table of Calico's own nftables mode.
///
/// Source: felix, nftables table name.
const CALICO_TABLE: &str = "calico";

/// Why a node of a registered cluster is off.
const REGISTERED: &str = "the cluster is registered: policy is off unless policy.enabled is true";

/// What the configuration says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `policy.enabled`.
    pub enabled: Option<bool>,
    /// `policy.registered`.
    pub registered: bool,
    /// `policy.eni_config`.
    pub eni_config: Option<PathBuf>,
}

/// Whether policy is enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    /// It is.
    On,
    /// It is not, because the configuration says so: pods start without it.
    Off(String),
    /// It should be and can not be: pods do not start.
    Refused(String),
}

/// Terway's configuration can not be used.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// A file can not be read.
    #[error("read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A key has a value that is not known; guessing would open or close the node.
    #[error("{}: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Says what the configuration wants: [`Power::On`] or [`Power::Off`], and what the operator should know.
///
/// # Errors
/// [`SwitchError`]: nobody knows then what was meant, and neither on nor off is assumed.
pub fn wanted(settings: &Settings) -> Result<(Power, Vec<String>), SwitchError> {
    let mut warnings = Vec::new();
    let terway = match &settings.eni_config {
        Some(folder) => terways(folder, &mut warnings)?,
        None => None,
    };
    let off = match settings.enabled {
        Some(true) => None,
        Some(false) => Some("policy.enabled is false".to_owned()),
        None => terway.or_else(|| settings.registered.then(|| REGISTERED.to_owned())),
    };
    let power = off.map_or(Power::On, Power::Off);
    Ok((power, warnings))
}

/// Why Terway's keys switch policy off, if they do.
fn terways(folder: &Path, warnings: &mut Vec<String>) -> Result<Option<String>, SwitchError> {
    let path = folder.join("disable_network_policy");
    let off = match text(&path)?.as_deref().map(str::trim) {
        None | Some("" | "false") => None,
        Some("true") => Some("disable_network_policy is \"true\"".to_owned()),
        Some(other) => {
            let why = format!("{other:?} is neither \"true\" nor \"false\"");
            return Err(SwitchError::Value { path, why });
        }
    };
    for name in NETWORK_FILES {
        let path = folder.join(name);
        let Some(text) = text(&path)? else { continue };
        let value = |why: String| SwitchError::Value {
            path: path.clone(),
            why,
        };
        let document: Value = serde_json::from_str(&text).map_err(|e| value(e.to_string()))?;
        if let Some(provider) = provider(&document) {
            match provider.as_str() {
                Some("iptables" | "") => {}
                Some("ebpf") => warnings.push(format!(
                    "{}: network_policy_provider \"ebpf\" has the same effect here as \"iptables\": \
                     policy is enforced by nftables",
                    path.display()
                )),
                _ => {
                    return Err(value(format!(
                        "network_policy_provider {provider} is neither \"iptables\" nor \"ebpf\""
                    )));
                }
            }
        }
        break;
    }
    Ok(off)
}

fn provider(document: &Value) -> Option<&Value> {
    const KEY: &str = "network_policy_provider";
    let in_list = || {
        let plugins = document.get("plugins")?.as_array()?;
        plugins.iter().find_map(|plugin| plugin.get(KEY))
    };
    document.get(KEY).or_else(in_list)
}

fn text(path: &Path) -> Result<Option<String>, SwitchError> {
    let unreadable = |source| SwitchError::Unreadable {
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => Err(unreadable(std::io::Error::other("too large"))),
        Ok(_) => fs::read_to_string(path).map(Some).map_err(unreadable),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// A chain that is in the kernel and not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignChain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

/// What says that another Calico is on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calico {
    /// Its rules in the kernel: `table/chain`.
    pub rules: Vec<String>,
    /// Its living parts, in words.
    pub alive: Vec<String>,
}

impl Calico {
    /// Looks at the kernel's chains, at processes of our network namespace, and at Felix' health port.
    pub fn look(chains: &[ForeignChain], proc: &Path, felix_health_taken: Option<String>) -> Self {
        let rules = chains
            .iter()
            .filter(|c| c.chain.starts_with(CALICO_CHAIN) || c.table == CALICO_TABLE)
            .map(|c| format!("{}/{}", c.table, c.chain))
            .collect();
        let mut alive = processes(proc);
        alive.extend(felix_health_taken);
        Self { rules, alive }
    }

    /// Why policy is refused, if it is: rules and somebody who keeps them. Rules alone are what a removed Calico
    /// left behind, and a process without rules does no policy.
    pub fn refusal(&self) -> Option<String> {
        if self.rules.is_empty() || self.alive.is_empty() {
            return None;
        }
        Some(format!(
            "another Calico owns this node: {} ({}); switch one of the two off",
            self.alive.join(", "),
            shown(&self.rules)
        ))
    }

    /// What a removed Calico left behind, if anything.
    pub fn leftovers(&self) -> Option<String> {
        (!self.rules.is_empty() && self.alive.is_empty()).then(|| {
            format!(
                "rules of a Calico that does not run: {}",
                shown(&self.rules)
            )
        })
    }
}

fn shown(rules: &[String]) -> String {
    const SHOWN: usize = 3;
    let first = rules.get(..SHOWN.min(rules.len())).unwrap_or_default();
    match rules.len() {
        n if n > SHOWN => format!("{} and {} more", first.join(", "), n - SHOWN),
        _ => first.join(", "),
    }
}

/// Calico's processes in the network namespace of this one. What can not be read belongs to somebody else, or has
/// just ended.
fn processes(proc: &Path) -> Vec<String> {
    let namespace = |of: &Path| {
        fs::metadata(of.join("ns/net"))
            .map(|m| (m.dev(), m.ino()))
            .ok()
    };
    let Some(ours) = namespace(&proc.join("thread-self")).or_else(|| namespace(&proc.join("self")))
    else {
        return Vec::new();
    };
    let Ok(all) = fs::read_dir(proc) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in all.flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(comm) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        if CALICO_PROCESSES.contains(&comm.trim()) && namespace(&entry.path()) == Some(ours) {
            found.push(format!("process {} (pid {pid})", comm.trim()));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn power(enabled: Option<bool>, registered: bool, files: &[(&str, &str)]) -> Power {
        let dir = folder(files);
        let settings = Settings {
            enabled,
            registered,
            eni_config: Some(dir.path().to_owned()),
        };
        wanted(&settings).unwrap().0
    }

    #[test]
    fn policy_is_on_when_nothing_is_said() {
        assert_eq!(power(None, false, &[]), Power::On);
        assert_eq!(
            power(None, false, &[("disable_network_policy", "false\n")]),
            Power::On
        );
    }

    #[test]
    fn registered_cluster_is_off_unless_switched_on() {
        let said = [("disable_network_policy", "false")];

        assert!(matches!(power(None, true, &said), Power::Off(_)));
        assert_eq!(power(Some(true), true, &said), Power::On);
    }

    #[test]
    fn key_of_terway_switches_off_and_ours_wins() {
        let off = [("disable_network_policy", "true")];

        assert!(matches!(power(None, false, &off), Power::Off(_)));
        assert_eq!(power(Some(true), false, &off), Power::On);
        assert!(matches!(power(Some(false), false, &[]), Power::Off(_)));
    }

    #[test]
    fn provider_is_read_from_the_list_before_the_single_file() {
        let list = r#"{"plugins":[{"type":"terway","network_policy_provider":"ebpf"}]}"#;
        let dir = folder(&[
            ("10-terway.conflist", list),
            (
                "10-terway.conf",
                r#"{"network_policy_provider":"nonsense"}"#,
            ),
        ]);
        let settings = Settings {
            eni_config: Some(dir.path().to_owned()),
            ..Settings::default()
        };

        let (power, warnings) = wanted(&settings).unwrap();

        assert_eq!(power, Power::On);
        assert!(warnings[0].contains("ebpf"), "{warnings:?}");
    }

    #[test]
    fn value_that_nobody_knows_is_neither_on_nor_off() {
        for (name, text) in [
            ("disable_network_policy", "yes"),
            ("10-terway.conf", r#"{"network_policy_provider":"calico"}"#),
            ("10-terway.conf", r#"{"network_policy_provider":1}"#),
            ("10-terway.conflist", "{"),
        ] {
            let dir = folder(&[(name, text)]);
            let settings = Settings {
                eni_config: Some(dir.path().to_owned()),
                ..Settings::default()
            };

            let error = wanted(&settings).unwrap_err();

            assert!(matches!(error, SwitchError::Value { .. }), "{name} {text}");
        }
    }

    fn chain(table: &str, chain: &str) -> ForeignChain {
        ForeignChain {
            table: table.to_owned(),
            chain: chain.to_owned(),
        }
    }

    fn proc_with(comm: &str, own_namespace: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["self", "7"] {
            let folder = dir.path().join(name).join("ns");
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(dir.path().join("here"), "").unwrap();
        fs::write(dir.path().join("there"), "").unwrap();
        fs::hard_link(dir.path().join("here"), dir.path().join("self/ns/net")).unwrap();
        let of_seven = if own_namespace { "here" } else { "there" };
        fs::hard_link(dir.path().join(of_seven), dir.path().join("7/ns/net")).unwrap();
        fs::write(dir.path().join("7/comm"), format!("{comm}\n")).unwrap();
        dir
    }

    #[test]
    fn living_calico_with_rules_is_named() {
        let proc = proc_with("calico-node", true);
        let chains = [chain("filter", "cali-FORWARD"), chain("filter", "FORWARD")];

        let why = Calico::look(&chains, proc.path(), None).refusal().unwrap();

        assert!(why.contains("calico-node (pid 7)"), "{why}");
        assert!(why.contains("filter/cali-FORWARD"), "{why}");
    }

    #[test]
    fn calico_of_another_network_namespace_is_not_ours_to_mind() {
        let proc = proc_with("calico-node", false);
        let chains = [chain("filter", "cali-FORWARD")];

        let found = Calico::look(&chains, proc.path(), None);

        assert_eq!(found.refusal(), None);
        assert!(found.leftovers().unwrap().contains("cali-FORWARD"));
    }

    #[test]
    fn calico_without_rules_does_no_policy() {
        let proc = proc_with("calico-felix", true);

        let found = Calico::look(&[chain("filter", "FORWARD")], proc.path(), None);

        assert_eq!((found.refusal(), found.leftovers()), (None, None));
    }
}
