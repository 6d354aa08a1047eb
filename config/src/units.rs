//! Sizes and durations as people write them: `256MiB`, `1h`.
//!
//! Binary units only, spelled out, so that nobody has to guess which a `MB` is; one number and one
//! unit, no fractions, so that what is written is exactly what is meant.

/// The units of a size and how many bytes each is.
const SIZES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
/// The units of a duration and how many seconds each is.
const DURATIONS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];

/// The bytes of a size such as `4KiB` or `2 TiB`; `None` if it is not one.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZES)
}

/// The seconds of a duration such as `90s`, `1h` or `7d`; `None` if it is not one.
#[must_use]
pub fn parse_duration_s(text: &str) -> Option<u64> {
    parse(text, &DURATIONS)
}

/// `bytes` in the largest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let (unit, size) = SIZES
        .into_iter()
        .rev()
        .find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size))
        .unwrap_or(SIZES[0]);
    format!("{}{unit}", bytes / size)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read_exactly() {
        for (text, expected) in [
            ("0B", Some(0)),
            ("4KiB", Some(4096)),
            ("256 MiB", Some(256 << 20)),
            ("3TiB", Some(3 << 40)),
            ("16777216TiB", None),
            ("256MB", None),
            ("256mib", None),
            ("1.5GiB", None),
            ("-1GiB", None),
            ("256", None),
            ("MiB", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("90s", Some(90)),
            ("1h", Some(3600)),
            ("7d", Some(604_800)),
            ("1w", None),
            ("1", None),
        ] {
            assert_eq!(parse_duration_s(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_formatted_size_reads_back() {
        for bytes in [0, 1, 4095, 4096, 5000, 1 << 20, 3 << 30, (1 << 40) + 1, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
    }
}
