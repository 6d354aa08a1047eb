//! What Identify returns (Base, "Identify command"; NVM, "Identify command").
//!
//! Guarantees: any 4096 bytes are each of the structures here, and every accessor has an answer for them.
//! What to beware of: they are a drive's own words, and not checked: a size that it cannot have comes back
//! as `None`, or as the number that it is.

mod controller;
mod namespace;
#[cfg(test)]
mod tests;

pub use controller::{IdentifyController, IdentifyControllerNvm, PowerState, SglSupport};
pub use namespace::{
    ActiveNamespaces, IdentifyNamespace, LbaFormat, NamespaceIdentifier, descriptors,
};

/// Size of every Identify data structure (Base, "Identify command").
pub const IDENTIFY_BYTES: usize = 4096;

/// The printable beginning of an ASCII field, without the spaces around it (Base, "Byte, Word, and Dword
/// Relationships", ASCII strings). What a drive must not put there (controls, UTF-8) ends it.
pub(super) fn ascii(field: &[u8]) -> &str {
    let printable = field.iter().take_while(|byte| (0x20..0x7f).contains(*byte)).count();
    core::str::from_utf8(&field[..printable]).unwrap_or_default().trim_ascii()
}

/// From kelvin; 0 K is how a drive says that it does not know.
pub(super) fn celsius(kelvin: u16) -> Option<i32> {
    (kelvin != 0).then(|| i32::from(kelvin) - 273)
}

/// A limit on the bytes of a command in the form of MDTS: a power of two of the smallest memory page; 0 is no
/// limit, as is what does not fit into 64 bits.
fn bytes_max(shift: u8, page_bytes_min: usize) -> Option<u64> {
    let pages = if shift == 0 { None } else { 1u64.checked_shl(shift.into()) };
    pages?.checked_mul(page_bytes_min as u64)
}
