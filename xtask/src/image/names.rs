//! What images are called: as the chart will ask for them.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The parts of a name that all components share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// Registry with its slash, or nothing: then the runtime fills in its default, in the name of the image and in
    /// that of the pod alike.
    registry: String,
    repository: String,
    tag: String,
}

impl Names {
    /// The chart's repository, and its appVersion unless there is another tag.
    ///
    /// # Errors
    /// When the chart can not be read, or the tag is not one.
    pub(crate) fn of_chart(root: &Path, registry: &str, tag: Option<&str>) -> Result<Self> {
        let chart = root.join("helm/terway");
        let repository = text(&chart.join("values.yaml"), "/image/repository")?;
        let tag = match tag {
            Some(tag) => tag.to_owned(),
            None => text(&chart.join("Chart.yaml"), "/appVersion")?,
        };
        if !is_tag(&tag) {
            bail!("{tag:?} is no tag of an image");
        }
        let registry = match registry.trim_end_matches('/') {
            "" => String::new(),
            registry => format!("{registry}/"),
        };
        Ok(Self {
            registry,
            repository,
            tag,
        })
    }

    /// The whole name of a component's image.
    pub(crate) fn of(&self, component: &str) -> String {
        let Self {
            registry,
            repository,
            tag,
        } = self;
        format!("{registry}{repository}/{component}:{tag}")
    }
}

/// Source: OCI distribution specification, "Pulling manifests".
fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(is_word)
        && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn text(path: &Path, pointer: &str) -> Result<String> {
    let content = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value: Value =
        serde_saphyr::from_str(&content).with_context(|| path.display().to_string())?;
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found
        .with_context(|| format!("{} has no {pointer}", path.display()))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::component::COMPONENTS;
    use crate::step::root;

    #[test]
    fn names_are_those_that_the_chart_asks_for() {
        let root = root().unwrap();
        let golden = std::fs::read_to_string(root.join("helm/tests/golden/default.yaml")).unwrap();
        let names = Names::of_chart(&root, "", None).unwrap();

        for component in COMPONENTS {
            let line = format!("image: {}\n", names.of(component.name));
            assert!(golden.contains(&line), "the chart never says {line}");
        }
    }

    #[test]
    fn registry_and_tag_of_values_stand_in_the_name_as_the_chart_writes_them() {
        let root = root().unwrap();
        let golden =
            std::fs::read_to_string(root.join("helm/tests/golden/existing-secrets.yaml")).unwrap();
        let registry = "registry-vpc.cn-hangzhou.aliyuncs.com";
        let names = Names::of_chart(&root, registry, Some("v1.2.3")).unwrap();

        let line = format!("image: {}\n", names.of("node-agent"));

        assert!(golden.contains(&line), "the chart never says {line}");
    }

    #[test]
    fn tag_that_is_none_is_refused() {
        let root = root().unwrap();

        for tag in ["", "a b", "-a", "a/b", "a:b"] {
            assert!(Names::of_chart(&root, "", Some(tag)).is_err(), "{tag:?}");
        }
    }
}
