//! Checks that documents are true to the repository: paths, links, tests, variables and quoted messages exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::read;
use crate::run::{self, Outcome};

/// Directories that hold source.
const SOURCES: [&str; 5] = ["bench", "conformance", "crates", "xtask", "examples"];
/// Documents of the repository's root.
const ROOT_DOCUMENTS: [&str; 7] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "COMPATIBILITY.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "SPECIFICATION.md",
];
/// Words in backticks that begin so are paths of the repository.
const ROOTS: [&str; 8] =
    ["crates/", "xtask/", "docs/", "conformance/", "templates/", "bench/", "examples/", ".ci/"];
const SOURCE_EXTENSIONS: [&str; 6] = ["rs", "py", "mjs", "js", "toml", "html"];

/// Checks every document that is written by hand.
///
/// # Errors
/// Lists everything that does not exist.
pub(crate) fn check() -> Outcome {
    let mut faults = Vec::new();
    for document in documents()? {
        let text = read(&document)?;
        faults.extend(paths_missing(&document, &text));
        faults.extend(links_missing(&document, &text));
    }
    faults.extend(code_map_missing(&read("ARCHITECTURE.md")?));
    faults.extend(tests_missing(&read("SPECIFICATION.md")?));
    faults.extend(variables_missing(&read("docs/configuration.md")?));
    faults.extend(messages_missing(&read("docs/troubleshooting.md")?));
    faults.extend(envd_routes_differing()?);
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// Whether any source mentions this word.
pub(super) fn is_used(word: &str) -> bool {
    sources().iter().any(|(_, text)| text.contains(word))
}

fn documents() -> Outcome<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = ROOT_DOCUMENTS.iter().map(PathBuf::from).collect();
    found.retain(|path| run::root().join(path).exists());
    found.extend(
        files(Path::new("docs")).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "md")),
    );
    Ok(found)
}

/// Returns all files below a directory of the repository.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(run::root().join(dir)) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = dir.join(entry.file_name());
        match entry.file_type() {
            Ok(kind)
                if kind.is_dir()
                    && !matches!(entry.file_name().to_str(), Some("target" | "node_modules")) =>
            {
                found.extend(files(&path));
            }
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Returns all sources, with string literals that span lines joined.
fn sources() -> &'static [(PathBuf, String)] {
    static ALL: OnceLock<Vec<(PathBuf, String)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let all = SOURCES.iter().flat_map(|dir| files(Path::new(dir)));
        let source = all.filter(|path| {
            path.extension().and_then(|ext| ext.to_str()).is_some_and(|ext| SOURCE_EXTENSIONS.contains(&ext))
        });
        // This module and its tests mention what does not exist.
        let others = source.filter(|path| !path.starts_with("xtask/src/docs"));
        others.map(|path| (path.clone(), joined(&read(&path).unwrap_or_default()))).collect()
    })
}

/// Removes what ends a line inside a Rust string literal, and escapes of quotes.
fn joined(text: &str) -> String {
    let mut lines = text.split("\\\n");
    let mut all = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        all.push_str(line.trim_start());
    }
    all.replace("\\\"", "\"")
}

/// Returns the texts in backticks outside of code blocks.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    let blocks = text.split("```").step_by(2).collect::<String>().replace('\n', " ");
    blocks.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// Words that are paths of the repository, or `path::function`.
fn paths_missing(document: &Path, text: &str) -> Vec<String> {
    let named = quoted(text).filter(|word| ROOTS.iter().any(|root| word.starts_with(root)));
    let plain = named.filter(|word| !word.contains(['<', '*', ' ', '{', '…', '=']));
    let missing = plain.filter(|word| {
        let (path, item) =
            word.split_once("::").map_or((word.as_str(), None), |(path, item)| (path, Some(item)));
        let path = run::root().join(path.trim_end_matches(['.', ',']));
        let has =
            |item: &str| fs::read_to_string(&path).is_ok_and(|text| text.contains(&format!("fn {item}")));
        !path.exists() || item.is_some_and(|item| !has(item))
    });
    missing.map(|word| format!("{}: `{word}` does not exist", document.display())).collect()
}

fn links_missing(document: &Path, text: &str) -> Vec<String> {
    let dir = document.parent().unwrap_or(Path::new(""));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    let missing = local.filter(|target| {
        let path = target.split('#').next().unwrap_or_default();
        !run::root().join(dir).join(path).exists()
    });
    missing.map(|target| format!("{}: the link to {target} leads nowhere", document.display())).collect()
}

/// Every crate has a row in the code map. In such a row, words that end in `/` or `.rs` are below the crate's `src`.
fn code_map_missing(text: &str) -> Vec<String> {
    let crates = fs::read_dir(run::root().join("crates")).into_iter().flatten().flatten();
    let names = crates.map(|entry| format!("crates/{}", entry.file_name().to_string_lossy()));
    let missing = names.filter(|name| !text.contains(&format!("| `{name}` |")));
    let mut faults: Vec<String> =
        missing.map(|name| format!("ARCHITECTURE.md: {name} is not in the code map")).collect();
    for line in text.lines().filter(|line| line.starts_with("| `crates/")) {
        let mut words = quoted(line);
        let Some(name) = words.next() else { continue };
        let source = run::root().join(&name).join("src");
        let modules = words.filter(|word| {
            (word.ends_with('/') || word.ends_with(".rs")) && !ROOTS.iter().any(|root| word.starts_with(root))
        });
        faults.extend(
            modules
                .filter(|module| !source.join(module).exists())
                .map(|module| format!("ARCHITECTURE.md: {name} has no `{module}`")),
        );
    }
    faults
}

