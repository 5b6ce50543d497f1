//! What the kernel has, read from a dump of our tables: for people, beside what it should have.

use std::net::IpAddr;

use nft_wire::element::Element;
use nft_wire::expr::Expr;
use nft_wire::key::{Field, Key, Value};
use nft_wire::snapshot::Snapshot;
use nft_wire::verdict::Verdict;

/// Something the kernel has, with what it counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// In words.
    pub what: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Fact {
    fn plain(what: String) -> Self {
        Self {
            what,
            packets: 0,
            bytes: 0,
        }
    }
}

/// A denied flow, as the kernel's set has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedEntry {
    /// The link at which it was denied, as the set's key has it.
    pub link: String,
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// Packets.
    pub packets: u64,
    /// Milliseconds until it is forgotten: more for newer ones.
    pub left_ms: u64,
}

/// Counters of a chain's rules.
pub fn chain(dump: &[Snapshot], name: &str) -> Vec<Fact> {
    let mut facts = Vec::new();
    for table in dump {
        let Some(state) = table.chains.get(name) else {
            continue;
        };
        facts.push(Fact::plain(format!(
            "chain {name} with {} rules",
            state.rules.len()
        )));
        for (place, rule) in state.rules.iter().enumerate() {
            for expr in &rule.exprs {
                if let Expr::Counter { packets, bytes } = expr {
                    let comment = rule
                        .comment
                        .as_deref()
                        .map(|c| format!(" ({c})"))
                        .unwrap_or_default();
                    facts.push(Fact {
                        what: format!("chain {name} rule {place}{comment}"),
                        packets: *packets,
                        bytes: *bytes,
                    });
                }
            }
        }
    }
    facts
}

/// Where the elements of a link and of its addresses lead in the verdict maps.
pub fn elements(dump: &[Snapshot], links: &[String], ips: &[IpAddr]) -> Vec<Fact> {
    let keys: Vec<(Key, String)> = links
        .iter()
        .map(|link| (Key::ifname(link), link.clone()))
        .chain(ips.iter().map(|ip| (Key::address(*ip), ip.to_string())))
        .collect();
    let mut facts = Vec::new();
    for table in dump {
        for (name, state) in &table.sets {
            for element in &state.elements {
                let Some(verdict) = &element.verdict else {
                    continue;
                };
                if let Some((_, said)) = keys.iter().find(|(key, _)| *key == element.key) {
                    let to = led(verdict);
                    facts.push(Fact::plain(format!("map {name}: {said} : {to}")));
                }
            }
        }
    }
    facts
}

/// Whether a set has an address: for each set of these names that has it.
pub fn members(dump: &[Snapshot], sets: &[String], ip: IpAddr) -> Vec<Fact> {
    let mut facts = Vec::new();
    for table in dump {
        for name in sets {
            let Some(state) = table.sets.get(name.as_str()) else {
                continue;
            };
            let has = state.elements.iter().any(|element| {
                element
                    .key
                    .values(&state.set.key)
                    .is_some_and(|values| values.contains(&Value::Address(ip)))
            });
            if has {
                facts.push(Fact::plain(format!("set {name} has {ip}")));
            }
        }
    }
    facts
}

/// What elements of a set of denied flows say; `fields` are what its keys are made of.
pub fn denied(elements: &[Element], fields: &[Field]) -> Vec<DeniedEntry> {
    let mut found = Vec::new();
    for element in elements {
        let Some(values) = element.key.values(fields) else {
            continue;
        };
        if let Some(mut entry) = denied_key(&values) {
            let life = element.life.as_deref();
            let count = life.and_then(|l| l.counter);
            entry.packets = count.map_or(0, |count| count.packets);
            let left = life.and_then(|l| l.expiration);
            entry.left_ms = left.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
            found.push(entry);
        }
    }
    found
}

fn denied_key(values: &[Value]) -> Option<DeniedEntry> {
    let mut entry = match values {
        [
            Value::Ifname(link),
            Value::Address(source),
            Value::Address(destination),
            Value::Proto(protocol),
            rest @ ..,
        ] => DeniedEntry {
            link: link.clone(),
            source: *source,
            destination: *destination,
            protocol: *protocol,
            port: match rest {
                [Value::Service(port), ..] => *port,
                _ => 0,
            },
            packets: 0,
            left_ms: 0,
        },
        _ => return None,
    };
    // ICMP has its type and code where others have a port.
    if !matches!(entry.protocol, 6 | 17 | 33 | 132 | 136) {
        entry.port = 0;
    }
    Some(entry)
}

fn led(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Continue => "continue".to_owned(),
        Verdict::Break => "break".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

#[cfg(test)]
mod tests {
    use nft_wire::key::Part;
    use nft_wire::name::{Family, TableRef};
    use nft_wire::set::Set;
    use nft_wire::snapshot::SetState;
    use nft_wire::table::Table;

    use super::*;

    fn table(name: &str, fields: &[Field], elements: Vec<Element>) -> Vec<Snapshot> {
        let at = TableRef::new(Family::Inet, "t");
        let set = Set::plain(&at, name, fields);
        let mut snapshot = Snapshot::new(Table::new(at), 1);
        snapshot
            .sets
            .insert(name.into(), SetState { set, elements });
        vec![snapshot]
    }

    #[test]
    fn element_of_a_link_says_where_it_leads() {
        let verdict = Verdict::Goto("eg_1".into());
        let element = Element::leading(Key::ifname("cali1"), verdict);
        let dump = table("from_pod", &[Field::Ifname], vec![element]);

        let facts = elements(&dump, &["cali1".to_owned()], &[]);

        assert_eq!(facts[0].what, "map from_pod: cali1 : goto eg_1");
    }

    #[test]
    fn denied_flow_is_read_from_its_key() {
        let fields = [
            Field::Ifname,
            Field::Ipv4,
            Field::Ipv4,
            Field::Proto,
            Field::Service,
        ];
        let key = |protocol| {
            Key::of(&[
                Part::Ifname("cali1"),
                Part::Ipv4([10, 0, 0, 1].into()),
                Part::Ipv4([10, 0, 0, 2].into()),
                Part::Proto(protocol),
                Part::Service(80),
            ])
        };
        let both = vec![Element::member(key(6)), Element::member(key(1))];
        let found = denied(&both, &fields);

        assert_eq!(found[0].link, "cali1");
        assert_eq!(found[0].destination.to_string(), "10.0.0.2");
        assert_eq!((found[0].port, found[1].port), (80, 0));
    }
}
