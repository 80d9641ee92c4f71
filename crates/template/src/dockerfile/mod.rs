//! Converts a Dockerfile to a template build: its base image, its steps in wire form, and its start command.
//! The rules are the same as in the official SDKs: steps begin as root in `/`; unless the Dockerfile sets user and directory, the template
//! ends as `user` in its home. Instructions without a meaning in a template are listed in the notes; an instruction that would silently
//! have a different effect is an error.

mod copying;
mod documents;
mod stages;
mod words;

use std::collections::BTreeMap;

use parse_dockerfile::{Command, Instruction};

use stages::Draft;
use words::{assignments, quoted, word};

/// A converted Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// Stages that later ones start from or copy from, in order. Stages that the last one does not need are left out.
    pub stages: Vec<Stage>,
    /// What the template starts from.
    pub from: StageBase,
    /// The template's steps, in order.
    pub steps: Vec<Planned>,
    /// `ENTRYPOINT` and `CMD` as one command.
    pub start_cmd: Option<String>,
    /// Notes about ignored instructions.
    pub notes: Vec<String>,
}

/// A stage before the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its name in lower case, its number from 0, or the image that files are copied from.
    pub name: String,
    /// What it starts from.
    pub from: StageBase,
    /// Its steps, in order; none if files are copied from an image.
    pub steps: Vec<Planned>,
}

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageBase {
    /// A container image.
    Image(String),
    /// An earlier stage, by name.
    Stage(String),
}

/// A step to be sent to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// A step without files.
    Step {
        /// `RUN`, `ENV`, …
        kind: &'static str,
        /// The arguments, in the order of the wire contract.
        args: Vec<String>,
    },
    /// A step that copies files.
    Copy {
        /// Name of the stage that has the files. `None`: the build context.
        stage: Option<String>,
        /// Paths or patterns in the build context or stage.
        from: Vec<String>,
        /// The destination.
        to: String,
        /// The owner, `user[:group]`.
        owner: Option<String>,
        /// The mode: octal, or symbols.
        mode: Option<String>,
    },
}

impl Planned {
    /// Returns the arguments of a `COPY` step for one source.
    #[must_use]
    pub fn copy_arguments(source: &str, to: &str, owner: Option<&str>, mode: Option<&str>) -> Vec<String> {
        [source, to, owner.unwrap_or_default(), mode.unwrap_or_default()].map(str::to_owned).into()
    }
}

/// Why a Dockerfile cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerfileError {
    /// The file cannot be parsed.
    #[error("the Dockerfile cannot be read: {0}")]
    Syntax(String),
    /// An instruction is not supported.
    #[error("line {line}: {what}")]
    Unsupported {
        /// The line.
        line: usize,
        /// The problem and the remedy.
        what: String,
    },
}

impl Dockerfile {
    /// Parses and converts a Dockerfile.
    ///
    /// # Errors
    /// The file cannot be parsed, or has an instruction that is not supported.
    pub fn parse(text: &str) -> Result<Self, DockerfileError> {
        Self::parse_with(text, &BTreeMap::new())
    }

    /// Parses and converts a Dockerfile with these values for its `ARG`s.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with(text: &str, arguments: &BTreeMap<String, String>) -> Result<Self, DockerfileError> {
        let (text, documents) = documents::take_out(&with_backslashes(text));
        let parsed =
            parse_dockerfile::parse(&text).map_err(|error| DockerfileError::Syntax(error.to_string()))?;
        let mut reader = Reader { text: &text, documents, arguments: arguments.clone(), ..Reader::default() };
        for instruction in &parsed.instructions {
            reader.instruction(instruction)?;
        }
        reader.finish()
    }
}

#[derive(Default)]
struct Reader<'a> {
    text: &'a str,
    /// Here-documents of commands, by line.
    documents: BTreeMap<usize, String>,
    /// Values that the caller gives to `ARG`.
    arguments: BTreeMap<String, String>,
    /// Values of `ARG` before `FROM`, which `FROM` may use, and stages that declare them.
    global: BTreeMap<String, String>,
    /// Stages that have ended.
    earlier: Vec<Draft>,
    /// The stage that is being read.
    here: Option<Draft>,
    notes: Vec<String>,
}

fn step(kind: &'static str, args: impl IntoIterator<Item = impl Into<String>>) -> Planned {
    Planned::Step { kind, args: args.into_iter().map(Into::into).collect() }
}

