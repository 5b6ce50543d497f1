//! The schema of the values is closed and whole, and every value has its sentence.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What Helm itself puts among the values.
const OF_HELM: &str = "global";
/// Parts of the values whose keys are Kubernetes' own and need no sentence.
const KUBERNETES: &[&str] = &["requests", "limits"];

/// Reads schema and values and tells every breach.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let read = |name: &str| -> Result<String> {
        let path = root.join("helm/terway").join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let schema: Value =
        serde_json::from_str(&read("values.schema.json")?).context("values.schema.json")?;
    let text = read("values.yaml")?;
    let values: Value = serde_saphyr::from_str(&text).context("values.yaml")?;
    let mut breaches = Vec::new();
    open_objects("", &schema, &mut breaches);
    not_in_values("", &schema, &values, &mut breaches);
    breaches.extend(without_a_sentence(&text));
    Ok(breaches)
}

/// Objects that let unknown keys pass. A map of texts is none: its keys are the operator's.
fn open_objects(at: &str, schema: &Value, breaches: &mut Vec<String>) {
    let Some(fields) = schema.as_object() else {
        return;
    };
    let is_object = fields.get("type").and_then(Value::as_str) == Some("object");
    let closed = match fields.get("additionalProperties") {
        Some(Value::Bool(open)) => !open,
        Some(value) => value.is_object(),
        None => false,
    };
    if is_object && !closed && at != format!("/properties/{OF_HELM}") {
        breaches.push(format!("values.schema.json: {at} lets unknown keys pass"));
    }
    for (key, inner) in fields {
        open_objects(&format!("{at}/{key}"), inner, breaches);
        for (number, inner) in inner.as_array().into_iter().flatten().enumerate() {
            open_objects(&format!("{at}/{key}/{number}"), inner, breaches);
        }
    }
}

/// Keys that the schema knows and values.yaml does not show.
fn not_in_values(at: &str, schema: &Value, values: &Value, breaches: &mut Vec<String>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (key, inner) in properties.iter().filter(|(key, _)| *key != OF_HELM) {
        let path = format!("{at}{key}");
        match values.get(key) {
            Some(value) => not_in_values(&format!("{path}."), inner, value, breaches),
            None => breaches.push(format!("values.yaml does not show {path}")),
        }
    }
}

/// Keys with a value that have no comment right above them.
fn without_a_sentence(text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut above = "";
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if let Some((key, value)) = trimmed.split_once(':')
            && !trimmed.starts_with('#')
            && !value.trim().is_empty()
            && !KUBERNETES.contains(&key)
            && !above.trim_start().starts_with('#')
        {
            breaches.push(format!("values.yaml:{}: {key} has no comment", number + 1));
        }
        above = line;
    }
    breaches
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn object_that_lets_keys_pass_is_found_wherever_it_is() {
        let schema = json!({
            "type": "object", "additionalProperties": false,
            "properties": {
                "global": {"type": "object"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"items": {"oneOf": [{"type": "object"}]}},
                "open": {"type": "object", "additionalProperties": true},
            },
        });
        let mut breaches = Vec::new();

        open_objects("", &schema, &mut breaches);

        assert_eq!(
            breaches,
            [
                "values.schema.json: /properties/list/items/oneOf/0 lets unknown keys pass",
                "values.schema.json: /properties/open lets unknown keys pass"
            ]
        );
    }

    #[test]
    fn key_of_the_schema_that_values_do_not_show_is_named_with_its_path() {
        let schema = json!({"properties": {"a": {"properties": {"b": {}, "c": {}}}}});
        let mut breaches = Vec::new();

        not_in_values("", &schema, &json!({"a": {"b": 1}}), &mut breaches);

        assert_eq!(breaches, ["values.yaml does not show a.c"]);
    }

    #[test]
    fn value_without_a_comment_is_named_with_its_line() {
        let text = "# Says it.\na: 1\nb: 2\nc:\n  # Says it.\n  d: 3\n  requests: {cpu: 1}\n";

        assert_eq!(
            without_a_sentence(text),
            ["values.yaml:3: b has no comment"]
        );
    }
}
