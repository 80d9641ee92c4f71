//! The RPC methods of the filesystem service: they resolve paths for the caller and run the operations on
//! blocking threads.

#![allow(refining_impl_trait, reason = "handlers name the type of their response")]

use std::path::PathBuf;
use std::sync::Arc;

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, EntryInfo, Filesystem, GetWatcherEventsRequest,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest, RemoveWatcherResponse, StatRequest,
    StatResponse, WatchDirRequest, WatchDirResponse,
};
use futures::StreamExt;
use http::header::USER_AGENT;

use crate::filesystem::{ops, watch};
use crate::identity::Identity;
use crate::paths;
use crate::process::stream::keepalive;
use crate::router::{caller, check_caller};
use crate::state::Envd;
use crate::users::User;

/// The service.
#[derive(Debug)]
pub struct Files(pub Arc<Envd>);

impl Files {
    fn resolve(&self, user: &User, path: &str) -> Result<PathBuf, ConnectError> {
        let workdir = self.0.settings().default_workdir.clone();
        paths::resolve(path, &user.home, workdir.as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))
    }
}

/// Runs `work`, which is given the caller's identity, on a blocking thread.
async fn blocking<T: Send + 'static>(
    user: User,
    work: impl FnOnce(&Identity) -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(move || work(&Identity::of(&user)))
        .await
        .unwrap_or_else(|error| Err(ConnectError::internal(error.to_string())))
}

/// Whether the client is one of the first Python SDKs, which cannot parse entries with newer fields.
fn is_first_sdk(ctx: &RequestContext) -> bool {
    ctx.headers().get(USER_AGENT).is_some_and(|agent| agent == "connect-python")
}

/// Removes the fields of an entry that the client cannot parse.
fn for_client(ctx: &RequestContext, entry: EntryInfo) -> EntryInfo {
    if !is_first_sdk(ctx) {
        return entry;
    }
    EntryInfo { name: entry.name, r#type: entry.r#type, path: entry.path, ..Default::default() }
}

/// Makes a response, with a header if its entries lack fields.
fn respond<T>(ctx: &RequestContext, message: T) -> ServiceResult<T> {
    let response = Response::new(message);
    Ok(if is_first_sdk(ctx) { response.with_header("x-e2b-legacy-sdk", "true") } else { response })
}

impl Filesystem for Files {
    async fn stat(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<StatResponse> {
        let user = caller(&self.0, &ctx)?;
        let path = self.resolve(&user, request.path)?;
        let entry = blocking(user, move |identity| ops::stat(&path, identity)).await?;
        let entry = for_client(&ctx, entry).into();
        respond(&ctx, StatResponse { entry, ..Default::default() })
    }

    async fn make_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<MakeDirResponse> {
        let user = caller(&self.0, &ctx)?;
        let path = self.resolve(&user, request.path)?;
        let entry = blocking(user, move |identity| ops::make_dir(&path, identity)).await?;
        let entry = for_client(&ctx, entry).into();
        respond(&ctx, MakeDirResponse { entry, ..Default::default() })
    }

    async fn r#move(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<MoveResponse> {
        let user = caller(&self.0, &ctx)?;
        let source = self.resolve(&user, request.source)?;
        let destination = self.resolve(&user, request.destination)?;
        let entry = blocking(user, move |identity| ops::move_entry(&source, &destination, identity)).await?;
        let entry = for_client(&ctx, entry).into();
        respond(&ctx, MoveResponse { entry, ..Default::default() })
    }

    async fn list_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<ListDirResponse> {
        let user = caller(&self.0, &ctx)?;
        let path = self.resolve(&user, request.path)?;
        let depth = request.depth;
        let entries = blocking(user, move |identity| ops::list_dir(&path, depth, identity)).await?;
        let entries = entries.into_iter().map(|entry| for_client(&ctx, entry)).collect();
        respond(&ctx, ListDirResponse { entries, ..Default::default() })
    }

    async fn remove(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<RemoveResponse> {
        let user = caller(&self.0, &ctx)?;
        let path = self.resolve(&user, request.path)?;
        blocking(user, move |identity| ops::remove(&path, identity)).await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let user = caller(&self.0, &ctx)?;
        let path = self.resolve(&user, request.path)?;
        let options = watch::Options {
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let watcher =
            blocking(user, move |identity| watch::Watcher::new(path, options, identity)).await?.started()?;
        Response::stream_ok(watch::stream::events(watcher, keepalive(ctx.headers())).boxed()).map(
            |mut response| {
                response.compress = None;
                response
            },
        )
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<CreateWatcherResponse> {
        let user = caller(&self.0, &ctx)?;
        let path = self.resolve(&user, request.path)?;
        let options = watch::Options {
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let watcher =
            blocking(user, move |identity| watch::Watcher::new(path, options, identity)).await?.started()?;
        let watcher_id = self.0.watchers.insert(watcher)?;
        Response::ok(CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<GetWatcherEventsResponse> {
        check_caller(&self.0, &ctx)?;
        let watcher = self.0.watchers.get(request.watcher_id)?;
        let events = watcher.take().await?;
        Response::ok(GetWatcherEventsResponse { events, ..Default::default() })
    }

    async fn remove_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<RemoveWatcherResponse> {
        check_caller(&self.0, &ctx)?;
        self.0.watchers.remove(request.watcher_id)?;
        Response::ok(RemoveWatcherResponse::default())
    }
}
