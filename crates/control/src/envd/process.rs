//! Commands in a sandbox, their output as it comes: `process.Process/Start` of Connect-RPC, in JSON.
//! Whoever drops the call leaves the process running, as envd promises.
//! Protocol: connect streaming, five bytes before each message; envd's `process.proto`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::{EnvdError, converse};

/// Flag of the last message of a stream.
const END_OF_STREAM: u8 = 2;
/// Longest message taken; envd's pieces of output are far smaller.
const LONGEST: usize = 4 << 20;

/// A command line for bash, and its surroundings.
#[derive(Debug, Clone)]
pub(crate) struct Command<'a> {
    pub(crate) program: &'a str,
    pub(crate) args: &'a [&'a str],
    pub(crate) user: &'a str,
    /// None is the user's home.
    pub(crate) cwd: Option<&'a str>,
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Longest run, after which the process is ended; none lets it run on.
    pub(crate) limit: Option<std::time::Duration>,
}

/// A piece of output. Pieces may split characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output<'a> {
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
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

#[derive(Debug, Default, Deserialize)]
struct Message {
    event: Option<Event>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Event {
    Start(serde::de::IgnoredAny),
    Data(Data),
    End(End),
    Keepalive(serde::de::IgnoredAny),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    stdout: String,
    stderr: String,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Runs a command to its end.
pub(crate) async fn run(
    sandbox: &dyn engine::Sandbox,
    token: &str,
    command: &Command<'_>,
    mut output: impl FnMut(Output<'_>) + Send,
) -> Result<End, EnvdError> {
    let start = json!({
        "process": {
            "cmd": command.program,
            "args": command.args,
            "envs": command.env,
            "cwd": command.cwd,
        },
        "stdin": false,
    });
    let text = serde_json::to_vec(&start).expect("strings and string maps serialise");
    let mut body = Vec::with_capacity(text.len() + 5);
    body.push(0);
    body.extend_from_slice(&u32::try_from(text.len()).map_err(|_| EnvdError::Answer)?.to_be_bytes());
    body.extend_from_slice(&text);
    let mut request = Request::post("/process.Process/Start");
    if let Some(limit) = command.limit {
        request = request.header("connect-timeout-ms", limit.as_millis().to_string());
    }
    let request = request
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/connect+json")
        .header("connect-protocol-version", "1")
        .header("x-access-token", token)
        .header(header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{}:", command.user))))
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| EnvdError::Answer)?;
    converse(sandbox, request, async |response| match response.status() {
        StatusCode::OK => follow(response.into_body(), &mut output).await,
        status => Err(EnvdError::Status(status)),
    })
    .await
}

async fn follow(mut body: Incoming, output: &mut impl FnMut(Output<'_>)) -> Result<End, EnvdError> {
    let mut buffer = BytesMut::new();
    let mut end = None;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some((flags, message)) = next_message(&mut buffer)? {
            let message: Message = serde_json::from_slice(&message).map_err(|_| EnvdError::Answer)?;
            match message.event {
                Some(Event::Data(data)) => {
                    let decode = |text: &str| STANDARD.decode(text).map_err(|_| EnvdError::Answer);
                    if !data.stdout.is_empty() {
                        output(Output::Stdout(&decode(&data.stdout)?));
                    }
                    if !data.stderr.is_empty() {
                        output(Output::Stderr(&decode(&data.stderr)?));
                    }
                }
                Some(Event::End(ended)) => end = Some(ended),
                Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
            }
            if flags & END_OF_STREAM != 0 {
                return match (message.error, end) {
                    (Some(Refusal { code, message }), _) => Err(EnvdError::Refused { code, message }),
                    (None, Some(end)) => Ok(end),
                    (None, None) => Err(EnvdError::Answer),
                };
            }
        }
    }
    // The sandbox went away in the middle.
    Err(EnvdError::Answer)
}

fn next_message(buffer: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, EnvdError> {
    let Some((&flags, length)) = buffer.split_first().and_then(|(flags, rest)| Some((flags, rest.get(..4)?)))
    else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
    if length > LONGEST {
        return Err(EnvdError::Answer);
    }
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some((flags, buffer.split_to(length))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let mut wire = BytesMut::from(&b"\x00\x00\x00\x00\x02{}\x02\x00\x00\x00\x01"[..]);
        assert_eq!(next_message(&mut wire).unwrap().unwrap(), (0, BytesMut::from(&b"{}"[..])));
        assert!(next_message(&mut wire).unwrap().is_none());
        wire.extend_from_slice(b"x");
        assert_eq!(next_message(&mut wire).unwrap().unwrap(), (2, BytesMut::from(&b"x"[..])));
        let mut large = BytesMut::from(&b"\x00\xff\xff\xff\xff"[..]);
        assert!(next_message(&mut large).is_err());
    }

    #[test]
    fn events_are_read_as_the_agent_writes_them() {
        let read = |text: &str| serde_json::from_str::<Message>(text).unwrap();
        assert!(matches!(read(r#"{"event":{"start":{"pid":7}}}"#).event, Some(Event::Start(_))));
        assert!(matches!(read(r#"{"event":{"keepalive":{}}}"#).event, Some(Event::Keepalive(_))));
        let Some(Event::End(end)) =
            read(r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#).event
        else {
            panic!("no end")
        };
        assert!(end.is_success());
        let refused = read(r#"{"error":{"code":"unauthenticated","message":"invalid username: 'x'"}}"#);
        assert_eq!(refused.error.unwrap().message, "invalid username: 'x'");
    }
}
