//! How much room the vSwitches have, as ipam counts it.

use std::collections::BTreeMap;

use crate::status::judge::{Area, Level, Line, count, some_of};
use crate::status::picture::{NODE, Picture};

/// Addresses of a vSwitch.
#[derive(Debug, Default, Clone, Copy)]
struct Room {
    all: f64,
    free: f64,
    quarantine: f64,
}

/// A vSwitch with a smaller share of free addresses is worth a look.
const LOW: f64 = 0.1;
/// Pods that are named in a line.
const NAMED: usize = 5;

pub(super) fn judge(picture: &Picture, lines: &mut Vec<Line>) {
    let mut rooms: BTreeMap<(&str, &str), Room> = BTreeMap::new();
    for scrape in picture
        .scrapes
        .iter()
        .filter(|scrape| scrape.component == "ipam")
    {
        let samples = match &scrape.samples {
            Ok(samples) => samples,
            Err(why) => {
                lines.push(Line::fault(
                    Area::Addresses,
                    Level::Unseen,
                    "NotLookedAt",
                    format!("metrics of {}", scrape.pod),
                    why,
                ));
                continue;
            }
        };
        for sample in samples
            .iter()
            .filter(|sample| sample.name == "terway_ipam_slots")
        {
            let room = rooms
                .entry((sample.label("vswitch"), sample.label("family")))
                .or_default();
            room.all += sample.value;
            match sample.label("state") {
                "free" => room.free += sample.value,
                "quarantine" => room.quarantine += sample.value,
                _ => {}
            }
        }
    }
    for ((vswitch, family), room) in rooms {
        of_vswitch(vswitch, family, room, lines);
    }
    pools(picture, lines);
}

/// What nodes have in hand: one line for all that were looked at.
fn pools(picture: &Picture, lines: &mut Vec<Line>) {
    let (mut nodes, mut used, mut free) = (0_usize, 0.0, 0.0);
    let mut unseen: Vec<(&str, &str)> = Vec::new();
    for scrape in picture
        .scrapes
        .iter()
        .filter(|scrape| scrape.component == NODE)
    {
        let samples = match &scrape.samples {
            Ok(samples) => samples,
            Err(why) => {
                unseen.push((&scrape.pod, why));
                continue;
            }
        };
        let value = |name: &str| {
            let found = samples.iter().find(|sample| sample.name == name);
            found.map_or(0.0, |sample| sample.value)
        };
        nodes += 1;
        used += value("terway_agent_pool_used");
        free += value("terway_agent_pool_free");
    }
    if nodes > 0 {
        let subject = format!("pools of {}", count(nodes, "node"));
        let what = format!("{used} pods with addresses, {free} more could start at once");
        lines.push(Line::good(Area::Addresses, subject, what));
    }
    if let Some((_, why)) = unseen.first() {
        let names: Vec<&str> = unseen.iter().map(|(pod, _)| *pod).collect();
        let subject = format!("pools: metrics of {}", some_of(&names, NAMED));
        lines.push(Line::fault(
            Area::Addresses,
            Level::Unseen,
            "NotLookedAt",
            subject,
            *why,
        ));
    }
}

fn of_vswitch(vswitch: &str, family: &str, room: Room, lines: &mut Vec<Line>) {
    let subject = format!("vSwitch {vswitch} ({family})");
    let what = format!("{} of {} addresses free", room.free, room.all);
    if room.quarantine > 0.0 {
        let what = format!("{} addresses in quarantine", room.quarantine);
        lines.push(Line::fault(
            Area::Addresses,
            Level::Bad,
            "AddressQuarantined",
            &subject,
            what,
        ));
    }
    if room.all <= 0.0 {
        return;
    }
    lines.push(if room.free <= 0.0 {
        Line::fault(
            Area::Addresses,
            Level::Bad,
            "VswitchExhausted",
            subject,
            what,
        )
    } else if room.free < LOW * room.all {
        Line::fault(
            Area::Addresses,
            Level::Note,
            "VswitchNearlyFull",
            subject,
            what,
        )
    } else {
        Line::good(Area::Addresses, subject, what)
    });
}
