//! The sockets that clients connect to, the answers to their DNS queries, and what the server believes of the proxies before it.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use control::Control;
use edge::{EdgeConfig, Listener, Protocol, PublicUrl};
use net::{Cidr, Hairpin};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zone::{Addresses, Sockets, Zone};

use super::acme::AcmeArguments;
use super::service::ServiceSockets;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::tls::CertificateSource;

/// Connections that the kernel completes before they are accepted; `net.core.somaxconn` may lower it.
const BACKLOG: u32 = 4096;
const HTTPS_PORT: u16 = 443;

/// Settings of the way from clients to the server.
#[derive(Debug, Args)]
pub(crate) struct ListenArguments {
    /// Address that clients connect to without TLS, for the API and for sandboxes. Port 0 chooses a free port.
    #[arg(long, env = "COFFERDAM_LISTEN", default_value = "127.0.0.1:3000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// PEM file of a certificate for `--domain` and its subdomains (`*.<domain>`), followed by those of intermediate authorities. It is read
    /// again when it changes.
    #[arg(long, env = "COFFERDAM_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's key.
    #[arg(long, env = "COFFERDAM_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Where a certificate comes from, instead of `--tls-cert`.
    #[arg(long, env = "COFFERDAM_TLS", value_enum, value_name = "SOURCE", conflicts_with = "tls_cert")]
    tls: Option<TlsSource>,
    #[command(flatten)]
    acme: AcmeArguments,
    /// Address that clients connect to with TLS. [default: port 443 of all addresses, if there is a certificate]
    #[arg(long, env = "COFFERDAM_TLS_LISTEN", value_name = "ADDRESS")]
    tls_listen: Option<SocketAddr>,
    /// Address on which every request is redirected to HTTPS, or `none`. [default: port 80 beside port 443 of `--tls-listen`, if it is free]
    #[arg(long, env = "COFFERDAM_REDIRECT_LISTEN", value_name = "ADDRESS")]
    redirect_listen: Option<RedirectListen>,
    /// How long browsers that came by HTTPS shall use nothing else (`Strict-Transport-Security`). [default: the header is not sent]
    #[arg(long, value_name = "SECONDS")]
    hsts: Option<u32>,
    /// URL at which clients reach the API, for links in responses: `https://api.example.org`. [default: what each client used]
    #[arg(long, env = "COFFERDAM_PUBLIC_URL", value_name = "URL")]
    public_url: Option<PublicUrl>,
    /// Network of proxies whose `X-Forwarded-Proto`, `-Host` and `-For` are believed. May be repeated. [default: none]
    #[arg(long, value_name = "CIDR")]
    trust_proxy: Vec<Cidr>,
    /// Those proxies begin connections to `--tls-listen` with a header of the PROXY protocol, version 2.
    #[arg(long, requires = "trust_proxy")]
    proxy_protocol: bool,
    /// Further address without TLS, to which those proxies begin connections with that header.
    #[arg(long, env = "COFFERDAM_PROXY_LISTEN", value_name = "ADDRESS", requires = "trust_proxy")]
    proxy_listen: Option<SocketAddr>,
    /// Tell servers in sandboxes the client's address, scheme and host, in `X-Forwarded-For`, `-Proto` and `-Host`. What clients send in
    /// headers of these names never reaches them.
    #[arg(long)]
    forwarded_headers: bool,
}

/// Settings of the answers to DNS queries for the domain.
#[derive(Debug, Args)]
pub(crate) struct DnsArguments {
    /// Address on which DNS queries for `--domain` and all names below it are answered, over UDP and TCP. Resolvers, or the name server of
    /// the domain above, must be told to ask there. [default: none are answered]
    #[arg(long, env = "COFFERDAM_DNS_LISTEN", value_name = "ADDRESS")]
    dns_listen: Option<SocketAddr>,
    /// Address that those names have. May be repeated. [default: that of `--tls-listen`, or that by which whoever asks reaches this host]
    #[arg(long, value_name = "IP", requires = "dns_listen")]
    dns_address: Vec<IpAddr>,
}

