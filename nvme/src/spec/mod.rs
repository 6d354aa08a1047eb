//! NVMe as the specification writes it: registers, commands, completions, and the data structures that
//! a controller returns. No unsafe, no allocation, and nothing but `core`.
//!
//! Guarantees: **parsing is total**. Any bit pattern of the right length is a value, of every type here;
//! a number that is not known keeps its number, and no accessor panics. Nothing is checked against
//! anything else: whether a drive's answer can be worked with is for the driver to say. What breaks it:
//! a builder ([`command::Submission`], [`registers::Configuration`]) that is called with numbers which
//! have no encoding panics, as that is our own mistake and never the device's.
//!
//! Sections are those of the *NVM Express Base Specification 2.0* ("Base") and the *NVM Command Set
//! Specification 1.0* ("NVM"), by their titles. What a later revision has added at a place that is reserved
//! in these two is named only where a drive of today returns it, and says so.

#![forbid(unsafe_code)]

/// A table of numbers: a constant for each, and `NAMES` for messages.
macro_rules! named {
    ($type:ty; $($name:ident = $value:literal, $text:literal;)*) => {
        $(#[doc = concat!("`", stringify!($value), "`: ", $text, ".")] pub const $name: $type = $value;)*
        /// Every number that has a name here, with it.
        pub const NAMES: &[($type, &str)] = &[$(($value, $text)),*];
    };
}

/// The name of `value` in a table made by `named!`.
fn name_in<T: Copy + PartialEq>(names: &[(T, &'static str)], value: T) -> Option<&'static str> {
    names.iter().find(|(known, _)| *known == value).map(|(_, name)| *name)
}

pub mod command;
pub mod completion;
pub mod event;
pub mod feature;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod registers;
pub mod status;
