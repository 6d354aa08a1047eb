//! The status field of a completion (Base, "Status Field Definition").
//!
//! Guarantees: every value of the field has a kind, a code and a text. [`Status::full`] is what people
//! write: `0x281` is status code type 2h, status code 81h.

mod codes;
#[cfg(test)]
mod tests;

use core::fmt;

pub use codes::{command, generic, media, path};

use super::name_in;

/// The 15 bits behind the phase tag: code (7:0), code type (10:8), retry delay (12:11), more (13),
/// do not retry (14).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Status(pub u16);

/// What a status is about (Base, "Status Code Type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKind {
    /// 0h: what every command can meet.
    Generic,
    /// 1h: what belongs to the command that was sent.
    CommandSpecific,
    /// 2h: media and data integrity.
    Media,
    /// 3h: the path to the drive.
    Path,
    /// 7h: the vendor's.
    Vendor,
    /// Reserved.
    Other(u8),
}

impl Status {
    /// The command did what it was asked.
    pub const SUCCESS: Self = Self(0);
    const MORE: u16 = 1 << 13;
    const DO_NOT_RETRY: u16 = 1 << 14;

    /// A status of code type and code `full` (`0x281`), to be retried at once.
    #[must_use]
    pub const fn new(full: u16) -> Self {
        Self(full & 0x7ff)
    }

    /// The same, with Do Not Retry.
    #[must_use]
    pub const fn with_do_not_retry(self) -> Self {
        Self(self.0 | Self::DO_NOT_RETRY)
    }

    /// The same, to be retried after delay `index` of Identify Controller's three (CRD), from 1 on.
    ///
    /// # Panics
    /// When `index` is more than 3.
    #[must_use]
    pub const fn with_retry_delay(self, index: u8) -> Self {
        assert!(index <= 3);
        Self(self.0 & !(3 << 11) | (index as u16) << 11)
    }

    /// The command did what it was asked.
    #[must_use]
    #[inline]
    pub const fn ok(self) -> bool {
        self.full() == 0
    }

    /// What it is about (SCT).
    #[must_use]
    pub const fn kind(self) -> StatusKind {
        match self.0 >> 8 & 7 {
            0 => StatusKind::Generic,
            1 => StatusKind::CommandSpecific,
            2 => StatusKind::Media,
            3 => StatusKind::Path,
            7 => StatusKind::Vendor,
            other => StatusKind::Other(other as u8),
        }
    }

    /// The code within its kind (SC).
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Code type and code: the numbers that [`generic`], [`command`], [`media`] and [`path`] name.
    #[must_use]
    #[inline]
    pub const fn full(self) -> u16 {
        self.0 & 0x7ff
    }

    /// The error log has more about it (M).
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// The same command would fail again (DNR).
    #[must_use]
    pub const fn do_not_retry(self) -> bool {
        self.0 & Self::DO_NOT_RETRY != 0
    }

    /// Which of the three Command Retry Delay Times to wait before a retry; 0 is none (CRD). Only a
    /// controller that was told that the host honours it (Host Behavior Support, ACRE) sets it.
    #[must_use]
    pub const fn retry_delay(self) -> u8 {
        (self.0 >> 11 & 3) as u8
    }

    /// Its text, if it has a name.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let names = match self.kind() {
            StatusKind::Generic => generic::NAMES,
            StatusKind::CommandSpecific => command::NAMES,
            StatusKind::Media => media::NAMES,
            StatusKind::Path => path::NAMES,
            StatusKind::Vendor | StatusKind::Other(_) => &[],
        };
        name_in(names, self.full())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.name().unwrap_or(match self.kind() {
            StatusKind::Generic => "unknown generic status",
            StatusKind::CommandSpecific => "unknown command specific status",
            StatusKind::Media => "unknown media error",
            StatusKind::Path => "unknown path error",
            StatusKind::Vendor => "vendor specific status",
            StatusKind::Other(_) => "status of a reserved type",
        });
        write!(f, "{text} ({:#05x})", self.full())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self}")?;
        if self.do_not_retry() {
            f.write_str(", do not retry")?;
        }
        if self.retry_delay() != 0 {
            write!(f, ", retry delay {}", self.retry_delay())?;
        }
        f.write_str(if self.more() { ", more)" } else { ")" })
    }
}