/// Starts to answer DNS queries for the domain, if that was asked for. `tls` is the address of the socket with TLS.
///
/// # Errors
/// The address is not free, or there is no domain.
pub(super) async fn answer_dns(
    arguments: &DnsArguments,
    domain: &str,
    tls: Option<SocketAddr>,
) -> Result<(), Failure> {
    let Some(address) = arguments.dns_listen else { return Ok(()) };
    if domain == "localhost" {
        return Err(Failure::new("--dns-listen answers for a domain: name it with --domain"));
    }
    let tls = tls.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    let addresses = match (&arguments.dns_address[..], tls) {
        ([], None) => Addresses::Reached,
        ([], Some(address)) => Addresses::Fixed(vec![address]),
        (addresses, _) => Addresses::Fixed(addresses.to_vec()),
    };
    let zone =
        Zone::new(domain, addresses).map_err(|error| Failure::new(format!("--domain {domain}: {error}")))?;
    let sockets = Sockets::bind(address).await.map_err(|error| in_use(address, "--dns-listen", &error))?;
    info!(address = %sockets.address()?, domain, "answering DNS queries");
    tokio::spawn(zone.serve(sockets));
    Ok(())
}

/// Serves SSH until `stopping`, if that was asked for. `url` is where this server is reached without TLS.
///
/// # Errors
/// The address is not free, or the server's key cannot be used.
pub(super) async fn serve_ssh(
    address: Option<SocketAddr>,
    control: &Arc<Control>,
    data: &DataDir,
    url: &str,
    stopping: &CancellationToken,
) -> Result<Option<JoinHandle<()>>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let server = ssh::SshServer::open(Arc::clone(control), &data.ssh_host_key(), url)?;
    let socket = listen(address).map_err(|error| in_use(address, "--ssh-listen", &error))?;
    let address = socket.local_addr()?;
    info!(%address, "listening for SSH");
    let stop = stopping.clone().cancelled_owned();
    let mut note = data.ssh_note();
    note.set_extension("new");
    std::fs::write(&note, address.to_string()).and_then(|()| std::fs::rename(&note, data.ssh_note()))?;
    Ok(Some(tokio::spawn(server.serve(socket, stop))))
}

/// Where a certificate comes from, other than files.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TlsSource {
    /// An authority of the server's own, which clients must be told to trust: `cofferdam tls trust`.
    SelfSigned,
}

/// The value of `--redirect-listen`.
#[derive(Debug, Clone, Copy)]
enum RedirectListen {
    Nowhere,
    At(SocketAddr),
}

impl FromStr for RedirectListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        text.parse().map(Self::At).map_err(|_| "write an address with a port, or none".to_owned())
    }
}

/// The opened sockets.
pub(super) struct Opened {
    pub(super) listeners: Vec<Listener>,
    /// URL of the socket without TLS.
    pub(super) url: String,
    /// The address of the socket with TLS.
    pub(super) tls: Option<SocketAddr>,
    /// The port of HTTPS that clients use, if it is not 443.
    pub(super) public_port: Option<u16>,
}

/// Opens all sockets.
///
/// # Errors
/// An address is not free, or there is no usable certificate.
pub(super) async fn open(
    arguments: &ListenArguments,
    domain: &str,
    data: &DataDir,
    given: ServiceSockets,
) -> Result<Opened, Failure> {
    let plain = match given.plain {
        Some(socket) => socket,
        None => listen(arguments.listen).map_err(|error| in_use(arguments.listen, "--listen", &error))?,
    };
    let url = format!("http://{}", plain.local_addr()?);
    let public_port = arguments.public_url.as_ref().and_then(PublicUrl::port);
    let listeners = vec![Listener { socket: plain, protocol: Protocol::Plain, has_proxy_header: false }];
    let mut opened = Opened { listeners, url, tls: None, public_port };
    if let Some(address) = arguments.proxy_listen {
        let socket = listen(address).map_err(|error| in_use(address, "--proxy-listen", &error))?;
        info!(address = %socket.local_addr()?, "listening for proxies");
        opened.listeners.push(Listener { socket, protocol: Protocol::Plain, has_proxy_header: true });
    }
    let Some(source) = certificate_source(arguments)? else {
        if arguments.tls_listen.is_some() || given.tls.is_some() {
            return Err(Failure::new(
                "a socket with TLS needs a certificate: name one with --tls-cert and --tls-key",
            ));
        }
        return Ok(opened);
    };
    if domain == "localhost" {
        return Err(Failure::new("TLS is for a domain whose subdomains lead here: name it with --domain"));
    }
    let config = edge::tls_config(source.open(domain, data).await?)
        .map_err(|error| Failure::new(format!("TLS: {error}")))?;
    let socket = match given.tls {
        Some(socket) => socket,
        None => listen_for_tls(arguments.tls_listen)?,
    };
    let address = socket.local_addr()?;
    opened.tls = Some(address);
    if arguments.public_url.is_none() {
        opened.public_port = Some(address.port()).filter(|port| *port != HTTPS_PORT);
    }
    opened.listeners.push(Listener {
        socket,
        protocol: Protocol::Tls(config),
        has_proxy_header: arguments.proxy_protocol,
    });
    if let Some(socket) = listen_for_redirects(arguments.redirect_listen, address)? {
        let port =
            arguments.public_url.as_ref().map_or(address.port(), |url| url.port().unwrap_or(HTTPS_PORT));
        opened.listeners.push(Listener {
            socket,
            protocol: Protocol::Redirect { port },
            has_proxy_header: false,
        });
    }
    Ok(opened)
}

