//! Configurations of the server's parts, made from the arguments of `serve`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::LimitsChange;
use engine::Isolation;
use identity::Issuer;
use layers::{LayerDigest, LayerStore};
use net::{GatewayConfig, Hairpin, Interceptor, OperatorPolicies, OperatorPolicy, ProxyHosts, Resolvers};
use volumes::VolumeTrees;

use super::{ServeArguments, authorities};
use crate::budgets::Budgets;
use crate::failure::Failure;

/// Maximum time of a start in emulation: what takes a second with KVM takes many on a busy host.
const EMULATED_START_TIMEOUT: Duration = Duration::from_secs(120);
const SECONDS_PER_DAY: u64 = 24 * 3600;

/// Returns the configuration of the control plane for an engine with this isolation.
///
/// # Errors
/// The file of `--sandbox-ca` cannot be used.
pub(super) fn control(
    arguments: &ServeArguments,
    layers: &LayerStore,
    isolation: Isolation,
) -> Result<control::Config, Failure> {
    let data_dir = &arguments.data.data_dir;
    let mut config = control::Config::new(layer_path(layers));
    if isolation == Isolation::EmulatedVm {
        config.start_timeout = EMULATED_START_TIMEOUT;
    }
    config.pause_retry = Duration::from_secs(arguments.pause_retry);
    config.keep_frozen = Duration::from_secs(arguments.keep_frozen);
    config.keep_frozen_max = arguments.keep_frozen_max;
    config.volumes =
        Some(Arc::new(VolumeTrees::new(&data_dir.join("team-volumes"), arguments.engines.storage())));
    config.logs_dir = Some(data_dir.join("logs"));
    config.metrics_dir = Some(data_dir.join("metrics"));
    config.layers = Some(layers.clone());
    config.owns_layers = arguments.layers_dir.is_none();
    config.trusted_ca = authorities::for_sandboxes(arguments.sandbox_ca.as_ref())?;
    config.registries = registries(arguments);
    config.pool_max = arguments.pool;
    config.pool_memory = arguments.pool_memory << 20;
    config.pool_file = Some(data_dir.join("pool.json"));
    config.builds_dir = Some(data_dir.join("builds"));
    config.webhook_internal.clone_from(&arguments.webhook_allow_internal);
    config.retention = Duration::from_secs(u64::from(arguments.retention_days) * SECONDS_PER_DAY);
    config.default_limits = LimitsChange::from(&arguments.limits).apply(config.default_limits);
    Ok(config)
}

/// Returns a function from a layer's digest to its directory, and to a path that does not exist for text that is no digest.
fn layer_path(layers: &LayerStore) -> impl Fn(&str) -> PathBuf + Send + Sync + 'static {
    let layers = layers.clone();
    move |digest| match digest.parse::<LayerDigest>() {
        Ok(digest) => layers.path(&digest),
        Err(_) => PathBuf::from("/nonexistent"),
    }
}

/// Returns the configuration of the gateway for connections out of sandboxes.
pub(super) fn gateway(
    arguments: &ServeArguments,
    budgets: &Budgets,
    interceptor: Arc<dyn Interceptor>,
    hairpin: Option<Hairpin>,
) -> GatewayConfig {
    let resolvers = if arguments.dns.is_empty() {
        Resolvers::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    } else {
        Resolvers::new(arguments.dns.clone())
    };
    GatewayConfig {
        resolvers,
        internal_allowed: arguments.egress_allow_internal.clone(),
        proxies_allowed: arguments.egress_proxy_allow_internal.clone(),
        max_connections: usize::try_from(arguments.egress_connections).unwrap_or(usize::MAX),
        max_bytes: arguments.egress_traffic.map(|mib| mib.saturating_mul(1 << 20)),
        connections: Arc::clone(&budgets.outgoing),
        interceptor: Some(interceptor),
        hairpin,
        ..GatewayConfig::default()
    }
}

/// Returns the operator's policies: for all sandboxes as in the arguments, for teams none yet.
pub(super) fn operator_policies(arguments: &ServeArguments) -> Arc<OperatorPolicies> {
    Arc::new(OperatorPolicies::new(policy_for_all(arguments)))
}

/// Returns the operator's policy for all sandboxes.
pub(super) fn policy_for_all(arguments: &ServeArguments) -> OperatorPolicy {
    let allow_only = Some(arguments.egress_allow_only.clone()).filter(|list| !list.is_empty());
    OperatorPolicy::new(arguments.egress_deny.clone(), allow_only)
}

/// Opens what signs identity tokens of sandboxes: in the name of `--public-url`, or of the API's host below `--domain`.
///
/// # Errors
/// The file of the keys cannot be used.
pub(super) fn issuer(arguments: &ServeArguments) -> Result<Option<Issuer>, Failure> {
    let of_domain = (arguments.domain != "localhost").then(|| format!("https://api.{}", arguments.domain));
    let Some(url) = arguments.listen.public_url().map(ToString::to_string).or(of_domain) else {
        return Ok(None);
    };
    let issuer = Issuer::open(&url, &arguments.data.identity_keys());
    issuer.map(Some).map_err(|error| Failure::new(format!("keys of identity tokens: {error}")))
}

/// Returns what checks the proxies of sandboxes as the gateway does.
pub(super) fn proxy_hosts(gateway: &GatewayConfig) -> ProxyHosts {
    let allowed = [&gateway.internal_allowed[..], &gateway.proxies_allowed].concat();
    ProxyHosts::new(gateway.resolvers.clone(), allowed)
}

/// Parses a value of `--registry-mirror`.
///
/// # Errors
/// It is not HOST=URL, or the URL cannot be used.
pub(super) fn registry_mirror(text: &str) -> Result<(String, oci::Mirror), String> {
    let (host, url) =
        text.split_once('=').ok_or("write it as HOST=URL, such as docker.io=https://mirror.example")?;
    Ok((host.to_owned(), url.parse().map_err(|error: oci::OciError| error.to_string())?))
}

fn registries(arguments: &ServeArguments) -> oci::Registries {
    oci::Registries {
        mirrors: arguments.registry_mirror.iter().cloned().collect(),
        insecure: arguments.registry_insecure.iter().cloned().collect(),
        allowed: arguments.registry_allow_internal.clone(),
        ..oci::Registries::default()
    }
}