/// Every promise names tests, which are functions somewhere in the sources.
fn tests_missing(text: &str) -> Vec<String> {
    let text = text.replace('\n', " ");
    let mut faults = Vec::new();
    let tests: BTreeSet<String> = text
        .split("Held by")
        .skip(1)
        .flat_map(|rest| quoted(rest.split(['.']).next().unwrap_or_default()).collect::<Vec<_>>())
        .collect();
    for test in &tests {
        let exists = sources().iter().any(|(_, source)| {
            source.contains(&format!("fn {test}(")) || source.contains(&format!("def {test}("))
        });
        if !exists {
            faults.push(format!("SPECIFICATION.md: there is no test `{test}`"));
        }
    }
    faults
}

/// Every variable of the program and its tests is described.
fn variables_missing(configuration: &str) -> Vec<String> {
    let mut used = BTreeSet::new();
    for (path, source) in sources() {
        if path.ends_with("renamed.rs") {
            continue;
        }
        for rest in source.split("COFFERDAM_").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|character| character.is_ascii_uppercase() || *character == '_')
                .collect();
            if !name.is_empty() {
                used.insert(format!("COFFERDAM_{name}"));
            }
        }
    }
    let missing = used.iter().filter(|name| !configuration.contains(&format!("`{name}`")));
    missing.map(|name| format!("docs/configuration.md: {name} is not described")).collect()
}

/// Messages in the headings of the troubleshooting guide are texts of the sources; `…` stands for what varies.
fn messages_missing(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with("### "));
    let messages = headings.flat_map(|line| quoted(line).collect::<Vec<_>>());
    let missing = messages.filter(|message| {
        let parts = message.split('…').map(str::trim).filter(|part| !part.is_empty());
        parts.into_iter().any(|part| !sources().iter().any(|(_, source)| source.contains(part)))
    });
    missing.map(|message| format!("docs/troubleshooting.md: nothing says `{message}`")).collect()
}

/// The document of envd's REST interface has the routes of envd's router, no more and no less.
fn envd_routes_differing() -> Outcome<Vec<String>> {
    let paths = read("crates/envd-api/src/paths.rs")?;
    let constant = |name: &str| {
        let definition = paths.split(&format!("pub const {name}: &str = \"")).nth(1)?;
        definition.split('"').next().map(str::to_owned)
    };
    let router = read("crates/envd/src/router.rs")?;
    let arms = router.lines().filter_map(|line| {
        let (method, rest) = line.trim().strip_prefix("(&Method::")?.split_once(", paths::")?;
        let name = rest.split_once(") =>")?.0;
        Some(format!("{} {}", method.to_lowercase(), constant(name)?))
    });
    let served: BTreeSet<String> = arms.collect();
    let mut described = BTreeSet::new();
    let mut path = String::new();
    for line in read("docs/envd-openapi.yaml")?.lines() {
        match line.strip_suffix(':') {
            Some(key) if key.starts_with("  /") => key.trim().clone_into(&mut path),
            Some("    get" | "    post" | "    put" | "    delete") => {
                described.insert(format!("{} {path}", line.trim().trim_end_matches(':')));
            }
            _ => {}
        }
    }
    Ok(served
        .symmetric_difference(&described)
        .map(|route| format!("docs/envd-openapi.yaml and envd's router differ: {route}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_over_several_lines_are_joined() {
        assert_eq!(joined("\"one \\\n     two \\\"three\\\"\""), "\"one two \"three\"\"");
    }

    #[test]
    fn words_in_backticks_are_found_outside_of_code_blocks() {
        let words: Vec<String> = quoted("a `b c` d\n```\n`x`\n```\n`e\nf`").collect();
        assert_eq!(words, ["b c", "e f"]);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let paths =
            "`crates/nothing/here.rs`, `xtask/src/main.rs::no_such_function`, `xtask/src/main.rs::main`";
        assert_eq!(paths_missing(Path::new("x.md"), paths).len(), 2);
        assert_eq!(links_missing(Path::new("docs/x.md"), "[a](nothing.md) [b](../README.md#start)").len(), 1);
        let faults = code_map_missing("| `crates/net` | `gateway.rs` `nothing.rs` |");
        assert!(faults.contains(&"ARCHITECTURE.md: crates/net has no `nothing.rs`".to_owned()));
        assert!(
            !faults.iter().any(|fault| fault.contains("crates/net is not") || fault.contains("gateway.rs"))
        );
        assert_eq!(
            tests_missing("Held by `every_route_is_described_and_every_described_route_exists`,\n`no_such_test_anywhere`. And `this`.")
                .len(),
            1
        );
        assert_eq!(messages_missing("### `another server uses …` or `nothing says this ever: …`").len(), 1);
    }
}