/// Returns the source of the certificate that the arguments name.
fn certificate_source(arguments: &ListenArguments) -> Result<Option<CertificateSource>, Failure> {
    if let Some(config) = arguments.acme.config()? {
        return Ok(Some(CertificateSource::Acme(config)));
    }
    Ok(match (&arguments.tls_cert, &arguments.tls_key, arguments.tls) {
        (Some(certificate), Some(key), _) => {
            Some(CertificateSource::Files { certificate: certificate.clone(), key: key.clone() })
        }
        (_, _, Some(TlsSource::SelfSigned)) => Some(CertificateSource::OwnAuthority),
        _ => None,
    })
}

/// Opens the socket at which sandboxes reach public hosts of other sandboxes, if there is a domain that names lead by to this host.
///
/// # Errors
/// No port of the loopback interface is free.
pub(super) fn open_hairpin(
    arguments: &ListenArguments,
    domain: &str,
) -> Result<Option<(Hairpin, std::net::TcpListener)>, Failure> {
    // Programs resolve names below `localhost` themselves, to their own loopback interface.
    if domain == "localhost" {
        return Ok(None);
    }
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    let listen = arguments.tls_listen.map(|address| address.port()).filter(|port| *port != 0);
    let public = arguments.public_url.as_ref().and_then(PublicUrl::port);
    let tls_ports = [Some(HTTPS_PORT), listen, public].into_iter().flatten().collect();
    let hairpin = Hairpin { domain: domain.to_ascii_lowercase(), address: socket.local_addr()?, tls_ports };
    Ok(Some((hairpin, socket)))
}

impl ListenArguments {
    /// Returns the value of `--public-url`.
    pub(super) fn public_url(&self) -> Option<&PublicUrl> {
        self.public_url.as_ref()
    }
}

/// Sets what the edge needs to know of the arguments.
pub(super) fn configure(arguments: &ListenArguments, config: &mut EdgeConfig) {
    config.public_url.clone_from(&arguments.public_url);
    config.trusted_proxies.clone_from(&arguments.trust_proxy);
    config.forwarded_headers = arguments.forwarded_headers;
    config.hsts = arguments.hsts;
}

/// Listens for TLS on the given address, or on port 443 of all.
fn listen_for_tls(address: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    let all: [SocketAddr; 2] =
        [(Ipv6Addr::UNSPECIFIED, HTTPS_PORT).into(), (Ipv4Addr::UNSPECIFIED, HTTPS_PORT).into()];
    let opened = match address {
        Some(address) => listen(address),
        // Of IPv6 for both families, where there is IPv6.
        None => listen(all[0]).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => listen(all[1]),
        }),
    };
    opened.map_err(|error| in_use(address.unwrap_or(all[0]), "--tls-listen", &error))
}

/// Listens for requests to redirect, where that was asked for, or else where clients of HTTPS on port 443 would try HTTP.
fn listen_for_redirects(
    asked: Option<RedirectListen>,
    tls: SocketAddr,
) -> Result<Option<TcpListener>, Failure> {
    match asked {
        Some(RedirectListen::Nowhere) => Ok(None),
        Some(RedirectListen::At(address)) => {
            listen(address).map(Some).map_err(|error| in_use(address, "--redirect-listen", &error))
        }
        None if tls.port() != HTTPS_PORT => Ok(None),
        None => {
            let address = SocketAddr::new(tls.ip(), 80);
            let socket = listen(address).inspect_err(|error| {
                warn!(%address, %error, "HTTP is not redirected to HTTPS; --redirect-listen chooses another address, or none");
            });
            Ok(socket.ok())
        }
    }
}

fn in_use(address: SocketAddr, option: &str, error: &dyn Display) -> Failure {
    Failure::new(format!("cannot listen on {address}: {error}; choose another address with {option}"))
}

/// Listens with room for bursts of new connections.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of an earlier server may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
