//! Mistakes of operators, each refused by the name of its key: `helm/tests/refused.txt`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::chart::helm::Helm;

/// Where the mistakes stand.
const FILE: &str = "helm/tests/refused.txt";

/// A mistake and what its refusal must say.
#[derive(Debug, PartialEq, Eq)]
struct Mistake<'a> {
    set: &'a str,
    settings: Vec<&'a str>,
    says: Vec<&'a str>,
}

/// Makes every mistake; gives how many were refused by name, and those that were not.
pub(crate) fn check(root: &Path, helm: &Helm) -> Result<(usize, Vec<String>)> {
    let text = std::fs::read_to_string(root.join(FILE)).context(FILE)?;
    let mistakes: Vec<Mistake<'_>> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(read)
        .collect::<Result<_>>()?;
    let (mut refused, mut breaches) = (0, Vec::new());
    for mistake in &mistakes {
        let what = format!("{} with {}", mistake.set, mistake.settings.join(" "));
        match helm.template(mistake.set, &mistake.settings)? {
            Ok(_) => breaches.push(format!("{what} is not refused")),
            Err(complaint) => match mistake.says.iter().find(|word| !complaint.contains(**word)) {
                None => refused += 1,
                Some(word) => breaches.push(format!(
                    "{what} is refused without the word {word:?}: {}",
                    complaint.trim()
                )),
            },
        }
    }
    Ok((refused, breaches))
}

/// A line such as `default | gateway.replica=2 | gateway 'replica'`: the set, settings, and words.
fn read(line: &str) -> Result<Mistake<'_>> {
    let parts: Vec<&str> = line.split('|').map(str::trim).collect();
    match parts.as_slice() {
        [set, settings, says] if !set.is_empty() && !says.is_empty() => Ok(Mistake {
            set,
            settings: settings.split_whitespace().collect(),
            says: says.split_whitespace().collect(),
        }),
        _ => bail!("{FILE}: {line:?} is not `set | settings | words`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistake_is_a_set_with_settings_and_the_words_of_its_refusal() {
        assert_eq!(
            read("default | a.b=1 c=2 | 'b'").unwrap(),
            Mistake {
                set: "default",
                settings: vec!["a.b=1", "c=2"],
                says: vec!["'b'"],
            }
        );
        assert!(read("default | a=1").is_err());
        assert!(read("default | a=1 |").is_err());
    }
}
