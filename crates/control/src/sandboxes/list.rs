//! Lists a team's sandboxes: filters, and pages ordered by start time.

use std::collections::BTreeMap;

use ids::TemplateId;
use percent_encoding::percent_decode_str;
use store::{SandboxState, Team, truncate_to_micros};
use time::OffsetDateTime;

use super::SandboxInfo;
use crate::paging::{Cursor, PageRequest};
use crate::{Control, ControlError};

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Metadata that a sandbox must have, encoded as on the wire.
    pub metadata: Option<String>,
    /// Only these states; all if empty.
    pub states: Vec<SandboxState>,
    /// Only those started at or after this time.
    pub started_after: Option<OffsetDateTime>,
    /// Only sandboxes of this template, by name or id.
    pub template: Option<String>,
    /// Oldest first instead of newest first.
    pub ascending: bool,
    /// Maximum number of sandboxes; none is a full page.
    pub limit: Option<i64>,
    /// Token of the next page, from the previous page.
    pub next_token: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The sandboxes.
    pub items: Vec<SandboxInfo>,
    /// Token of the next page; none on the last page.
    pub next_token: Option<String>,
    /// Number of matching running sandboxes on all pages; none when running ones were not asked for.
    pub total_running: Option<usize>,
}

impl Control {
    /// Returns a page of a team's sandboxes.
    ///
    /// # Errors
    /// A filter, the limit or the token is malformed.
    pub fn list(&self, team: &Team, query: &ListQuery) -> Result<Page, ControlError> {
        let request = PageRequest::parse(query.limit, query.next_token.as_deref(), query.ascending)?;
        let matching = self.matching(team, query)?;
        let wants_running = query.states.is_empty() || query.states.contains(&SandboxState::Running);
        let running = matching.iter().filter(|info| info.state == SandboxState::Running).count();
        let position = |info: &SandboxInfo| Cursor { at: info.started_at, id: info.id.clone() };
        let (items, next_token) = request.apply(matching, position);
        Ok(Page { items, next_token, total_running: wants_running.then_some(running) })
    }

    /// Returns all of a team's sandboxes that pass the filters, in no order.
    fn matching(&self, team: &Team, query: &ListQuery) -> Result<Vec<SandboxInfo>, ControlError> {
        let metadata = query.metadata.as_deref().map(parse_metadata).transpose()?.unwrap_or_default();
        let started_after = query.started_after.map(truncate_to_micros);
        let template: Option<TemplateId> = match query.template.as_deref().filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => match self.catalog.template_for_filter(team, name)? {
                Some(id) => Some(id),
                None => return Ok(Vec::new()),
            },
        };
        let infos = self.registry.of_team(team.id).into_iter().map(|sandbox| sandbox.info());
        Ok(infos
            .filter(|info| query.states.is_empty() || query.states.contains(&info.state))
            .filter(|info| started_after.is_none_or(|after| info.started_at >= after))
            .filter(|info| template.as_ref().is_none_or(|template| info.template == *template))
            .filter(|info| metadata.iter().all(|(key, value)| info.details.metadata.get(key) == Some(value)))
            .collect())
    }
}

/// Decodes metadata as the SDKs encode it: each key and value by itself, then as a form, then as a query parameter. The last
/// encoding has been removed by the parser of the query.
fn parse_metadata(text: &str) -> Result<BTreeMap<String, String>, ControlError> {
    let bad = || ControlError::Invalid("Error parsing metadata".to_owned());
    // Form encoding writes a space as a plus.
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
    fn metadata_is_decoded_once_per_encoding() {
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
