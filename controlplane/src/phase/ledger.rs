//! Who has left, and what the others wait for, as the ConfigMap of the phase holds it. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::phase::{COMPONENTS, LEFT, Members, Said, WAITS_FOR, Who};

/// Lines of what is waited for: the rest is as many more.
const LINES_MAX: usize = 200;
/// Longest text of such a line, in bytes.
const TEXT_MAX: usize = 256;
/// What a component waits for that was not heard of.
const NO_ANSWER: &str = "no answer";
/// How a thing begins that is a pod, or an ENI, which pods may use.
const POD: &str = "pod ";
const ENI: &str = "eni ";

/// Who has left, and what the others wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    left: BTreeMap<String, BTreeSet<&'static str>>,
    waits: BTreeMap<Who, String>,
}

fn component(name: &str) -> Option<&'static str> {
    COMPONENTS.into_iter().find(|known| *known == name)
}

impl Ledger {
    /// Reads what stands there. Lines that are not understood are left out.
    pub fn read(data: &BTreeMap<String, String>) -> Self {
        let text = |key| data.get(key).map(String::as_str).unwrap_or_default();
        let mut this = Self::default();
        for line in text(LEFT).lines() {
            if let Some((node, components)) = line.split_once(' ') {
                let components = components.split(',').filter_map(component);
                this.left
                    .entry(node.to_owned())
                    .or_default()
                    .extend(components);
            }
        }
        for line in text(WAITS_FOR).lines() {
            let parts = line.split_once(": ").and_then(|(who, what)| {
                let (node, name) = who.split_once(' ')?;
                Some((node.to_owned(), component(name)?, what.to_owned()))
            });
            if let Some((node, component, what)) = parts {
                this.waits.insert((node, component), what);
            }
        }
        this
    }

    /// Writes it back.
    pub(super) fn write(&self, data: &mut BTreeMap<String, String>) {
        let mut put = |key: &str, text: String| {
            if text.is_empty() {
                data.remove(key);
            } else {
                data.insert(key.to_owned(), text);
            }
        };
        let line = |(node, components): (&String, &BTreeSet<&'static str>)| {
            let components: Vec<&str> = components.iter().copied().collect();
            format!("{node} {}\n", components.join(","))
        };
        let left = self
            .left
            .iter()
            .filter(|(_, components)| !components.is_empty());
        put(LEFT, left.map(line).collect());
        let mut waits = String::new();
        for ((node, component), what) in self.waits.iter().take(LINES_MAX) {
            for part in [node, " ", component, ": ", what, "\n"] {
                waits.push_str(part);
            }
        }
        let more = self.waits.len().saturating_sub(LINES_MAX);
        if more > 0 {
            waits = format!("{waits}and {more} more\n");
        }
        put(WAITS_FOR, waits);
    }

    /// Takes over what nodes said.
    pub(super) fn take(&mut self, said: &BTreeMap<Who, Said>) {
        for (who, said) in said {
            let (node, component) = who;
            let left = self.left.entry(node.clone()).or_default();
            if said.left {
                left.insert(component);
                self.waits.remove(who);
            } else {
                left.remove(component);
                self.waits.insert(who.clone(), one_line(&said.waits_for));
            }
        }
    }

    /// Forgets nodes on which nothing runs.
    pub(super) fn keep_only(&mut self, members: &Members) {
        self.left.retain(|node, _| members.contains_key(node));
        self.waits.retain(|(node, _), _| members.contains_key(node));
    }

    /// Who has not left. With `force`, who waits for nothing but pods and the ENIs that they use counts as gone.
    pub(super) fn missing(&self, members: &Members, force: bool) -> Vec<Who> {
        let mut missing = Vec::new();
        for (node, components) in members {
            for component in components {
                let who = (node.clone(), *component);
                let left = self
                    .left
                    .get(node)
                    .is_some_and(|left| left.contains(component));
                let only_pods = self.waits.get(&who).is_some_and(|what| is_only_pods(what));
                let gone = left || (force && only_pods);
                if !gone {
                    missing.push(who);
                }
            }
        }
        missing
    }

    /// Names those of whom nothing was heard, and nobody who is not waited for.
    pub(super) fn wait_for(&mut self, missing: &[Who]) {
        self.waits.retain(|who, _| missing.contains(who));
        for who in missing {
            let what = self.waits.entry(who.clone());
            what.or_insert_with(|| NO_ANSWER.to_owned());
        }
    }
}

