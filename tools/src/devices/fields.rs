//! Every field of a structure of NVMe's, by the name that the specification gives it, as JSON.
//!
//! A structure is taken apart in full: a field that is added to it stops the build until it is shown,
//! or said to be left out.

use serde_json::Value;
use zerocopy::little_endian::{U16, U32, U64, U128};

/// A field's value: a number, or bytes in hexadecimal.
pub(super) trait Field {
    fn shown(&self) -> Value;
}

impl Field for u8 {
    fn shown(&self) -> Value {
        (*self).into()
    }
}

impl Field for U16 {
    fn shown(&self) -> Value {
        self.get().into()
    }
}

impl Field for U32 {
    fn shown(&self) -> Value {
        self.get().into()
    }
}

impl Field for U64 {
    fn shown(&self) -> Value {
        self.get().into()
    }
}

impl Field for U128 {
    /// JSON's numbers end at 64 bits: what is more than that is all of them.
    fn shown(&self) -> Value {
        u64::try_from(self.get()).unwrap_or(u64::MAX).into()
    }
}

impl<const N: usize> Field for [u8; N] {
    fn shown(&self) -> Value {
        hex(self).into()
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `object!(value, Type { shown, … } but { left_out, … })`: a JSON object.
macro_rules! object {
    ($from:expr, $type:ident { $($field:ident),* $(,)? } but { $($left_out:ident),* $(,)? }) => {{
        let $type { $($field,)* $($left_out: _,)* } = $from;
        let mut object = serde_json::Map::new();
        $(object.insert(
            stringify!($field).to_owned(),
            $crate::devices::fields::Field::shown($field),
        );)*
        object
    }};
}
pub(super) use object;
