//! Prints results on standard output: tables for people, JSON for programs.
//! A closed pipe is no error.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;
use time::OffsetDateTime;

use crate::failure::Failure;

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints one line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints a table whose columns are as wide as their widest cell, or without rows the text `empty` on standard error.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>], empty: &str) -> Result<(), Failure> {
    if rows.is_empty() {
        eprintln!("{empty}");
        return Ok(());
    }
    line(&layout(head, rows))
}

fn layout(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..head.len())
        .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let lines = all().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the time from now to a moment as text: `3 min ago`, `now`, `in 20 s`.
pub(crate) fn from_now(moment: OffsetDateTime) -> String {
    let seconds = (moment - OffsetDateTime::now_utc()).whole_seconds();
    let (amount, unit) = match seconds.unsigned_abs() {
        seconds @ 0..120 => (seconds, "s"),
        seconds @ 120..7200 => (seconds / 60, "min"),
        seconds @ 7200..172_800 => (seconds / 3600, "h"),
        seconds => (seconds / 86_400, "days"),
    };
    if seconds == 0 {
        return "now".to_owned();
    }
    if seconds < 0 { format!("{amount} {unit} ago") } else { format!("in {amount} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["bbb".to_owned(), String::new()]];
        assert_eq!(layout(&["ID", "NAME"], &rows), "ID   NAME\na    x\nbbb");
    }
}
