//! Changes to a kernel's environment before a run: variables, directory, a new seed. The user's code is not changed for it.
//! All text of clients is quoted; variables whose names are invalid in a shell are left out there.
//! Java cannot change its environment: variables are system properties there, as clients expect.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::envd::Env;
use crate::event::ascii_json;

/// Changes to a kernel's environment.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct EnvChange {
    pub(crate) set: Env,
    pub(crate) unset: BTreeSet<String>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) seed: Option<u32>,
}

impl EnvChange {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the changes from `before` to `now`; `base` are the variables that the process was started with.
    pub(crate) fn change(before: &Env, now: &Env, base: &Env) -> Self {
        let mut change = Self::default();
        for (name, value) in now {
            if before.get(name).or_else(|| base.get(name)) != Some(value) {
                change.set.insert(name.clone(), value.clone());
            }
        }
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            match base.get(name) {
                Some(value) => change.set.insert(name.clone(), value.clone()).map(|_| ()),
                None => change.unset.insert(name.clone()).then_some(()),
            };
        }
        change
    }

    /// Returns an expression for Python, which calls a module that the driver has loaded.
    pub(crate) fn python(&self) -> String {
        let wanted = json!({"set": self.set, "unset": self.unset, "cwd": self.cwd, "seed": self.seed});
        format!("__import__('_interpreter').prepare('{}')", STANDARD.encode(ascii_json(&wanted)))
    }

    pub(crate) fn r(&self) -> String {
        let mut code = String::new();
        for (name, value) in &self.set {
            let _ = writeln!(code, "do.call(Sys.setenv, structure(list({}), names = {}))", r(value), r(name));
        }
        for name in &self.unset {
            let _ = writeln!(code, "Sys.unsetenv({})", r(name));
        }
        if let Some(cwd) = &self.cwd {
            let _ = writeln!(code, "try(setwd({}), silent = TRUE)", r(&cwd.to_string_lossy()));
        }
        if let Some(seed) = self.seed {
            let _ = writeln!(code, "set.seed({seed})");
        }
        code
    }

    /// Returns commands for bash, one per line.
    pub(crate) fn bash(&self) -> String {
        let mut code = String::new();
        for (name, value) in self.set.iter().filter(|(name, _)| is_shell_name(name)) {
            let _ = writeln!(code, "export {name}={}", shell(value));
        }
        for name in self.unset.iter().filter(|name| is_shell_name(name)) {
            let _ = writeln!(code, "unset {name}");
        }
        if let Some(cwd) = &self.cwd {
            let _ = writeln!(code, "cd -- {} 2>/dev/null", shell(&cwd.to_string_lossy()));
        }
        if let Some(seed) = self.seed {
            let _ = writeln!(code, "RANDOM={seed}");
        }
        code
    }

    /// Returns lines for the drivers of JavaScript and Java.
    pub(crate) fn words(&self) -> String {
        let mut lines = String::new();
        for (name, value) in &self.set {
            lines += &words("set", &[name, value]);
        }
        for name in &self.unset {
            lines += &words("unset", &[name]);
        }
        if let Some(cwd) = &self.cwd {
            lines += &words("cwd", &[&cwd.to_string_lossy()]);
        }
        if self.seed.is_some() {
            lines += &words("seed", &[]);
        }
        lines
    }
}

/// Makes a line for a driver.
pub(crate) fn words(verb: &str, rest: &[&str]) -> String {
    let mut line = verb.to_owned();
    for word in rest {
        line.push(' ');
        line += &STANDARD.encode(word);
    }
    line.push('\n');
    line
}

/// Quotes a word for bash, without NUL bytes, which it cannot contain.
pub(crate) fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\0', "").replace('\'', r"'\''"))
}

fn is_shell_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Makes a string literal for R.
fn r(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars().filter(|c| *c != '\0') {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii() && !c.is_ascii_control() => out.push(c),
            c => {
                let _ = write!(out, "\\U{{{:x}}}", u32::from(c));
            }
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_change_sets_restores_and_removes() {
        let base = env(&[("PATH", "/bin"), ("HOME", "/root")]);
        let before = env(&[("PATH", "/mine"), ("GONE", "1"), ("KEPT", "2")]);
        let now = env(&[("KEPT", "2"), ("NEW", "3"), ("HOME", "/root")]);
        let change = EnvChange::change(&before, &now, &base);
        assert_eq!(change.set, env(&[("NEW", "3"), ("PATH", "/bin")]));
        assert_eq!(change.unset, BTreeSet::from(["GONE".to_owned()]));
        assert!(EnvChange::change(&before, &before, &base).is_empty());
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        let change = EnvChange {
            set: env(&[("A", "it's \"$(id)\" \\ \u{e9}\n"), ("not a name; id", "x")]),
            cwd: Some("/a'b".into()),
            ..EnvChange::default()
        };
        assert_eq!(
            change.bash(),
            "export A='it'\\''s \"$(id)\" \\ \u{e9}\n'\ncd -- '/a'\\''b' 2>/dev/null\n"
        );
        assert!(
            change.r().contains(r#"list("it's \"$(id)\" \\ \U{e9}\U{a}"), names = "A")"#),
            "{}",
            change.r()
        );
        assert_eq!(change.words().lines().next(), Some("set QQ== aXQncyAiJChpZCkiIFwgw6kK"));
    }
}
