//! Time: parsing of RFC 3339 timestamps, Unix time, and setting the clock.

//! Dates are in the proleptic Gregorian calendar.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec};

const DAY: i64 = 86_400;

/// Returns the seconds since 1970.
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Parses an RFC 3339 timestamp to nanoseconds since 1970; `None` if it is malformed.
pub fn parse_rfc3339(text: &str) -> Option<i128> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let (year, month, day) = (field(date, 0, 4)?, field(date, 5, 2)?, field(date, 8, 2)?);
    let (hour, minute, second) = (field(time, 0, 2)?, field(time, 3, 2)?, field(time, 6, 2)?);
    let separated = |t: &str, at: [usize; 2], by| at.iter().all(|&i| t.as_bytes()[i] == by);
    if !separated(date, [4, 7], b'-') || !separated(time, [2, 5], b':') {
        return None;
    }
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanos, zone) = fraction(rest)?;
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset(zone)?;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
}

fn field(text: &str, start: usize, len: usize) -> Option<i64> {
    let digits = text.get(start..start + len)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn fraction(rest: &str) -> Option<(i64, &str)> {
    let Some(rest) = rest.strip_prefix('.') else { return Some((0, rest)) };
    let len = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, zone) = rest.split_at(len);
    let nanos = format!("{digits:0<9.9}").parse().ok()?;
    (len > 0).then_some((nanos, zone))
}

fn offset(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'Z' | b'z' if zone.len() == 1 => return Some(0),
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    if zone.len() != 6 || zone.as_bytes()[3] != b':' {
        return None;
    }
    Some(sign * (field(zone, 1, 2)? * 3600 + field(zone, 4, 2)? * 60))
}

/// Days from 1970-01-01, counting years from March so that the leap day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Sets the clock to `nanos` since 1970 if it lags by more than 50 ms or is more than 5 s ahead. Failure
/// is ignored: a sandbox that shares its host's clock must not set it, and need not.
pub fn step(nanos: i128) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
    let lag = nanos - now;
    let (behind, ahead) = (Duration::from_millis(50), Duration::from_secs(5));
    let limit = |d: Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
    if lag <= limit(behind) && -lag <= limit(ahead) {
        return;
    }
    let (Ok(seconds), Ok(rest)) =
        (i64::try_from(nanos.div_euclid(1_000_000_000)), i64::try_from(nanos.rem_euclid(1_000_000_000)))
    else {
        return;
    };
    let _ = rustix::time::clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: rest });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_timestamps() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_rfc3339("2026-11-21T10:00:00.5+01:00"), Some(1_795_251_600_500_000_000));
        assert_eq!(parse_rfc3339("2000-02-29T23:59:59.123456789Z"), Some(951_868_799_123_456_789));
    }

    #[test]
    fn rejects_malformed_timestamps() {
        for text in ["", "2026", "2026-11-21", "2026-13-01T00:00:00Z", "2026-11-21T10:00:00", "éééééééééééé"]
        {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
