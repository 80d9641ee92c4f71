//! The RPC methods of the process service.

#![allow(refining_impl_trait, reason = "a handler names the message it answers with")]

use std::sync::Arc;

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use envd_api::headers::END_AT_EXIT;
use envd_api::process::process_selector::Selector;
use envd_api::process::stream_input_request::Event as InputEvent;
use envd_api::process::{
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse,
    Process, ProcessEvent, ProcessInfo, ProcessSelector, SendInputRequest, SendInputResponse,
    SendSignalRequest, SendSignalResponse, Signal, StartRequest, StartResponse, StreamInputRequest,
    StreamInputResponse, UpdateRequest, UpdateResponse,
};
use futures::{Stream, StreamExt};
use rustix::io::Errno;

use crate::process::registry::{self, FoundProcess};
use crate::process::{input, pty, start, stream};
use crate::router::{caller, check_caller};
use crate::state::Envd;

/// The service.
#[derive(Debug)]
pub struct Processes(pub Arc<Envd>);

impl Processes {
    fn find_live(&self, selector: &ProcessSelector) -> Result<Arc<registry::Process>, ConnectError> {
        let selector = selector.selector.as_ref().ok_or_else(no_selector)?;
        self.0.processes.find_live(selector).ok_or_else(|| not_found(selector))
    }

    fn attach(
        &self,
        selector: &ProcessSelector,
        keepalive: std::time::Duration,
    ) -> Result<std::pin::Pin<Box<dyn Stream<Item = ProcessEvent> + Send>>, ConnectError> {
        let selector = selector.selector.as_ref().ok_or_else(no_selector)?;
        let found = self.0.processes.find(selector);
        if let Some(FoundProcess::Process(process)) = &found
            && let Some(events) = process.subscribe()
        {
            return Ok(stream::live(process.pid, events, keepalive).boxed());
        }
        // The end may have been delivered between the look-up and the subscription.
        match self.0.processes.find(selector) {
            Some(FoundProcess::Ended(pid, end)) => Ok(stream::ended(pid, end).boxed()),
            _ => Err(not_found(selector)),
        }
    }
}

fn no_selector() -> ConnectError {
    ConnectError::unimplemented("invalid input type: no process selected")
}

fn not_found(selector: &Selector) -> ConnectError {
    ConnectError::not_found(match selector {
        Selector::Pid(pid) => format!("process with pid {pid} not found"),
        Selector::Tag(tag) => format!("process with tag {tag} not found"),
    })
}

impl Process for Processes {
    async fn list(
        &self,
        ctx: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<ListResponse> {
        check_caller(&self.0, &ctx)?;
        let info = |process: Arc<registry::Process>| ProcessInfo {
            config: process.config.clone().into(),
            pid: process.pid,
            tag: process.tag.clone(),
            ..Default::default()
        };
        let processes = self.0.processes.live().into_iter().map(info).collect();
        Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        check_caller(&self.0, &ctx)?;
        let request = request.to_owned_message();
        let events = self.attach(&request.process, stream::keepalive(ctx.headers()))?;
        Response::stream_ok(
            events.map(|event| Ok(ConnectResponse { event: event.into(), ..Default::default() })),
        )
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let user = caller(&self.0, &ctx)?;
        let request = request.to_owned_message();
        let (process, events) = start::start(&self.0, &user, request, ctx.deadline()).await?;
        if ctx.headers().contains_key(END_AT_EXIT) {
            process.hurry();
        }
        let events = stream::live(process.pid, events, stream::keepalive(ctx.headers()));
        Response::stream_ok(
            events.map(|event| Ok(StartResponse { event: event.into(), ..Default::default() })),
        )
    }

    async fn update(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<UpdateResponse> {
        check_caller(&self.0, &ctx)?;
        let request = request.to_owned_message();
        let process = self.find_live(&request.process)?;
        if let Some(wanted) = request.pty.as_option() {
            let Some(terminal) = &process.terminal else {
                return Err(ConnectError::internal("error resizing tty: tty not assigned to process"));
            };
            pty::resize(terminal.get_ref(), pty::size(wanted))
                .map_err(|error| ConnectError::internal(format!("error resizing tty: {error}")))?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        ctx: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<StreamInputResponse> {
        check_caller(&self.0, &ctx)?;
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(InputEvent::Start(start)) => process = Some(self.find_live(&start.process)?),
                Some(InputEvent::Data(data)) => {
                    let Some(process) = &process else {
                        return Err(ConnectError::invalid_argument("data before the start message"));
                    };
                    if !process.is_live() {
                        return Err(not_found(&Selector::Pid(process.pid)));
                    }
                    input::send(process, data.input.as_option().and_then(|input| input.input.as_ref()))
                        .await?;
                }
                Some(InputEvent::Keepalive(_)) | None => {}
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<SendInputResponse> {
        check_caller(&self.0, &ctx)?;
        let request = request.to_owned_message();
        let process = self.find_live(&request.process)?;
        input::send(&process, request.input.as_option().and_then(|input| input.input.as_ref())).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<SendSignalResponse> {
        check_caller(&self.0, &ctx)?;
        let request = request.to_owned_message();
        let selector = request.process.selector.as_ref().ok_or_else(no_selector)?;
        let signal = match request.signal.as_known() {
            Some(Signal::SIGNAL_SIGKILL) => rustix::process::Signal::KILL,
            Some(Signal::SIGNAL_SIGTERM) => rustix::process::Signal::TERM,
            _ => return Err(ConnectError::unimplemented(format!("invalid signal: {:?}", request.signal))),
        };
        // The process has ended but others hold its output open: the signal lets its end be delivered.
        let Some(FoundProcess::Process(process)) = self.0.processes.find(selector) else {
            return Err(not_found(selector));
        };
        match process.signal(signal) {
            Ok(()) => Response::ok(SendSignalResponse::default()),
            Err(Errno::SRCH) => Err(not_found(selector)),
            Err(error) => Err(ConnectError::internal(format!("error sending signal: {error}"))),
        }
    }

    async fn close_stdin(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<CloseStdinResponse> {
        check_caller(&self.0, &ctx)?;
        let request = request.to_owned_message();
        let process = self.find_live(&request.process)?;
        input::close(&process).await?;
        Response::ok(CloseStdinResponse::default())
    }
}
