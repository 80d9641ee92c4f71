//! The error of a capture that a program in the sandbox makes impossible: for the sandbox's owner, without anything of the host.

use std::fs;

use engine::EngineError;

/// What the owner can do.
const WAYS_OUT: &str =
    "End it, keep the files only (memory: false), or use a template of the engine \"microvm\"";

/// Returns the error for a process of the sandbox, by its pid on the host, and the end of a sentence that begins with it.
pub(crate) fn refusal(pid: Option<i32>, reason: &str) -> EngineError {
    let program = pid.map_or_else(|| "a program in it".to_owned(), describe);
    EngineError::Uncapturable(format!("{program} {reason}. {WAYS_OUT}"))
}

/// Returns the name of a process and its pid in the sandbox. The name is the process's own choice.
fn describe(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let name: String = field("Name:").trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match field("NSpid:").split_whitespace().next_back() {
        Some(inner) => format!("its program {name:?} (process {inner})"),
        None => "a program in it".to_owned(),
    }
}
