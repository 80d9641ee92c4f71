//! Lists of a team's sandboxes: filters, order, pages.
//! Ordered by start time and then by id, so that a page continues exactly where the last one ended.
//! Times are compared in microseconds, the precision they are kept in.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use ids::{SandboxId, TemplateId};
use percent_encoding::percent_decode_str;
use store::{SandboxState, Team, truncate_to_micros};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::sandboxes::running::SandboxInfo;
use crate::{Control, ControlError};

/// Most sandboxes on one page.
pub const MAX_PAGE: usize = 100;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Pairs a sandbox's metadata must have, encoded as on the wire.
    pub metadata: Option<String>,
    /// Only these states; empty is all.
    pub states: Vec<SandboxState>,
    /// Only those started at or after this.
    pub started_after: Option<OffsetDateTime>,
    /// Only those of this template, by name or id.
    pub template: Option<String>,
    /// Oldest first instead of newest first.
    pub ascending: bool,
    /// Most to answer; none is a full page.
    pub limit: Option<i64>,
    /// Where the last page ended.
    pub next_token: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The sandboxes.
    pub items: Vec<SandboxInfo>,
    /// Where the next page begins; none at the end.
    pub next_token: Option<String>,
    /// Running ones that match, on whatever page; none when they were not asked for.
    pub total_running: Option<usize>,
}

/// A place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cursor {
    started_at: OffsetDateTime,
    id: SandboxId,
}

impl Cursor {
    fn of(info: &SandboxInfo) -> Self {
        Self { started_at: info.started_at, id: info.id.clone() }
    }

    /// Newest first; among equals by id. The ascending order is its exact reverse.
    fn cmp_descending(&self, other: &Self) -> Ordering {
        other.started_at.cmp(&self.started_at).then_with(|| self.id.cmp(&other.id))
    }

    fn encode(&self, ascending: bool) -> String {
        let at = self.started_at.format(&Rfc3339).expect("start times have four-digit years");
        let order = if ascending { "__asc" } else { "" };
        URL_SAFE.encode(format!("{at}__{}{order}", self.id))
    }

    fn decode(token: &str, ascending: bool) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE.decode(token).ok()?).ok()?;
        let mut parts = text.split("__");
        let at = OffsetDateTime::parse(parts.next()?, &Rfc3339).ok()?;
        let id = parts.next()?.parse().ok()?;
        let order = parts.next();
        if parts.next().is_some() || order != ascending.then_some("asc") {
            return None;
        }
        Some(Self { started_at: truncate_to_micros(at), id })
    }
}

impl Control {
    /// A page of a team's sandboxes.
    ///
    /// # Errors
    /// A filter, the limit or the token is malformed.
    pub async fn list(&self, team: &Team, query: &ListQuery) -> Result<Page, ControlError> {
        let limit = match query.limit {
            None => MAX_PAGE,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
                .ok_or_else(|| ControlError::Invalid(format!("limit must be from 1 to {MAX_PAGE}")))?,
        };
        let cursor = match query.next_token.as_deref().filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => Some(
                Cursor::decode(token, query.ascending)
                    .ok_or_else(|| ControlError::Invalid("Invalid next token".to_owned()))?,
            ),
        };
        let mut items = self.matching(team, query).await?;
        let wants_running = query.states.is_empty() || query.states.contains(&SandboxState::Running);
        let running = items.iter().filter(|info| info.state == SandboxState::Running).count();

        let order = |a: &Cursor, b: &Cursor| {
            if query.ascending { b.cmp_descending(a) } else { a.cmp_descending(b) }
        };
        items.sort_by(|a, b| order(&Cursor::of(a), &Cursor::of(b)));
        if let Some(cursor) = cursor {
            items.retain(|info| order(&cursor, &Cursor::of(info)) == Ordering::Less);
        }
        let more = items.len() > limit;
        items.truncate(limit);
        let next_token =
            if more { items.last().map(|last| Cursor::of(last).encode(query.ascending)) } else { None };
        Ok(Page { items, next_token, total_running: wants_running.then_some(running) })
    }

    /// All of a team's sandboxes that pass the filters, in no order.
    async fn matching(&self, team: &Team, query: &ListQuery) -> Result<Vec<SandboxInfo>, ControlError> {
        let metadata = query.metadata.as_deref().map(parse_metadata).transpose()?.unwrap_or_default();
        let started_after = query.started_after.map(truncate_to_micros);
        let template: Option<TemplateId> = match query.template.as_deref().filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => match self.template_for_filter(team, name).await? {
                Some(id) => Some(id),
                None => return Ok(Vec::new()),
            },
        };
        let infos = self.table.of_team(team.id).into_iter().map(|entry| entry.info());
        Ok(infos
            .filter(|info| query.states.is_empty() || query.states.contains(&info.state))
            .filter(|info| started_after.is_none_or(|after| info.started_at >= after))
            .filter(|info| template.as_ref().is_none_or(|template| info.template == *template))
            .filter(|info| metadata.iter().all(|(key, value)| info.details.metadata.get(key) == Some(value)))
            .collect())
    }
}

/// Pairs as the SDKs encode them: each key and value by itself, joined as a form, once more as a query parameter.
/// The last layer has been taken off by whoever read the query.
fn parse_metadata(text: &str) -> Result<BTreeMap<String, String>, ControlError> {
    let bad = || ControlError::Invalid("Error parsing metadata".to_owned());
    // Form encoding writes a blank as a plus.
    let decode = |part: &str| {
        let once = part.replace('+', " ");
        percent_decode_str(&once).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| bad())
    };
    let mut pairs = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(bad)?;
        if value.contains('=') {
            return Err(bad());
        }
        let (key, value) = (decode(key)?, decode(value)?);
        pairs.insert(decode(&key)?, decode(&value)?);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_carry_place_and_order() {
        let cursor =
            Cursor { started_at: truncate_to_micros(OffsetDateTime::now_utc()), id: "iabc".parse().unwrap() };
        for ascending in [false, true] {
            let token = cursor.encode(ascending);
            assert_eq!(Cursor::decode(&token, ascending), Some(cursor.clone()));
            assert_eq!(Cursor::decode(&token, !ascending), None, "the other order");
        }
        for bad in ["", "!", "bm90aGluZw==", "MjAyNi0wMS0wMVQwMDowMDowMFo="] {
            assert_eq!(Cursor::decode(bad, false), None, "{bad:?}");
        }
    }

    #[test]
    fn metadata_is_decoded_layer_by_layer() {
        let pairs = |text| parse_metadata(text).map(|pairs| pairs.into_iter().collect::<Vec<_>>());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(pairs("user=abc&app=prod").unwrap(), [pair("app", "prod"), pair("user", "abc")]);
        // {"a b": "c&d=e%"}: each percent-encoded, then form-encoded.
        assert_eq!(pairs("a%2520b=c%2526d%253De%2525").unwrap(), [pair("a b", "c&d=e%")]);
        assert_eq!(pairs("a%20b=c").unwrap(), [pair("a b", "c")]);
        assert_eq!(pairs("").unwrap(), []);
        for bad in ["novalue", "a=b=c", "a=%ff"] {
            assert_eq!(pairs(bad).unwrap_err().to_string(), "Error parsing metadata", "{bad}");
        }
    }
}
