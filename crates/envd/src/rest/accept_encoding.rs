//! Chooses the encoding of a download by the `Accept-Encoding` header.
//! HTTP libraries send `gzip, deflate, br` with every request although their users do not ask for
//! compression, and identity is always allowed then: only a client that names gzip and no other coding gets gzip.

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// The encoding of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not compressed.
    Identity,
    /// Compressed with gzip.
    Gzip,
    /// No supported encoding is acceptable.
    None,
}

/// Chooses the encoding.
pub fn choose(headers: &HeaderMap) -> Encoding {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let (mut gzip, mut identity, mut any, mut others) = (None, None, None, 0);
    for item in lines.flat_map(|line| line.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let quality = weight(item);
        match parts.next().unwrap_or("").to_ascii_lowercase().as_str() {
            "" => {}
            "gzip" | "x-gzip" => gzip = Some(quality),
            "identity" => identity = Some(quality),
            "*" => any = Some(quality),
            _ => others += 1,
        }
    }
    let identity_allowed = identity.or(any).unwrap_or(1) > 0;
    let gzip_allowed = gzip.or(any.filter(|_| !identity_allowed)).unwrap_or(0) > 0;
    let gzip_wanted = gzip_allowed && others == 0 && gzip >= identity;
    match (gzip_wanted, identity_allowed, gzip_allowed) {
        (true, _, _) | (_, false, true) => Encoding::Gzip,
        (_, true, _) => Encoding::Identity,
        (_, false, false) => Encoding::None,
    }
}

/// Whether an uncompressed response is acceptable.
pub fn allows_identity(headers: &HeaderMap) -> bool {
    let mut reduced = HeaderMap::new();
    for line in headers.get_all(ACCEPT_ENCODING) {
        reduced.append(ACCEPT_ENCODING, line.clone());
    }
    // A further coding only prevents that gzip is preferred.
    reduced.append(ACCEPT_ENCODING, http::HeaderValue::from_static("other"));
    choose(&reduced) == Encoding::Identity
}

/// Returns the weight of a coding, in thousandths.
fn weight(item: &str) -> u32 {
    let Some(text) = item.split(';').skip(1).find_map(|p| p.trim().strip_prefix("q=")) else { return 1000 };
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let fraction: u32 = format!("{fraction:0<3.3}").parse().unwrap_or(0);
    whole.parse::<u32>().map_or(0, |whole| (whole.min(1) * 1000 + fraction).min(1000))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn chooses() {
        for (header, expected) in [
            ("", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("gzip;q=0.5, identity;q=0.8", Encoding::Identity),
            ("gzip, identity;q=0.5", Encoding::Gzip),
            ("gzip, deflate, br", Encoding::Identity),
            ("gzip, deflate, identity;q=0", Encoding::Gzip),
            ("identity;q=0", Encoding::None),
            ("br, *;q=0", Encoding::None),
            ("*", Encoding::Identity),
            ("gzip;q=0", Encoding::Identity),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(header));
            assert_eq!(choose(&headers), expected, "{header}");
        }
        assert_eq!(choose(&HeaderMap::new()), Encoding::Identity);
    }
}
