//! Answers where they lie: a piece of the client's area that nobody uses until it has been read.

#![expect(
    unsafe_code,
    reason = "refers to memory that another process maps; the block has its proof"
)]

use super::area::Area;
use super::layout::AREA;
use std::fmt::{Debug, Formatter};
use std::ops::Deref;
use std::rc::Rc;

/// Bytes that the server has placed in the area. The pages that they are on are free again when this is
/// dropped; the area stays mapped as long, also when the connection has ended.
pub struct View {
    area: Rc<Area>,
    page: usize,
    count: usize,
}

impl View {
    /// `count` bytes from the beginning of `page` on, whose pages were lent and become this view's.
    pub(super) fn new(area: Rc<Area>, page: usize, count: usize) -> Self {
        Self { area, page, count }
    }
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.area.port.map.at(AREA + Area::offset(self.page), self.count);
        // SAFETY: so many bytes of the mapping, by `at`, mapped as long as `self`. Nobody in this process
        // writes to them: their pages are this view's until it is dropped, so that they are lent to no
        // command. Nor does the server, by the protocol: a piece is its own from a command to the response,
        // which has come, or there were no view. It is the one process that the client trusts with its
        // values anyway; one that breaks its word can change these bytes behind the check, and no others.
        unsafe { std::slice::from_raw_parts(start, self.count) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.area.end_view(self.page, self.count);
    }
}

impl Debug for View {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("page", &self.page).field("count", &self.count).finish()
    }
}
