//! Looking at a region in place.

use super::{Region, RegionError};
use std::ops::{Deref, DerefMut, Range};

/// Some bytes of a region, in place. As long as it is there, operations on the region are refused
/// ([`crate::Status::Memory`]).
#[derive(Debug)]
pub struct View<'a> {
    region: &'a Region,
    range: Range<usize>,
}

/// [`View`], to change them.
#[derive(Debug)]
pub struct ViewMut<'a> {
    region: &'a Region,
    range: Range<usize>,
}

impl Region {
    /// Looks at bytes in place. Devices that may write to the region forget it first, and register it
    /// anew when it is used next: where that is too slow, [`Region::read`] them, or see
    /// [`Region::view_registered`].
    ///
    /// # Errors
    /// Operations hold some of the region, a mutable view is out, or a processor cannot look at it.
    pub fn view(&self, range: Range<usize>) -> Result<View<'_>, RegionError> {
        self.check_view(&range)?;
        if self.0.is_exposed() {
            self.0.deregister();
        }
        Ok(self.share(range))
    }

    /// [`Region::view`] of a region that stays registered.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As long as the view is there, every server that was ever told of the region (by an operation, over
    /// a connection that is still up) keeps to the protocol, and writes only what an operation has asked
    /// for.
    pub unsafe fn view_registered(&self, range: Range<usize>) -> Result<View<'_>, RegionError> {
        self.check_view(&range)?;
        Ok(self.share(range))
    }

    /// [`Region::view`], to change the bytes.
    ///
    /// # Errors
    /// As there; any view is out; or it is foreign memory for stores only.
    pub fn view_mut(&self, range: Range<usize>) -> Result<ViewMut<'_>, RegionError> {
        self.check_view(&range)?;
        if !self.0.is_writable() {
            return Err(RegionError::ReadOnly);
        }
        if self.is_viewed() {
            return Err(RegionError::Viewed);
        }
        if self.0.is_exposed() {
            self.0.deregister();
        }
        self.0.slices.set(-1);
        Ok(ViewMut { region: self, range })
    }

    fn check_view(&self, range: &Range<usize>) -> Result<(), RegionError> {
        let count = range.end.checked_sub(range.start);
        let count = count.ok_or_else(|| RegionError::Outside(range.clone()))?;
        self.check(range.start, count)?;
        if !self.is_idle() {
            return Err(RegionError::InUse);
        }
        if self.0.slices.get() < 0 { Err(RegionError::Viewed) } else { Ok(()) }
    }

    fn share(&self, range: Range<usize>) -> View<'_> {
        self.0.slices.set(self.0.slices.get() + 1);
        View { region: self, range }
    }
}

impl Deref for View<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.region.0.memory.at(self.range.start, self.range.len());
        // SAFETY: so many bytes of the memory, by `at`, which stays mapped as long as the handle that is
        // borrowed. Nobody writes to them: `slices` keeps this thread from it and from beginning an
        // operation, none was there when it was made, and no device may, by `view` or by the contract of
        // `view_registered`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.range.len()) }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        self.region.0.slices.set(self.region.0.slices.get() - 1);
    }
}

impl Deref for ViewMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.region.0.memory.at(self.range.start, self.range.len());
        // SAFETY: as in `View`; and this is the only view, whose own borrow rules the rest.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.range.len()) }
    }
}

impl DerefMut for ViewMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.region.0.memory.at(self.range.start, self.range.len());
        // SAFETY: as above, and nothing reads them either: a device may read only what a store names, and
        // a server that reads without being asked gets a mixture, no more.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.range.len()) }
    }
}

impl Drop for ViewMut<'_> {
    fn drop(&mut self) {
        self.region.0.slices.set(0);
    }
}
