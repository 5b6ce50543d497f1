//! `cargo xtask chart`: the Helm chart, held against its goldens, its schema, the services it configures and the
//! metrics they export.
//!
//! The chart is rendered by the real `helm` for every set of values in `helm/tests/values`. Nothing is installed.

mod configs;
mod goldens;
mod helm;
mod metrics;
mod refusals;
mod rights;
mod schema;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::chart::helm::Helm;
use crate::step::{root, say};

/// Options of `cargo xtask chart`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Write the goldens anew; look at the difference before you commit it.
    #[arg(long)]
    write: bool,
    /// Do not run the services on the files that the chart makes for them; without it they are built.
    #[arg(long)]
    without_services: bool,
}

/// A set of values, and what the chart makes of it.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// Name of the set: its file without `.yaml`.
    pub(crate) name: String,
    /// The manifests as helm printed them.
    pub(crate) text: String,
    /// The same, parsed.
    pub(crate) objects: Vec<Value>,
}

/// Renders and checks; tells every breach.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = root()?;
    let helm = Helm::find()?;
    let sets = render(&helm)?;
    if args.write {
        goldens::write(&root, &sets)?;
    }
    let mut breaches = goldens::check(&root, &sets)?;
    breaches.extend(helm.lint(&sets)?);
    breaches.extend(schema::check(&root)?);
    let (refused, more) = refusals::check(&root, &helm)?;
    breaches.extend(more);
    breaches.extend(rights::check(&sets));
    let (names, more) = metrics::check(&root)?;
    breaches.extend(more);
    let files = if args.without_services {
        0
    } else {
        let (files, more) = configs::check(&sets)?;
        breaches.extend(more);
        files
    };
    for breach in &breaches {
        say(&format!("chart: {breach}"));
    }
    if !breaches.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    say(&format!(
        "chart: {} sets of values rendered as their goldens, {refused} mistakes refused by name, {files} files read by \
         their services, {names} metrics known",
        sets.len()
    ));
    Ok(ExitCode::SUCCESS)
}

fn render(helm: &Helm) -> Result<Vec<Rendered>> {
    let mut sets = Vec::new();
    for name in goldens::sets(&root()?)? {
        let text = helm
            .template(&name, &[])?
            .map_err(|complaint| anyhow::anyhow!("{name}: {complaint}"))?;
        let objects = parse(&text).with_context(|| name.clone())?;
        sets.push(Rendered {
            name,
            text,
            objects,
        });
    }
    if sets.is_empty() {
        bail!("there is no set of values");
    }
    Ok(sets)
}

/// The objects of a stream of manifests; one that stands twice is an error.
fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let objects: Vec<Value> = documents.into_iter().filter(Value::is_object).collect();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for object in &objects {
        *seen.entry(title(object)).or_default() += 1;
    }
    if let Some((title, _)) = seen.iter().find(|(_, count)| **count > 1) {
        bail!("{title} stands twice");
    }
    Ok(objects)
}

/// Kind and name of an object.
pub(crate) fn title(object: &Value) -> String {
    let word = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("?");
    format!("{} {}", word("/kind"), word("/metadata/name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_that_stands_twice_is_named() {
        let text = "kind: Role\nmetadata: {name: a}\n---\n---\nkind: Role\nmetadata: {name: a}\n";

        let error = parse(text).unwrap_err();

        assert_eq!(error.to_string(), "Role a stands twice");
    }

    #[test]
    fn empty_documents_are_no_objects() {
        let objects = parse("# nothing\n---\nkind: Role\nmetadata: {name: a}\n").unwrap();

        assert_eq!(objects.len(), 1);
    }
}
