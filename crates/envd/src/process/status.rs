//! Texts of exit statuses, as clients expect them.
//! Clients parse them: `signal: killed` and `exit status 1` are part of the wire format.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use envd_api::process::process_event::EndEvent;

/// Makes the end event of an exit status.
pub fn end_event(status: ExitStatus) -> EndEvent {
    let Some(signal) = status.signal() else {
        let code = status.code().unwrap_or(-1);
        let text = format!("exit status {code}");
        let error = (code != 0).then(|| text.clone());
        return EndEvent { exit_code: code, exited: true, status: text, error, ..Default::default() };
    };
    let core = if status.core_dumped() { " (core dumped)" } else { "" };
    let text = format!("signal: {}{core}", signal_name(signal));
    EndEvent { exit_code: -1, exited: false, error: Some(text.clone()), status: text, ..Default::default() }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        16 => "stack fault",
        24 => "CPU time limit exceeded",
        25 => "file size limit exceeded",
        26 => "virtual timer expired",
        27 => "profiling timer expired",
        29 => "I/O possible",
        30 => "power failure",
        31 => "bad system call",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn end_of(script: &str) -> EndEvent {
        let status = Command::new("/bin/sh").args(["-c", script]).status().expect("sh runs");
        end_event(status)
    }

    #[test]
    fn texts_are_exact() {
        let end = end_of("exit 0");
        assert_eq!(
            (end.exit_code, end.exited, end.status.as_str(), end.error),
            (0, true, "exit status 0", None)
        );
        let end = end_of("exit 3");
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (3, true, "exit status 3"));
        assert_eq!(end.error.as_deref(), Some("exit status 3"));
        let end = end_of("kill -KILL $$");
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: killed"));
        assert_eq!(end_of("kill -TERM $$").error.as_deref(), Some("signal: terminated"));
    }
}
