//! Documents that no API server would keep: any part of a policy is something else, or has something beside it.

use serde_json::{Value, json};

use crate::random::dice::Dice;
use crate::random::shrink::paths;

/// A policy in whose spec one to three places, or rarely the whole spec, were spoilt.
pub fn policy(dice: &mut Dice, mut document: Value) -> Value {
    if dice.chance(3) {
        document["spec"] = junk(dice);
        return document;
    }
    for _ in 0..dice.between(1, 3) {
        let places = paths(&document);
        let Some(place) = dice.pick(&places).cloned() else {
            break;
        };
        let whole = !is_calico(&document);
        let other = dice
            .pick(&places)
            .and_then(|place| document.pointer(place).cloned())
            .filter(|other| whole || !(other.is_object() || other.is_array()));
        let Some(slot) = document.pointer_mut(&place) else {
            continue;
        };
        match (dice.below(4), &mut *slot, other) {
            (0, _, Some(other)) => *slot = other,
            (1, Value::Object(fields), _) => {
                drop(fields.insert("bogus".to_owned(), junk(dice)));
            }
            (1, Value::Array(items), _) => items.push(junk(dice)),
            (
                _,
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)
                | Value::Object(_),
                _,
            ) => *slot = junk(dice),
        }
    }
    document
}

/// In a rule of Calico's, what is said of one end is a condition on the other when it stands there: the product
/// refuses conditions on the end of the selected pods, and the oracle knows them. So only simple values move.
fn is_calico(document: &Value) -> bool {
    let version = document["apiVersion"].as_str().unwrap_or_default();
    version.contains("projectcalico.org/")
}

fn junk(dice: &mut Dice) -> Value {
    match dice.below(13) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(70_000),
        5 => json!(1.5),
        6 => json!(""),
        7 => json!("bogus"),
        8 => json!("10.0.0.0/8"),
        9 => json!([]),
        10 => json!({}),
        11 => json!([Value::Null]),
        _ => json!({"bogus": {}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoilt_policy_keeps_its_identity_and_differs_in_its_spec() {
        let policy_of = json!({
            "kind": "NetworkPolicy", "metadata": {"name": "p"},
            "spec": {"podSelector": {"matchLabels": {"a": "b"}}, "ingress": [{}]},
        });
        let mut dice = Dice::new(1);
        let mut differing = 0;
        for _ in 0..100 {
            let spoilt = policy(&mut dice, policy_of.clone());
            assert_eq!(
                (&spoilt["kind"], &spoilt["metadata"]),
                (&policy_of["kind"], &policy_of["metadata"])
            );
            differing += usize::from(spoilt != policy_of);
        }
        assert!(differing > 80, "{differing}");
    }
}
