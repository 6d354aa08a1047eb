//! Receives that all queue pairs of one device share, and the memory behind them.
//!
//! The network card takes the next one for each message, whichever queue pair it is for. A queue pair
//! that uses them keeps them: they are destroyed, and their memory with them, only when the last such
//! queue pair is. A queue pair that is destroyed in the middle of a message may take that message's
//! receive along: then there is one less, and a peer may once have to wait for the next one.

use super::device::Domain;
use super::memory::Slab;
use super::{last_error, number_error};
use crate::rdma::ProviderError;
use ibverbs_sys as sys;
use std::fmt::{Debug, Formatter};
use std::mem::ManuallyDrop;
use std::rc::Rc;

/// Marks the number of a shared receive: no queue pair has this slot.
const SHARED: u64 = u64::MAX << 32;
/// Fewer than one in so many posted is worth a word in the log.
const LOW: u32 = 8;

/// The shared receive that a completion's number stands for, if it does.
pub(super) fn receive_of(number: u64) -> Option<u16> {
    (number & SHARED == SHARED).then_some(number as u16)
}

/// The queue of receives, for the queue pairs that use it.
pub(super) struct SharedQueue {
    raw: *mut sys::ibv_srq,
    slab: ManuallyDrop<Slab>,
    _domain: Rc<Domain>,
}

impl SharedQueue {
    pub(super) fn raw(&self) -> *mut sys::ibv_srq {
        self.raw
    }
}

impl Drop for SharedQueue {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; queue pairs that use it hold its `Rc`.
        let failed = unsafe { sys::ibv_destroy_srq(self.raw) };
        if failed != 0 {
            return log::error!("cannot destroy shared receives: error {failed}; they stay");
        }
        // SAFETY: dropped once, here: nothing is received into it any more.
        unsafe { ManuallyDrop::drop(&mut self.slab) };
    }
}

/// All shared receives of one device.
pub(super) struct Shared {
    queue: Rc<SharedQueue>,
    receive_bytes: usize,
    /// Which of them the network card has.
    posted: Vec<bool>,
    reposted: Vec<u16>,
    works: Vec<sys::ibv_recv_wr>,
    pieces: Vec<sys::ibv_sge>,
    /// The device says when there are few.
    armed: bool,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("receives", &self.posted.len()).finish_non_exhaustive()
    }
}

impl Shared {
    /// So many receives of so many bytes, posted.
    pub(super) fn new(
        domain: &Rc<Domain>,
        receives: u16,
        receive_bytes: usize,
    ) -> Result<Self, ProviderError> {
        let count = usize::from(receives);
        let slab = Slab::new(domain, count * receive_bytes)?;
        let mut wanted = sys::ibv_srq_init_attr {
            srq_context: std::ptr::null_mut(),
            attr: sys::ibv_srq_attr { max_wr: receives.into(), max_sge: 1, srq_limit: 0 },
        };
        // SAFETY: an allocated domain; `wanted` outlives the call, which writes the real sizes into it.
        let raw = unsafe { sys::ibv_create_srq(domain.raw(), &mut wanted) };
        if raw.is_null() {
            return Err(last_error(
                "cannot make shared receives: see max_srq and max_srq_wr of `ibv_devinfo -v`",
            ));
        }
        let slab = ManuallyDrop::new(slab);
        let mut shared = Self {
            queue: Rc::new(SharedQueue { raw, slab, _domain: Rc::clone(domain) }),
            receive_bytes,
            posted: vec![false; count],
            reposted: (0..receives).collect(),
            works: Vec::with_capacity(count),
            pieces: Vec::with_capacity(count),
            armed: false,
        };
        shared.ring()?;
        Ok(shared)
    }

    pub(super) fn queue(&self) -> &Rc<SharedQueue> {
        &self.queue
    }

    pub(super) fn receives(&self) -> usize {
        self.posted.len()
    }

    /// A receive has completed: the network card is done with it.
    pub(super) fn completed(&mut self, receive: u16) {
        if let Some(posted) = self.posted.get_mut(usize::from(receive)) {
            *posted = false;
        }
    }

    /// The message in a receive that has completed.
    pub(super) fn message(&self, receive: u16, length: u32) -> &[u8] {
        let (index, length) = (usize::from(receive), length as usize);
        assert!(!self.posted[index] && length <= self.receive_bytes, "a receive that was not said");
        // SAFETY: this receive is not posted, so that the network card does not write to it; it is posted
        // only by `ring`, which takes `self` mutably.
        unsafe { self.queue.slab.slice(index * self.receive_bytes, length) }
    }

    pub(super) fn repost(&mut self, receive: u16) {
        debug_assert!(!self.posted[usize::from(receive)], "reposted twice");
        self.reposted.push(receive);
    }

    /// Posts the receives that were given back.
    pub(super) fn ring(&mut self) -> Result<(), ProviderError> {
        if self.reposted.is_empty() {
            return Ok(());
        }
        let (slab, bytes) = (&self.queue.slab, self.receive_bytes);
        let pieces = self.reposted.iter().map(|&receive| sys::ibv_sge {
            addr: slab.address_of(usize::from(receive) * bytes),
            length: bytes as u32,
            lkey: slab.local_key(),
        });
        self.pieces.clear();
        self.pieces.extend(pieces);
        let works = self.reposted.iter().zip(&mut self.pieces).map(|(&receive, piece)| {
            let (next, sg_list) = (std::ptr::null_mut(), &raw mut *piece);
            sys::ibv_recv_wr { wr_id: SHARED | u64::from(receive), next, sg_list, num_sge: 1 }
        });
        self.works.clear();
        self.works.extend(works);
        for index in 1..self.works.len() {
            self.works[index - 1].next = &raw mut self.works[index];
        }
        for receive in self.reposted.drain(..) {
            self.posted[usize::from(receive)] = true;
        }
        let raw = self.queue.raw;
        let mut refused = std::ptr::null_mut();
        // SAFETY: a queue that was not destroyed; the list and its pieces outlive the call, which copies
        // them. Each piece is a receive's part of the slab, which lives until the queue is destroyed, and
        // which nobody reads while `posted` says so.
        let failed = unsafe {
            let post = (*(*raw).context).ops.post_srq_recv;
            post.map_or(libc::EOPNOTSUPP, |post| post(raw, self.works.as_mut_ptr(), &mut refused))
        };
        if failed != 0 {
            return Err(number_error("an RDMA device does not take shared receives", failed));
        }
        self.arm();
        Ok(())
    }

    /// Asks the device to say when there are few receives left.
    fn arm(&mut self) {
        if std::mem::replace(&mut self.armed, true) {
            return;
        }
        let srq_limit = self.posted.len() as u32 / LOW;
        let mut wanted = sys::ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit };
        // SAFETY: a queue that was not destroyed, and attributes that outlive the call.
        let failed =
            unsafe { sys::ibv_modify_srq(self.queue.raw, &mut wanted, sys::IBV_SRQ_LIMIT as i32) };
        if failed != 0 {
            log::debug!("an RDMA device does not say when receives are short: error {failed}");
        }
    }

    /// The device says that there are few. It says so once; the next receives that are posted ask again.
    pub(super) fn is_low(&mut self) {
        self.armed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_receive_is_told_from_a_queue_pairs_own_work() {
        assert_eq!(receive_of(SHARED | 4095), Some(4095));
        assert_eq!(receive_of(0xfffe_ffff_8000_0001), None);
        assert_eq!(receive_of(0xffff_fffe_8000_0001), None);
    }
}
