//! What the program tells people, and whether everything held.

use std::fmt;
use std::io::Write;
use std::time::Instant;

/// Writes lines for people and remembers whether any check failed.
pub struct Report<W> {
    out: W,
    start: Instant,
    failed: usize,
    held: usize,
}

impl<W> fmt::Debug for Report<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("failed", &self.failed)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl<W: Write> Report<W> {
    /// Starts the clock.
    pub fn new(out: W) -> Self {
        Self {
            out,
            start: Instant::now(),
            failed: 0,
            held: 0,
        }
    }

    /// Something begins.
    pub fn step(&mut self, text: &str) {
        let at = self.start.elapsed().as_secs_f32();
        self.line(&format!("[{at:6.1} s] {text}"));
    }

    /// A check that held or failed.
    pub fn check(&mut self, held: bool, text: &str) {
        if held {
            self.held += 1;
        } else {
            self.failed += 1;
        }
        let mark = if held { "ok  " } else { "FAIL" };
        self.line(&format!("    {mark}  {text}"));
    }

    /// Details of what was said before; at most `limit` lines.
    pub fn details(&mut self, lines: &[String], limit: usize) {
        for line in lines.iter().take(limit) {
            self.line(&format!("          {line}"));
        }
        if let Some(more) = lines.len().checked_sub(limit).filter(|n| *n > 0) {
            self.line(&format!("          … and {more} more"));
        }
    }

    /// A line as it is.
    pub fn line(&mut self, text: &str) {
        // A reader that went away must not end the run in the middle of its tear-down.
        if let Err(error) = writeln!(self.out, "{text}").and_then(|()| self.out.flush()) {
            tracing::debug!(%error, "nobody reads the report");
        }
    }

    /// A table with aligned columns; the first row is its head.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in rows {
            let cells = row.iter().zip(&widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            self.line(format!("    {}", cells.join("  ")).trim_end());
        }
    }

    /// Whether every check held, and at least one was made.
    pub fn holds(&self) -> bool {
        self.failed == 0 && self.held > 0
    }

    /// The last line.
    pub fn close(&mut self) {
        let (held, failed) = (self.held, self.failed);
        self.step(&format!("{held} checks held, {failed} failed"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_without_checks_does_not_hold() {
        assert!(!Report::new(Vec::new()).holds());
    }

    #[test]
    fn one_failed_check_spoils_the_report() {
        let mut report = Report::new(Vec::new());
        report.check(true, "a");
        assert!(report.holds());
        report.check(false, "b");

        assert!(!report.holds());
    }

    #[test]
    fn columns_of_a_table_are_aligned() {
        let mut report = Report::new(Vec::new());
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        report.table(&[row("pod", "node"), row("default/a", "n")]);

        let text = String::from_utf8(report.out).unwrap();
        assert_eq!(text, "    pod        node\n    default/a  n\n");
    }
}
