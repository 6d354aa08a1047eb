//! Tables that are looked up at random: zeroed entries of 32 bytes, in huge pages where there are any.
//!
//! Guarantees: all entries are zero at first, and memory comes only as it is touched. What it is for: a
//! lookup in a table of hundreds of MiB misses the TLB on 4 KiB pages, and hits it on 2 MiB ones.

use std::ops::{Deref, DerefMut};

use super::ArenaError;
use super::region::Region;

/// Tables below this size stay in ordinary pages: a huge one would cost more than it saves.
const HUGE_BYTES_MIN: usize = 4 << 20;
const PAGE_BYTES: usize = 4096;

/// One entry: four words.
pub type TableEntry = [u64; 4];

/// An owned table. See the module.
#[derive(Debug)]
pub struct Table {
    region: Region,
    entries: usize,
}

impl Table {
    /// `entries` entries, all zero.
    ///
    /// # Errors
    /// [`ArenaError`]: the address space is used up, or `entries` is 0.
    pub fn new(entries: usize) -> Result<Self, ArenaError> {
        let bytes = entries
            .checked_mul(size_of::<TableEntry>())
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE_BYTES))
            .filter(|bytes| *bytes > 0 && *bytes < isize::MAX as usize / 2)
            .ok_or(ArenaError::Size { bytes: 0 })?;
        let region = Region::on_demand(bytes)?;
        if bytes >= HUGE_BYTES_MIN {
            region.prefer_huge_pages();
        }
        Ok(Self { region, entries })
    }
}

impl Deref for Table {
    type Target = [TableEntry];

    fn deref(&self) -> &[TableEntry] {
        let start = self.region.at(0, self.entries * size_of::<TableEntry>());
        // SAFETY: the region is mapped for as long as `self` lives, aligned to 4 MiB, and holds
        // `entries` entries (asserted by `at`); it was zero at first, and any bits are an entry. It
        // belongs to this table alone, so that the borrow of `self` is the borrow of its content.
        unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), self.entries) }
    }
}

impl DerefMut for Table {
    fn deref_mut(&mut self) -> &mut [TableEntry] {
        let start = self.region.at(0, self.entries * size_of::<TableEntry>());
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(start.cast().as_ptr(), self.entries) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_zero_at_first_and_keeps_what_is_written() {
        for entries in [1, 64, 1 << 18] {
            let mut table = Table::new(entries).unwrap();
            assert_eq!(table.len(), entries);
            assert!(table.iter().step_by(997).all(|entry| *entry == [0; 4]));
            table[entries - 1] = [1, 2, 3, 4];
            assert_eq!(table[entries - 1], [1, 2, 3, 4]);
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(Table::new(0).is_err());
        assert!(Table::new(usize::MAX / 16).is_err());
    }
}
