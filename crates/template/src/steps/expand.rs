//! Variables in the values of `ENV`: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:+other}`, as Docker and shells know them.
//! Nothing else is special: command substitution, quotes and backslashes stay as they are.
//! Expanded once: what a variable holds is not looked at again.

use std::collections::BTreeMap;

/// How a variable without a value is expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// To nothing, as in shells.
    Empty,
    /// Not at all: the reference stays as it was written.
    Kept,
}

/// Returns whether a text contains references to variables.
#[must_use]
pub fn has_variables(text: &str) -> bool {
    text.match_indices('$').any(|(at, _)| reference(&text[at..]).is_some())
}

/// Returns the text with references replaced by the variables' values.
#[must_use]
pub fn expand(text: &str, values: &BTreeMap<String, String>, unset: Unset) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(found) = reference(rest) else {
            result.push('$');
            rest = &rest[1..];
            continue;
        };
        let value = values.get(found.name).map(String::as_str).filter(|value| !value.is_empty());
        match (found.otherwise, value) {
            (Otherwise::Default(word), None) => result.push_str(&expand(word, values, unset)),
            (Otherwise::Instead(word), Some(_)) => result.push_str(&expand(word, values, unset)),
            (Otherwise::Instead(_), None) => {}
            (_, Some(value)) => result.push_str(value),
            (Otherwise::Nothing, None) if unset == Unset::Kept && !values.contains_key(found.name) => {
                result.push_str(&rest[..found.length]);
            }
            (Otherwise::Nothing, None) => {}
        }
        rest = &rest[found.length..];
    }
    result.push_str(rest);
    result
}

struct Reference<'a> {
    name: &'a str,
    otherwise: Otherwise<'a>,
    /// Length of the reference, from the dollar on, bytes.
    length: usize,
}

enum Otherwise<'a> {
    Nothing,
    /// `:-`
    Default(&'a str),
    /// `:+`
    Instead(&'a str),
}

/// Parses the reference at the beginning of `text`, which begins with a dollar.
fn reference(text: &str) -> Option<Reference<'_>> {
    let rest = &text[1..];
    let Some(inner) = rest.strip_prefix('{') else {
        let name = name_at(rest)?;
        return Some(Reference { name, otherwise: Otherwise::Nothing, length: 1 + name.len() });
    };
    let end = closing(inner)?;
    let (body, length) = (&inner[..end], 2 + end + 1);
    let name = name_at(body)?;
    let otherwise = match &body[name.len()..] {
        "" => Otherwise::Nothing,
        tail => match (tail.strip_prefix(":-").or_else(|| tail.strip_prefix('-')), tail.strip_prefix(":+")) {
            (Some(word), _) => Otherwise::Default(word),
            (None, Some(word)) => Otherwise::Instead(word),
            (None, None) => return None,
        },
    };
    Some(Reference { name, otherwise, length })
}

/// Returns the position of the closing brace.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn name_at(text: &str) -> Option<&str> {
    let end =
        text.bytes().position(|byte| !(byte.is_ascii_alphanumeric() || byte == b'_')).unwrap_or(text.len());
    let name = &text[..end];
    (!name.is_empty() && !name.as_bytes()[0].is_ascii_digit()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_nothing_else() {
        let values = BTreeMap::from([
            ("PATH".to_owned(), "/bin".to_owned()),
            ("A".to_owned(), "$B".to_owned()),
            ("E".to_owned(), String::new()),
        ]);
        for (text, wanted) in [
            ("${PATH}:/x", "/bin:/x"),
            ("$PATH/x", "/bin/x"),
            ("$A", "$B"),
            ("${NONE:-a${PATH}b}", "a/binb"),
            ("${E:-d}", "d"),
            ("${PATH:+yes}${NONE:+no}", "yes"),
            ("[$NONE]", "[]"),
            ("$(id) `id` $((1)) $1 $$ $", "$(id) `id` $((1)) $1 $$ $"),
            (r#"'q' "q" \n \$A"#, r#"'q' "q" \n \$B"#),
            ("${unclosed", "${unclosed"),
            ("${A%x}", "${A%x}"),
            ("--flag\nline é", "--flag\nline é"),
        ] {
            assert_eq!(expand(text, &values, Unset::Empty), wanted, "{text}");
        }
        assert_eq!(expand("$NONE ${NONE} $E|", &values, Unset::Kept), "$NONE ${NONE} |");
        assert!(has_variables("a$A") && !has_variables("$(id) $1"));
    }
}
