//! Element types, as safetensors names them. The numbers are on the wire and on media.

use crate::pdu::DecodeError;

macro_rules! dtypes {
    ($($variant:ident = $number:literal, $name:literal, $bits:literal;)*) => {
        /// What one element of a tensor is. Bytes are raw and little-endian, as in safetensors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Dtype {
            $(#[doc = concat!("`", $name, "`, ", stringify!($bits), " bits.")] $variant = $number,)*
        }

        impl Dtype {
            /// Every type.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in a safetensors header.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bits of one element.
            #[must_use]
            pub fn bits(self) -> u32 {
                match self { $(Self::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    Bool = 1, "BOOL", 8;
    U8 = 2, "U8", 8;
    I8 = 3, "I8", 8;
    U16 = 4, "U16", 16;
    I16 = 5, "I16", 16;
    U32 = 6, "U32", 32;
    I32 = 7, "I32", 32;
    U64 = 8, "U64", 64;
    I64 = 9, "I64", 64;
    F16 = 10, "F16", 16;
    Bf16 = 11, "BF16", 16;
    F32 = 12, "F32", 32;
    F64 = 13, "F64", 64;
    C64 = 14, "C64", 64;
    F8E4M3 = 15, "F8_E4M3", 8;
    F8E5M2 = 16, "F8_E5M2", 8;
    F8E8M0 = 17, "F8_E8M0", 8;
    F8E4M3Fnuz = 18, "F8_E4M3FNUZ", 8;
    F8E5M2Fnuz = 19, "F8_E5M2FNUZ", 8;
    F6E2M3 = 20, "F6_E2M3", 6;
    F6E3M2 = 21, "F6_E3M2", 6;
    F4 = 22, "F4", 4;
}

impl Dtype {
    /// The type with this number.
    ///
    /// # Errors
    /// [`DecodeError::Field`]: there is none.
    pub fn from_wire(number: u8) -> Result<Self, DecodeError> {
        let known = Self::ALL.iter().copied().find(|dtype| *dtype as u8 == number);
        known.ok_or(DecodeError::Field("dtype"))
    }

    /// The type that safetensors calls `name`, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// Bytes of `elements` elements; `None` where they do not fill whole bytes or do not fit a u64.
    #[must_use]
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let bits = u128::from(elements) * u128::from(self.bits());
        bits.is_multiple_of(8).then(|| u64::try_from(bits / 8).ok()).flatten()
    }
}
