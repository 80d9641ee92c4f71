//! [`Step`]: a step of a template build. Parses steps as clients send them, and returns their log text and cache key. [`scripts`] has
//! the commands that steps run inside a sandbox.
//! The wire format is `TemplateStep` of the wire contract, with the arguments that the official SDKs send.

mod expand;
mod paths;
pub mod scripts;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use expand::{Unset, expand, has_variables};
pub use paths::{join, keeps_slash};

/// User, directory and environment variables of commands: of later steps, and of processes in the finished template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// User that runs commands.
    pub user: String,
    /// Directory in which commands run. `None`: the home directory of the user.
    pub workdir: Option<String>,
    /// Environment variables of commands.
    pub env: BTreeMap<String, String>,
}

/// Command line that restores `PATH`, which a login shell resets.
const WITH_PATH: &str = r#"PATH=$1; export PATH; eval "$2""#;

impl Context {
    /// Returns the arguments with which bash runs a command line in this context.
    #[must_use]
    pub fn bash_arguments<'a>(&'a self, command: &'a str) -> Vec<&'a str> {
        match self.env.get("PATH") {
            Some(path) => vec!["-l", "-c", WITH_PATH, "bash", path, command],
            None => vec!["-l", "-c", command],
        }
    }
}

/// A parsed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Instruction in capitals: `RUN`, `COPY`, ….
    kind: String,
    args: Vec<String>,
    /// Hash that names the uploaded archive of a `COPY`, or its stage.
    files: String,
    /// Whether this step and all later ones ignore the cache.
    pub force: bool,
    /// What the step does.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs a command, as another user if one is named.
    Run {
        /// Command line for bash.
        command: String,
        /// User that runs the command. `None`: the user of the context.
        user: Option<String>,
    },
    /// Copies files.
    Copy {
        /// Path or pattern in what has the files.
        from: String,
        /// Destination, not resolved.
        to: String,
        /// Owner, `user[:group]`. `None`: for files of the client the user of the context, for those of a stage their owner there.
        owner: Option<String>,
        /// Permissions, octal digits or symbols. `None`: those that the files have.
        mode: Option<String>,
        /// What has the files.
        files: CopiedFiles,
    },
    /// Sets environment variables, in order; a value may refer to earlier variables.
    Env(Vec<(String, String)>),
    /// Changes the directory; creates it if it is missing.
    Workdir(String),
    /// Changes the user; creates it if it is missing.
    User {
        /// Name of the user.
        name: String,
        /// Whether the user may become root without a password.
        sudo: bool,
    },
}

/// Where a `COPY` takes files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopiedFiles {
    /// An uploaded archive, named by its hash.
    Archive(String),
    /// An earlier stage of the build.
    Stage(String),
}

/// A step as clients send it.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawStep<'a> {
    /// `RUN`, `COPY`, …
    pub kind: &'a str,
    /// Arguments in the order of the wire contract.
    pub args: &'a [String],
    /// Hash that names the uploaded archive of a `COPY`.
    pub files_hash: Option<&'a str>,
    /// Stage that a `COPY` takes files from; ours, not E2B's.
    pub from_stage: Option<&'a str>,
    /// Whether this step and all later ones ignore the cache.
    pub force: bool,
}

/// Why a step cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The instruction is unknown.
    #[error("command type {0} is not implemented")]
    Kind(String),
    /// The arguments are missing or malformed.
    #[error("{kind} {problem}")]
    Arguments {
        /// Instruction of the step.
        kind: String,
        /// What is wrong with them.
        problem: &'static str,
    },
}

impl Step {
    /// Parses a step from its wire format.
    ///
    /// # Errors
    /// The instruction is unknown, or its arguments are missing or malformed.
    pub fn parse(raw: &RawStep<'_>) -> Result<Self, StepError> {
        let RawStep { args, files_hash, from_stage, force, .. } = *raw;
        let kind = raw.kind.trim().to_uppercase();
        let bad = |problem| StepError::Arguments { kind: kind.clone(), problem };
        let arg = |at: usize| args.get(at).map(String::as_str).filter(|arg| !arg.is_empty());
        let own = |at| arg(at).map(str::to_owned);
        let action = match kind.as_str() {
            "RUN" => Action::Run { command: own(0).ok_or_else(|| bad("needs a command"))?, user: own(1) },
            "COPY" | "ADD" => Action::Copy {
                from: own(0).ok_or_else(|| bad("needs a source"))?,
                to: own(1).ok_or_else(|| bad("needs a destination"))?,
                owner: own(2),
                mode: own(3)
                    .map(|mode| {
                        file_mode(&mode)
                            .ok_or_else(|| bad("has a mode that is neither octal nor like u+x,go-w"))
                    })
                    .transpose()?,
                files: match (from_stage, files_hash.filter(|hash| is_files_hash(hash))) {
                    (Some(stage), _) => CopiedFiles::Stage(stage.to_owned()),
                    (None, Some(hash)) => CopiedFiles::Archive(hash.to_owned()),
                    (None, None) => return Err(bad("needs a filesHash: 64 lower-case hexadecimal digits")),
                },
            },
            "ENV" | "ARG" => Action::Env(pairs(args).ok_or_else(|| bad("needs names and values in turn"))?),
            "WORKDIR" => Action::Workdir(own(0).ok_or_else(|| bad("needs a directory"))?),
            "USER" => Action::User {
                name: own(0).ok_or_else(|| bad("needs a user's name"))?,
                sudo: arg(1).is_some_and(|word| word == "true"),
            },
            _ => return Err(StepError::Kind(kind)),
        };
        let files = from_stage.or(files_hash).unwrap_or_default().to_owned();
        Ok(Self { kind, args: args.to_vec(), files, force, action })
    }

