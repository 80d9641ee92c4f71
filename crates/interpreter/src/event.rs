//! The lines of a run's response: one JSON object per line, ASCII only.
//! ASCII, because one SDK decodes every network chunk separately and another takes U+2028 for the end of a line.
//! Kernels name formats by MIME type, clients by short names, which are mapped here.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::macros::format_description;

/// An event of a run, for the client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Count(u64),
    Stdout(String),
    Stderr(String),
    /// `main` is set for the value of the cell, as opposed to a value that it displayed.
    Result {
        main: bool,
        data: Bundle,
    },
    Error {
        name: String,
        value: String,
        traceback: String,
    },
    Keepalive,
    End,
}

/// A value in several formats, by MIME type.
pub(crate) type Bundle = BTreeMap<String, RawJson>;

/// JSON exactly as the kernel wrote it, so that table columns keep their order and numbers their digits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RawJson(Box<RawValue>);

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

/// Short names of MIME types.
const NAMES: &[(&str, &str)] = &[
    ("text/plain", "text"),
    ("text/html", "html"),
    ("text/markdown", "markdown"),
    ("image/svg+xml", "svg"),
    ("image/png", "png"),
    ("image/jpeg", "jpeg"),
    ("application/pdf", "pdf"),
    ("text/latex", "latex"),
    ("application/json", "json"),
    ("application/javascript", "javascript"),
    ("e2b/data", "data"),
    ("e2b/chart", "chart"),
];

impl Event {
    pub(crate) fn error(name: &str, value: impl Into<String>) -> Self {
        Self::Error { name: name.to_owned(), value: value.into(), traceback: String::new() }
    }

    /// Returns the event's line, with its line feed.
    pub(crate) fn line(&self) -> Bytes {
        let value = match self {
            Self::Count(count) => json!({"type": "number_of_executions", "execution_count": count}),
            Self::Stdout(text) => json!({"type": "stdout", "text": text, "timestamp": now()}),
            Self::Stderr(text) => json!({"type": "stderr", "text": text, "timestamp": now()}),
            Self::Result { main, data } => return line(&ResultLine { main: *main, data }),
            Self::Error { name, value, traceback } => {
                json!({"type": "error", "name": name, "value": value, "traceback": traceback})
            }
            Self::Keepalive => json!({"type": "keepalive"}),
            Self::End => json!({"type": "end_of_execution"}),
        };
        line(&value)
    }
}

fn line(value: &impl Serialize) -> Bytes {
    let mut line = ascii_json(value);
    line.push(b'\n');
    line.into()
}

struct ResultLine<'a> {
    main: bool,
    data: &'a Bundle,
}

impl Serialize for ResultLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("type", "result")?;
        let mut extra = BTreeMap::new();
        for (mime, value) in self.data.iter().filter(|(_, value)| value.0.get() != "null") {
            let name = NAMES.iter().find(|(known, _)| known == mime).map(|(_, name)| *name);
            match (name, serde_json::from_str::<String>(value.0.get())) {
                (Some("text"), Ok(text)) => line.serialize_entry("text", unquoted(&text))?,
                (Some(name), _) => line.serialize_entry(name, value)?,
                (None, _) => {
                    extra.insert(mime, value);
                }
            }
        }
        line.serialize_entry("extra", &extra)?;
        line.serialize_entry("is_main_result", &self.main)?;
        line.end()
    }
}

/// Removes one pair of quotes, as clients expect: a string is shown as its text.
fn unquoted(text: &str) -> &str {
    ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(text)
}

fn now() -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]+00:00");
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

/// Serializes to JSON without bytes above 127.
pub(crate) fn ascii_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Ascii);
    // Writing to memory does not fail, and all keys are strings.
    let _ = value.serialize(&mut serializer);
    out
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        escape(writer, text)
    }

    /// Outside of strings JSON is ASCII; line feeds there are only formatting and are removed.
    fn write_raw_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, json: &str) -> io::Result<()> {
        json.split(['\n', '\r']).try_for_each(|part| escape(writer, part))
    }
}

fn escape<W: ?Sized + io::Write>(writer: &mut W, text: &str) -> io::Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| !c.is_ascii() || c == '\x7f') {
        CompactFormatter.write_string_fragment(writer, &rest[..at])?;
        let Some(c) = rest[at..].chars().next() else { break };
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(writer, "\\u{unit:04x}")?;
        }
        rest = &rest[at + c.len_utf8()..];
    }
    CompactFormatter.write_string_fragment(writer, rest)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn written(event: &Event) -> String {
        String::from_utf8(event.line().to_vec()).unwrap()
    }

    #[test]
    fn lines_are_ascii_and_round_trip() {
        let text = "a\u{e9}\u{2028}\u{1f600}\"\\\n\u{7f}";
        let written = written(&Event::Stdout(text.to_owned()));
        assert!(
            written.is_ascii() && written.ends_with('\n') && !written.trim_end().contains('\n'),
            "{written}"
        );
        assert!(written.contains("\\u00e9\\u2028\\ud83d\\ude00"), "{written}");
        let read: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read["text"], text);
        assert_eq!(read["timestamp"].as_str().unwrap().len(), "2026-01-01T00:00:00.000000+00:00".len());
    }

    #[test]
    fn a_result_has_short_names_and_formats_without_one_are_extra() {
        let data: Bundle = serde_json::from_value(json!({
            "text/plain": "'it'", "image/png": "aGk=", "application/json": [1], "e2b/chart": {"title": null},
            "text/html": null, "application/vnd.plotly.v1+json": {"data": []},
        }))
        .unwrap();
        let read: Value = serde_json::from_str(&written(&Event::Result { main: true, data })).unwrap();
        assert_eq!(
            read,
            json!({"type": "result", "text": "it", "png": "aGk=", "json": [1], "chart": {"title": null},
                   "extra": {"application/vnd.plotly.v1+json": {"data": []}}, "is_main_result": true})
        );
    }

    #[test]
    fn tables_keep_the_order_of_their_columns_in_one_ascii_line() {
        let data: Bundle =
            serde_json::from_str("{\"e2b/data\": {\"z\": [1.50],\n \"a\": [\"\u{e9}\"]}}").unwrap();
        let line = written(&Event::Result { main: false, data });
        assert!(line.contains("\"data\":{\"z\": [1.50], \"a\": [\"\\u00e9\"]}"), "{line}");
        assert_eq!(line.find('\n'), Some(line.len() - 1));
    }

    #[test]
    fn one_matching_pair_of_quotes_is_removed() {
        for (given, left) in
            [("'a'", "a"), ("\"a\"", "a"), ("'a\"", "'a\""), ("'", "'"), ("''", ""), ("1", "1")]
        {
            assert_eq!(unquoted(given), left, "{given}");
        }
    }
}
