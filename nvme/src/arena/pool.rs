//! A reactor's pool, and the buffers cut from it.
//!
//! Guarantees: a [`DmaBuf`] is exclusive and initialised for as long as it lives; dropping it
//! gives its memory back at once. Once it is shared, nobody writes to it again, and its last holder gives it
//! back. All types stay on their thread (`Rc`).

use stable_deref_trait::StableDeref;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use super::buddy::Buddy;
use super::region::Region;
use super::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, PoolSeed, Span};

/// A single-threaded allocator of DMA memory. Clones are handles on the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    /// Keeps the mapping alive; `base` points into it.
    region: Arc<Region>,
    base: NonNull<u8>,
    bytes: usize,
    buddy: RefCell<Buddy>,
    /// By a shared buffer's first page: how many hold it.
    holders: Box<[Cell<u32>]>,
}

impl Inner {
    fn page_of(&self, address: NonNull<u8>) -> usize {
        (address.addr().get() - self.base.addr().get()) / BUFFER_BYTES_MIN
    }

    fn give(&self, address: NonNull<u8>, bytes: usize) {
        self.buddy.borrow_mut().give(self.page_of(address) as u32, order_of(bytes));
    }
}

impl Pool {
    pub(super) fn over(seed: PoolSeed) -> Self {
        let PoolSeed { region, offset, bytes } = seed;
        let pages = u32::try_from(bytes / BUFFER_BYTES_MIN).expect("a pool is below 16 TiB");
        let base = region.at(offset, bytes);
        let buddy = RefCell::new(Buddy::new(pages));
        let holders = vec![Cell::new(0); pages as usize].into_boxed_slice();
        Self { inner: Rc::new(Inner { region, base, bytes, buddy, holders }) }
    }

    /// A buffer of at least `bytes`: the next power of two, 4 KiB or more. Its content is whatever
    /// was there before. `None` when `bytes` is above [`BUFFER_BYTES_MAX`], or when there is no
    /// such block free now.
    #[must_use]
    pub fn alloc(&self, bytes: usize) -> Option<DmaBuf> {
        if bytes > BUFFER_BYTES_MAX {
            return None;
        }
        let bytes = bytes.next_power_of_two().max(BUFFER_BYTES_MIN);
        let order = order_of(bytes);
        let page = self.inner.buddy.borrow_mut().take(order)?;
        // SAFETY: the buddy's pages are numbered within `inner.bytes`, so the block lies inside
        // the mapping that `base` points into.
        let address = unsafe { self.inner.base.add(page as usize * BUFFER_BYTES_MIN) };
        Some(DmaBuf { address, bytes, pool: Rc::clone(&self.inner) })
    }

    /// Bytes that are free now, in blocks of whatever size.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.inner.buddy.borrow().free_pages() as usize * BUFFER_BYTES_MIN
    }

    /// The fewest bytes that were ever free.
    #[must_use]
    pub fn low_water_bytes(&self) -> usize {
        self.inner.buddy.borrow().low_water_pages() as usize * BUFFER_BYTES_MIN
    }

    /// Size of the pool.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.inner.bytes
    }

    /// Where the pool's memory is, for a device or a network card to register: address and bytes.
    #[must_use]
    pub fn region(&self) -> (*const u8, usize) {
        (self.inner.base.as_ptr(), self.inner.bytes)
    }

    /// The whole arena that the pool is a slice of.
    #[must_use]
    pub fn span(&self) -> Span {
        Span(Arc::clone(&self.inner.region))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} bytes free)", self.free_bytes(), self.total_bytes())
    }
}

/// An exclusive, aligned block of DMA memory: 4 KiB … 4 MiB, a power of two, aligned to its size.
pub struct DmaBuf {
    address: NonNull<u8>,
    bytes: usize,
    pool: Rc<Inner>,
}

impl DmaBuf {
    /// Zeroes everything from byte `from` on: a write of whole blocks must not carry what the last
    /// user of the memory left behind.
    ///
    /// # Panics
    /// When `from` is past the end.
    pub fn zero_tail(&mut self, from: usize) {
        self[from..].fill(0);
    }

    /// From here on it may have several holders, and nobody writes to it.
    #[must_use]
    pub fn share(self) -> SharedBuf {
        let buffer = ManuallyDrop::new(self);
        let holders = &buffer.pool.holders[buffer.pool.page_of(buffer.address)];
        holders.set(1);
        SharedBuf { buffer }
    }

    /// Its first address, without a borrow of its content: a device may be writing there.
    #[inline]
    pub(crate) fn as_shared_ptr(&self) -> *const u8 {
        self.address.as_ptr()
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `address..+bytes` lies in the mapping, which `pool` keeps alive. It is
        // initialised: anonymous memory begins as zeroes. No other reference to it exists: the
        // buddy hands out no overlapping block until this one is dropped, and whoever gives the
        // address to a device (a block queue) owns the `DmaBuf` for as long as the device does.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }
}

impl DerefMut for DmaBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.bytes) }
    }
}

// SAFETY: `deref` and `deref_mut` give the same bytes of the mapping as long as it lives, wherever it is moved.
unsafe impl StableDeref for DmaBuf {}

impl AsRef<[u8]> for DmaBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for DmaBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        self.pool.give(self.address, self.bytes);
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({} bytes at {:p})", self.bytes, self.address)
    }
}

/// A block of DMA memory that several hold, and that is only read. Its memory is free when the last one has
/// let go.
pub struct SharedBuf {
    buffer: ManuallyDrop<DmaBuf>,
}

impl SharedBuf {
    fn holders(&self) -> &Cell<u32> {
        let DmaBuf { address, pool, .. } = &*self.buffer;
        &pool.holders[pool.page_of(*address)]
    }
}

