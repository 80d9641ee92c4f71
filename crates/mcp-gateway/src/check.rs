//! `mcp-gateway check` and `list`: what the servers are, and what each offers when it is started by itself.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use crate::error::Error;
use crate::gateway::Changes;
use crate::launch::Launch;
use crate::upstream::Upstream;
use crate::{catalogue, daemon, server};

/// Starts each server by itself and prints a line of JSON for it.
///
/// # Errors
/// The configuration is wrong. A server that does not start is a line with its error.
pub(crate) async fn run(config: &str) -> Result<(), Error> {
    for launch in daemon::launches(config)? {
        let began = Instant::now();
        let name = launch.name.clone();
        let mut line = match one(&launch).await {
            Ok(line) => line,
            Err(error) => json!({"error": error.to_string()}),
        };
        line["server"] = name.into();
        line["milliseconds"] = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).into();
        println!("{line}");
    }
    Ok(())
}

async fn one(launch: &Launch) -> Result<serde_json::Value, Error> {
    let upstream = Upstream::new(0, launch.name.clone(), Arc::new(Changes::default()));
    let running = server::start(launch, upstream, None).await?;
    let names = server::read_names(&launch.name, &running).await?;
    let tools: Vec<&str> = names.tools.iter().map(|tool| tool.name.as_ref()).collect();
    Ok(json!({
        "tools": tools,
        "prompts": names.prompts.len(),
        "resources": names.resources.len() + names.templates.len(),
        "memory": running.memory(),
    }))
}

/// Prints the catalogue.
///
/// # Errors
/// It cannot be read.
pub(crate) fn list() -> Result<(), Error> {
    for (name, entry) in catalogue::load()? {
        let optional = entry.optional.iter().map(|option| format!("{option}?"));
        let options: Vec<String> = entry.required.iter().cloned().chain(optional).collect();
        println!("{name}\t{}\t{}", entry.origin(), options.join(" "));
    }
    Ok(())
}
