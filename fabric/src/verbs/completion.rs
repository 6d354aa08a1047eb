//! Completion queues, and the channel that wakes whoever sleeps for them.

use super::device::Context;
use super::last_error;
use crate::rdma::ProviderError;
use ibverbs_sys as sys;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// Completions that one call takes.
const BATCH: usize = 64;

/// Turns readable when an armed queue has a completion.
#[derive(Debug)]
pub(super) struct Channel {
    raw: *mut sys::ibv_comp_channel,
    _context: Rc<Context>,
}

impl Channel {
    pub(super) fn new(context: &Rc<Context>) -> Result<Rc<Self>, ProviderError> {
        // SAFETY: an open context.
        let raw = unsafe { sys::ibv_create_comp_channel(context.raw()) };
        if raw.is_null() {
            return Err(last_error("cannot make a completion channel"));
        }
        let channel = Self { raw, _context: Rc::clone(context) };
        super::manager::unblock(channel.fd())?;
        Ok(Rc::new(channel))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as the borrow, and has this descriptor.
        unsafe { BorrowedFd::borrow_raw((*self.raw).fd) }
    }

    /// Takes and acknowledges all events.
    pub(super) fn drain(&self) {
        let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel lives, its descriptor does not block, and there is room for the answers;
        // the queue of an event lives until all its events are acknowledged, which is done at once.
        unsafe {
            while sys::ibv_get_cq_event(self.raw, &mut queue, &mut context) == 0 {
                sys::ibv_ack_cq_events(queue, 1);
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; its queues hold the `Rc` of this channel.
        let failed = unsafe { sys::ibv_destroy_comp_channel(self.raw) };
        if failed != 0 {
            log::error!("cannot destroy a completion channel: error {failed}");
        }
    }
}

/// How one work request ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub id: u64,
    /// The queue pair, and its device: a shared receive's `id` does not say.
    pub number: u32,
    pub adapter: usize,
    pub status: sys::ibv_wc_status::Type,
    /// Of a receive: bytes that came, and the number beside them.
    pub length: u32,
    pub immediate: Option<u32>,
}

/// A completion queue, with room for all work of the queue pairs that use it.
#[derive(Debug)]
pub(super) struct Queue {
    raw: *mut sys::ibv_cq,
    adapter: usize,
    _channel: Rc<Channel>,
    capacity: usize,
    promised: Cell<usize>,
}

impl Queue {
    pub(super) fn new(
        context: &Rc<Context>,
        channel: &Rc<Channel>,
        adapter: usize,
        entries: usize,
    ) -> Result<Rc<Self>, ProviderError> {
        // SAFETY: an open context, and a channel on it that outlives the queue.
        let raw = unsafe {
            sys::ibv_create_cq(context.raw(), entries as i32, std::ptr::null_mut(), channel.raw, 0)
        };
        if raw.is_null() {
            return Err(last_error("cannot make a completion queue"));
        }
        // SAFETY: it was just made.
        let capacity = unsafe { (*raw).cqe } as usize;
        let promised = Cell::new(0);
        Ok(Rc::new(Self { raw, adapter, _channel: Rc::clone(channel), capacity, promised }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_cq {
        self.raw
    }

    /// Takes room for a queue pair with so much work, if there is.
    pub(super) fn promise(&self, works: usize) -> bool {
        let promised = self.promised.get() + works;
        let fits = promised <= self.capacity;
        if fits {
            self.promised.set(promised);
        }
        fits
    }

    /// That queue pair is gone.
    pub(super) fn give_back(&self, works: usize) {
        self.promised.set(self.promised.get() - works);
    }

    /// Takes some completions; `true` if there may be more.
    pub(super) fn poll(&self, found: &mut Vec<Completion>) -> bool {
        let mut batch = [const { MaybeUninit::<sys::ibv_wc>::uninit() }; BATCH];
        // SAFETY: the queue lives, its context has the operation (every provider does), and there is
        // room for as many completions as are said.
        let count = unsafe {
            let poll = (*(*self.raw).context).ops.poll_cq;
            poll.map_or(0, |poll| poll(self.raw, BATCH as i32, batch.as_mut_ptr().cast()))
        };
        let count = usize::try_from(count).unwrap_or(0);
        for entry in &batch[..count] {
            // SAFETY: the provider has filled in the first `count`. All fields of a failed one but
            // its number and status are undefined to the interface, and plain numbers to Rust; they are
            // not looked at.
            let entry = unsafe { entry.assume_init_ref() };
            let status = entry.error().map_or(sys::ibv_wc_status::IBV_WC_SUCCESS, |found| found.0);
            let good = entry.is_valid();
            found.push(Completion {
                id: entry.wr_id(),
                number: entry.qp_num,
                adapter: self.adapter,
                status,
                length: if good { entry.len() as u32 } else { 0 },
                immediate: if good { entry.imm_data().map(u32::from_be) } else { None },
            });
        }
        count == BATCH
    }

    /// The next completion makes the channel readable.
    pub(super) fn arm(&self) -> bool {
        // SAFETY: the queue lives, and its context has the operation.
        unsafe {
            let arm = (*(*self.raw).context).ops.req_notify_cq;
            arm.is_some_and(|arm| arm(self.raw, 0) == 0)
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; queue pairs hold the `Rc` of their queue, and all events
        // are acknowledged when they are taken.
        let failed = unsafe { sys::ibv_destroy_cq(self.raw) };
        if failed != 0 {
            log::error!("cannot destroy a completion queue: error {failed}");
        }
    }
}
