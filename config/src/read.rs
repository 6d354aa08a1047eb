//! Walks a parsed table key by key: types, unknown keys, missing keys.
//!
//! A key that nobody asked for by the time of [`Section::finish`] is unknown, so the list of what
//! is allowed can never differ from what is read.

use crate::problem::Report;
use crate::suggest::nearest;
use crate::units;
use std::ops::RangeInclusive;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value that was read, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<T> {
    pub(crate) value: T,
    pub(crate) offset: usize,
}

/// One table of the file while it is read.
pub(crate) struct Section<'a, 's> {
    /// As it is written: `[daemon]`, `[[device]]`.
    title: &'static str,
    table: &'a DeTable<'s>,
    offset: usize,
    asked: Vec<&'static str>,
}

impl<'a, 's> Section<'a, 's> {
    pub(crate) fn new(title: &'static str, table: &'a DeTable<'s>, offset: usize) -> Self {
        Self { title, table, offset, asked: Vec::new() }
    }

    /// Where the section begins.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// The value of `key`, as it is, if it is there.
    pub(crate) fn raw(&mut self, key: &'static str) -> Option<Found<&'a DeValue<'s>>> {
        self.asked.push(key);
        let value = self.table.get(key)?;
        Some(Found { value: value.get_ref(), offset: value.span().start })
    }

    /// Reads `key` with `convert`, whose error completes the sentence "`key` …". `example` is what
    /// to write instead. `None`: not there, or wrong and reported.
    pub(crate) fn read<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &'static str,
        example: &str,
        convert: impl FnOnce(&'a DeValue<'s>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        let Found { value, offset } = self.raw(key)?;
        match convert(value) {
            Ok(value) => Some(Found { value, offset }),
            Err(wrong) => {
                report.add(offset, format!("`{key}` {wrong}"), format!("write {example}"));
                None
            }
        }
    }

    /// [`Section::read`] of a key that has to be there.
    pub(crate) fn require<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &'static str,
        example: &str,
        convert: impl FnOnce(&'a DeValue<'s>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        if !self.table.contains_key(key) {
            let what = format!("{} has no `{key}`", self.title);
            report.add(self.offset, what, format!("write {example}"));
        }
        self.read(report, key, example, convert)
    }

    /// Reports every key that was not asked for.
    pub(crate) fn finish(mut self, report: &mut Report<'_>) {
        self.asked.sort_unstable();
        for key in self.table.keys() {
            let word = key.get_ref().as_ref();
            if self.asked.contains(&word) {
                continue;
            }
            let instead = match nearest(word, &self.asked) {
                Some(known) => format!("write `{known}`"),
                None => format!("remove it; {} takes {}", self.title, self.asked.join(", ")),
            };
            let what = format!("unknown key `{word}` in {}", self.title);
            report.add(key.span().start, what, instead);
        }
    }
}

/// "a string", "an integer": the type as a sentence needs it.
pub(crate) fn a_type(value: &DeValue<'_>) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}

pub(crate) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("is {}, not a string", a_type(value)))
}

/// A string that is not empty.
pub(crate) fn filled<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match text(value)? {
        "" => Err("is empty".to_owned()),
        text => Ok(text),
    }
}

/// A PCI address, written out: domain (of more than 4 digits where a controller of its own makes one), bus,
/// device, function.
pub(crate) fn pci_address(value: &DeValue<'_>) -> Result<String, String> {
    let text = filled(value)?;
    let wrong = || format!("is \"{text}\", which is no PCI address");
    let mut parts = text.split([':', '.']);
    let mut hex = |digits: RangeInclusive<usize>, most: u32| {
        let part = parts.next().filter(|part| digits.contains(&part.len()))?;
        // `from_str_radix` alone would take a sign.
        let plain = part.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(part, 16).ok().filter(|number| plain && *number <= most)
    };
    let marks: Vec<&str> = text.matches([':', '.']).collect();
    let numbers = (hex(4..=8, u32::MAX), hex(2..=2, 0xff), hex(2..=2, 0x1f), hex(1..=1, 7));
    match (numbers, &marks[..]) {
        ((Some(domain), Some(bus), Some(device), Some(function)), [":", ":", "."]) => {
            Ok(format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
        }
        _ => Err(wrong()),
    }
}

pub(crate) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("is {}, not true or false", a_type(value)))
}

pub(crate) fn integer(value: &DeValue<'_>, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number =
        value.as_integer().ok_or_else(|| format!("is {}, not an integer", a_type(value)))?;
    u32::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("is {number}, outside {} to {}", range.start(), range.end()))
}

pub(crate) fn size(value: &DeValue<'_>, at_least: u64) -> Result<u64, String> {
    let text = value.as_str().ok_or_else(|| format!("is {}, not a size", a_type(value)))?;
    match units::parse_size(text) {
        None => Err(format!("is \"{text}\", which is no size")),
        Some(0) => Err("is 0".to_owned()),
        Some(bytes) if bytes < at_least => {
            Err(format!("is {text}, less than {}", units::format_size(at_least)))
        }
        Some(bytes) => Ok(bytes),
    }
}

pub(crate) fn duration_s(value: &DeValue<'_>) -> Result<u32, String> {
    let text = value.as_str().ok_or_else(|| format!("is {}, not a duration", a_type(value)))?;
    match units::parse_duration_s(text).map(u32::try_from) {
        None => Err(format!("is \"{text}\", which is no duration")),
        Some(Err(_)) => Err(format!("is {text}, longer than 136 years")),
        Some(Ok(0)) => Err("is 0".to_owned()),
        Some(Ok(seconds)) => Ok(seconds),
    }
}

/// One of a few words.
pub(crate) fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Result<T, String> {
    let word = text(value)?;
    choices
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| format!("is \"{word}\", which is not known"))
}

/// The tables of an array of tables, each with where it begins.
pub(crate) fn tables<'a, 's>(
    value: &'a DeValue<'s>,
) -> Result<Vec<Found<&'a DeTable<'s>>>, String> {
    let array = value.as_array().ok_or_else(|| format!("is {}", a_type(value)))?;
    array
        .iter()
        .map(|item: &Spanned<DeValue<'s>>| {
            let value = item.get_ref();
            let table = value.as_table().ok_or_else(|| format!("holds {}", a_type(value)))?;
            Ok(Found { value: table, offset: item.span().start })
        })
        .collect()
}
