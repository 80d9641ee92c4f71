//! Pages of lists that are ordered by time and then by id, so that a page continues exactly where the previous one ended.
//! Times are compared in microseconds, the precision that the store keeps.

use std::cmp::Ordering;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use store::truncate_to_micros;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ControlError;

/// Maximum number of items on a page, and the default.
pub const MAX_PAGE: usize = 100;

/// The position of an item in a list; the `next_token` of a page is the position of its last item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor<Id> {
    /// When the item was created or started.
    pub(crate) at: OffsetDateTime,
    pub(crate) id: Id,
}

/// The part of a list that a client asks for.
#[derive(Debug)]
pub(crate) struct PageRequest<Id> {
    limit: usize,
    /// The last item of the previous page.
    after: Option<Cursor<Id>>,
    /// Oldest first instead of newest first.
    ascending: bool,
}

impl<Id: Ord + ToString + FromStr> PageRequest<Id> {
    /// Reads the parameters of a request. Without a limit it is for a full page, without a token for the first one.
    ///
    /// # Errors
    /// `Invalid`: the limit is out of range, or the token is malformed or of a list in the other order.
    pub(crate) fn parse(
        limit: Option<i64>,
        next_token: Option<&str>,
        ascending: bool,
    ) -> Result<Self, ControlError> {
        let limit = match limit {
            None => MAX_PAGE,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
                .ok_or_else(|| ControlError::Invalid(format!("limit must be from 1 to {MAX_PAGE}")))?,
        };
        let token = next_token.filter(|token| !token.is_empty());
        let invalid = || ControlError::Invalid("Invalid next token".to_owned());
        let after = token.map(|token| Cursor::decode(token, ascending).ok_or_else(invalid)).transpose()?;
        Ok(Self { limit, after, ascending })
    }

    /// Sorts all items of a list and returns the items of the page, and the token of the next page unless this is the last one.
    pub(crate) fn apply<T>(
        self,
        mut items: Vec<T>,
        cursor_of: impl Fn(&T) -> Cursor<Id>,
    ) -> (Vec<T>, Option<String>) {
        let order = |a: &Cursor<Id>, b: &Cursor<Id>| {
            if self.ascending { b.cmp_descending(a) } else { a.cmp_descending(b) }
        };
        items.sort_by(|a, b| order(&cursor_of(a), &cursor_of(b)));
        if let Some(after) = &self.after {
            items.retain(|item| order(after, &cursor_of(item)) == Ordering::Less);
        }
        let is_last = items.len() <= self.limit;
        items.truncate(self.limit);
        let last = items.last().filter(|_| !is_last);
        let next_token = last.map(|last| cursor_of(last).encode(self.ascending));
        (items, next_token)
    }
}

impl<Id: Ord + ToString + FromStr> Cursor<Id> {
    /// Newest first; items of the same time by id. The ascending order is its exact reverse.
    fn cmp_descending(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at).then_with(|| self.id.cmp(&other.id))
    }

    fn encode(&self, ascending: bool) -> String {
        let at = self.at.format(&Rfc3339).expect("times of items have four-digit years");
        let order = if ascending { "__asc" } else { "" };
        URL_SAFE.encode(format!("{at}__{}{order}", self.id.to_string()))
    }

    fn decode(token: &str, ascending: bool) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE.decode(token).ok()?).ok()?;
        let (at, id) = text.split_once("__")?;
        let id = if ascending { id.strip_suffix("__asc")? } else { id };
        let at = OffsetDateTime::parse(at, &Rfc3339).ok()?;
        Some(Self { at: truncate_to_micros(at), id: id.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use ids::SandboxId;

    use super::*;

    fn now() -> OffsetDateTime {
        truncate_to_micros(OffsetDateTime::now_utc())
    }

    #[test]
    fn tokens_carry_position_and_order() {
        let cursor = Cursor::<SandboxId> { at: now(), id: "iabc".parse().unwrap() };
        for ascending in [false, true] {
            let token = cursor.encode(ascending);
            assert_eq!(Cursor::decode(&token, ascending), Some(cursor.clone()));
            assert_eq!(Cursor::<SandboxId>::decode(&token, !ascending), None, "the other order");
        }
        let named = Cursor { at: now(), id: "team/a__b:v1".to_owned() };
        assert_eq!(Cursor::decode(&named.encode(false), false), Some(named));
        for bad in ["", "!", "bm90aGluZw==", "MjAyNi0wMS0wMVQwMDowMDowMFo="] {
            assert_eq!(Cursor::<SandboxId>::decode(bad, false), None, "{bad:?}");
            assert_eq!(Cursor::<String>::decode(bad, false), None, "{bad:?}");
        }
    }

    #[test]
    fn pages_join_to_the_whole_list() {
        let at = now();
        // Two of the same time: the id decides.
        let items: Vec<(OffsetDateTime, String)> = [0, 1, 1, 2, 3]
            .into_iter()
            .zip('a'..)
            .map(|(second, id)| (at + time::Duration::seconds(second), id.to_string()))
            .collect();
        for (ascending, expected) in [(false, "edbca"), (true, "acbde")] {
            let (mut token, mut found) = (None, String::new());
            loop {
                let request = PageRequest::<String>::parse(Some(2), token.as_deref(), ascending).unwrap();
                let (page, next) =
                    request.apply(items.clone(), |(at, id)| Cursor { at: *at, id: id.clone() });
                page.iter().for_each(|(_, id)| found.push_str(id));
                token = next;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected);
        }
        for limit in [0, -1, 101] {
            assert!(PageRequest::<String>::parse(Some(limit), None, false).is_err(), "{limit}");
        }
    }
}
