//! Metrics as text.
//!
//! Source: OpenMetrics 1.0, text format; only what our own services write is understood.

use std::collections::BTreeMap;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// With the suffixes of its type.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label; empty where there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// All lines that are samples. Lines that are not understood are left out.
pub fn parse(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    // Exemplars come behind " # ".
    let line = line.split(" # ").next()?;
    let (name, labels, value) = if let Some((name, rest)) = line.split_once('{') {
        let (labels, value) = labels(rest)?;
        (name, labels, value)
    } else {
        let (name, value) = line.split_once(' ')?;
        (name, BTreeMap::new(), value)
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// `a="x",b="y"} 1` → the labels, and what follows.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some((labels, value));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (text, after) = quoted(after)?;
        labels.insert(name.to_owned(), text);
        rest = after;
    }
}

/// Up to the closing quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_labels_exemplars_and_without() {
        let text = "# HELP terway_x some\n\
                    terway_up 1\n\
                    terway_slots{vswitch=\"vsw-1\",state=\"free\"} 12\n\
                    terway_calls_total{what=\"a \\\"b\\\" {c}\"} 3.5 # {trace_id=\"1\"} 1 2\n\
                    # EOF\n";

        let samples = parse(text);

        let seen: Vec<(&str, f64)> = samples.iter().map(|s| (s.name.as_str(), s.value)).collect();
        assert_eq!(
            seen,
            [
                ("terway_up", 1.0),
                ("terway_slots", 12.0),
                ("terway_calls_total", 3.5)
            ]
        );
        assert_eq!(samples[1].label("vswitch"), "vsw-1");
        assert_eq!(samples[2].label("what"), "a \"b\" {c}");
        assert_eq!(samples[0].label("what"), "");
    }

    #[test]
    fn odd_lines_are_left_out() {
        assert_eq!(parse("a{b=\"c} 1\nnothing\nx{} one\n"), []);
    }
}