impl Clone for SharedBuf {
    #[inline]
    fn clone(&self) -> Self {
        let holders = self.holders();
        holders.set(holders.get().checked_add(1).expect("fewer holders than bytes of memory"));
        let DmaBuf { address, bytes, pool } = &*self.buffer;
        let buffer = DmaBuf { address: *address, bytes: *bytes, pool: Rc::clone(pool) };
        Self { buffer: ManuallyDrop::new(buffer) }
    }
}

impl Deref for SharedBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for SharedBuf {
    #[inline]
    fn drop(&mut self) {
        let left = self.holders().get() - 1;
        self.holders().set(left);
        let DmaBuf { address, bytes, .. } = *self.buffer;
        // SAFETY: this is not used again. Its own `drop` would give the memory back, which others may hold; the
        // handle on the pool is all else that it has.
        let pool = unsafe { std::ptr::read(&self.buffer.pool) };
        if left == 0 {
            pool.give(address, bytes);
        }
    }
}

impl fmt::Debug for SharedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBuf({:?}, {} holders)", &*self.buffer, self.holders().get())
    }
}

/// A block of DMA memory on its way to the network, or from there.
#[derive(Debug)]
pub enum Buffer {
    /// Of one holder, who may write.
    Own(DmaBuf),
    /// Of several, who only read.
    Shared(SharedBuf),
}

impl Buffer {
    /// The block, if it is its holder's own.
    #[must_use]
    pub fn into_own(self) -> Option<DmaBuf> {
        match self {
            Self::Own(buffer) => Some(buffer),
            Self::Shared(_) => None,
        }
    }
}

impl From<DmaBuf> for Buffer {
    fn from(buffer: DmaBuf) -> Self {
        Self::Own(buffer)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(buffer) => buffer,
            Self::Shared(buffer) => buffer,
        }
    }
}

impl DerefMut for Buffer {
    /// # Panics
    /// When it is shared.
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Own(buffer) => buffer,
            Self::Shared(_) => panic!("a shared buffer is only read"),
        }
    }
}

// SAFETY: each gives the same bytes of the mapping as long as it lives, wherever it is moved.
unsafe impl StableDeref for Buffer {}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// The buddy's order for a block of `bytes`, a power of two of at least one page.
fn order_of(bytes: usize) -> usize {
    (bytes / BUFFER_BYTES_MIN).trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    fn pool(bytes: usize) -> Pool {
        Arena::on_demand(bytes).unwrap().pool()
    }

    #[test]
    fn a_buffer_is_the_next_power_of_two_and_aligned_to_itself() {
        let pool = pool(8 << 20);
        for (ask, bytes) in [
            (0, 4096),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            (100_000, 131_072),
            (4 << 20, 4 << 20),
        ] {
            let buffer = pool.alloc(ask).unwrap();
            assert_eq!(buffer.len(), bytes, "asked for {ask}");
            assert_eq!(buffer.as_ptr().addr() % bytes, 0, "asked for {ask}");
        }
        assert!(pool.alloc((4 << 20) + 1).is_none());
        assert!(pool.alloc(usize::MAX).is_none());
    }

    #[test]
    fn an_empty_pool_says_so_and_recovers() {
        let pool = pool(4 << 20);
        let all = pool.alloc(4 << 20).unwrap();
        assert!(pool.alloc(1).is_none());
        assert_eq!((pool.free_bytes(), pool.low_water_bytes()), (0, 0));
        drop(all);
        assert_eq!((pool.free_bytes(), pool.total_bytes()), (4 << 20, 4 << 20));
        assert!(pool.alloc(4 << 20).is_some());
    }

    #[test]
    fn no_two_buffers_share_a_byte() {
        for seed in 0..16_u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let pool = pool(8 << 20);
            let mut held: Vec<(DmaBuf, u8)> = Vec::new();
            for step in 0..400 {
                if rng.bool() {
                    let Some(mut buffer) = pool.alloc(1 << rng.u32(8..20)) else { continue };
                    buffer.fill(step as u8);
                    held.push((buffer, step as u8));
                } else if !held.is_empty() {
                    let (buffer, mark) = held.swap_remove(rng.usize(..held.len()));
                    assert!(buffer.iter().all(|byte| *byte == mark), "seed {seed} step {step}");
                }
            }
            held.clear();
            assert_eq!(pool.free_bytes(), pool.total_bytes(), "seed {seed}");
        }
    }

    #[test]
    fn shared_memory_is_free_when_its_last_holder_lets_go() {
        let pool = pool(4 << 20);
        let mut buffer = pool.alloc(8192).unwrap();
        buffer.fill(7);
        let first = buffer.share();
        let others: Vec<SharedBuf> = (0..3).map(|_| first.clone()).collect();
        drop(first);
        assert!(others.iter().all(|other| other.iter().all(|byte| *byte == 7)));
        assert_eq!(pool.free_bytes(), (4 << 20) - 8192);
        drop(others);
        assert_eq!(pool.free_bytes(), 4 << 20);
    }

    #[test]
    #[should_panic(expected = "a shared buffer is only read")]
    fn nobody_writes_to_what_is_shared() {
        let shared = pool(4 << 20).alloc(4096).unwrap().share();
        Buffer::Shared(shared)[0] = 1;
    }

    #[test]
    fn zero_tail_clears_what_the_last_user_left() {
        let pool = pool(4 << 20);
        let mut buffer = pool.alloc(8192).unwrap();
        buffer.fill(9);
        buffer.zero_tail(5000);
        assert!(buffer[..5000].iter().all(|byte| *byte == 9));
        assert!(buffer[5000..].iter().all(|byte| *byte == 0));
        buffer.zero_tail(8192);
    }
}
