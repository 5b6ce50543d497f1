//! Expectations typed by a person, a line for each group of connections.
//!
//! `FROM -> TO : WHAT`. The last line that names both ends decides. `FROM` and `TO` are lists of
//! names with commas: `x/a`, `x/*`, `*/a`, `*` (any pod), `node:n1`, `node:*`, `outside`. `WHAT` is
//! `all`, `none`, or a list of what opens, everything else being closed: `tcp`, `udp/80`, `v4`,
//! `sctp/81/v6`.

use policy_oracle::probe::{End, Probe, Protocol};

/// Why a table cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A line that means nothing; correct the case.
    #[error("the line {line:?} of a table means nothing")]
    Unreadable {
        /// The line as typed.
        line: String,
    },
    /// No line is about a connection; add one.
    #[error("the table says nothing about {probe}")]
    Silent {
        /// The connection, for a person.
        probe: String,
    },
}

/// A table that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    from: Vec<Name>,
    to: Vec<Name>,
    open: Vec<Opening>,
}

/// Parts that are `None` stand for any.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Pod(Option<String>, Option<String>),
    Node(Option<String>),
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Opening {
    protocol: Option<Protocol>,
    port: Option<u16>,
    ipv4: Option<bool>,
}

impl Table {
    /// Reads lines.
    ///
    /// # Errors
    /// A line means nothing.
    pub fn parse(lines: &[String]) -> Result<Self, TableError> {
        let lines = lines
            .iter()
            .map(|line| {
                Line::parse(line).ok_or_else(|| TableError::Unreadable { line: line.clone() })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { lines })
    }

    /// Whether the connection opens; `None` when no line is about it.
    pub fn say(&self, probe: &Probe) -> Option<bool> {
        let about = |line: &&Line| {
            line.from.iter().any(|name| name.means(&probe.source))
                && line.to.iter().any(|name| name.means(&probe.destination))
        };
        let line = self.lines.iter().rev().find(about)?;
        Some(line.open.iter().any(|opening| opening.means(probe)))
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (ends, what) = line.split_once(" : ")?;
        let (from, to) = ends.split_once(" -> ")?;
        let names = |list: &str| -> Option<Vec<Name>> {
            list.split(',')
                .map(|name| Name::parse(name.trim()))
                .collect()
        };
        let open = match what.trim() {
            "none" => Vec::new(),
            "all" => vec![Opening::default()],
            list => list
                .split_whitespace()
                .map(Opening::parse)
                .collect::<Option<_>>()?,
        };
        Some(Self {
            from: names(from)?,
            to: names(to)?,
            open,
        })
    }
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let part = |text: &str| (text != "*").then(|| text.to_owned());
        if text == "outside" {
            return Some(Self::Outside);
        }
        if let Some(node) = text.strip_prefix("node:") {
            return Some(Self::Node(part(node)));
        }
        if text == "*" {
            return Some(Self::Pod(None, None));
        }
        let (namespace, name) = text.split_once('/')?;
        Some(Self::Pod(part(namespace), part(name)))
    }

    fn means(&self, end: &End) -> bool {
        let same = |wanted: &Option<String>, actual: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == actual)
        };
        match (self, end) {
            (
                Self::Pod(wanted_namespace, wanted_name),
                End::Pod {
                    namespace, name, ..
                },
            ) => same(wanted_namespace, namespace) && same(wanted_name, name),
            (Self::Node(wanted), End::Node { name, .. }) => same(wanted, name),
            (Self::Outside, End::Address(_)) => true,
            (Self::Pod(..) | Self::Node(_) | Self::Outside, _) => false,
        }
    }
}

impl Opening {
    fn parse(text: &str) -> Option<Self> {
        let mut opening = Self::default();
        for part in text.split('/') {
            match part {
                "tcp" => opening.protocol = Some(Protocol::Tcp),
                "udp" => opening.protocol = Some(Protocol::Udp),
                "sctp" => opening.protocol = Some(Protocol::Sctp),
                "v4" => opening.ipv4 = Some(true),
                "v6" => opening.ipv4 = Some(false),
                number => opening.port = Some(number.parse().ok()?),
            }
        }
        Some(opening)
    }

    fn means(self, probe: &Probe) -> bool {
        self.protocol.is_none_or(|wanted| wanted == probe.protocol)
            && self.port.is_none_or(|wanted| wanted == probe.port)
            && self
                .ipv4
                .is_none_or(|wanted| wanted == probe.destination.address().is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(lines: &[&str], from: End, to: &str, protocol: Protocol, port: u16) -> Option<bool> {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let to = End::pod("y", to, "10.0.0.2".parse().unwrap());
        Table::parse(&lines)
            .unwrap()
            .say(&Probe::new(from, to, protocol, port))
    }

    fn xa() -> End {
        End::pod("x", "a", "10.0.0.1".parse().unwrap())
    }

    #[test]
    fn last_line_that_names_both_ends_decides() {
        let lines = [
            "* -> * : none",
            "x/* -> y/b : all",
            "*/a -> */c,y/b : udp/80 tcp/81/v4",
        ];
        let ask = |to: &str, protocol, port| say(&lines, xa(), to, protocol, port);
        assert_eq!(ask("a", Protocol::Tcp, 80), Some(false));
        assert_eq!(ask("b", Protocol::Tcp, 80), Some(false));
        assert_eq!(ask("b", Protocol::Udp, 80), Some(true));
        assert_eq!(ask("b", Protocol::Tcp, 81), Some(true));
    }

    #[test]
    fn star_means_pods_alone() {
        let node = End::node("n1", "192.168.0.11".parse().unwrap());
        assert_eq!(
            say(&["* -> * : all"], node.clone(), "b", Protocol::Tcp, 80),
            None
        );
        assert_eq!(
            say(&["node:* -> * : tcp"], node, "b", Protocol::Tcp, 80),
            Some(true)
        );
    }

    #[test]
    fn line_that_means_nothing_is_an_error() {
        for line in [
            "",
            "x/a -> y/b",
            "x -> y/b : all",
            "* -> * : tpc/80",
            "* : all",
        ] {
            assert!(Table::parse(&[line.to_owned()]).is_err(), "{line}");
        }
    }
}
