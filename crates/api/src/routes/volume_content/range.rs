//! Ranges of bytes in requests (`Range`), one at a time.

/// The part of a file that a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: also for what is no range that this server knows, as HTTP demands.
    Whole,
    /// From the first byte to before the second.
    Bytes(u64, u64),
    /// Nothing: it begins after the end.
    None,
}

/// Returns the part that a `Range` asks for of a file of `size` bytes.
pub(super) fn part_of(range: &str, size: u64) -> Part {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let number = |text: &str| text.parse::<u64>().ok();
    if first.is_empty() {
        return match number(last) {
            None => Part::Whole,
            Some(tail) if tail > 0 && size > 0 => Part::Bytes(size.saturating_sub(tail), size),
            Some(_) => Part::None,
        };
    }
    let end = if last.is_empty() { Some(size) } else { number(last).map(|last| last.saturating_add(1)) };
    match (number(first), end) {
        (Some(first), _) if last.is_empty() && first >= size => Part::None,
        (Some(first), Some(end)) if first < end && first < size => Part::Bytes(first, end.min(size)),
        (Some(first), Some(end)) if first < end => Part::None,
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood() {
        for (range, part) in [
            ("bytes=0-3", Part::Bytes(0, 4)),
            ("bytes=2-", Part::Bytes(2, 10)),
            ("bytes=9-99", Part::Bytes(9, 10)),
            ("bytes=-4", Part::Bytes(6, 10)),
            ("bytes=-40", Part::Bytes(0, 10)),
            ("bytes=10-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=5-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=x-y", Part::Whole),
            ("lines=0-1", Part::Whole),
        ] {
            assert_eq!(part_of(range, 10), part, "{range}");
        }
        assert_eq!(part_of("bytes=-4", 0), Part::None);
    }
}
