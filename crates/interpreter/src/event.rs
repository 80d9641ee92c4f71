//! The lines of a run's answer: one JSON object each, ended by a line feed, ASCII only.
//! ASCII, because one SDK decodes every network chunk on its own and another takes U+2028 for the end of a line.
//! What a kernel calls by MIME type, clients call by short names; the table is here.

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

/// What a run tells its client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Count(u64),
    Stdout(String),
    Stderr(String),
    /// `main` is the value of the cell, as against something it displayed. `data` is by MIME type.
    Result {
        main: bool,
        data: Map<String, Value>,
    },
    Error {
        name: String,
        value: String,
        traceback: String,
    },
    Keepalive,
    End,
}

/// MIME types with a name of their own.
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

    /// The line, with its line feed.
    pub(crate) fn line(&self) -> Bytes {
        let value = match self {
            Self::Count(count) => json!({"type": "number_of_executions", "execution_count": count}),
            Self::Stdout(text) => json!({"type": "stdout", "text": text, "timestamp": now()}),
            Self::Stderr(text) => json!({"type": "stderr", "text": text, "timestamp": now()}),
            Self::Result { main, data } => result(*main, data),
            Self::Error { name, value, traceback } => {
                json!({"type": "error", "name": name, "value": value, "traceback": traceback})
            }
            Self::Keepalive => json!({"type": "keepalive"}),
            Self::End => json!({"type": "end_of_execution"}),
        };
        let mut line = ascii_json(&value);
        line.push(b'\n');
        line.into()
    }
}

fn result(main: bool, data: &Map<String, Value>) -> Value {
    let mut object = Map::new();
    object.insert("type".to_owned(), "result".into());
    let mut extra = Map::new();
    for (mime, value) in data {
        if value.is_null() {
            continue;
        }
        match NAMES.iter().find(|(known, _)| known == mime) {
            Some((_, "text")) => {
                let text = value.as_str().map_or_else(|| value.clone(), |text| unquoted(text).into());
                object.insert("text".to_owned(), text);
            }
            Some((_, name)) => {
                object.insert((*name).to_owned(), value.clone());
            }
            None => {
                extra.insert(mime.clone(), value.clone());
            }
        }
    }
    object.insert("extra".to_owned(), extra.into());
    object.insert("is_main_result".to_owned(), main.into());
    object.into()
}

/// Without one pair of quotes around it, as clients are used to: a string shows as its text.
fn unquoted(text: &str) -> &str {
    ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(text)
}

fn now() -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]+00:00");
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

/// JSON without a byte above 127.
pub(crate) fn ascii_json(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Ascii);
    // Writing to memory; a `Value` has only string keys.
    let _ = value.serialize(&mut serializer);
    out
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &Event) -> String {
        String::from_utf8(event.line().to_vec()).unwrap()
    }

    #[test]
    fn lines_are_ascii_and_survive_a_round_trip() {
        let text = "a\u{e9}\u{2028}\u{1f600}\"\\\n\u{7f}";
        let written = line(&Event::Stdout(text.to_owned()));
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
    fn a_result_has_short_names_and_what_has_none_is_extra() {
        let Value::Object(data) = json!({
            "text/plain": "'it'", "image/png": "aGk=", "application/json": [1], "e2b/chart": {"title": null},
            "text/html": null, "application/vnd.plotly.v1+json": {"data": []},
        }) else {
            unreachable!()
        };
        let read: Value = serde_json::from_str(&line(&Event::Result { main: true, data })).unwrap();
        assert_eq!(
            read,
            json!({"type": "result", "text": "it", "png": "aGk=", "json": [1], "chart": {"title": null},
                   "extra": {"application/vnd.plotly.v1+json": {"data": []}}, "is_main_result": true})
        );
    }

    #[test]
    fn one_matching_pair_of_quotes_goes() {
        for (given, left) in
            [("'a'", "a"), ("\"a\"", "a"), ("'a\"", "'a\""), ("'", "'"), ("''", ""), ("1", "1")]
        {
            assert_eq!(unquoted(given), left, "{given}");
        }
    }
}
