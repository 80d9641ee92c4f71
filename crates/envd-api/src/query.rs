//! Parses the query of a URL: names and values are percent-decoded, and `+` is a space.

use percent_encoding::percent_decode_str;

/// A decoded query. The first value of a repeated name counts.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query.
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(n, v)| (decode(n), decode(v)))
                .collect(),
        )
    }

    /// Returns the value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        let query = Query::parse(Some("path=%2Fa+b%2Bc&empty=&path=second&flag&n=a%0Ab"));
        assert_eq!(query.get("path"), Some("/a b+c"));
        assert_eq!((query.get("empty"), query.get("flag"), query.get("none")), (Some(""), Some(""), None));
        assert_eq!(query.get("n"), Some("a\nb"));
        assert_eq!(Query::parse(None).get("path"), None);
    }
}
