//! Buffers that are counted: none may be left.

use std::cell::Cell;
use std::rc::Rc;

/// A buffer that is counted while it lives.
#[derive(Debug)]
pub struct Counted {
    bytes: Vec<u8>,
    live: Rc<Cell<usize>>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Counted {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

/// Makes [`Counted`] buffers.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    live: Rc<Cell<usize>>,
}

impl Buffers {
    /// A buffer that holds `bytes`.
    #[must_use]
    pub fn holding(&self, bytes: Vec<u8>) -> Counted {
        self.live.set(self.live.get() + 1);
        Counted { bytes, live: self.live.clone() }
    }

    /// How many have not been dropped.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.get()
    }
}
