//! What a configured server needs to be started: a package with arguments and variables, a repository, or a remote address.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::catalogue::{Catalogue, Entry};
use crate::config::Configured;
use crate::error::Error;

/// Speaks the older transport (HTTP with SSE), for which there is no client in Rust, to remote servers that have no other.
const SSE_BRIDGE: &str = "mcp-remote@0.15.1";

/// Everything to install and start one server.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    Npm { package: String, bin: Option<String> },
    Pypi { requirements: Vec<String>, bin: Option<String> },
    Command(Vec<String>),
    Repository { owner: String, name: String, install: Option<String>, run: String },
    Remote { url: String, headers: Vec<(String, String)> },
}

/// Checks a configured server and returns how it is started.
///
/// # Errors
/// The name or an option is unknown, an option is missing or of the wrong kind, or there is no package.
pub(crate) fn resolve(catalogue: &Catalogue, server: &Configured) -> Result<Launch, Error> {
    if let Some((owner, repository)) = repository(&server.name) {
        return from_repository(server, owner, repository);
    }
    let entry = catalogue.get(&server.name).ok_or_else(|| Error::Unknown(server.name.clone()))?;
    let source = source(&server.name, entry, &server.options)?;
    check_options(server, entry)?;
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for (name, template) in &entry.fixed {
        env.extend(
            expand(template, &server.options).into_iter().next_back().map(|value| (name.clone(), value)),
        );
    }
    for (option, variable) in &entry.env {
        env.extend(server.options.get(option).map(|value| (variable.clone(), text(value))));
    }
    let mut args: Vec<String> =
        entry.args.iter().flat_map(|template| expand(template, &server.options)).collect();
    if let (true, Some(url)) = (entry.sse, &entry.url) {
        args = [url, "--transport", "sse-only"].map(str::to_owned).to_vec();
        if let Some(bearer) = entry.bearer.as_ref().and_then(|option| server.options.get(option)) {
            // The bridge reads the variable: arguments are visible to every process.
            args.extend(["--header", "Authorization:${MCP_BEARER}"].map(str::to_owned));
            env.insert("MCP_BEARER".to_owned(), format!("Bearer {}", text(bearer)));
        }
    }
    Ok(Launch { name: server.name.clone(), source, args, env })
}

/// How a server of the catalogue is installed, without options.
///
/// # Errors
/// The name is unknown, or has no package.
pub(crate) fn package(catalogue: &Catalogue, name: &str) -> Result<Launch, Error> {
    let entry = catalogue.get(name).ok_or_else(|| Error::Unknown(name.to_owned()))?;
    let source = source(name, entry, &Map::new())?;
    Ok(Launch { name: name.to_owned(), source, args: Vec::new(), env: BTreeMap::new() })
}

fn source(name: &str, entry: &Entry, options: &Map<String, Value>) -> Result<Source, Error> {
    let bin = entry.bin.clone();
    if let Some(package) = entry.npm.clone() {
        return Ok(Source::Npm { package, bin });
    }
    if let Some(package) = entry.pypi.clone() {
        let requirements = std::iter::once(package).chain(entry.with.iter().cloned()).collect();
        return Ok(Source::Pypi { requirements, bin });
    }
    if let Some(url) = entry.url.clone() {
        if entry.sse {
            return Ok(Source::Npm { package: SSE_BRIDGE.to_owned(), bin: None });
        }
        let bearer = entry.bearer.as_ref().and_then(|option| options.get(option)).map(text);
        let headers = bearer.map(|bearer| ("authorization".to_owned(), format!("Bearer {bearer}")));
        return Ok(Source::Remote { url, headers: headers.into_iter().collect() });
    }
    match &entry.command {
        Some(words) if !words.is_empty() => Ok(Source::Command(words.clone())),
        _ => Err(Error::NoPackage(name.to_owned())),
    }
}

fn check_options(server: &Configured, entry: &Entry) -> Result<(), Error> {
    let known = || entry.required.iter().chain(&entry.optional);
    for option in &entry.required {
        if server.options.get(option).is_none_or(Value::is_null) {
            return Err(Error::MissingOption { server: server.name.clone(), option: option.clone() });
        }
    }
    for (option, value) in &server.options {
        if !known().any(|other| other == option) {
            let names: Vec<&str> = known().map(String::as_str).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::UnknownOption { server: server.name.clone(), option: option.clone(), known });
        }
        let plain = |value: &Value| !value.is_object() && !value.is_array();
        if !plain(value) && !value.as_array().is_some_and(|items| items.iter().all(plain)) {
            let problem = "neither a string, number or boolean nor a list of them";
            return Err(Error::BadOption { server: server.name.clone(), option: option.clone(), problem });
        }
        if text(value).contains('\0') {
            return Err(Error::BadOption {
                server: server.name.clone(),
                option: option.clone(),
                problem: "a text with a zero byte",
            });
        }
    }
    Ok(())
}

