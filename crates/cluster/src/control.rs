//! Table `control` of a configuration: the control plane, and what it says to nodes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::object::Which;
use crate::source::{Contradiction, Place};

/// Where the control plane is, and where it is said whether nodes serve or leave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `host:port` of the control plane; nobody is told anything without it.
    pub endpoint: Option<String>,
    /// `namespace/name` of the ConfigMap whose `phase` is `serve` or `leave`; without it nodes serve.
    pub phase: Option<String>,
}

impl Settings {
    /// Checks what the type can not say.
    ///
    /// # Errors
    /// [`Contradiction`] naming the key.
    pub fn check(&self) -> Result<(), Contradiction> {
        let bad = |key, why| Err(Contradiction { key, why });
        if let Some(endpoint) = &self.endpoint {
            let port = endpoint.rsplit_once(':');
            let good = port.is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !good {
                return bad("control.endpoint", "is not host:port");
            }
        }
        if self.phase.is_some() && self.which().is_none() {
            return bad("control.phase", "is not namespace/name");
        }
        Ok(())
    }

    /// The ConfigMap of the phase.
    pub fn which(&self) -> Option<Which> {
        let (namespace, name) = self.phase.as_deref()?.split_once('/')?;
        let good = |part: &str| !part.is_empty() && !part.contains('/');
        (good(namespace) && good(name)).then(|| Which::ConfigMap {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Where the phase is read: where the service reads everything else, or, when that are relays, the API server by the
/// service account of the pod.
pub fn place_of_phase(read: Option<Place>, kubeconfig: Option<&Path>) -> Place {
    read.unwrap_or_else(|| Place::Kubernetes(kubeconfig.map(Path::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_settings_name_their_key() {
        for (text, key) in [
            (r#"{"endpoint": "10.0.0.1"}"#, "control.endpoint"),
            (r#"{"endpoint": ":1"}"#, "control.endpoint"),
            (r#"{"endpoint": "a:0"}"#, "control.endpoint"),
            (r#"{"phase": "name"}"#, "control.phase"),
            (r#"{"phase": "/name"}"#, "control.phase"),
            (r#"{"phase": "a/b/c"}"#, "control.phase"),
        ] {
            let settings: Settings = serde_json::from_str(text).unwrap();
            assert_eq!(settings.check().unwrap_err().key, key, "{text}");
        }
        let good = r#"{"endpoint": "10.0.0.1:7501", "phase": "kube-system/terway-phase"}"#;
        serde_json::from_str::<Settings>(good)
            .unwrap()
            .check()
            .unwrap();
    }
}
