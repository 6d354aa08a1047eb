//! Which devices have registered a region, so that they forget it in time.

use super::{Region, RegionError, Shared, Usage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{Debug, Formatter};
use std::rc::{Rc, Weak};

/// Who has registered regions with a device. A region tells it when its last handle is gone.
pub trait Registrar {
    /// Deregisters the region of this number, if it knows it: a device does not reach it any more when
    /// this returns.
    fn forget(&self, region: usize);
}

/// What one device has of each region that it has registered.
pub(crate) struct Registry<T>(RefCell<BTreeMap<usize, T>>);

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Debug for Registry<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("regions", &self.0.borrow().len()).finish()
    }
}

impl<T> Registrar for Registry<T> {
    fn forget(&self, region: usize) {
        let forgotten = self.0.borrow_mut().remove(&region);
        drop(forgotten);
    }
}

impl<T: 'static> Registry<T> {
    /// What `look` finds in the registration of `region`, which `make` makes if there is none.
    ///
    /// # Errors
    /// It cannot be made, or slices of the region are out, to which no device may write.
    pub(crate) fn with<R, E: From<RegionError>>(
        self: &Rc<Self>,
        region: &Region,
        make: impl FnOnce() -> Result<T, E>,
        look: impl FnOnce(&T) -> R,
    ) -> Result<R, E> {
        let number = Rc::as_ptr(&region.0).addr();
        if let Some(found) = self.0.borrow().get(&number) {
            return Ok(look(found));
        }
        if region.is_viewed() {
            return Err(RegionError::Viewed.into());
        }
        let made = make()?;
        let found = look(&made);
        let mut registrars = region.0.registrars.borrow_mut();
        registrars.retain(|other| other.strong_count() > 0);
        // Known to the region before the device can be told of it.
        let this: Rc<dyn Registrar> = self.clone();
        registrars.push(Rc::downgrade(&this));
        self.0.borrow_mut().insert(number, made);
        Ok(found)
    }

    /// Regions that are registered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// A region as a simulated network card has it: it keeps nothing alive.
#[derive(Clone)]
pub(crate) struct WeakRegion(Weak<Shared>);

impl Debug for WeakRegion {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeakRegion").finish_non_exhaustive()
    }
}

impl WeakRegion {
    pub(crate) fn new(region: &Region) -> Self {
        Self(Rc::downgrade(&region.0))
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        Some(self.0.upgrade()?.usage)
    }

    /// What a WRITE does. `false`: the memory is not there, or is not to be written to.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        Region(shared).write(offset, from).is_ok()
    }

    /// What a READ does. `false`: the memory is not there.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        Region(shared).read(offset, into).is_ok()
    }
}
