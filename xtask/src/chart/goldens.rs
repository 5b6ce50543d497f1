//! What the chart made when somebody last looked at it, byte by byte.
//!
//! The golden of the set `default` is all that helm printed. The others hold what differs from it: objects that are
//! new or not the same, and at the end the names of objects that are not there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::chart::Rendered;

/// The set that the others are compared with.
const FIRST: &str = "default";
/// What parts objects in helm's output.
const BETWEEN: &str = "---\n";

/// Names of all sets of values, sorted.
pub(crate) fn sets(root: &Path) -> Result<Vec<String>> {
    Ok(names(&root.join("helm/tests/values"))?
        .into_iter()
        .collect())
}

/// Writes the goldens anew and removes those without values.
pub(crate) fn write(root: &Path, sets: &[Rendered]) -> Result<()> {
    for name in names(&folder(root))? {
        if !sets.iter().any(|set| set.name == name) {
            let path = golden(root, &name);
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    for set in sets {
        let path = golden(root, &set.name);
        std::fs::write(&path, condensed(set, sets)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Compares; every set has a golden and every golden a set.
pub(crate) fn check(root: &Path, sets: &[Rendered]) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    let mut left = names(&folder(root))?;
    for set in sets {
        if !left.remove(&set.name) {
            breaches.push(format!("{} has no golden; --write makes it", set.name));
            continue;
        }
        let path = golden(root, &set.name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if let Some(difference) = first_difference(&text, &condensed(set, sets)?) {
            breaches.push(format!(
                "{} is not its golden any more: {difference}; --write takes it over",
                set.name
            ));
        }
    }
    for name in left {
        breaches.push(format!("the golden {name} has no values"));
    }
    Ok(breaches)
}

/// What is written down of a set.
fn condensed(set: &Rendered, sets: &[Rendered]) -> Result<String> {
    if set.name == FIRST {
        return Ok(set.text.clone());
    }
    let first = sets.iter().find(|other| other.name == FIRST);
    let first = first.with_context(|| format!("there is no set {FIRST}"))?;
    Ok(difference(&first.text, &set.text))
}

fn difference(first: &str, text: &str) -> String {
    let known: BTreeSet<&str> = first.split(BETWEEN).collect();
    let here: BTreeSet<String> = text.split(BETWEEN).filter_map(name).collect();
    let mut out = String::new();
    for object in text.split(BETWEEN).filter(|object| !known.contains(object)) {
        out.push_str(BETWEEN);
        out.push_str(object);
    }
    for gone in first
        .split(BETWEEN)
        .filter_map(name)
        .filter(|name| !here.contains(name))
    {
        out.push_str("# not here: ");
        out.push_str(&gone);
        out.push('\n');
    }
    out
}

/// Kind and name of an object in helm's output.
fn name(object: &str) -> Option<String> {
    let kind = object
        .lines()
        .find_map(|line| line.strip_prefix("kind: "))?;
    let name = object
        .lines()
        .find_map(|line| line.strip_prefix("  name: "))?;
    Some(format!("{kind} {name}"))
}

/// The first line that differs, and both sides of it.
fn first_difference(golden: &str, now: &str) -> Option<String> {
    if golden == now {
        return None;
    }
    let (mut old, mut new) = (golden.lines(), now.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (old.next(), new.next()) {
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return Some("they end differently".to_owned()),
            (a, b) => {
                let side = |line: Option<&str>| line.unwrap_or("(the end)").trim().to_owned();
                return Some(format!("line {number}: {:?} was {:?}", side(b), side(a)));
            }
        }
    }
}

fn folder(root: &Path) -> PathBuf {
    root.join("helm/tests/golden")
}

fn golden(root: &Path, name: &str) -> PathBuf {
    folder(root).join(format!("{name}.yaml"))
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.insert(stem.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_that_differ_are_written_down() {
        let first = "---\nkind: A\nmetadata:\n  name: a\n---\nkind: B\nmetadata:\n  name: b\n";
        let text = "---\nkind: A\nmetadata:\n  name: a\n---\nkind: C\nmetadata:\n  name: c\n";

        assert_eq!(difference(first, first), "");
        assert_eq!(
            difference(first, text),
            "---\nkind: C\nmetadata:\n  name: c\n# not here: B b\n"
        );
    }

    #[test]
    fn difference_is_told_by_line_with_both_sides() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(
            first_difference("a\nb\n", "a\nc\n").unwrap(),
            r#"line 2: "c" was "b""#
        );
        assert_eq!(
            first_difference("a\n", "a\nb\n").unwrap(),
            r#"line 2: "b" was "(the end)""#
        );
        assert_eq!(
            first_difference("a", "a\n").unwrap(),
            "they end differently"
        );
    }
}
