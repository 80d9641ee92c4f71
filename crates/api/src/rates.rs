//! Rate limits of the REST API: rules of the operator ([`RateLimit`]), applied to each team by itself. There are none by default.
//! Responses of limited routes have `RateLimit-*` headers; a refusal (429) has `Retry-After`.
//! Counting is the generic cell rate algorithm, in memory: a restart forgets the counts.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use ids::TeamId;

use crate::ApiError;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
/// The pattern that matches every route, with one count for all of them.
const EVERY_ROUTE: &str = "*";

/// The text of a rule cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?}: a rate limit is [METHOD ]PATTERN=COUNT/UNIT[:BURST], with a route's pattern or *, and s, m or h; such as \
     'POST /v2/sandboxes=10/s:50'"
)]
pub struct RateLimitError(String);

/// A rule: how often each team may call the routes that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    method: Option<Method>,
    pattern: String,
    /// Time from one request to the next in the long run.
    interval: Duration,
    burst: NonZeroU32,
}

impl FromStr for RateLimit {
    type Err = RateLimitError;

    fn from_str(text: &str) -> Result<Self, RateLimitError> {
        parse(text).ok_or_else(|| RateLimitError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<RateLimit> {
    let (route, rate) = text.rsplit_once('=')?;
    let (method, pattern) = match route.trim().split_once(' ') {
        Some((method, pattern)) => (Some(method.to_ascii_uppercase().parse().ok()?), pattern.trim()),
        None => (None, route.trim()),
    };
    if pattern != EVERY_ROUTE && !pattern.starts_with('/') {
        return None;
    }
    let (rate, burst) = match rate.split_once(':') {
        Some((rate, burst)) => (rate, Some(burst.trim().parse().ok()?)),
        None => (rate, None),
    };
    let (count, unit) = rate.split_once('/')?;
    let count: NonZeroU32 = count.trim().parse().ok()?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let interval = Duration::from_secs(seconds) / count.get();
    let rule = RateLimit { method, pattern: pattern.to_owned(), interval, burst: burst.unwrap_or(count) };
    (!interval.is_zero()).then_some(rule)
}

type Limiter = RateLimiter<TeamId, HashMapStateStore<TeamId>, DefaultClock, StateInformationMiddleware>;

/// The rules with the counts of all teams.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    rules: Vec<(RateLimit, Limiter)>,
    clock: DefaultClock,
}

/// A team's count after a request, as the response's headers state it.
#[derive(Debug, Clone, Copy)]
struct RateState {
    limit: u32,
    remaining: u32,
    /// Time until the whole limit is available again.
    reset: Duration,
    /// If the request was refused: time until the next one is allowed.
    wait: Option<Duration>,
}

/// A request extension that carries the count from [`RateLimits::check`] to [`headers`].
#[derive(Debug, Clone, Default)]
struct RateStateCell(Arc<OnceLock<RateState>>);

impl RateLimits {
    pub(crate) fn new(rules: &[RateLimit]) -> Self {
        let clock = DefaultClock::default();
        let limiter = |rule: &RateLimit| -> Limiter {
            let quota = Quota::with_period(rule.interval)
                .expect("rules with an interval of zero are refused by FromStr");
            RateLimiter::new(quota.allow_burst(rule.burst), HashMapStateStore::default(), clock.clone())
        };
        Self { rules: rules.iter().map(|rule| (rule.clone(), limiter(rule))).collect(), clock }
    }

    /// Counts a request against the first rule that matches it.
    ///
    /// # Errors
    /// The rule's limit is exceeded: 429.
    pub(crate) fn check(&self, team: TeamId, parts: &Parts) -> Result<(), ApiError> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let matches = |rule: &RateLimit| {
            (rule.pattern == EVERY_ROUTE || rule.pattern == path)
                && rule.method.as_ref().is_none_or(|method| *method == parts.method)
        };
        let Some((rule, limiter)) = self.rules.iter().find(|(rule, _)| matches(rule)) else { return Ok(()) };
        let limit = rule.burst.get();
        let state = match limiter.check_key(&team) {
            Ok(snapshot) => {
                let remaining = snapshot.remaining_burst_capacity();
                RateState {
                    limit,
                    remaining,
                    reset: rule.interval * limit.saturating_sub(remaining),
                    wait: None,
                }
            }
            Err(refused) => {
                let wait = refused.wait_time_from(self.clock.now());
                RateState { limit, remaining: 0, reset: rule.interval * limit, wait: Some(wait) }
            }
        };
        if let Some(cell) = parts.extensions.get::<RateStateCell>() {
            // It is empty: a request is counted once.
            let _ = cell.0.set(state);
        }
        if state.wait.is_some() {
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded").retry(true));
        }
        Ok(())
    }
}

/// Adds the headers that state the team's count to the response.
pub(crate) async fn headers(mut request: Request, next: Next) -> Response {
    let cell = RateStateCell::default();
    request.extensions_mut().insert(cell.clone());
    let mut response = next.run(request).await;
    if let Some(state) = cell.0.get() {
        write(*state, response.headers_mut());
    }
    response
}

fn write(state: RateState, headers: &mut HeaderMap) {
    // Whole seconds, rounded up.
    let seconds = |time: Duration| HeaderValue::from(time.as_secs() + u64::from(time.subsec_nanos() > 0));
    headers.insert(LIMIT, state.limit.into());
    headers.insert(REMAINING, state.remaining.into());
    headers.insert(RESET, seconds(state.reset));
    if let Some(wait) = state.wait {
        headers.insert(header::RETRY_AFTER, seconds(wait.max(Duration::from_secs(1))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let rule: RateLimit = "POST /v2/sandboxes=10/s:50".parse().unwrap();
        assert_eq!((rule.method, rule.pattern.as_str()), (Some(Method::POST), "/v2/sandboxes"));
        assert_eq!((rule.interval, rule.burst.get()), (Duration::from_millis(100), 50));
        let rule: RateLimit = "/sandboxes/{sandboxID}=600/m".parse().unwrap();
        assert_eq!((rule.method, rule.interval, rule.burst.get()), (None, Duration::from_millis(100), 600));
        assert!("*=1/h".parse::<RateLimit>().is_ok());
        for bad in ["", "POST /x", "/x=0/s", "/x=1/d", "/x=1", "x=1/s", "/x=1/s:0", "/x=a/s", "/x=-1/s"] {
            assert!(bad.parse::<RateLimit>().is_err(), "{bad}");
        }
    }
}
