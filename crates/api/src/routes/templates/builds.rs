//! Handlers that request, start and follow a template build: E2B's Build System 2.0 (`/v3/templates`,
//! `/v2/templates/{templateID}/builds/{buildID}`). `legacy` has the older routes.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use builds::{
    BuildReport, BuildRules, BuildSource, BuildSpec, BuildTarget, NewBuild, PendingBuild, RegistryAuth,
    StageSpec,
};
use ids::{BuildId, TemplateId};
use logs::{LogLevel, LogLine, LogQuery};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use template::steps::{RawStep, Step, StepError};
use time::OffsetDateTime;

use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::Params;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

/// Default of the number of log lines in one response.
const DEFAULT_LINES: usize = 100;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .post("/v3/templates", request)
        .post("/v2/templates/{templateID}/builds/{buildID}", start)
        .get("/templates/{templateID}/builds/{buildID}/status", status)
        .get("/templates/{templateID}/builds/{buildID}/logs", logs)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RequestedBuild {
    name: Option<String>,
    alias: Option<String>,
    tags: Vec<String>,
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u32>,
    min_free_disk_mb: Option<u32>,
    #[serde(rename = "teamID")]
    team_id: Option<String>,
}

async fn request(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<RequestedBuild>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let PendingBuild { template, build, tags } = requested(&api, &team, body).await?;
    let aliases: Vec<&str> = template.names.iter().map(|name| name.alias.as_str()).collect();
    let names: Vec<String> = template.names.iter().map(ToString::to_string).collect();
    let answer = json!({
        "templateID": template.id,
        "buildID": build.id.to_string(),
        "public": template.public,
        "aliases": aliases,
        "names": names,
        "tags": tags,
    });
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

pub(super) async fn requested(
    api: &Api,
    team: &store::Team,
    body: RequestedBuild,
) -> Result<PendingBuild, ApiError> {
    if body.team_id.is_some_and(|id| id != team.id.to_string()) {
        return Err(ApiError::bad_request("Team ID param mismatch with the API key"));
    }
    let wanted = NewBuild {
        target: BuildTarget::Named(body.name.or(body.alias).unwrap_or_default()),
        tags: body.tags,
        cpu_count: body.cpu_count,
        memory_mib: body.memory_mb,
        min_free_disk_mib: body.min_free_disk_mb,
    };
    Ok(api.control.builds().request(team, &wanted).await?)
}

pub(super) fn template_id(text: &str) -> Result<TemplateId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("Invalid template ID: {text}")))
}

pub(super) fn build_id(text: &str) -> Result<BuildId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("Invalid build ID: {text}")))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StartBuildBody {
    from_image: Option<String>,
    from_template: Option<String>,
    /// Ours, not E2B's, as the stages are.
    from_stage: Option<String>,
    stages: Vec<StageBody>,
    from_image_registry: Option<Credentials>,
    force: bool,
    steps: Vec<StepBody>,
    start_cmd: Option<String>,
    ready_cmd: Option<String>,
    /// Ours, not E2B's.
    engine: Option<String>,
}

/// A stage before the last, which later ones start from or copy from.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StageBody {
    name: String,
    from_image: Option<String>,
    from_template: Option<String>,
    from_stage: Option<String>,
    steps: Vec<StepBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StepBody {
    r#type: String,
    args: Option<Vec<String>>,
    files_hash: Option<String>,
    from_stage: Option<String>,
    force: Option<bool>,
}

