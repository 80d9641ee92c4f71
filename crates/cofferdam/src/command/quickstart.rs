//! `cofferdam quickstart`: builds the template `base`, starts a server in the background, creates a key and runs a first sandbox.
//! Steps that are done already are skipped, so it can be run again.
//! Progress goes to standard error; standard output says what was created and how to use it.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Args;
use cofferdam_client::{Client, ClientConfig, CreateOptions, EngineInfo, Error, RunOptions, Sandbox};
use engine_container::Criu;
use layers::LayerStore;

use super::setup::set_up_criu;
use super::template::build_base;
use super::tls;
use crate::access::{self, block_on, read_secret};
use crate::background::{self, ServerLaunch};
use crate::failure::Failure;
use crate::paths::{self, CriuDirectory, DataDir, ServerNote};
use crate::show;
use crate::tls::OwnAuthority;

const DEFAULT_LISTEN: &str = "127.0.0.1:3000";
/// The command of the first sandbox: prints user, system and processors.
const FIRST_COMMAND: &str = r#"python3 -c '
import getpass, os, platform
release = platform.freedesktop_os_release()["PRETTY_NAME"]
print(f"Hello from {getpass.getuser()}@{platform.node()}: {release}, Python {platform.python_version()}, {os.cpu_count()} CPUs")'"#;

/// Arguments of `quickstart`: settings of the server, if none runs yet.
#[derive(Debug, Args)]
pub(crate) struct QuickstartArguments {
    #[command(flatten)]
    data: DataDir,
    /// Address that the server listens on.
    #[arg(long, env = "COFFERDAM_LISTEN", default_value = DEFAULT_LISTEN, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Directory of template layers. [default: layers in the data directory]
    #[arg(long, env = "COFFERDAM_LAYERS_DIR", value_name = "DIR")]
    layers_dir: Option<PathBuf>,
    /// The envd binary. [default: beside this program]
    #[arg(long, env = "COFFERDAM_ENVD", value_name = "FILE")]
    envd: Option<PathBuf>,
    #[command(flatten)]
    criu: CriuDirectory,
    /// Domain by which clients reach the server, with TLS on port 443: a certificate authority of the server's own is made, and trusted on
    /// this machine.
    #[arg(long, env = "COFFERDAM_DOMAIN", value_name = "NAME", value_parser = paths::domain)]
    domain: Option<String>,
    /// Address that clients of the domain connect to. [default: port 443 of all addresses]
    #[arg(long, env = "COFFERDAM_TLS_LISTEN", value_name = "ADDRESS", requires = "domain")]
    tls_listen: Option<SocketAddr>,
    /// Address on which DNS queries for the domain are answered.
    #[arg(
        long,
        env = "COFFERDAM_DNS_LISTEN",
        value_name = "ADDRESS",
        requires = "domain",
        default_value = "127.0.0.1:53"
    )]
    dns_listen: SocketAddr,
    /// Build this template as well: `code-interpreter`, which the SDKs of the code interpreter need, takes some minutes. May be repeated.
    #[arg(long = "with", value_name = "RECIPE", conflicts_with = "setup_only")]
    recipes: Vec<String>,
    /// Directory of recipes. [default: where the package has them]
    #[arg(long, env = "COFFERDAM_RECIPES", value_name = "DIR")]
    recipes_dir: Option<PathBuf>,
    /// Build the template `base` and download CRIU only: no server, no key, no sandbox.
    #[arg(long)]
    setup_only: bool,
}