fn one_line(what: &[String]) -> String {
    let mut text = String::new();
    for (at, one) in what.iter().enumerate() {
        let one = one.replace(|letter: char| letter.is_control(), " ");
        let between = if at == 0 { "" } else { ", " };
        if text.len() + between.len() + one.len() > TEXT_MAX {
            let rest = what.len() - at;
            text = format!("{text}{between}and {rest} more");
            break;
        }
        text.push_str(between);
        text.push_str(&one);
    }
    if text.is_empty() {
        "has not said what for".clone_into(&mut text);
    }
    text
}

/// Lists are cut, here and by nodes.
fn is_more(one: &str) -> bool {
    one.ends_with(" more") || one.ends_with(" more pods")
}

fn is_only_pods(what: &str) -> bool {
    let of_pods = |one: &str| one.starts_with(POD) || one.starts_with(ENI) || is_more(one);
    what.split(", ").any(|one| one.starts_with(POD)) && what.split(", ").all(of_pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "node-agent";
    const POLICY: &str = "policy-agent";

    fn members() -> Members {
        [
            ("a".to_owned(), BTreeSet::from([AGENT, POLICY])),
            ("b".to_owned(), BTreeSet::from([AGENT])),
        ]
        .into()
    }

    fn says(who: &[(&str, &'static str, bool, &str)]) -> BTreeMap<Who, Said> {
        who.iter()
            .map(|(node, component, left, waits)| {
                let waits_for = waits.split('|').filter(|w| !w.is_empty());
                let said = Said {
                    left: *left,
                    waits_for: waits_for.map(str::to_owned).collect(),
                };
                (((*node).to_owned(), *component), said)
            })
            .collect()
    }

    fn missing(ledger: &Ledger, force: bool) -> Vec<String> {
        let missing = ledger.missing(&members(), force).into_iter();
        missing
            .map(|(node, component)| format!("{node} {component}"))
            .collect()
    }

    #[test]
    fn nobody_has_left_who_did_not_say_so() {
        let mut ledger = Ledger::default();
        ledger.take(&says(&[
            ("a", AGENT, true, ""),
            ("b", AGENT, false, "pod n/p"),
        ]));

        assert_eq!(missing(&ledger, false), ["a policy-agent", "b node-agent"]);
        ledger.take(&says(&[("a", POLICY, true, ""), ("b", AGENT, true, "")]));
        assert!(missing(&ledger, false).is_empty());
        // Who serves again has not left.
        ledger.take(&says(&[("b", AGENT, false, "")]));
        assert_eq!(missing(&ledger, false), ["b node-agent"]);
    }

    #[test]
    fn force_does_not_wait_for_pods_but_for_all_else() {
        let mut ledger = Ledger::default();
        ledger.take(&says(&[
            ("a", AGENT, false, "pod n/p|pod n/q|eni eni-1|3 more"),
            ("a", POLICY, false, "pod n/p|rules of policy"),
            ("b", AGENT, false, "eni eni-2"),
        ]));

        assert_eq!(missing(&ledger, true), ["a policy-agent", "b node-agent"]);
        assert_eq!(missing(&ledger, false).len(), 3);
    }

    #[test]
    fn ledger_is_read_back_as_it_was_written() {
        let mut ledger = Ledger::default();
        ledger.take(&says(&[
            ("a", AGENT, true, ""),
            ("a", POLICY, false, "pod n/p: x|pod n/q"),
        ]));
        ledger.wait_for(&ledger.clone().missing(&members(), false));
        let mut data = BTreeMap::new();

        ledger.write(&mut data);

        assert_eq!(data[LEFT], "a node-agent\n");
        assert_eq!(
            data[WAITS_FOR],
            "a policy-agent: pod n/p: x, pod n/q\nb node-agent: no answer\n"
        );
        assert_eq!(Ledger::read(&data), ledger);
    }

    #[test]
    fn what_is_written_has_a_bound() {
        let many: Vec<String> = (0..1_000).map(|at| format!("pod n/p-{at}")).collect();
        let text = one_line(&many);
        assert!(
            text.len() < TEXT_MAX + 20 && text.ends_with(" more"),
            "{text}"
        );
        assert!(is_only_pods(&text));
        let mut ledger = Ledger::default();
        let names: Vec<String> = (0..1_000).map(|at| format!("node-{at}")).collect();
        for name in &names {
            ledger.waits.insert((name.clone(), AGENT), "x".to_owned());
        }
        let mut data = BTreeMap::new();

        ledger.write(&mut data);

        assert_eq!(data[WAITS_FOR].lines().count(), LINES_MAX + 1);
    }

    #[test]
    fn node_without_our_pods_is_not_waited_for() {
        let mut ledger = Ledger::default();
        ledger.take(&says(&[
            ("c", AGENT, false, "pod n/p"),
            ("d", AGENT, true, ""),
        ]));

        ledger.keep_only(&members());

        assert_eq!(ledger, Ledger::default());
    }
}
