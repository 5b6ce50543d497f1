//! Lines on a screen, or as JSON.

use std::io::{self, Write};

use serde_json::json;

use crate::status::judge::{Area, Level, Line, is_healthy};
use crate::status::picture::Picture;

const fn mark(level: Level) -> &'static str {
    match level {
        Level::Good => "ok  ",
        Level::Unseen => "?   ",
        Level::Note => "note",
        Level::Bad => "BAD ",
    }
}

/// One screen: what is well takes a line, what is not says what to do.
///
/// # Errors
/// When nobody reads it.
pub fn text(picture: &Picture, lines: &[Line], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Terway Mesh: release {} in namespace {}",
        picture.release, picture.namespace
    )?;
    for area in Area::ALL {
        let of_area: Vec<&Line> = lines.iter().filter(|line| line.area == area).collect();
        if of_area.is_empty() {
            continue;
        }
        writeln!(out, "\n{}", area.title())?;
        for line in of_area {
            let name = if line.name.is_empty() {
                String::new()
            } else {
                format!("{}: ", line.name)
            };
            writeln!(
                out,
                "  {} {name}{}: {}",
                mark(line.level),
                line.subject,
                line.what
            )?;
            if !line.todo.is_empty() {
                writeln!(out, "       -> {}", line.todo)?;
            }
        }
    }
    let bad = lines.iter().filter(|line| line.level == Level::Bad).count();
    let verdict = if is_healthy(lines) {
        "healthy".to_owned()
    } else {
        format!("unhealthy: {bad} to mend")
    };
    writeln!(out, "\n{verdict}")
}

/// The same for programs.
///
/// # Errors
/// When nobody reads it.
pub fn json(picture: &Picture, lines: &[Line], out: &mut dyn Write) -> io::Result<()> {
    let report = json!({
        "healthy": is_healthy(lines),
        "release": picture.release,
        "namespace": picture.namespace,
        "lines": lines,
    });
    writeln!(out, "{report}")
}
