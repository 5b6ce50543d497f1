//! The checklist of policy semantics (docs/policy.md): every letter is named by a test of the product.
//!
//! A test names letters in a comment line above it, such as `// A3, F3`. Tests of the reference evaluator do not
//! count: it says what is right, and proves nothing about the product.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::step::{root, say};

/// Where the letters are defined; a line of a table such as `| A3 | … |`.
const DEFINITIONS: &str = "docs/policy.md";

/// Folders whose tests prove something about the product.
const PROVING: &[&str] = &[
    "crates/nft-wire",
    "crates/policy-core",
    "policy-agent",
    "sim/policy-lab",
    "e2e/tests/stories",
];

/// Compares letters and tests.
pub(crate) fn run() -> Result<ExitCode> {
    let root = root()?;
    let path = root.join(DEFINITIONS);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let letters = defined(&text);
    if letters.is_empty() {
        bail!("{DEFINITIONS} defines no letter");
    }
    let mut files = Vec::new();
    for folder in PROVING {
        for file in sources(&root.join(folder))? {
            let text =
                std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            files.push(text);
        }
    }
    let named = count(files.iter().map(String::as_str));
    let breaches = compare(&letters, &named);
    for breach in &breaches {
        say(&format!("checklist: {breach}"));
    }
    if !breaches.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let mentions: usize = named.values().sum();
    say(&format!(
        "checklist: {} letters, named {mentions} times by tests",
        letters.len()
    ));
    Ok(ExitCode::SUCCESS)
}

/// How often tests name each letter.
fn count<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut named = BTreeMap::new();
    for letter in texts.flat_map(named_in) {
        *named.entry(letter).or_default() += 1;
    }
    named
}

fn compare(letters: &BTreeSet<String>, named: &BTreeMap<String, usize>) -> Vec<String> {
    let without = letters
        .iter()
        .filter(|letter| !named.contains_key(*letter))
        .map(|letter| format!("no test names {letter}"));
    let unknown = named
        .keys()
        .filter(|letter| !letters.contains(*letter))
        .map(|letter| format!("a test names {letter}, which {DEFINITIONS} does not define"));
    without.chain(unknown).collect()
}

/// Letters of the table.
fn defined(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|row| row.split(" |").next())
        .filter(|cell| is_letter(cell))
        .map(str::to_owned)
        .collect()
}

/// Letters in comments that stand above a test which runs: not those of an ignored one, or of anything else.
fn named_in(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting: Vec<String> = Vec::new();
    let (mut is_marked, mut is_ignored, mut depth) = (false, false, 0_usize);
    for line in text.lines().map(str::trim) {
        if depth == 0
            && let Some(comment) = line.strip_prefix("// ")
        {
            waiting.extend(letters_of(comment));
        } else if depth > 0 || line.starts_with("#[") {
            is_marked |= depth == 0 && is_test(line);
            is_ignored |= depth == 0 && line.starts_with("#[ignore");
            // An attribute may go on over several lines.
            depth = (depth + line.matches('[').count()).saturating_sub(line.matches(']').count());
        } else if !line.starts_with("//") {
            if is_marked && !is_ignored && is_function(line) {
                found.append(&mut waiting);
            }
            waiting.clear();
            (is_marked, is_ignored) = (false, false);
        }
    }
    found
}

/// The letters that a comment begins with: `A3, F3: why` names two.
fn letters_of(comment: &str) -> Vec<String> {
    let head = comment.split(':').next().unwrap_or_default();
    let words: Vec<&str> = head.split([',', ' ']).filter(|w| !w.is_empty()).collect();
    if words.iter().all(|word| is_letter(word)) {
        words.into_iter().map(str::to_owned).collect()
    } else {
        Vec::new()
    }
}

fn is_test(line: &str) -> bool {
    ["#[test]", "#[rstest]", "#[tokio::test]", "#[tokio::test("]
        .iter()
        .any(|mark| line.starts_with(mark))
}

fn is_function(line: &str) -> bool {
    ["fn ", "async fn "]
        .iter()
        .any(|word| line.starts_with(word))
}

fn is_letter(word: &str) -> bool {
    let mut bytes = word.bytes();
    bytes.next().is_some_and(|b| (b'A'..=b'F').contains(&b))
        && (2..=3).contains(&word.len())
        && bytes.all(|b| b.is_ascii_digit())
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_above_a_test_are_named_by_it() {
        let text = "// A3, F3: both ends\n#[test]\nfn x() {}\n// B1\nfn no_test() {}\n";

        assert_eq!(named_in(text), ["A3", "F3"]);
    }

    #[test]
    fn letter_on_what_is_no_test_that_runs_does_not_count() {
        for text in [
            "// A1\nfn plain() {}\n",
            "// A1\n#[derive(Debug)]\nstruct Test;\n#[test]\nfn x() {}\n",
            "// A1\n\n#[test]\nfn x() {}\n",
            "/// A1\n#[test]\nfn x() {}\n",
            "// A1\n#[test]\n#[ignore = \"slow\"]\nfn x() {}\n",
            "// A1\n#[cfg(test)]\nmod tests {\n#[test]\nfn x() {}\n",
            "// A1\n#[test_case]\nfn x() {}\n",
            "#[test]\nfn x() {\n    // A1\n    check();\n}\n",
        ] {
            assert_eq!(named_in(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn attributes_between_a_letter_and_its_test_do_no_harm() {
        let text = "// A1, B2\n#[expect(\n    clippy::panic,\n    reason = \"x\"\n)]\n\
                    #[tokio::test(flavor = \"multi_thread\")]\nasync fn x() {}\n";

        assert_eq!(named_in(text), ["A1", "B2"]);
    }

    #[test]
    fn checklist_holds_only_while_every_letter_has_a_test() {
        let letters = defined("| A1 | isolation |\n| A2 | adding |\n");
        let first = "// A1\n#[test]\nfn x() {}\n";
        let claim = "// A2\nfn x() {}\n";
        let second = "// A2\n#[test]\nfn y() {}\n";

        let without = compare(&letters, &count([first, claim].into_iter()));
        let with = compare(&letters, &count([first, claim, second].into_iter()));

        assert_eq!(without, ["no test names A2"]);
        assert_eq!(with, [""; 0]);
    }

    #[test]
    fn prose_is_no_letter() {
        assert_eq!(letters_of("A pod is isolated"), [""; 0]);
        assert_eq!(letters_of("I3, I7: a crash"), [""; 0]);
    }

    #[test]
    fn letter_without_a_test_and_letter_without_a_meaning_are_breaches() {
        let letters = defined("| A1 | isolation |\n| letter | meaning |\n| A2 | adding |\n");
        let named = [("A1".to_owned(), 1), ("F9".to_owned(), 2)].into();

        assert_eq!(
            compare(&letters, &named),
            [
                "no test names A2",
                "a test names F9, which docs/policy.md does not define"
            ]
        );
    }
}
