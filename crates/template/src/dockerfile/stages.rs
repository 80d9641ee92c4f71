//! Stages of a Dockerfile: what each `FROM` begins, and which of them the last one needs.

use std::collections::{BTreeMap, BTreeSet};

use parse_dockerfile::{Flag, FromInstruction};

use super::words::word;
use super::{DockerfileError, Planned, Reader, Stage, StageBase, step};
use crate::steps::{Unset, expand};

/// A stage that is being read.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    name: String,
    pub(super) from: StageBase,
    pub(super) steps: Vec<Planned>,
    pub(super) entrypoint: Option<String>,
    pub(super) cmd: Option<String>,
    /// What `SHELL` names, in which commands are run; empty for bash.
    pub(super) shell: Vec<String>,
    pub(super) sets_user: bool,
    pub(super) sets_workdir: bool,
    /// Values of `ENV` and `ARG` as far as the Dockerfile tells them, for paths of the build context.
    values: BTreeMap<String, String>,
}

impl Draft {
    fn of(name: String, from: StageBase) -> Self {
        Self {
            name,
            from,
            steps: Vec::new(),
            entrypoint: None,
            cmd: None,
            shell: Vec::new(),
            sets_user: false,
            sets_workdir: false,
            values: BTreeMap::new(),
        }
    }

    /// Remembers what `ENV` or `ARG` sets.
    pub(super) fn remember(&mut self, pairs: &[(String, String)]) {
        for (name, value) in pairs {
            let value = expand(value, &self.values, Unset::Kept);
            self.values.insert(name.clone(), value);
        }
    }

    /// Returns a path with the variables that the Dockerfile sets.
    pub(super) fn expanded(&self, path: &str) -> String {
        expand(path, &self.values, Unset::Kept)
    }

    /// Names of the stages that it starts from or copies from.
    fn needs(&self) -> impl Iterator<Item = &str> {
        let base = match &self.from {
            StageBase::Stage(name) => Some(name.as_str()),
            StageBase::Image(_) => None,
        };
        let copied = self.steps.iter().filter_map(|step| match step {
            Planned::Copy { stage, .. } => stage.as_deref(),
            Planned::Step { .. } => None,
        });
        base.into_iter().chain(copied)
    }
}

/// Returns the stages that `last` needs, directly or not, in their order.
pub(super) fn needed(stages: Vec<Draft>, last: &Draft) -> Vec<Stage> {
    let mut wanted: BTreeSet<String> = last.needs().map(str::to_owned).collect();
    let mut kept = Vec::new();
    // Stages refer to earlier ones only.
    for stage in stages.into_iter().rev().filter(|stage| !stage.name.is_empty()) {
        if wanted.contains(&stage.name) {
            wanted.extend(stage.needs().map(str::to_owned));
            kept.push(Stage { name: stage.name, from: stage.from, steps: stage.steps });
        }
    }
    kept.reverse();
    kept
}

