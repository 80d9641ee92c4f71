//! What clients see: one server with the tools, prompts and resources of all.

use std::sync::Arc;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResponse, CompleteRequest, CompleteRequestParams,
    CompleteResult, ErrorData, GetPromptRequest, GetPromptRequestParams, GetPromptResponse, Implementation,
    ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    PaginatedRequestParams, ReadResourceRequest, ReadResourceRequestParams, ReadResourceResponse, Reference,
    ServerCapabilities, ServerConfig, ServerResult, SubscriptionFilter,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{RoleServer, ServerHandler};

use crate::calls::forward;
use crate::gateway::Gateway;

/// The handler of one client's requests.
pub(crate) struct Handler(pub(crate) Arc<Gateway>);

type Context = RequestContext<RoleServer>;

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        // Lists may be empty today and not tomorrow.
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_completions()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("mcp-gateway", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.0.index().tools.clone()))
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(self.0.index().prompts.clone()))
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(self.0.index().resources.clone()))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(self.0.index().templates.clone()))
    }

    async fn call_tool(
        &self,
        mut params: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let index = self.0.index();
        let (server, own) = index.tool(&params.name).ok_or_else(|| unknown("tool", &params.name))?;
        params.name = own.to_owned().into();
        match forward(&self.0, server, CallToolRequest::new(params).into(), &context).await? {
            ServerResult::CallToolResult(result) => Ok(result.into()),
            _ => Err(unexpected()),
        }
    }

    async fn get_prompt(
        &self,
        mut params: GetPromptRequestParams,
        context: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let index = self.0.index();
        let (server, own) = index.prompt(&params.name).ok_or_else(|| unknown("prompt", &params.name))?;
        own.clone_into(&mut params.name);
        match forward(&self.0, server, GetPromptRequest::new(params).into(), &context).await? {
            ServerResult::GetPromptResult(result) => Ok(result.into()),
            _ => Err(unexpected()),
        }
    }

    async fn read_resource(
        &self,
        params: ReadResourceRequestParams,
        context: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let none =
            || ErrorData::resource_not_found(format!("no server has the resource {}", params.uri), None);
        let server = self.0.index().resource(&params.uri).ok_or_else(none)?;
        match forward(&self.0, server, ReadResourceRequest::new(params).into(), &context).await? {
            ServerResult::ReadResourceResult(result) => Ok(result.into()),
            _ => Err(unexpected()),
        }
    }

    async fn complete(
        &self,
        mut params: CompleteRequestParams,
        context: Context,
    ) -> Result<CompleteResult, ErrorData> {
        let index = self.0.index();
        let server = match &mut params.r#ref {
            Reference::Prompt(prompt) => index.prompt(&prompt.name).map(|(server, own)| {
                own.clone_into(&mut prompt.name);
                server
            }),
            Reference::Resource(template) => index.template(&template.uri),
            _ => None,
        };
        let Some(server) = server.filter(|server| self.0.server(*server).names().completions) else {
            return Ok(CompleteResult::default());
        };
        match forward(&self.0, server, CompleteRequest::new(params).into(), &context).await? {
            ServerResult::CompleteResult(result) => Ok(result),
            _ => Err(unexpected()),
        }
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.0.add_client(context.peer);
    }

    fn accepted_subscription_filter(&self, _: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(
            SubscriptionFilter::builder()
                .tools_list_changed()
                .prompts_list_changed()
                .resources_list_changed()
                .build(),
        )
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let mut generations = self.0.generations();
        loop {
            tokio::select! {
                () = subscription.cancelled() => return Ok(()),
                changed = generations.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let sink = subscription.sink();
                    let wanted = sink.accepted().clone();
                    if wanted.tools_list_changed == Some(true) {
                        let _ = sink.notify_tool_list_changed().await;
                    }
                    if wanted.prompts_list_changed == Some(true) {
                        let _ = sink.notify_prompt_list_changed().await;
                    }
                    if wanted.resources_list_changed == Some(true) {
                        let _ = sink.notify_resource_list_changed().await;
                    }
                }
            }
        }
    }
}

fn unknown(kind: &str, name: &str) -> ErrorData {
    ErrorData::invalid_params(format!("no server has the {kind} {name}"), None)
}

fn unexpected() -> ErrorData {
    ErrorData::internal_error("the server's response is of another kind than asked for", None)
}