pub(crate) fn run(arguments: &QuickstartArguments) -> Result<ExitCode, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            "quickstart needs root: it builds a Debian system and starts a server that makes namespaces",
        ));
    }
    let data = &arguments.data;
    fs::create_dir_all(&data.data_dir)
        .map_err(|error| Failure::new(format!("{}: {error}", data.data_dir.display())))?;
    // The server's working directory is another one.
    let data = &DataDir { data_dir: fs::canonicalize(&data.data_dir)? };
    let layers_dir = arguments.layers_dir.clone().unwrap_or_else(|| data.layers());
    if arguments.setup_only {
        build_base(&LayerStore::open(&layers_dir)?)?;
        return set_up_criu(data, &arguments.criu).map(|_| ExitCode::SUCCESS);
    }
    // Looked for before a first build that takes minutes.
    let recipes = arguments.recipes.iter().map(|name| recipe(arguments.recipes_dir.as_deref(), name));
    let recipes = recipes.collect::<Result<Vec<PathBuf>, Failure>>()?;
    let envd = fs::canonicalize(paths::envd(arguments.envd.as_deref())?)?;
    let old = block_on(async { Ok(background::running(data).await) })?;
    if old.is_none() {
        // Checked here, before a first build that takes minutes.
        background::check_free(arguments.listen)?;
    }
    let built = build_base(&LayerStore::open(&layers_dir)?)?;
    let had_criu = Criu::find(&arguments.criu.path(data)).is_ok();
    match set_up_criu(data, &arguments.criu) {
        Ok(_) if old.is_some() && !had_criu => eprintln!("the running server uses CRIU after its next start"),
        Ok(_) => {}
        // Everything but memory snapshots works without CRIU.
        Err(failure) => {
            eprintln!("there are no memory snapshots until `cofferdam setup criu` succeeds: {failure}");
        }
    }
    let server = match old {
        Some(old) if !built.cached => return Err(restart_needed(&old)),
        Some(old) => old,
        None => {
            let layers_dir = &fs::canonicalize(&layers_dir)?;
            let criu = std::path::absolute(arguments.criu.path(data))?;
            let more = domain_arguments(arguments);
            background::start(&ServerLaunch { data, listen: arguments.listen, layers_dir, envd, criu, more })?
        }
    };
    if let Some(domain) = &arguments.domain
        && server.domain.is_none()
    {
        return Err(Failure::new(format!(
            "the server at {url} runs without the domain {domain}; its sandboxes survive a restart: `kill {pid}`, then run quickstart \
             again",
            url = server.url,
            pid = server.pid
        )));
    }
    let domain = arguments.domain.as_ref().and(server.domain.as_deref());
    block_on(first_steps(data, &server, domain))?;
    for recipe in recipes {
        build(data, &server, &recipe)?;
    }
    if let Some(domain) = &arguments.domain {
        open_domain(domain, arguments.dns_listen, data)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the directory of a recipe, whose version may be left out: `code-interpreter` is `code-interpreter-v1`.
fn recipe(given: Option<&Path>, name: &str) -> Result<PathBuf, Failure> {
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => {
            let program = std::env::current_exe()?;
            program.ancestors().nth(2).unwrap_or(Path::new("/")).join("share/cofferdam/templates")
        }
    };
    let names = fs::read_dir(&dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let found = names.iter().find(|found| *found == name || found.starts_with(&format!("{name}-v")));
    match found {
        Some(found) => Ok(dir.join(found)),
        None => Err(Failure::new(format!(
            "there is no recipe {name} in {}, which has: {}; name another directory with --recipes-dir",
            dir.display(),
            names.join(", ")
        ))),
    }
}

/// Builds a recipe on the server, with the progress that `template build` shows.
fn build(data: &DataDir, server: &ServerNote, recipe: &Path) -> Result<(), Failure> {
    let name = recipe.file_name().unwrap_or_default().to_string_lossy();
    show::line(&format!("\ntemplate {name}, which takes some minutes the first time:"))?;
    let begun = Instant::now();
    let key = read_secret(&data.quickstart_key()).unwrap_or_default();
    let built = Command::new(std::env::current_exe()?)
        .args(["template", "build"])
        .arg(recipe)
        .arg("--data-dir")
        .arg(&data.data_dir)
        .env("E2B_API_KEY", key)
        .env("E2B_API_URL", &server.url)
        .status()?;
    if !built.success() {
        return Err(Failure::new(format!(
            "the template {name} was not built; the server and base can be used"
        )));
    }
    show::line(&format!("template {name} is ready after {} s", begun.elapsed().as_secs()))
}

/// Returns what `serve` needs for the domain.
fn domain_arguments(arguments: &QuickstartArguments) -> Vec<String> {
    let Some(domain) = &arguments.domain else { return Vec::new() };
    let dns = arguments.dns_listen.to_string();
    let mut words: Vec<String> =
        ["--domain", domain, "--tls", "self-signed", "--dns-listen", &dns].map(str::to_owned).to_vec();
    if let Some(address) = arguments.tls_listen {
        words.extend(["--tls-listen".to_owned(), address.to_string()]);
    }
    words
}

/// Has this machine trust the domain's certificate, and says what is left to do for clients to find its names.
fn open_domain(domain: &str, dns: SocketAddr, data: &DataDir) -> Result<(), Failure> {
    show::line("\ncertificate:")?;
    let authority = OwnAuthority::open(data, domain)?;
    let lines =
        tls::trust(&authority, domain).unwrap_or_else(|failure| vec![format!("not trusted yet: {failure}")]);
    for line in lines {
        show::line(&format!("  {line}"))?;
    }
    let found = format!("api.{domain}:0").to_socket_addrs().is_ok();
    show::line("names:")?;
    if found {
        return show::line(&format!("  api.{domain} and others resolve"));
    }
    let server = dns.ip();
    let port = if dns.port() == 53 { String::new() } else { format!(":{}", dns.port()) };
    show::line(&format!(
        "  api.{domain} does not resolve yet. The server answers for it at {dns}; tell the resolver, by one of:"
    ))?;
    for line in [
        format!(
            "printf '[Resolve]\\nDNS={server}{port}\\nDomains=~{domain}\\n' > /etc/systemd/resolved.conf.d/cofferdam.conf && \
                 systemctl restart systemd-resolved"
        ),
        format!(
            "echo 'server=/{domain}/{server}#{}' > /etc/dnsmasq.d/cofferdam.conf && systemctl restart dnsmasq",
            dns.port()
        ),
    ] {
        show::line(&format!("  {line}"))?;
    }
    if dns.port() == 53 {
        show::line(&format!(
            "  sed -i '1i nameserver {server}' /etc/resolv.conf   # other names go to the next line's server"
        ))?;
    }
    show::line("then check it as a client: cofferdam doctor")
}

/// Returns the failure of a server that does not have the template `base`, because it registers it only at its start.
fn restart_needed(server: &ServerNote) -> Failure {
    Failure::new(format!(
        "the server at {url} was started before template base was built; its sandboxes survive a restart: \
         `kill {pid}`, then run quickstart again",
        url = server.url,
        pid = server.pid
    ))
}

async fn first_steps(data: &DataDir, server: &ServerNote, domain: Option<&str>) -> Result<(), Failure> {
    let url = public_url(&server.url);
    let (key, engine) = key(data, &server.url).await?;
    let client = Client::new(ClientConfig::at(&server.url).with_api_key(&key))?;

    let begun = Instant::now();
    let options = CreateOptions { timeout: Duration::from_secs(60), ..CreateOptions::new("base") };
    let sandbox = match Sandbox::create(&client, options).await {
        Err(Error::NotFound(_)) => return Err(restart_needed(server)),
        created => created?,
    };
    let created = begun.elapsed();
    let begun = Instant::now();
    let outcome = sandbox.commands().run(FIRST_COMMAND, RunOptions::default()).await;
    let ran = begun.elapsed();
    // Also if the command failed.
    let killed = sandbox.kill().await;
    let output = outcome?.check()?;
    killed?;

    show::line(&format!("first sandbox: {}", sandbox.id()))?;
    show::line(&format!("  {}", output.stdout_text().trim_end()))?;
    show::line(&format!("  created in {}, command took {}", milliseconds(created), milliseconds(ran)))?;
    show::line(&format!("isolation: {}", engine.summary))?;
    show::line("\nuse it from any E2B SDK:\n")?;
    let variables = match domain {
        Some(domain) => vec![("E2B_API_KEY", key.as_str()), ("E2B_DOMAIN", domain)],
        None => vec![("E2B_API_KEY", key.as_str()), ("E2B_API_URL", &url), ("E2B_SANDBOX_URL", &url)],
    };
    for (name, value) in variables {
        show::line(&format!("export {name}={value}"))?;
    }
    show::line("\nin Python (pip install e2b):\n")?;
    show::line("from e2b import Sandbox")?;
    show::line("print(Sandbox.create().commands.run(\"echo hello\").stdout)\n")?;
    show::line(&format!(
        "stop the server: kill {} (its sandboxes keep running, and the next start adopts them)",
        server.pid
    ))?;
    show::line(&format!("data: {}", data.data_dir.display()))?;
    show::line(&format!("log:  {}", data.log().display()))
}

/// Returns the stored key if it is still valid, or a new one that it stores; and the server's engine.
async fn key(data: &DataDir, url: &str) -> Result<(String, EngineInfo), Failure> {
    if let Some(key) = read_secret(&data.quickstart_key()) {
        let client = Client::new(ClientConfig::at(url).with_api_key(&key))?;
        match client.engine().await {
            Ok(engine) => return Ok((key, engine)),
            Err(Error::Unauthorized(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let operator = access::operator_client(url, &access::admin_token(data)?)?;
    let key = operator.create_key("quickstart").await?.key;
    fs_atomic::write(&data.quickstart_key(), &key, fs_atomic::Options::PRIVATE)?;
    Ok((key, operator.engine().await?))
}

/// Returns the server's URL with `localhost` for a loopback or unspecified address.
fn public_url(url: &str) -> String {
    let address = url.strip_prefix("http://").and_then(|address| address.parse::<SocketAddr>().ok());
    match address {
        Some(address) if address.ip().is_loopback() || address.ip().is_unspecified() => {
            format!("http://localhost:{}", address.port())
        }
        _ => url.to_owned(),
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_found_without_its_version() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["code-interpreter-v1", "httpbin"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let found = |name| recipe(Some(dir.path()), name);
        assert_eq!(found("code-interpreter").unwrap(), dir.path().join("code-interpreter-v1"));
        assert_eq!(found("httpbin").unwrap(), dir.path().join("httpbin"));
        let error = found("code").unwrap_err().to_string();
        assert!(error.contains("code-interpreter-v1, httpbin"), "{error}");
    }

    #[test]
    fn local_addresses_become_localhost() {
        assert_eq!(public_url("http://127.0.0.1:3000"), "http://localhost:3000");
        assert_eq!(public_url("http://0.0.0.0:8000"), "http://localhost:8000");
        assert_eq!(public_url("http://192.0.2.1:3000"), "http://192.0.2.1:3000");
    }
}
