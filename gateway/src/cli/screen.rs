//! What a terminal gets: colours, tables, and long texts page by page. Files and pipes get plain text.

use super::print;
use crate::run::colored;
use isthmus_config::diagnostic::printable;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

/// Whether standard output has colours.
pub(super) fn has_color() -> bool {
    colored(std::io::stdout().is_terminal())
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
        let cells = row.into_iter().map(|cell| printable(&cell).into_owned());
        self.rows.push(cells.collect());
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

/// Prints a text; on a terminal that it does not fit on, through `$PAGER` or less, as git does.
pub(super) fn show(text: &str) {
    if !paged(text) {
        print(text);
    }
}

/// Whether a pager has shown the text.
fn paged(text: &str) -> bool {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return false;
    }
    let rows = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_row));
    if rows == 0 || text.lines().count() < rows {
        return false;
    }
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
    let mut words = pager.split_whitespace();
    let Some(program) = words.next().filter(|program| *program != "cat") else {
        return false;
    };
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped());
    // What git gives less: end when it fits, keep colours, leave the text on the screen; and no line is wrapped.
    if std::env::var_os("LESS").is_none() {
        command.env("LESS", "FRSX");
    }
    let Ok(mut child) = command.spawn() else {
        return false;
    };
    if let Some(mut input) = child.stdin.take() {
        // Whoever has read enough closes it.
        let _closed = input.write_all(text.as_bytes());
    }
    let _status_is_its_own = child.wait();
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
