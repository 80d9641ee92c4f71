//! Words of a Dockerfile: parses `NAME=value` pairs as Docker does, and quotes words for a shell.
//! Quotes group words and are removed; a backslash escapes the next character. Variables are expanded later, in the build.
//! The older form `ENV NAME value` is one pair up to the end of the line.

/// Parses the pairs of an `ENV` or `ARG` instruction; `None` if they are malformed. `bare` allows names without a value.
pub(super) fn assignments(text: &str, bare: bool) -> Option<Vec<(String, String)>> {
    let words = split(text)?;
    let first = words.first()?;
    if !bare && !first.contains('=') {
        let (name, value) = text.trim().split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), unquoted(value.trim())?)]);
    }
    let pairs = words.iter().map(|word| match word.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), unquoted(value)?)),
        None => bare.then(|| (word.clone(), String::new())),
    });
    pairs.collect()
}

/// Splits at blanks outside quotes; quotes and backslashes stay.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (_, '\\') if quote != Some('\'') => {
                word.push(c);
                word.extend(chars.next());
            }
            (None, '"' | '\'') => {
                quote = Some(c);
                word.push(c);
            }
            (Some(open), c) if open == c => {
                quote = None;
                word.push(c);
            }
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// Removes quotes and escaping backslashes from a word.
fn unquoted(text: &str) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\\') => result.extend(chars.next()),
            (Some('"'), '\\') if matches!(chars.peek(), Some('"' | '\\')) => result.extend(chars.next()),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (_, c) => result.push(c),
        }
    }
    quote.is_none().then_some(result)
}

/// Removes the quotes of a word that is no pair; one that is malformed stays as it is.
pub(super) fn word(text: &str) -> String {
    unquoted(text).unwrap_or_else(|| text.to_owned())
}

/// Returns text as one word for a shell that expands its variables, and nothing else; a backslash makes the next character plain, as in
/// documents of Dockerfiles.
pub(super) fn quoted_with_variables(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    result.push('"');
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        let plain = match c {
            '$' if starts_with_variable(&text[at..]) => {
                result.push('$');
                continue;
            }
            '\\' => chars.next().map_or(c, |(_, next)| next),
            _ => c,
        };
        if matches!(plain, '$' | '`' | '"' | '\\') {
            result.push('\\');
        }
        result.push(plain);
    }
    result.push('"');
    result
}

fn starts_with_variable(text: &str) -> bool {
    let name = text.trim_start_matches('$').trim_start_matches('{');
    text.starts_with('$')
        && !text.starts_with("$$")
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
}

/// Returns text quoted as one word for a shell.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_docker_reads_them() {
        let read = |text: &str| {
            assignments(text, false).map(|pairs| {
                pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
            })
        };
        assert_eq!(read("A=1 B=2").unwrap(), ["A=1", "B=2"]);
        assert_eq!(read(r#"A="x \"y\" z" B=p\ q"#).unwrap(), [r#"A=x "y" z"#, "B=p q"]);
        assert_eq!(read("A=it's").as_deref(), None);
        assert_eq!(read("PATH=$PATH:/x").unwrap(), ["PATH=$PATH:/x"]);
        assert_eq!(read("OLD value with = signs").unwrap(), ["OLD=value with = signs"]);
        assert_eq!(read("A=").unwrap(), ["A="]);
        assert_eq!(read("A"), None);
        assert_eq!(assignments("A B=1", true).unwrap().len(), 2);
    }

    #[test]
    fn only_variables_of_a_document_are_expanded() {
        let text = "a $NAME ${NAME:-x} \\$uri $(id) `id` \"q\" \\\\ $1 $";
        let script = format!("NAME=n; printf %s {}", quoted_with_variables(text));
        let done = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(done.stdout).unwrap(), "a n n $uri $(id) `id` \"q\" \\ $1 $");
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("a/b-c.txt"), "a/b-c.txt");
        assert_eq!(quoted("it's $x"), r"'it'\''s $x'");
        assert_eq!(quoted(""), "''");
    }
}