    /// Returns the text of the step in the build's log.
    #[must_use]
    pub fn title(&self) -> String {
        let args: Vec<&str> = self.args.iter().map(String::as_str).filter(|arg| !arg.is_empty()).collect();
        let from = self.stage().map(|stage| format!("--from={stage} ")).unwrap_or_default();
        format!("{} {from}{}", self.kind, args.join(" "))
    }

    /// Returns the stage that files are copied from.
    #[must_use]
    pub fn stage(&self) -> Option<&str> {
        match &self.action {
            Action::Copy { files: CopiedFiles::Stage(stage), .. } => Some(stage),
            _ => None,
        }
    }

    /// Returns the key under which the step's result is cached. `previous` is the cache key of the step before, or of the base.
    #[must_use]
    pub fn cache_key(&self, previous: &str) -> String {
        let mut parts = vec![previous, &self.kind, &self.files];
        parts.extend(self.args.iter().map(String::as_str));
        if matches!(self.action, Action::Copy { .. }) {
            // Results of a server that copied by other rules are not reused.
            parts.push(scripts::COPY);
        }
        hash_parts(&parts)
    }
}

/// Returns the SHA-256 of the parts, each hashed with its length, in hexadecimal digits.
#[must_use]
pub fn hash_parts(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// Returns whether a text can be the hash that names an uploaded archive.
#[must_use]
pub fn is_files_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Returns a file mode as `chmod` takes it: octal digits, or symbols such as `u+x,go-w`.
pub(crate) fn file_mode(mode: &str) -> Option<String> {
    let digits = mode.trim_start_matches("0o");
    let is_octal =
        (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    if is_octal {
        return Some(digits.to_owned());
    }
    mode.split(',').all(is_symbolic).then(|| mode.to_owned())
}

/// Whether a text is one clause of a symbolic mode: who, then one change or more.
fn is_symbolic(clause: &str) -> bool {
    const SIGNS: [char; 3] = ['+', '-', '='];
    let is_bits = |bits: &str| {
        matches!(bits, "u" | "g" | "o")
            || bits.chars().all(|bit| matches!(bit, 'r' | 'w' | 'x' | 'X' | 's' | 't'))
    };
    let changes = clause.trim_start_matches(['u', 'g', 'o', 'a']).strip_prefix(SIGNS);
    changes.is_some_and(|bits| bits.split(SIGNS).all(is_bits))
}

fn pairs(args: &[String]) -> Option<Vec<(String, String)>> {
    if args.is_empty() || !args.len().is_multiple_of(2) {
        return None;
    }
    let pairs = args.chunks(2).map(|pair| {
        let [name, value] = pair else { return None };
        let is_name = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        is_name.then(|| (name.clone(), value.clone()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: &str, args: &[&str]) -> Result<Step, StepError> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        Step::parse(&RawStep { kind, args: &args, files_hash: Some(&"a".repeat(64)), ..RawStep::default() })
    }

    #[test]
    fn steps_are_read_and_titled() {
        assert_eq!(step("RUN", &["echo hi", ""]).unwrap().title(), "RUN echo hi");
        assert_eq!(step("ENV", &["A", "Hello, World!"]).unwrap().title(), "ENV A Hello, World!");
        let copy = step("COPY", &["src", "/dst", "", "0755"]).unwrap();
        assert_eq!(copy.title(), "COPY src /dst 0755");
        assert!(matches!(copy.action, Action::Copy { owner: None, mode: Some(mode), .. } if mode == "0755"));
        assert_eq!(
            step("ARG", &["A", "1", "B", "2"]).unwrap().action,
            Action::Env(vec![("A".into(), "1".into()), ("B".into(), "2".into())])
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let text = |kind, args| step(kind, args).unwrap_err().to_string();
        assert_eq!(text("HEALTHCHECK", &["x"]), "command type HEALTHCHECK is not implemented");
        assert_eq!(text("RUN", &[]), "RUN needs a command");
        assert_eq!(text("ENV", &["A"]), "ENV needs names and values in turn");
        for mode in ["999", "u+y", "x", "u+x,", "+x;id", "-R", "--reference=/etc/shadow"] {
            let refused = "COPY has a mode that is neither octal nor like u+x,go-w";
            assert_eq!(step("COPY", &["a", "b", "", mode]).unwrap_err().to_string(), refused, "{mode}");
        }
        for mode in ["644", "0o4755", "u+x", "a=r,u+wX", "+x", "g-w+s", "o=u", "u="] {
            assert!(step("COPY", &["a", "b", "", mode]).is_ok(), "{mode}");
        }
        let args = ["a".into(), "b".into()];
        let copy = RawStep { kind: "COPY", args: &args, files_hash: Some("../x"), ..RawStep::default() };
        assert!(Step::parse(&copy).is_err());
        let copy = Step::parse(&RawStep { from_stage: Some("build"), ..copy }).unwrap();
        assert_eq!((copy.title().as_str(), copy.stage()), ("COPY --from=build a b", Some("build")));
    }

    #[test]
    fn keys_change_with_everything_that_matters_and_nothing_else() {
        let one = step("RUN", &["a", "b"]).unwrap();
        assert_eq!(one.cache_key("x"), Step { force: true, ..one.clone() }.cache_key("x"));
        assert_ne!(one.cache_key("x"), one.cache_key("y"));
        assert_ne!(one.cache_key("x"), step("RUN", &["a b"]).unwrap().cache_key("x"));
        assert_ne!(hash_parts(&["ab", ""]), hash_parts(&["a", "b"]));
    }
}
