//! Commands in a sandbox, with their output as it arrives: `process.Process/Start` of envd's RPC.
//! Dropping the call leaves the process running: envd ends no process because its client has gone.

use std::collections::BTreeMap;

use connectrpc::client::{CallOptions, ClientConfig, ServerStream};
use envd_api::process::__buffa::oneof::process_event::Event;
use envd_api::process::__buffa::oneof::process_event::data_event::Output as WireOutput;
use envd_api::process::__buffa::view::StartResponseView;
use envd_api::process::{ProcessClient, ProcessConfig, StartRequest, StartResponse};
use envd_api::{ConnectionTransport, headers};
use http::{Uri, header};
use hyper::body::Incoming;

use super::{EnvdError, on_connection};

/// Maximum size of one message, bytes; envd's pieces of output are far smaller.
const MAX_MESSAGE: usize = 4 << 20;

/// A program to run in a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Command<'a> {
    pub(crate) program: &'a str,
    pub(crate) args: &'a [&'a str],
    pub(crate) user: &'a str,
    /// Working directory; `None` is the user's home.
    pub(crate) cwd: Option<&'a str>,
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Maximum run time, after which envd kills the process; `None` is no limit.
    pub(crate) limit: Option<std::time::Duration>,
}

/// A piece of output. Pieces may split characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output<'a> {
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) exit_code: i32,
    /// `exit status 1`, `signal: killed`.
    pub(crate) status: String,
}

impl End {
    pub(crate) fn is_success(&self) -> bool {
        self.exit_code == 0
    }
}

/// Runs a command to its end and hands each piece of its output to `output`.
///
/// # Errors
/// envd refused the command, its time was up, or the sandbox ended meanwhile.
pub(crate) async fn run(
    sandbox: &dyn engine::Sandbox,
    token: &str,
    command: &Command<'_>,
    mut output: impl FnMut(Output<'_>) + Send,
) -> Result<End, EnvdError> {
    let process = ProcessConfig {
        cmd: command.program.to_owned(),
        args: command.args.iter().map(|&arg| arg.to_owned()).collect(),
        envs: command.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        cwd: command.cwd.map(str::to_owned),
        ..Default::default()
    };
    let request = StartRequest { process: process.into(), stdin: Some(false), ..Default::default() };
    let mut options = CallOptions::default()
        .with_max_message_size(MAX_MESSAGE)
        .with_header(headers::ACCESS_TOKEN, token)
        // A build step ends when its shell does, whatever runs on in the background.
        .with_header(headers::END_AT_EXIT, "1")
        .with_header(header::AUTHORIZATION, headers::user_authorization(command.user));
    if let Some(limit) = command.limit {
        options = options.with_timeout(limit);
    }
    on_connection(sandbox, async |sender| {
        let config = ClientConfig::new(Uri::from_static("http://localhost"));
        let client = ProcessClient::new(ConnectionTransport::new(sender), config);
        let stream = client.start_with_options(request, options).await?;
        follow(stream, &mut output).await
    })
    .await
}

async fn follow(
    mut stream: ServerStream<Incoming, StartResponseView<'static>>,
    output: &mut (impl FnMut(Output<'_>) + Send),
) -> Result<End, EnvdError> {
    let mut end = None;
    while let Some(message) = stream.message::<StartResponse>().await? {
        let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
        match event {
            Some(Event::Data(data)) => match data.output {
                Some(WireOutput::Stdout(piece)) => output(Output::Stdout(&piece)),
                Some(WireOutput::Stderr(piece)) => output(Output::Stderr(&piece)),
                Some(WireOutput::Pty(_)) | None => {}
            },
            Some(Event::End(ended)) => {
                end = Some(End { exit_code: ended.exit_code, status: ended.status });
            }
            Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
        }
    }
    end.ok_or(EnvdError::Response)
}
