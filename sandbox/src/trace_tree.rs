//! A trace as a tree: from the runtime's call down to the cloud's request id.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::spans::Span;

/// The attribute that the gateway puts on a call's span.
pub const REQUEST_ID: &str = "cloud.request_id";
/// The name of an ADD's first span.
pub const ADD: &str = "cni.ADD";

/// One trace.
#[derive(Debug, Clone)]
pub struct Trace {
    /// By their start.
    spans: Vec<Span>,
    /// Where a span is, by its id.
    places: BTreeMap<String, usize>,
    /// Spans below a span, by its id.
    below: BTreeMap<String, Vec<usize>>,
}

impl Trace {
    fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_by_key(|span| span.start_unix_nano);
        let mut places = BTreeMap::new();
        let mut below: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (place, span) in spans.iter().enumerate() {
            places.insert(span.span_id.clone(), place);
            below
                .entry(span.parent_span_id.clone())
                .or_default()
                .push(place);
        }
        Self {
            spans,
            places,
            below,
        }
    }

    /// Traces that go from an ADD to a cloud call that has a request id; the one with the longest way first.
    pub fn cold_adds(spans: &[Span]) -> Vec<Self> {
        let mut by_trace: BTreeMap<&str, Vec<Span>> = BTreeMap::new();
        for span in spans {
            by_trace
                .entry(&span.trace_id)
                .or_default()
                .push(span.clone());
        }
        let mut found: Vec<_> = by_trace
            .into_values()
            .map(Self::new)
            .filter(|trace| trace.longest_chain() > 0)
            .collect();
        found.sort_by_key(|trace| std::cmp::Reverse(trace.longest_chain()));
        found
    }

    /// How many spans it has.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Spans on the way from the ADD to a cloud call with a request id, both counted; 0 if there is no such way.
    pub fn longest_chain(&self) -> usize {
        let calls = self
            .spans
            .iter()
            .filter(|s| s.attribute(REQUEST_ID).is_some());
        calls
            .filter_map(|call| self.depth_below_add(call))
            .max()
            .unwrap_or(0)
    }

    fn depth_below_add(&self, span: &Span) -> Option<usize> {
        let mut at = span;
        // A chain can not be longer than the trace; anything else is a circle.
        for depth in 1..=self.spans.len() {
            if at.name == ADD {
                return Some(depth);
            }
            at = self.spans.get(*self.places.get(&at.parent_span_id)?)?;
        }
        None
    }

    /// The tree as text, one line per span. Equal spans in a row, such as tries, share a line.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let start = self.spans.first().map_or(0, |s| s.start_unix_nano);
        let is_root = |s: &&Span| !self.places.contains_key(&s.parent_span_id);
        let roots: Vec<_> = self.spans.iter().filter(is_root).collect();
        self.render_row(&roots, 0, start, &mut text);
        text
    }

    fn render_row(&self, row: &[&Span], depth: usize, start: u64, text: &mut String) {
        // A chain can not be longer than the trace; anything else is a circle.
        if depth > self.spans.len() {
            return;
        }
        let mut rest = row;
        while let Some((first, _)) = rest.split_first() {
            let children = self.children(first);
            let equal = rest
                .iter()
                .take_while(|s| children.is_empty() && s.name == first.name && self.is_leaf(s))
                .count()
                .max(1);
            line(first, equal, depth, start, text);
            self.render_row(&children, depth + 1, start, text);
            rest = rest.get(equal..).unwrap_or_default();
        }
    }

    fn children(&self, span: &Span) -> Vec<&Span> {
        let places = self.below.get(&span.span_id).into_iter().flatten();
        places.filter_map(|place| self.spans.get(*place)).collect()
    }

    fn is_leaf(&self, span: &Span) -> bool {
        !self.below.contains_key(&span.span_id)
    }
}

fn line(span: &Span, equal: usize, depth: usize, start: u64, text: &mut String) {
    let at = span.start_unix_nano.saturating_sub(start) / 1_000_000;
    let times = if equal > 1 {
        format!(" ×{equal}")
    } else {
        String::new()
    };
    let name = format!("{:indent$}{}{times}", "", span.name, indent = depth * 2);
    let request = span.attribute(REQUEST_ID);
    let request = request.map(|id| format!("  request id {id}"));
    let failed = if span.status == "error" {
        "  failed"
    } else {
        ""
    };
    // Writing to a string can not fail.
    let _infallible = writeln!(
        text,
        "    {name:<52} {service:<14} +{at:>5} ms {took:>6} ms{request}{failed}",
        service = span.service,
        took = span.duration().as_millis(),
        request = request.unwrap_or_default(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, id: &str, parent: &str, request: Option<&str>) -> Span {
        let attributes = request.map(|r| (REQUEST_ID.to_owned(), r.into()));
        Span {
            name: name.to_owned(),
            trace_id: "t".to_owned(),
            span_id: id.to_owned(),
            parent_span_id: parent.to_owned(),
            service: "s".to_owned(),
            start_unix_nano: 0,
            end_unix_nano: 5_000_000,
            status: "ok".to_owned(),
            attributes: attributes.into_iter().collect(),
            links: Vec::new(),
        }
    }

    #[test]
    fn chain_from_add_to_the_cloud_is_counted() {
        let spans = [
            span("cni.ADD", "1", "", None),
            span("agent.add", "2", "1", None),
            span("agent.persist", "4", "2", None),
            span("cloud.CreateNetworkInterface", "3", "2", Some("R-1")),
        ];

        let traces = Trace::cold_adds(&spans);

        assert_eq!(traces.len(), 1);
        assert_eq!(traces[0].longest_chain(), 3);
        let text = traces[0].render();
        assert!(
            text.contains("        cloud.CreateNetworkInterface"),
            "{text}"
        );
        assert!(text.contains("request id R-1"), "{text}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn equal_leaves_in_a_row_share_a_line() {
        let spans = [
            span("cni.ADD", "1", "", None),
            span("agent.persist", "2", "1", None),
            span("agent.persist", "3", "1", None),
            span("cloud.X", "4", "1", Some("R-1")),
        ];

        let text = Trace::cold_adds(&spans)[0].render();

        assert!(text.contains("agent.persist ×2"), "{text}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn add_without_a_cloud_call_is_not_cold() {
        let spans = [
            span("cni.ADD", "1", "", None),
            span("agent.add", "2", "1", None),
        ];

        assert!(Trace::cold_adds(&spans).is_empty());
    }

    #[test]
    fn circle_of_parents_ends() {
        let spans = [
            span("a", "1", "2", None),
            span("cloud.X", "2", "1", Some("R-1")),
        ];

        assert!(Trace::cold_adds(&spans).is_empty());
    }
}