/// An option as an environment variable; lists are joined by commas.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A template with `${option}`: once for each item of a list, nothing if the option is not given.
fn expand(template: &str, options: &Map<String, Value>) -> Vec<String> {
    let Some((before, rest)) = template.split_once("${") else { return vec![template.to_owned()] };
    let Some((option, after)) = rest.split_once('}') else { return vec![template.to_owned()] };
    let values = match options.get(option) {
        Some(Value::Array(items)) => items.iter().map(text).collect(),
        Some(Value::Null) | None => Vec::new(),
        Some(value) => vec![text(value)],
    };
    values.into_iter().map(|value| format!("{before}{value}{after}")).collect()
}

/// Owner and name in `github/<owner>/<name>`.
fn repository(server: &str) -> Option<(&str, &str)> {
    let (owner, name) = server.strip_prefix("github/")?.split_once('/')?;
    let plain = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
            && word.chars().all(|one| one.is_ascii_alphanumeric() || "-_.".contains(one))
    };
    (plain(owner) && plain(name)).then_some((owner, name))
}

/// SDKs send the options of a repository in the spelling of their language.
fn from_repository(server: &Configured, owner: &str, name: &str) -> Result<Launch, Error> {
    let bad = |option: &str, problem| Error::BadOption {
        server: server.name.clone(),
        option: option.to_owned(),
        problem,
    };
    let (mut install, mut run, mut env) = (None, None, BTreeMap::new());
    for (option, value) in &server.options {
        match (option.as_str(), value) {
            (_, Value::Null) => {}
            ("runCmd" | "run_cmd", Value::String(command)) => run = Some(command.clone()),
            ("installCmd" | "install_cmd", Value::String(command)) => install = Some(command.clone()),
            ("envs", Value::Object(variables)) => {
                env = variables.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            }
            ("runCmd" | "run_cmd" | "installCmd" | "install_cmd", _) => {
                return Err(bad(option, "not a string"));
            }
            ("envs", _) => return Err(bad(option, "not an object")),
            _ => {
                let known = "runCmd (or run_cmd), installCmd (or install_cmd), envs".to_owned();
                return Err(Error::UnknownOption {
                    server: server.name.clone(),
                    option: option.clone(),
                    known,
                });
            }
        }
    }
    if env.iter().any(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
        return Err(bad("envs", "not made of names and values of environment variables"));
    }
    let run = run.filter(|command| !command.trim().is_empty());
    let run =
        run.ok_or_else(|| Error::MissingOption { server: server.name.clone(), option: "runCmd".to_owned() })?;
    let source = Source::Repository { owner: owner.to_owned(), name: name.to_owned(), install, run };
    Ok(Launch { name: server.name.clone(), source, args: Vec::new(), env })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(config: &str) -> Result<Launch, Error> {
        let servers = crate::config::parse(config)?;
        resolve(&crate::catalogue::load()?, &servers[0])
    }

    #[test]
    fn options_become_variables_and_arguments() {
        let filesystem = launch(r#"{"filesystem":{"paths":["/a","/b c"]}}"#).expect("valid");
        assert_eq!(filesystem.args, ["/a", "/b c"]);
        let exa = launch(r#"{"exa":{"apiKey":"secret"}}"#).expect("valid");
        assert_eq!(exa.env["EXA_API_KEY"], "secret");
        let notion = launch(r#"{"notion":{"internalIntegrationToken":"t"}}"#).expect("valid");
        assert!(notion.env["OPENAPI_MCP_HEADERS"].contains("Bearer t"));
    }

    #[test]
    fn what_cannot_start_is_refused_with_its_reason() {
        for (config, reason) in [
            (r#"{"nonsense":{}}"#, "no such name"),
            (r#"{"aks":{}}"#, "/etc/mcp-gateway/servers.toml"),
            (r#"{"exa":{}}"#, "option apiKey is missing"),
            (r#"{"exa":{"apiKey":"k","other":"x"}}"#, "it has apiKey"),
            (r#"{"exa":{"apiKey":{"a":1}}}"#, "option apiKey is neither"),
            (r#"{"github/a":{"runCmd":"x"}}"#, "no such name"),
            (r#"{"github/a/../b":{"runCmd":"x"}}"#, "no such name"),
            (r#"{"github/a/b":{}}"#, "option runCmd is missing"),
            (r#"{"github/a/b":{"runCmd":"x","envs":{"A=":"b"}}}"#, "option envs"),
        ] {
            let error = launch(config).expect_err(config).to_string();
            assert!(error.contains(reason), "{config}: {error}");
        }
    }

    #[test]
    fn repositories_have_both_spellings() {
        for config in [
            r#"{"github/a/b":{"runCmd":"run","installCmd":"install","envs":{"A":"1"}}}"#,
            r#"{"github/a/b":{"run_cmd":"run","install_cmd":"install","envs":{"A":"1"}}}"#,
        ] {
            let launch = launch(config).expect("valid");
            assert_eq!(launch.env["A"], "1");
            assert!(
                matches!(launch.source, Source::Repository { install: Some(_), run, .. } if run == "run")
            );
        }
    }
}
