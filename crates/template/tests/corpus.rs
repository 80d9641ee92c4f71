//! Dockerfiles as people write them (`dockerfiles/`): what each becomes is in `outcomes.txt`, so that a change of the rules shows.
//! `UPDATE_OUTCOMES=1 cargo nextest run --package template` writes the file anew, to be read before it is committed.

use std::path::Path;

use template::steps::{RawStep, Step};
use template::{Dockerfile, Planned, StageBase};

#[test]
fn dockerfiles_become_what_is_written_down() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut names: Vec<String> = std::fs::read_dir(dir.join("dockerfiles"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 60, "{}", names.len());
    let mut outcomes = Vec::new();
    for name in names {
        let text = std::fs::read_to_string(dir.join("dockerfiles").join(&name)).unwrap();
        outcomes.push(format!("== {}", name.trim_end_matches(".Dockerfile")));
        match Dockerfile::parse(&text) {
            Ok(file) => describe(&file, &mut outcomes),
            Err(error) => outcomes.push(format!("refused: {error}")),
        }
    }
    let outcomes = outcomes.join("\n") + "\n";
    let path = dir.join("outcomes.txt");
    if std::env::var_os("UPDATE_OUTCOMES").is_some() {
        std::fs::write(&path, &outcomes).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let different = expected.lines().zip(outcomes.lines()).find(|(expected, now)| expected != now);
    assert!(expected == outcomes, "first difference: {different:?}");
}

fn describe(file: &Dockerfile, into: &mut Vec<String>) {
    for stage in &file.stages {
        into.push(format!("stage {} from {}", stage.name, base(&stage.from)));
        steps(&stage.steps, into);
    }
    into.push(format!("template from {}", base(&file.from)));
    steps(&file.steps, into);
    if let Some(command) = &file.start_cmd {
        into.push(format!("start: {command}"));
    }
    file.notes.iter().for_each(|note| into.push(format!("note: {note}")));
}

fn base(base: &StageBase) -> String {
    match base {
        StageBase::Image(image) => format!("image {image}"),
        StageBase::Stage(stage) => format!("stage {stage}"),
    }
}

/// Writes each step as one line, and checks that the server reads it.
fn steps(planned: &[Planned], into: &mut Vec<String>) {
    let hash = "a".repeat(64);
    for planned in planned {
        let (kind, args, stage, shown) = match planned {
            Planned::Step { kind, args } => (*kind, args.clone(), None, args.clone()),
            Planned::Copy { stage, from, to, owner, mode } => {
                let args = Planned::copy_arguments(&from[0], to, owner.as_deref(), mode.as_deref());
                let mut shown = args.clone();
                shown[0] = from.join(" ");
                ("COPY", args, stage.as_deref(), shown)
            }
        };
        let from = stage.map(|stage| format!(" --from={stage}")).unwrap_or_default();
        into.push(format!("  {kind}{from} {}", format!("{shown:?}").trim_matches(['[', ']'])));
        let raw = RawStep { kind, args: &args, files_hash: Some(&hash), from_stage: stage, force: false };
        assert!(Step::parse(&raw).is_ok(), "{raw:?}");
    }
}
