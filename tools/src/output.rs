//! How things are written for people: sizes, rates, aligned tables.

use std::fmt::Write as _;

/// `bytes` with three digits and a binary unit: `1.50 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Bytes per second over `seconds`.
pub(crate) fn rate(amount_bytes: u64, seconds: f64) -> String {
    if seconds > 0.0 {
        format!("{}/s", bytes((amount_bytes as f64 / seconds) as u64))
    } else {
        "-".into()
    }
}

/// A count with a decimal unit: `215 k`.
pub(crate) fn count(count: f64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G"]).trim_end().to_owned()
}

/// Nanoseconds in the unit that people think of them in.
pub(crate) fn nanoseconds(ns: u64) -> String {
    scaled(ns as f64, 1000.0, &["ns", "us", "ms", "s"])
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step * 0.9995 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 && value.fract() == 0.0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit])
}

/// Columns as wide as their widest cell; the first left-aligned, the others right-aligned.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            let (left, right) = if column == 0 { ("", gap.as_str()) } else { (gap.as_str(), "") };
            line += &format!("{}{left}{cell}{right}", if column == 0 { "" } else { "  " });
        }
        writeln!(text, "{}", line.trim_end()).expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        for (given, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1000, "1000 B"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (999 << 30, "999 GiB"),
        ] {
            assert_eq!(bytes(given), expected);
        }
        assert_eq!(count(215_000.0), "215 k");
        assert_eq!(count(7.0), "7");
        assert_eq!(nanoseconds(1_234_567), "1.23 ms");
        assert_eq!(rate(1 << 30, 2.0), "512 MiB/s");
        assert_eq!(rate(1, 0.0), "-");
    }

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "22".into()]];
        assert_eq!(table(&["x", "n"], &rows), "x      n\na      1\nlong  22\n");
    }
}
