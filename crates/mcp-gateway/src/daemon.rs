//! `mcp-gateway --config`: starts the gateway in the background and waits until it answers. The configuration and the token go through a pipe,
//! so that neither is on the disk or in a process list.

use std::fs::{OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::gateway::Gateway;
use crate::launch::{Launch, resolve};
use crate::limits::DAEMON_TIMEOUT;
use crate::{catalogue, config, log, routes};

/// The port that the SDKs know.
const PORT: u16 = 50005;
const TOKEN_FILE: &str = "/etc/mcp-gateway/.token";
const TOKEN_VARIABLE: &str = "GATEWAY_ACCESS_TOKEN";
/// What the gateway says when it answers; anything else is why it does not.
const READY: &str = "ready";

/// What the gateway gets through its input.
#[derive(Serialize, Deserialize)]
struct Orders {
    config: String,
    token: String,
}

/// Starts the gateway and returns when it answers.
///
/// # Errors
/// The configuration is wrong, a server does not start, or all of it takes too long.
pub(crate) fn start(config: &str) -> Result<(), Error> {
    let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()).ok_or(Error::NoToken)?;
    launches(config)?;
    let program = std::env::current_exe().map_err(Error::io("this program's path"))?;
    let mut child = Command::new(program)
        .arg("serve")
        .env_remove(TOKEN_VARIABLE)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log::file()?)
        .spawn()
        .map_err(Error::io("starting the gateway"))?;
    let orders =
        serde_json::to_vec(&Orders { config: config.to_owned(), token }).expect("strings are valid JSON");
    let (mut input, output) =
        (child.stdin.take().expect("is a pipe"), child.stdout.take().expect("is a pipe"));
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let sent = input.write_all(&orders);
        drop(input);
        let mut line = String::new();
        let _ = BufReader::new(output).take(64 << 10).read_line(&mut line);
        let _ = send.send(sent.map(|()| line));
    });
    match receive.recv_timeout(DAEMON_TIMEOUT) {
        Ok(Ok(line)) if line.trim_end() == READY => Ok(()),
        Ok(Ok(line)) if line.is_empty() => {
            Err(Error::Gateway("the gateway ended; see /var/log/mcp-gateway/gateway.log".to_owned()))
        }
        Ok(Ok(line)) => Err(Error::Gateway(serde_json::from_str(&line).unwrap_or(line))),
        Ok(Err(error)) => Err(Error::io("telling the gateway its configuration")(error)),
        Err(_) => {
            let _ = child.kill();
            Err(Error::Late(DAEMON_TIMEOUT))
        }
    }
}

/// The gateway process.
///
/// # Errors
/// It cannot start; whoever started it was told.
pub(crate) fn serve() -> Result<(), Error> {
    // Out of the session of the command that started it: signals to that do not concern the gateway.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    log::to_file()?;
    let mut orders = Vec::new();
    std::io::stdin().lock().take(4 << 20).read_to_end(&mut orders).map_err(Error::io("standard input"))?;
    let orders: Orders = serde_json::from_slice(&orders).map_err(|error| Error::Config(error.to_string()))?;
    let result = crate::runtime()?.block_on(run(&orders));
    if let Err(error) = &result {
        tracing::error!("{error}");
        report(&serde_json::Value::from(error.to_string()).to_string());
    }
    result
}

async fn run(orders: &Orders) -> Result<(), Error> {
    // First, so that a second gateway does not start servers in vain.
    let listener = routes::listen(PORT)?;
    let gateway = Gateway::start(launches(&orders.config)?).await?;
    write_token(&orders.token)?;
    report(READY);
    tracing::info!(servers = gateway.len(), "the gateway answers");
    routes::serve(listener, gateway, orders.token.clone()).await;
    Ok(())
}

/// Checks a configuration and returns what to start.
///
/// # Errors
/// See [`config::parse`] and [`resolve`].
pub(crate) fn launches(config: &str) -> Result<Vec<Launch>, Error> {
    let catalogue = catalogue::load()?;
    config::parse(config)?.iter().map(|server| resolve(&catalogue, server)).collect()
}

fn report(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// `get_mcp_token()` of the SDKs reads this file, so it holds the token and nothing else.
fn write_token(token: &str) -> Result<(), Error> {
    let path = Path::new(TOKEN_FILE);
    let written = std::fs::create_dir_all(path.parent().unwrap_or(path)).and_then(|()| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(token.as_bytes())
    });
    written.map_err(Error::io(TOKEN_FILE))
}
