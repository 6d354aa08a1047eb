//! The bytes of an answer: in a buffer of the client's, or where the server has placed them.

use crate::shm::View;
use std::fmt::{Debug, Formatter};
use std::ops::Deref;

/// The data of an answer. Its checksum was compared before it was handed out.
///
/// Over shared memory a value is not copied once more on this side: these are the bytes that the server has
/// placed in the client's area, and has checked as it copied them there. They are the client's until this is
/// dropped or recycled ([`super::Pipeline::recycle`]). Whoever keeps many answers for long keeps much of the area from new ones:
/// from half of it on, answers are copied again. [`Data::into_vec`] makes them the caller's own.
#[derive(Default)]
pub struct Data(Kind);

enum Kind {
    Own(Vec<u8>),
    Placed(View),
}

impl Default for Kind {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Data {
    pub(super) fn placed(view: View) -> Self {
        Self(Kind::Placed(view))
    }

    /// A buffer of the caller's own with these bytes: copied only if they lie in shared memory.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Kind::Own(bytes) => bytes,
            Kind::Placed(view) => view.to_vec(),
        }
    }

    /// The buffer, to be used again. What was placed is free again.
    pub(super) fn into_buffer(self) -> Option<Vec<u8>> {
        match self.0 {
            Kind::Own(bytes) => Some(bytes),
            Kind::Placed(_) => None,
        }
    }

    /// It lies where the server has placed it.
    pub(super) fn is_placed(&self) -> bool {
        matches!(self.0, Kind::Placed(_))
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Kind::Own(bytes))
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Kind::Own(bytes) => bytes,
            Kind::Placed(view) => view,
        }
    }
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Debug for Data {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Data")
            .field("bytes", &self.len())
            .field("placed", &self.is_placed())
            .finish()
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Data {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}