impl Reader<'_> {
    /// Ends the stage that is being read, and begins another.
    pub(super) fn begin_stage(&mut self, from: &FromInstruction<'_>) -> Result<(), DockerfileError> {
        self.earlier.extend(self.here.take());
        let at = from.from.span.start;
        if let Some(flag) = from.options.iter().find(|flag| flag.name.value != "platform") {
            return self.error(at, format!("FROM --{} is not supported", flag.name.value));
        }
        let image = expand(&word(&from.image.value), &self.global, Unset::Kept);
        if image == "scratch" {
            return self.error(
                at,
                "FROM scratch: a sandbox needs a shell and tools; start from an image that has them",
            );
        }
        let number = self.earlier.iter().filter(|stage| is_written(stage)).count();
        let name =
            from.as_.as_ref().map_or_else(|| number.to_string(), |(_, name)| name.value.to_lowercase());
        let is_name = from.as_.is_none() || name.starts_with(|first: char| first.is_ascii_lowercase());
        if !is_name {
            return self.error(at, format!("FROM … AS {name}: names of stages begin with a letter"));
        }
        let base = self.earlier.iter().find(|stage| is_written(stage) && stage.name == image.to_lowercase());
        let stage = match base {
            // What it sets is inherited, as from an image.
            Some(base) => {
                Draft { name, from: StageBase::Stage(base.name.clone()), steps: Vec::new(), ..base.clone() }
            }
            None => Draft {
                steps: vec![step("USER", ["root"]), step("WORKDIR", ["/"])],
                ..Draft::of(name, StageBase::Image(image))
            },
        };
        self.here = Some(stage);
        Ok(())
    }

    /// Returns the name of the stage that `COPY --from` refers to: a stage's name or number, or an image, which then becomes a stage.
    pub(super) fn source_stage(&mut self, at: usize, text: &str) -> Result<String, DockerfileError> {
        let text = expand(text, &self.global, Unset::Kept);
        let known = self.earlier.iter().filter(|stage| is_written(stage));
        let found = match text.parse::<usize>() {
            Ok(number) => known.clone().nth(number),
            Err(_) => known.clone().find(|stage| stage.name == text.to_lowercase()),
        };
        if let Some(found) = found {
            return Ok(found.name.clone());
        }
        if text.is_empty() || text.parse::<usize>().is_ok() || text == "scratch" {
            return self.error(at, format!("COPY --from={text}: there is no stage of this name before"));
        }
        if !self.earlier.iter().any(|stage| stage.name == text) {
            self.earlier.push(Draft::of(text.clone(), StageBase::Image(text.clone())));
        }
        Ok(text)
    }

    /// `ARG`: before `FROM` for all stages, else for its own. A name without a value takes that from before `FROM`.
    pub(super) fn declare(&mut self, pairs: Vec<(String, String)>) {
        let is_global = self.here.is_none();
        let mut known = Vec::new();
        for (name, value) in pairs {
            let given = self.arguments.get(&name).cloned();
            let default = if is_global { expand(&value, &self.global, Unset::Empty) } else { value };
            let default = Some(default).filter(|value| !value.is_empty());
            let value = given.or(default).or_else(|| self.global.get(&name).cloned());
            let value = value.or_else(|| predefined(&name).map(str::to_owned)).unwrap_or_default();
            if is_global {
                self.global.insert(name, value);
            } else {
                known.push((name, value));
            }
        }
        if !is_global {
            self.stage().remember(&known);
            self.add_step("ARG", known.into_iter().flat_map(<[String; 2]>::from));
        }
    }

    /// An option of `RUN`. A cache may be missing at any time; files that are not there are an error.
    pub(super) fn run_option(&mut self, at: usize, flag: &Flag<'_>) -> Result<(), DockerfileError> {
        let (name, value) = (&flag.name.value, flag.value.as_ref().map_or("", |value| value.value.as_ref()));
        let kind = value.split(',').find_map(|field| field.strip_prefix("type=")).unwrap_or("bind");
        if name == "mount" && !matches!(kind, "cache" | "tmpfs") {
            return self.error(
                at,
                format!("RUN --mount=type={kind} is not supported: copy the files, and remove them in the same RUN"),
            );
        }
        self.tell(format!("RUN --{name} has no effect"));
        Ok(())
    }

    /// The stage that is being read. The parser lets nothing but `ARG` stand before the first `FROM`.
    pub(super) fn stage(&mut self) -> &mut Draft {
        self.here.get_or_insert_with(|| Draft::of(String::new(), StageBase::Image(String::new())))
    }

    pub(super) fn add_step(&mut self, kind: &'static str, args: impl IntoIterator<Item = impl Into<String>>) {
        self.stage().steps.push(step(kind, args));
    }
}

/// Returns what Docker sets for every build, for sandboxes of this machine's kind.
fn predefined(name: &str) -> Option<&'static str> {
    let is_arm = cfg!(target_arch = "aarch64");
    match name {
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(if is_arm { "linux/arm64" } else { "linux/amd64" }),
        "TARGETOS" | "BUILDOS" => Some("linux"),
        "TARGETARCH" | "BUILDARCH" => Some(if is_arm { "arm64" } else { "amd64" }),
        _ => None,
    }
}

/// Whether a stage is one of the Dockerfile's, not an image that files are copied from.
fn is_written(stage: &Draft) -> bool {
    !stage.steps.is_empty() || matches!(stage.from, StageBase::Stage(_))
}

