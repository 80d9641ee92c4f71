//! Here-documents that are the input of a command (`RUN python3 - <<EOF`, `RUN <<EOF python3`); the parser only supports one that is
//! the command itself.
//! They are removed before parsing and appended to their command afterwards, unchanged; line numbers stay the same.

use std::collections::BTreeMap;

/// Returns a Dockerfile without such documents, and the documents with their delimiters by the line of their command, from 1.
pub(super) fn take_out(text: &str) -> (String, BTreeMap<usize, String>) {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut left: Vec<String> = Vec::with_capacity(lines.len());
    let mut taken = BTreeMap::new();
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        // A command may have several lines; the documents come after the last one.
        while lines[at].trim_end().ends_with('\\') && at + 1 < lines.len() {
            at += 1;
        }
        at += 1;
        let command = lines[first..at].join("\n");
        let delimiters = delimiters_of_run(&command);
        left.extend(lines[first..at].iter().map(|line| (*line).to_owned()));
        if let (false, Some(at), Some(line)) =
            (delimiters.is_empty(), document_at_start(&command), left.get_mut(first))
        {
            // The parser takes it for the whole command; `0<<` means the same to a shell.
            line.insert(at, '0');
        }
        let mut bodies = String::new();
        for delimiter in delimiters {
            let end = lines[at..].iter().position(|line| line.trim_start_matches('\t') == delimiter);
            let Some(length) = end else { break };
            for line in &lines[at..=at + length] {
                bodies.push('\n');
                bodies.push_str(line);
            }
            left.extend(std::iter::repeat_n(String::new(), length + 1));
            at += length + 1;
        }
        if !bodies.is_empty() {
            taken.insert(first + 1, bodies);
        }
    }
    (left.join("\n"), taken)
}

/// Returns the command of a `RUN`, without options.
fn command_of_run(instruction: &str) -> Option<&str> {
    let (word, rest) = instruction.trim_start().split_once(char::is_whitespace)?;
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        rest = rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start());
    }
    word.eq_ignore_ascii_case("RUN").then_some(rest)
}

/// Returns where a document begins that comes before the command of a `RUN`, in its first line.
fn document_at_start(instruction: &str) -> Option<usize> {
    let at = instruction.len() - command_of_run(instruction)?.len();
    (instruction[at..].starts_with("<<") && !instruction[..at].contains('\n')).then_some(at)
}

/// Returns the delimiters of a `RUN` whose documents are input of its command.
fn delimiters_of_run(instruction: &str) -> Vec<String> {
    let Some(rest) = command_of_run(instruction).filter(|command| !is_document_alone(command)) else {
        return Vec::new();
    };
    rest.match_indices("<<")
        .filter(|(at, _)| !rest[..*at].ends_with('<'))
        .filter_map(|(at, _)| delimiter(&rest[at + 2..]))
        .collect()
}

/// Whether a command is nothing but a document: it is a script then, not a shell's input.
fn is_document_alone(command: &str) -> bool {
    let Some(rest) = command.strip_prefix("<<") else { return false };
    let Some(name) = delimiter(rest) else { return false };
    let rest = rest.strip_prefix('-').unwrap_or(rest).trim();
    rest.trim_matches(['"', '\'']) == name
}

fn delimiter(text: &str) -> Option<String> {
    let text = text.strip_prefix('-').unwrap_or(text);
    let text = text.strip_prefix(['"', '\'']).unwrap_or(text);
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    let name = &text[..end];
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_with_an_interpreter_is_input_and_one_alone_is_a_script() {
        assert_eq!(delimiters_of_run("RUN <<EOF python3"), ["EOF"]);
        assert_eq!(delimiters_of_run("RUN --mount=type=cache <<'A' cat - && cat <<B"), ["A", "B"]);
        for alone in ["RUN <<EOF", "RUN <<-'EOF'  ", "RUN --network=none <<\"EOF\""] {
            assert!(delimiters_of_run(alone).is_empty(), "{alone}");
        }
    }

    #[test]
    fn removed_documents_leave_empty_lines() {
        let text = "FROM x\nRUN a <<'P' \\\n  && b <<-Q\none\nP\n\ttwo\n\tQ\nRUN <<EOF\nx\nEOF\nRUN echo 1<<2 <<< word\n";
        let (left, taken) = take_out(text);
        assert_eq!(left.matches('\n').count(), text.matches('\n').count());
        assert_eq!(taken, BTreeMap::from([(2, "\none\nP\n\ttwo\n\tQ".to_owned())]));
        assert!(left.contains("RUN <<EOF\nx\nEOF\n"));
    }
}
