//! `POST /init`: applies the settings of a sandbox, see [`InitRequest`].
//! Requests are applied one after another; a request with an old timestamp succeeds without being applied.
//! Only the server may send them. Where envd runs on its own, the first request needs no token; once a token is set, only a
//! request with this token may change or remove it.

use std::collections::BTreeMap;
use std::path::Path;

use body_drain::DrainableBody;
use envd_api::{InitRequest, VERSION, headers as wire};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::auth::{self, Peer};
use crate::clock;
use crate::rest::metrics::Limits;
use crate::rest::{Body, RestError, body_reader, no_content, system};
use crate::state::{Envd, Settings};

/// Maximum size of the body, bytes: it contains variables and a bundle of certificates.
const MAX_BODY: usize = 16 << 20;

/// Applies a request.
pub async fn post(
    envd: &Envd,
    headers: &HeaderMap,
    body: DrainableBody,
    peer: Peer,
) -> Result<Response<Body>, RestError> {
    let body = body_reader::collect(body, headers, MAX_BODY).await?;
    let parsed = if body.iter().all(u8::is_ascii_whitespace) {
        None
    } else {
        let parsed = serde_json::from_slice::<InitRequest>(&body);
        Some(parsed.map_err(|error| RestError::bad_request(format!("invalid request body: {error}")))?)
    };
    let _turn = envd.init.lock().await;
    if peer != Peer::Server {
        authorize(&envd.settings(), headers, parsed.as_ref())?;
    }
    let reseeded = match parsed.as_ref().and_then(|init| init.seed.as_deref()) {
        Some(seed) => system::mix_seed(&envd.system_root, seed)
            .map(|()| true)
            .map_err(|error| RestError::bad_request(format!("error mixing the seed: {error}")))?,
        None => false,
    };
    if let Some(init) = parsed {
        apply(envd, init).await?;
    }
    let mut response = no_content();
    if reseeded {
        response.headers_mut().insert(wire::RESEEDED, HeaderValue::from_static("true"));
    }
    response.headers_mut().insert(wire::VERSION, HeaderValue::from_static(VERSION));
    Ok(response)
}

fn authorize(settings: &Settings, headers: &HeaderMap, init: Option<&InitRequest>) -> Result<(), RestError> {
    let Some(current) = &settings.token else { return Ok(()) };
    let given = auth::token(headers).or_else(|| init.and_then(|init| init.access_token.as_deref()));
    match given {
        Some(given) if auth::same(given, current) => Ok(()),
        Some(_) => Err(RestError::new(StatusCode::UNAUTHORIZED, "access token validation failed")),
        None => Err(RestError::new(StatusCode::UNAUTHORIZED, "access token reset not authorized")),
    }
}

async fn apply(envd: &Envd, init: InitRequest) -> Result<(), RestError> {
    let timestamp = match &init.timestamp {
        Some(text) => {
            Some(clock::parse_rfc3339(text).ok_or_else(|| RestError::bad_request("invalid timestamp"))?)
        }
        None => None,
    };
    if init.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty()) {
        return Err(RestError::bad_request("volume mounts are not supported by this envd"));
    }
    {
        let settings = envd.settings();
        if let (Some(timestamp), Some(applied)) = (timestamp, settings.applied)
            && timestamp <= applied
        {
            return Ok(());
        }
    }
    let root = envd.system_root.clone();
    if let Some(timestamp) = timestamp
        && root == Path::new("/")
    {
        clock::step(timestamp);
    }
    // Before the settings change: a request that fails here may be repeated.
    let (init, trust) = tokio::task::spawn_blocking(move || {
        let trust = change_system(&root, &init);
        (init, trust)
    })
    .await?;
    let mut settings = envd.settings();
    if let Some(trust) = trust {
        settings.trust_env = trust;
    }
    set(&mut settings, init, timestamp);
    Ok(())
}

/// Changes files of the system. Returns the variables by which programs find the authorities, if there are any.
fn change_system(root: &Path, init: &InitRequest) -> Option<BTreeMap<String, String>> {
    let pem = init.ca_bundle.as_deref().filter(|pem| !pem.trim().is_empty());
    // Every sandbox is given authorities, and images may have anything where the bundle is: such a sandbox works without them.
    let trust = pem.and_then(|pem| {
        let installed = system::install_ca(root, pem);
        installed.inspect_err(|error| eprintln!("cannot install certificate authorities: {error}")).ok()
    });
    // The rest is optional: a sandbox with a read-only /etc works without it.
    let _ = system::write_markers(root, init.sandbox_id.as_deref(), init.template_id.as_deref());
    if let Some(name) = init.hostname.as_deref().filter(|name| !name.is_empty()) {
        let _ = system::set_hostname(root, name);
    }
    if let Some(address) = init.hyperloop_ip.as_deref().filter(|address| !address.is_empty()) {
        let _ = system::set_host(root, address, "events.e2b.local");
    }
    trust
}

fn set(settings: &mut Settings, init: InitRequest, timestamp: Option<i128>) {
    settings.token = init.access_token.filter(|token| !token.is_empty());
    if let Some(env) = init.env_vars {
        settings.env = env;
    }
    if let Some(user) = init.default_user.filter(|user| !user.is_empty()) {
        settings.default_user = user;
    }
    if let Some(dir) = init.default_workdir.filter(|dir| !dir.is_empty()) {
        settings.default_workdir = Some(dir);
    }
    let events =
        init.hyperloop_ip.filter(|address| !address.is_empty()).map(|address| format!("http://{address}"));
    for (name, value) in [
        ("E2B_SANDBOX_ID", init.sandbox_id),
        ("E2B_TEMPLATE_ID", init.template_id),
        ("E2B_TEAM_ID", init.team_id),
        ("E2B_EVENTS_ADDRESS", events),
    ] {
        if let Some(value) = value {
            settings.platform_env.insert(name.to_owned(), value);
        }
    }
    if let (Some(cpu_count), Some(memory)) = (init.cpu_count, init.memory_mib) {
        let disk = init.disk_mib.filter(|mib| *mib > 0).map(|mib| mib.saturating_mul(1 << 20));
        settings.limits = Some(Limits { cpu_count, memory: memory << 20, disk });
    }
    settings.applied = timestamp.or(settings.applied);
}