#[cfg(test)]
mod tests {
    use crate::dockerfile::{Dockerfile, Planned, StageBase};

    fn image(name: &str) -> StageBase {
        StageBase::Image(name.to_owned())
    }

    fn stage(name: &str) -> StageBase {
        StageBase::Stage(name.to_owned())
    }

    fn copied(steps: &[Planned]) -> Vec<String> {
        let from = steps.iter().filter_map(|step| match step {
            Planned::Copy { stage, from, .. } => Some(format!("{}:{}", stage.as_deref()?, from.join(","))),
            Planned::Step { .. } => None,
        });
        from.collect()
    }

    #[test]
    fn stages_that_the_last_one_needs_are_kept_in_order() {
        let file = Dockerfile::parse(
            "ARG GO=1.24\nFROM golang:${GO} AS Build\nRUN go build\nFROM build AS test\nRUN go test\nFROM alpine AS unused\nRUN x\n\
             FROM node\nRUN npm run build\nFROM debian:12\nCOPY --from=build /app /usr/bin/\nCOPY --from=3 /dist /srv\n\
             COPY --from=ghcr.io/astral-sh/uv:latest /uv /uvx /bin/\n",
        );
        let file = file.unwrap();
        let kept: Vec<(&str, &StageBase, usize)> =
            file.stages.iter().map(|stage| (stage.name.as_str(), &stage.from, stage.steps.len())).collect();
        let (go, node) = (image("golang:1.24"), image("node"));
        let uv = image("ghcr.io/astral-sh/uv:latest");
        let expected = [("build", &go, 3), ("3", &node, 3), ("ghcr.io/astral-sh/uv:latest", &uv, 0)];
        assert_eq!(kept, expected);
        assert_eq!(file.from, image("debian:12"));
        assert_eq!(copied(&file.steps), ["build:/app", "3:/dist", "ghcr.io/astral-sh/uv:latest:/uv,/uvx"]);
    }

    #[test]
    fn a_stage_inherits_what_the_stage_below_sets() {
        let file = Dockerfile::parse(
            "FROM debian AS base\nUSER app\nWORKDIR /app\nSHELL [\"/bin/sh\", \"-ec\"]\nCMD serve\nFROM base\nRUN true\n",
        );
        let file = file.unwrap();
        assert_eq!(file.from, stage("base"));
        // No USER or WORKDIR at either end, and the shell of the stage below.
        assert_eq!(file.steps.len(), 1);
        assert!(matches!(&file.steps[0], Planned::Step { args, .. } if args[0] == "/bin/sh -ec true"));
        assert_eq!(file.start_cmd.as_deref(), Some("/bin/sh -ec serve"));
    }

    #[test]
    fn arguments_before_the_first_stage_are_inherited_by_name() {
        let file = Dockerfile::parse("ARG V=1\nARG W=2\nFROM a\nARG V\nARG W=3\nARG X\n").unwrap();
        let values: Vec<&[String]> = file.steps[2..5]
            .iter()
            .map(|step| match step {
                Planned::Step { args, .. } => args.as_slice(),
                Planned::Copy { .. } => &[],
            })
            .collect();
        assert_eq!(values, [["V", "1"], ["W", "3"], ["X", ""]]);
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_its_line() {
        let refused = |text: &str| Dockerfile::parse(text).unwrap_err().to_string();
        assert!(refused("FROM scratch\n").starts_with("line 1: FROM scratch: a sandbox needs a shell"));
        let twice = refused("FROM a AS x\nFROM b AS x\n");
        assert!(twice.contains("duplicate stage name 'x' at line 2"), "{twice}");
        let number = refused("FROM a AS 1x\n");
        assert!(number.contains("begin with a letter"), "{number}");
        assert!(refused("FROM a\nCOPY --from=0 /x /y\n").contains("no stage of this name before"));
        assert!(
            refused("FROM a\nRUN --mount=type=secret,id=x cat /run/secrets/x\n")
                .contains("--mount=type=secret")
        );
        assert!(refused("FROM a\nRUN --mount=target=/src make\n").contains("--mount=type=bind"));
        assert!(Dockerfile::parse("FROM a\nRUN --mount=type=cache,target=/root/.cache make\n").is_ok());
    }
}