impl Reader<'_> {
    /// Returns the line of a position, from 1.
    fn line(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or("").matches('\n').count() + 1
    }

    fn error<T>(&self, at: usize, what: impl Into<String>) -> Result<T, DockerfileError> {
        Err(DockerfileError::Unsupported { line: self.line(at), what: what.into() })
    }

    fn instruction(&mut self, instruction: &Instruction<'_>) -> Result<(), DockerfileError> {
        match instruction {
            Instruction::From(from) => self.begin_stage(from)?,
            Instruction::Arg(arg) => {
                let pairs = assignments(&arg.arguments.value, true);
                let Some(pairs) = pairs else {
                    return self.error(arg.arg.span.start, "ARG cannot be read: write NAME=value");
                };
                self.declare(pairs);
            }
            Instruction::Env(env) => match assignments(&env.arguments.value, false) {
                Some(pairs) => {
                    self.stage().remember(&pairs);
                    self.add_step("ENV", pairs.into_iter().flat_map(<[String; 2]>::from));
                }
                None => return self.error(env.env.span.start, "ENV cannot be read: write NAME=value"),
            },
            Instruction::Run(run) => {
                for flag in &run.options {
                    self.run_option(run.run.span.start, flag)?;
                }
                let document = self.documents.remove(&self.line(run.run.span.start)).unwrap_or_default();
                let command = match &run.arguments {
                    Command::Exec(words) => joined(words.value.iter().map(|word| word.value.as_ref())),
                    Command::Shell(text) => match run.here_docs.first() {
                        Some(script) if script.value.starts_with("#!") => executed(&script.value),
                        Some(script) => self.in_shell(&script.value),
                        None => self.in_shell(&(without_comments(text.value) + &document)),
                    },
                    _ => return self.error(run.run.span.start, "RUN cannot be read"),
                };
                self.add_step("RUN", [command]);
            }
            Instruction::Copy(copy) => {
                let sources: Vec<_> = copy.src.iter().collect();
                self.copy(copy.copy.span.start, &copy.options, &sources, &copy.dest.value)?;
            }
            Instruction::Add(add) => {
                self.add(add.add.span.start, &add.options, &add.src, &add.dest.value)?;
            }
            Instruction::Workdir(workdir) => {
                self.stage().sets_workdir = true;
                self.add_step("WORKDIR", [word(&workdir.arguments.value)]);
            }
            Instruction::User(user) => {
                self.stage().sets_user = true;
                self.add_step("USER", [word(&user.arguments.value)]);
            }
            Instruction::Cmd(cmd) => self.stage().cmd = Some(self.command_text(&cmd.arguments)),
            Instruction::Entrypoint(entry) => {
                self.stage().entrypoint = Some(self.command_text(&entry.arguments));
            }
            Instruction::Shell(shell) => {
                self.stage().shell = shell.arguments.iter().map(|word| word.value.to_string()).collect();
            }
            // In Docker, too, it is for images that are built from this one.
            Instruction::Onbuild(_) => {
                self.note("ONBUILD", "builds from this template do not run it; write the step there");
            }
            Instruction::Expose(_) => self.note("EXPOSE", "every port of a sandbox can be reached"),
            Instruction::Volume(_) => self.note("VOLUME", "all files of a sandbox are its own"),
            Instruction::Healthcheck(_) => self.note("HEALTHCHECK", "give a ready command instead"),
            Instruction::Label(_) | Instruction::Maintainer(_) => self.note("LABEL", "templates have none"),
            Instruction::Stopsignal(_) => self.note("STOPSIGNAL", "sandboxes are ended at once"),
            _ => self.note("an instruction", "it is not known"),
        }
        Ok(())
    }

    /// Returns a command that is run by what `SHELL` names.
    fn in_shell(&self, command: &str) -> String {
        match self.here.as_ref().map_or(&[][..], |stage| &stage.shell) {
            [] => command.to_owned(),
            shell => format!("{} {}", joined(shell.iter().map(String::as_str)), quoted(command)),
        }
    }

    fn command_text(&self, command: &Command<'_>) -> String {
        match command {
            Command::Exec(words) => joined(words.value.iter().map(|word| word.value.as_ref())),
            Command::Shell(text) => self.in_shell(&without_comments(text.value)),
            _ => String::new(),
        }
    }

    fn note(&mut self, what: &str, why: &str) {
        self.tell(format!("{what} has no effect: {why}"));
    }

    /// Adds a note once.
    fn tell(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn finish(self) -> Result<Dockerfile, DockerfileError> {
        let Some(mut last) = self.here else {
            return Err(DockerfileError::Syntax("it has no FROM".to_owned()));
        };
        if !last.sets_user {
            last.steps.push(step("USER", ["user"]));
        }
        if !last.sets_workdir {
            last.steps.push(step("WORKDIR", ["/home/user"]));
        }
        let words = [last.entrypoint.take(), last.cmd.take()].into_iter().flatten().collect::<Vec<_>>();
        let start_cmd = Some(words.join(" ")).filter(|command| !command.trim().is_empty());
        let stages = stages::needed(self.earlier, &last);
        Ok(Dockerfile { stages, from: last.from, steps: last.steps, start_cmd, notes: self.notes })
    }
}

fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// Returns a Dockerfile in which a backslash continues lines, whatever its `escape` directive says.
fn with_backslashes(text: &str) -> String {
    let directives = text.lines().map_while(|line| line.trim().strip_prefix('#'));
    let is_escape = |line: &str| line.replace(char::is_whitespace, "").eq_ignore_ascii_case("escape=`");
    if !directives.into_iter().any(is_escape) {
        return text.to_owned();
    }
    let line = |line: &str| {
        let is_directive = line.trim_start().strip_prefix('#').is_some_and(is_escape);
        match line.trim_end().strip_suffix('`') {
            _ if is_directive => "#".to_owned(),
            Some(before) => format!("{before}\\"),
            None => line.to_owned(),
        }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

/// Removes comments and empty lines between continued lines, which are Docker's, not the shell's.
fn without_comments(text: &str) -> String {
    let mut continued = false;
    let kept = text.lines().filter(|line| {
        let text = line.trim();
        let is_ours = continued && (text.starts_with('#') || text.is_empty());
        if !is_ours {
            continued = text.ends_with('\\');
        }
        !is_ours
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// Returns a command that runs a script by the interpreter in its first line.
fn executed(script: &str) -> String {
    let text = quoted(script);
    format!(
        "script=$(mktemp) && printf %s {text} > \"$script\" && chmod +x \"$script\" && \"$script\" && rm \"$script\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Dockerfile {
        Dockerfile::parse(text).unwrap()
    }

    fn shown(steps: &[Planned]) -> Vec<String> {
        let show = |planned: &Planned| match planned {
            Planned::Step { kind, args } => format!("{kind} {}", args.join("|")),
            Planned::Copy { stage, from, to, owner, mode } => {
                format!(
                    "COPY {}{} -> {to} {} {}",
                    stage.as_ref().map(|stage| format!("{stage}:")).unwrap_or_default(),
                    from.join("|"),
                    owner.as_deref().unwrap_or("-"),
                    mode.as_deref().unwrap_or("-")
                )
            }
        };
        steps.iter().map(show).collect()
    }

    #[test]
    fn a_dockerfile_becomes_steps() {
        let file = parse(
            "ARG TAG=12\nFROM debian:${TAG}\nENV A=1 B=\"two words\" C='x y'\nENV LEGACY some value\n\
             ARG V=3\nRUN echo $A && \\\n  # comment\n  echo b\nRUN [\"echo\", \"it's\"]\n\
             COPY --chown=1:1 --chmod=0755 a b /dst\nWORKDIR /app\nUSER me\nEXPOSE 80\n\
             ENTRYPOINT [\"serve\", \"--port\"]\nCMD [\"80\"]\n",
        );
        assert_eq!(file.from, StageBase::Image("debian:12".into()));
        assert_eq!(
            shown(&file.steps),
            [
                "USER root",
                "WORKDIR /",
                "ENV A|1|B|two words|C|x y",
                "ENV LEGACY|some value",
                "ARG V|3",
                "RUN echo $A && \\\n  echo b",
                "RUN echo 'it'\\''s'",
                "COPY a|b -> /dst/ 1:1 0755",
                "WORKDIR /app",
                "USER me",
            ]
        );
        assert_eq!(file.start_cmd.as_deref(), Some("serve --port 80"));
        assert_eq!(file.notes.len(), 1);
    }

    #[test]
    fn it_ends_as_the_default_user_unless_it_says_otherwise() {
        let file = parse("FROM x\nRUN true\n");
        assert_eq!(shown(&file.steps)[3..], ["USER user", "WORKDIR /home/user"]);
        assert_eq!(file.start_cmd, None);
    }

    #[test]
    fn documents_are_commands_or_files() {
        let file = parse(
            "FROM x\nRUN <<EOF\necho a\necho b\nEOF\nRUN python3 - <<'PY' && true\nprint(1)\nPY\nCOPY <<EOF /etc/motd\nhi there\nEOF\n",
        );
        let steps = shown(&file.steps);
        assert_eq!(steps[2], "RUN echo a\necho b\n");
        assert_eq!(steps[3], "RUN python3 - <<'PY' && true\nprint(1)\nPY");
        assert!(steps[4].contains("printf %s \"hi there\n\" > /etc/motd|root"), "{}", steps[4]);
    }

    #[test]
    fn scripts_run_by_their_interpreter_and_commands_in_the_shell_that_is_set() {
        let file = parse(
            "FROM x\nRUN <<EOF python3\nprint(1)\nEOF\nRUN <<EOF\n#!/usr/bin/env python3\nprint(2)\nEOF\n\
             SHELL [\"/bin/bash\", \"-eo\", \"pipefail\", \"-c\"]\nRUN true | \\\n\n  # why\n  cat\nCMD echo \"$HOME\"\n",
        );
        let steps = shown(&file.steps);
        assert_eq!(steps[2], "RUN 0<<EOF python3\nprint(1)\nEOF");
        assert!(
            steps[3].contains("printf %s '#!/usr/bin/env python3\nprint(2)\n' > \"$script\""),
            "{}",
            steps[3]
        );
        assert_eq!(steps[4], "RUN /bin/bash -eo pipefail -c 'true | \\\n  cat'");
        assert_eq!(file.start_cmd.as_deref(), Some("/bin/bash -eo pipefail -c 'echo \"$HOME\"'"));
    }

    #[test]
    fn add_unpacks_archives_fetches_urls_and_copies_the_rest() {
        let file = parse(
            "FROM x\nADD app.tar.gz notes.txt /srv/\nADD https://example.com/a/tool?x=1 /usr/local/bin/\nONBUILD RUN true\n",
        );
        let steps = shown(&file.steps);
        assert_eq!(steps[2], "COPY app.tar.gz -> /tmp/.add-2/archive - -");
        assert_eq!(
            steps[3],
            "RUN mkdir -p /srv/ && tar -xf /tmp/.add-2/archive -C /srv/ && rm -r /tmp/.add-2|root"
        );
        assert_eq!(steps[4], "COPY notes.txt -> /srv/ - -");
        assert!(
            steps[5].contains("curl -fsSL -o /usr/local/bin/tool 'https://example.com/a/tool?x=1'"),
            "{}",
            steps[5]
        );
        assert_eq!(file.notes.len(), 1);
    }

    #[test]
    fn several_documents_of_one_copy_are_several_files() {
        let file = parse("FROM x\nCOPY <<A.txt <<B.txt /etc/\na\nA.txt\nb\nB.txt\n");
        let steps = shown(&file.steps);
        assert!(steps[2].contains("/etc/A.txt") && steps[3].contains("/etc/B.txt"), "{steps:?}");
    }

    #[test]
    fn unsupported_instructions_are_refused_with_their_line() {
        let text = |text: &str| Dockerfile::parse(text).unwrap_err().to_string();
        assert!(
            text("FROM a\nRUN true\nCOPY --from=1 /x /y\n")
                .starts_with("line 3: COPY --from=1: there is no stage")
        );
        assert!(text("FROM a\nCOPY --chmod=u+y a /a\n").starts_with("line 2: COPY --chmod"));
        assert!(text("FROM a\nADD --chown=1:1 x.tar b /x\n").starts_with("line 2: ADD --chown of archives"));
        assert!(text("FROM a\nADD git://example.com/x /x\n").starts_with("line 2: ADD of a URL"));
        assert!(text("RUN true\n").starts_with("the Dockerfile cannot be read"));
        assert!(text("").starts_with("the Dockerfile cannot be read"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(
            lines in proptest::collection::vec(
                "(FROM|RUN|COPY|ADD|ENV|ARG|SHELL|CMD|# escape=`|)[ \t]{0,2}(--from=|--chmod=|--mount=type=|<<|\\[)?[ -~é]{0,24}\\\\?", 0..12
            )
        ) {
            let text = lines.join("\n");
            let _ = Dockerfile::parse(&text);
            let _ = Dockerfile::parse(&format!("FROM a AS b\n{text}"));
        }
    }
}