impl StepBody {
    fn parsed(&self) -> Result<Step, StepError> {
        Step::parse(&RawStep {
            kind: &self.r#type,
            args: self.args.as_deref().unwrap_or_default(),
            files_hash: self.files_hash.as_deref(),
            from_stage: self.from_stage.as_deref().filter(|stage| !stage.is_empty()),
            force: self.force.unwrap_or(false),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Credentials {
    #[serde(rename = "registry")]
    Basic { username: String, password: String },
    #[serde(rename_all = "camelCase")]
    Aws { aws_access_key_id: String, aws_secret_access_key: String, aws_region: String },
    #[serde(rename_all = "camelCase")]
    Gcp { service_account_json: String },
}

impl From<Credentials> for RegistryAuth {
    fn from(credentials: Credentials) -> Self {
        match credentials {
            Credentials::Basic { username, password } => Self::Basic { username, password },
            Credentials::Aws { aws_access_key_id, aws_secret_access_key, aws_region } => {
                Self::Aws { key_id: aws_access_key_id, secret: aws_secret_access_key, region: aws_region }
            }
            Credentials::Gcp { service_account_json } => Self::Gcp { service_account: service_account_json },
        }
    }
}

async fn start(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, build)): Path<(String, String)>,
    headers: HeaderMap,
    Body(body): Body<StartBuildBody>,
) -> Result<StatusCode, ApiError> {
    let (template, build) = (template_id(&template)?, build_id(&build)?);
    let stages = body.stages.into_iter().map(|stage| {
        let source = build_source(stage.from_image, stage.from_template, stage.from_stage)?;
        let steps = stage.steps.iter().map(StepBody::parsed).collect();
        Ok(StageSpec { name: stage.name, source, steps })
    });
    let spec = BuildSpec {
        stages: stages.collect::<Result<_, ApiError>>()?,
        source: build_source(body.from_image, body.from_template, body.from_stage)?,
        registry: body.from_image_registry.map(Into::into),
        steps: body.steps.iter().map(StepBody::parsed).collect(),
        start_cmd: given(body.start_cmd),
        ready_cmd: given(body.ready_cmd),
        force: body.force,
        rules: rules_for(&headers),
        engine: given(body.engine),
    };
    api.control.builds().start(&team, &template, build, spec).await?;
    Ok(StatusCode::ACCEPTED)
}

fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

fn build_source(
    image: Option<String>,
    template: Option<String>,
    stage: Option<String>,
) -> Result<BuildSource, ApiError> {
    match (given(image), given(template), given(stage)) {
        (Some(image), None, None) => Ok(BuildSource::Image(image)),
        (None, Some(template), None) => Ok(BuildSource::Template(template)),
        (None, None, Some(stage)) => Ok(BuildSource::Stage(stage)),
        _ => Err(ApiError::bad_request("exactly one of fromImage and fromTemplate is needed")),
    }
}

/// Returns the rules of the SDK that sent the request: those before 2.3.0 have no default user.
fn rules_for(headers: &HeaderMap) -> BuildRules {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let sdk = agent.split(' ').next().unwrap_or_default();
    let version = ["e2b-js-sdk/", "e2b-python-sdk/"].iter().find_map(|name| sdk.strip_prefix(name));
    let Some(version) = version else { return BuildRules::Current };
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < (2, 3) => BuildRules::BeforeDefaultUser,
        _ => BuildRules::Current,
    }
}

#[derive(Debug, Serialize)]
struct BuildLogEntry {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    message: String,
    level: LogLevel,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
}

impl From<LogLine> for BuildLogEntry {
    fn from(line: LogLine) -> Self {
        let step = line.step().map(str::to_owned);
        Self { timestamp: line.time(), level: line.level, message: line.message, step }
    }
}

fn entries(lines: Vec<LogLine>) -> Vec<BuildLogEntry> {
    lines.into_iter().map(Into::into).collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusParams {
    logs_offset: Option<usize>,
    limit: Option<usize>,
    level: Option<LogLevel>,
}

async fn status(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, build)): Path<(String, String)>,
    Params(params): Params<StatusParams>,
) -> Result<Json<Value>, ApiError> {
    let (template, id) = (template_id(&template)?, build_id(&build)?);
    let level = params.level.unwrap_or(LogLevel::Debug);
    let limit = params.limit.unwrap_or(DEFAULT_LINES);
    let seen = params.logs_offset.unwrap_or(0);
    let report = api.control.builds().report(&team, &template, id, level, seen, limit).await?;
    let BuildReport { status, lines, failure, failure_lines } = report;
    let texts: Vec<String> = lines.iter().map(|line| line.message.clone()).collect();
    let mut answer = json!({
        "templateID": template,
        "buildID": id.to_string(),
        "status": status.as_str(),
        "logs": texts,
        "logEntries": entries(lines),
    });
    if let Some(failure) = failure {
        answer["reason"] = json!({ "message": failure.message, "logEntries": entries(failure_lines) });
        if let Some(step) = failure.step {
            answer["reason"]["step"] = step.into();
        }
    }
    Ok(Json(answer))
}

#[derive(Debug, Deserialize)]
struct LogParams {
    cursor: Option<i64>,
    limit: Option<usize>,
    direction: Option<String>,
    level: Option<LogLevel>,
}

async fn logs(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, build)): Path<(String, String)>,
    Params(params): Params<LogParams>,
) -> Result<Json<Value>, ApiError> {
    let newest_first = match params.direction.as_deref() {
        None | Some("forward") => false,
        Some("backward") => true,
        Some(_) => return Err(ApiError::bad_request("direction must be forward or backward")),
    };
    let cursor = params.cursor.map(|millis| millis.saturating_mul(1_000_000));
    let (from, to) =
        if newest_first { (0, cursor.unwrap_or(i64::MAX)) } else { (cursor.unwrap_or(0), i64::MAX) };
    let query = LogQuery {
        from,
        to,
        newest_first,
        level: params.level.unwrap_or(LogLevel::Debug),
        search: None,
        limit: params.limit.unwrap_or(DEFAULT_LINES),
    };
    let lines = api.control.builds().lines(&team, &template_id(&template)?, build_id(&build)?, query).await?;
    Ok(Json(json!({ "logs": entries(lines) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_sdks_are_known_by_their_names() {
        let of = |agent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, agent.parse().unwrap());
            rules_for(&headers)
        };
        for old in [
            "e2b-js-sdk/2.2.9",
            "e2b-python-sdk/2.0.0",
            "e2b-js-sdk/1.13.2 e2b-cli/1.9.0",
            "e2b-python-sdk/2.2.0-rc1",
        ] {
            assert_eq!(of(old), BuildRules::BeforeDefaultUser, "{old}");
        }
        for new in
            ["e2b-js-sdk/2.3.0", "e2b-python-sdk/2.63.0", "e2b-js-sdk/10.0.0", "e2b-js-sdk/x", "curl/2.1", ""]
        {
            assert_eq!(of(new), BuildRules::Current, "{new}");
        }
        assert_eq!(rules_for(&HeaderMap::new()), BuildRules::Current);
    }
}
