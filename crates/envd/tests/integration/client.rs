//! The generated client over one connection, as the server uses it.

use connectrpc::ErrorCode;
use connectrpc::client::{CallOptions, ClientConfig};
use envd_api::process::__buffa::oneof::process_event::Event;
use envd_api::process::__buffa::oneof::process_event::data_event::Output;
use envd_api::process::{ProcessClient, ProcessConfig, StartRequest, StartResponse};
use envd_api::{ConnectionTransport, headers};
use http::Uri;
use http::header::AUTHORIZATION;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::common::Envd;

async fn connect(envd: &Envd) -> ProcessClient<ConnectionTransport> {
    let stream = TcpStream::connect(&envd.address).await.expect("envd listens");
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    let config = ClientConfig::new(Uri::from_static("http://localhost"));
    ProcessClient::new(ConnectionTransport::new(sender), config)
}

fn request(script: &str) -> StartRequest {
    let process = ProcessConfig {
        cmd: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        cwd: Some("/".to_owned()),
        ..Default::default()
    };
    StartRequest { process: process.into(), stdin: Some(false), ..Default::default() }
}

#[tokio::test]
async fn streams_outputs_and_the_end_of_a_process() {
    let envd = Envd::start();
    let client = connect(&envd).await;
    let mut stream =
        client.start(request("printf out; printf err >&2; exit 3")).await.expect("the process starts");
    let (mut stdout, mut stderr, mut code) = (Vec::new(), Vec::new(), None);
    while let Some(message) = stream.message::<StartResponse>().await.expect("the stream ends cleanly") {
        match message.to_owned_message().event.into_option().and_then(|event| event.event) {
            Some(Event::Data(data)) => match data.output {
                Some(Output::Stdout(piece)) => stdout.extend_from_slice(&piece),
                Some(Output::Stderr(piece)) => stderr.extend_from_slice(&piece),
                other => panic!("not on a terminal: {other:?}"),
            },
            Some(Event::End(end)) => code = Some(end.exit_code),
            _ => {}
        }
    }
    assert_eq!((stdout.as_slice(), stderr.as_slice(), code), (&b"out"[..], &b"err"[..], Some(3)));
}

#[tokio::test]
async fn errors_of_a_stream_have_envds_code_and_text() {
    let envd = Envd::start();
    let client = connect(&envd).await;
    let options =
        CallOptions::default().with_header(AUTHORIZATION, headers::user_authorization("no-such-user"));
    let error = match client.start_with_options(request("true"), options).await {
        Err(error) => error,
        Ok(mut stream) => stream.message::<StartResponse>().await.expect_err("the user is refused"),
    };
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(error.message.as_deref(), Some("invalid username: 'no-such-user'"));
}

#[tokio::test]
async fn requests_carry_the_token() {
    let envd = Envd::start();
    let init = envd.request("POST", "/init", &[], b"{\"accessToken\":\"t\"}");
    assert_eq!(init.status, 204);
    let refused = connect(&envd).await.list(Default::default()).await.expect_err("the token is missing");
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    let options = CallOptions::default().with_header(headers::ACCESS_TOKEN, "t");
    let list = connect(&envd).await.list_with_options(Default::default(), options).await;
    assert!(list.expect("the token is right").into_owned().processes.is_empty());
}
