//! What a terminal gets: colours, tables, and long texts page by page. Files and pipes get plain text.

use super::print;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

/// Whether standard output has colours: a terminal, unless NO_COLOR is set (no-color.org) or it has none.
pub(super) fn has_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Rows under a line of names.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(names: &[&str]) -> Self {
        Self {
            rows: vec![names.iter().map(|name| (*name).to_owned()).collect()],
        }
    }

    pub(super) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Puts the rows in order, and leaves one of those that are equal.
    pub(super) fn sort(&mut self) {
        self.rows.get_mut(1..).unwrap_or_default().sort();
        self.rows.dedup();
    }

    pub(super) fn render(&self, color: bool) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for (at, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let cell = if cell.is_empty() { "-" } else { cell };
                let _infallible = write!(line, "{cell:<width$}  ");
            }
            let line = line.trim_end();
            let _infallible = match (at, color) {
                (0, true) => writeln!(out, "\u{1b}[1m{line}\u{1b}[0m"),
                _ => writeln!(out, "{line}"),
            };
        }
        out
    }
}

/// Prints a text; one that is longer than the terminal goes to `$PAGER`, or `less`.
pub(super) fn show(text: &str) {
    let is_long = || {
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        size.is_ok_and(|size| size.ws_row > 0 && text.lines().count() >= usize::from(size.ws_row))
    };
    if !(std::io::stdout().is_terminal() && is_long() && paged(text)) {
        print(text);
    }
}

/// Whether a pager could be started; what it was given is then on the screen.
fn paged(text: &str) -> bool {
    let wanted = std::env::var("PAGER").unwrap_or_default();
    let mut words = wanted.split_whitespace();
    let (program, arguments): (&str, Vec<&str>) = match words.next() {
        Some(program) => (program, words.collect()),
        None => ("less", vec!["-FRSX"]),
    };
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut pager) = started else {
        return false;
    };
    if let Some(mut input) = pager.stdin.take() {
        // It may end before it has read all.
        let _left_early = input.write_all(text.as_bytes());
    }
    let _status_is_its_own = pager.wait();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "LONG"]);
        table.push(vec!["é".to_owned(), String::new()]);
        table.push(vec!["bbb".to_owned(), "x".to_owned()]);
        table.push(vec!["bbb".to_owned(), "x".to_owned()]);
        table.sort();
        assert_eq!(table.render(false), "A    LONG\nbbb  x\né    -\n");
        assert!(table.render(true).starts_with("\u{1b}[1mA    LONG\u{1b}[0m\n"));
    }
}
