//! Arrows between the modules of one package, read from `use` lines and paths in the source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Top-level module -> top-level modules it names.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Counts of files and arrows, and all breaches.
pub(crate) fn check(root: &Path) -> Result<(usize, usize, Vec<String>)> {
    let (mut files, mut count, mut breaches) = (0, 0, Vec::new());
    for package in package_folders(root)? {
        let mut sources = Vec::new();
        collect(&package.join("src"), &mut sources)?;
        let mut texts = Vec::new();
        for path in sources {
            let text =
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            texts.push((path.strip_prefix(package.join("src"))?.to_owned(), text));
        }
        files += texts.len();
        let arrows = arrows(&texts);
        count += arrows.values().map(BTreeSet::len).sum::<usize>();
        let name = package.strip_prefix(root)?.display().to_string();
        breaches.extend(cycle(&arrows).map(|knot| format!("{name}: modules in a loop: {knot}")));
    }
    Ok((files, count, breaches))
}

fn package_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for dir in [root.to_owned(), root.join("crates"), root.join("sim")] {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.join("Cargo.toml").is_file() && path.join("src").is_dir() {
                folders.push(path);
            }
        }
    }
    folders.sort();
    Ok(folders)
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// Reads the arrows out of (path below `src`, text). Tests, `lib.rs` and `main.rs` are not part of the house.
fn arrows(files: &[(PathBuf, String)]) -> Arrows {
    let modules: BTreeSet<String> = files.iter().filter_map(|(path, _)| module(path)).collect();
    let mut arrows = Arrows::new();
    for (path, text) in files {
        let Some(from) = module(path) else { continue };
        if path.file_stem().is_some_and(|s| s == "tests") {
            continue;
        }
        let code = text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        for line in code.lines() {
            let line = line.split("//").next().unwrap_or_default();
            for to in named(line) {
                if to != from && modules.contains(&to) {
                    arrows.entry(from.clone()).or_default().insert(to);
                }
            }
        }
    }
    arrows
}

/// The top-level module a file belongs to.
fn module(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib" && name != "main").then(|| name.to_owned())
}

/// Names behind `crate::` in a line, braces included: `use crate::{a::B, c};` names a and c.
fn named(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let boundary = line[..at].chars().next_back();
        if boundary.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        let parts: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => group.split([',', '}']).collect(),
            None => vec![rest],
        };
        for part in parts {
            let name: String = part
                .trim()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if !name.is_empty() {
                names.push(name);
            }
        }
    }
    names
}

/// A loop, if there is one, as `a -> b -> a`.
fn cycle(arrows: &Arrows) -> Option<String> {
    let mut done = BTreeSet::new();
    arrows
        .keys()
        .find_map(|start| walk(start, arrows, &mut Vec::new(), &mut done))
}

fn walk(
    at: &str,
    arrows: &Arrows,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<String> {
    if let Some(seen) = path.iter().position(|p| p == at) {
        let mut knot = path.split_off(seen);
        knot.push(at.to_owned());
        return Some(knot.join(" -> "));
    }
    if done.contains(at) {
        return None;
    }
    path.push(at.to_owned());
    let found = arrows
        .get(at)
        .into_iter()
        .flatten()
        .find_map(|to| walk(to, arrows, path, done));
    if found.is_none() {
        path.pop();
        done.insert(at.to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Vec<(PathBuf, String)> {
        list.iter()
            .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn modules_that_point_down_have_no_loop() {
        let arrows = arrows(&files(&[("a.rs", "use crate::b::X;"), ("b.rs", "")]));

        assert_eq!(cycle(&arrows), None);
        assert!(arrows["a"].contains("b"));
    }

    #[test]
    fn planted_loop_is_found() {
        let arrows = arrows(&files(&[
            ("a.rs", "use crate::b::X;"),
            ("b/inner.rs", "fn f() { crate::c::g() }"),
            ("b.rs", ""),
            ("c.rs", "use crate::{d, a::Y};"),
            ("d.rs", ""),
        ]));

        assert_eq!(cycle(&arrows).as_deref(), Some("a -> b -> c -> a"));
    }

    #[test]
    fn comments_and_tests_are_no_arrows() {
        let arrows = arrows(&files(&[
            (
                "a.rs",
                "// crate::b\n#[cfg(test)]\nmod tests { use crate::b; }",
            ),
            ("b.rs", "use crate::a;"),
            ("a/tests.rs", "use crate::b;"),
        ]));

        assert_eq!(cycle(&arrows), None);
    }
}
