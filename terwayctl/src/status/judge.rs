//! What a picture means: one line for everything worth knowing. Pure.

mod addresses;
mod certificates;
mod cloud;
mod components;
mod nodes;
mod pods;

use serde::Serialize;

use crate::status::advice;
use crate::status::picture::Picture;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// What runs.
    Components,
    /// Who is trusted, and until when.
    Certificates,
    /// Credentials, permissions, faults.
    Cloud,
    /// Pools and vSwitches.
    Addresses,
    /// Nodes.
    Nodes,
    /// Pods that do not start.
    Pods,
}

impl Area {
    /// All of them, as they are shown.
    pub const ALL: [Self; 6] = [
        Self::Components,
        Self::Certificates,
        Self::Cloud,
        Self::Addresses,
        Self::Nodes,
        Self::Pods,
    ];

    /// As a heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Components => "Components",
            Self::Certificates => "Certificates",
            Self::Cloud => "Cloud",
            Self::Addresses => "Addresses",
            Self::Nodes => "Nodes",
            Self::Pods => "Pods",
        }
    }
}

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// It could not be looked at.
    Unseen,
    /// Worth a look; what runs goes on, and what starts does.
    Note,
    /// Something does not work.
    Bad,
}

/// One thing worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it is about.
    pub area: Area,
    /// How grave it is.
    pub level: Level,
    /// Name of the fault; empty for what is well.
    pub name: String,
    /// What has it.
    pub subject: String,
    /// In words.
    pub what: String,
    /// What to do; empty for what is well.
    pub todo: String,
}

impl Line {
    /// Something that is as it should be.
    pub fn good(area: Area, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            area,
            level: Level::Good,
            name: String::new(),
            subject: subject.into(),
            what: what.into(),
            todo: String::new(),
        }
    }

    /// A fault by name, with the advice for it.
    pub fn fault(
        area: Area,
        level: Level,
        name: &str,
        subject: impl Into<String>,
        what: impl Into<String>,
    ) -> Self {
        let advice = advice::of(name);
        let unknown = "look at the message, and at the log of who said it";
        Self {
            area,
            level,
            name: advice.map_or(name, |advice| advice.name).to_owned(),
            subject: subject.into(),
            what: what.into(),
            todo: advice.map_or(unknown, |advice| advice.todo).to_owned(),
        }
    }
}

/// All lines, by area; within one the gravest first.
pub fn judge(picture: &Picture) -> Vec<Line> {
    let mut lines = Vec::new();
    components::judge(picture, &mut lines);
    if !picture.workloads.is_empty() {
        certificates::judge(picture, &mut lines);
        cloud::judge(picture, &mut lines);
        addresses::judge(picture, &mut lines);
        nodes::judge(picture, &mut lines);
        pods::judge(picture, &mut lines);
    }
    for blind in &picture.blind {
        lines.push(Line::fault(
            Area::Components,
            Level::Unseen,
            "NotLookedAt",
            &blind.what,
            &blind.why,
        ));
    }
    // Stable: lines of one level stay as they came.
    lines.sort_by_key(|line| (line.area, std::cmp::Reverse(line.level)));
    lines
}

/// Whether nothing is bad.
pub fn is_healthy(lines: &[Line]) -> bool {
    lines.iter().all(|line| line.level != Level::Bad)
}

/// `a, b, c and 4 more`.
fn some_of(names: &[&str], most: usize) -> String {
    let shown: Vec<&str> = names.iter().copied().take(most).collect();
    let more = names.len().saturating_sub(most);
    let shown = shown.join(", ");
    if more == 0 {
        shown
    } else {
        format!("{shown} and {more} more")
    }
}

/// `one node`, `3 nodes`.
fn count(number: usize, what: &str) -> String {
    if number == 1 {
        format!("one {what}")
    } else {
        format!("{number} {what}s")
    }
}

/// As people say it: `3 d`, `5 h`, `12 min`.
fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        s if s >= 2 * 86_400 => format!("{} d", s / 86_400),
        s if s >= 2 * 3_600 => format!("{} h", s / 3_600),
        s if s >= 120 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests;
