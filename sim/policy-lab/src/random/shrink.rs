//! Makes a failing world small.

use serde_json::Value;

/// Drops documents one by one, then entries of lists inside them, as long as `fails` stays true.
///
/// `fails` is asked at most `budget` times.
pub fn shrink(
    documents: &[Value],
    budget: usize,
    fails: &mut dyn FnMut(&[Value]) -> bool,
) -> Vec<Value> {
    let mut left = budget;
    let mut now = documents.to_vec();
    loop {
        let before = now.clone();
        drop_documents(&mut now, &mut left, fails);
        drop_entries(&mut now, &mut left, fails);
        if now == before || left == 0 {
            return now;
        }
    }
}

fn drop_documents(now: &mut Vec<Value>, left: &mut usize, fails: &mut dyn FnMut(&[Value]) -> bool) {
    let mut index = now.len();
    while index > 0 && *left > 0 {
        index -= 1;
        let mut fewer = now.clone();
        fewer.remove(index);
        *left -= 1;
        if fails(&fewer) {
            *now = fewer;
        }
    }
}

fn drop_entries(now: &mut Vec<Value>, left: &mut usize, fails: &mut dyn FnMut(&[Value]) -> bool) {
    for index in 0..now.len() {
        let Some(document) = now.get(index).cloned() else {
            return;
        };
        for path in paths(&document) {
            if *left == 0 {
                return;
            }
            let Some(smaller) = now.get(index).and_then(|d| without(d, &path)) else {
                continue;
            };
            let mut next = now.clone();
            if let Some(slot) = next.get_mut(index) {
                *slot = smaller;
            }
            *left -= 1;
            if fails(&next) {
                *now = next;
            }
        }
    }
}

/// Pointers to everything inside `spec` and to labels, deepest last, so that large parts go first.
pub(super) fn paths(document: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for root in ["/spec", "/metadata/labels"] {
        if let Some(value) = document.pointer(root) {
            walk(value, root, &mut out);
        }
    }
    out.sort_by_key(|path| path.matches('/').count());
    out
}

fn walk(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                walk(inner, &path, out);
                out.push(path);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate().rev() {
                let path = format!("{at}/{index}");
                walk(inner, &path, out);
                out.push(path);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn without(document: &Value, path: &str) -> Option<Value> {
    let (parent, last) = path.rsplit_once('/')?;
    let mut out = document.clone();
    match out.pointer_mut(parent)? {
        Value::Object(fields) => {
            fields.remove(&last.replace("~1", "/").replace("~0", "~"))?;
        }
        Value::Array(items) => {
            let index: usize = last.parse().ok()?;
            if index >= items.len() {
                return None;
            }
            items.remove(index);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return None,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shrink_of_a_failing_world_keeps_only_what_fails() {
        let documents = vec![
            json!({"kind": "A", "spec": {"list": [1, 2, 3], "other": {"x": 1}}}),
            json!({"kind": "B"}),
            json!({"kind": "C"}),
        ];
        let mut fails = |now: &[Value]| {
            now.iter().any(|d| {
                d.pointer("/spec/list")
                    .and_then(Value::as_array)
                    .is_some_and(|list| list.contains(&json!(2)))
            })
        };
        let small = shrink(&documents, 1_000, &mut fails);
        assert_eq!(small, vec![json!({"kind": "A", "spec": {"list": [2]}})]);
    }
}
