//! The ends of connections, on a thread of their own: the kernel takes its time for them.
//!
//! A queue pair is destroyed once the device has let go of its last packet, which on soft-RoCE takes up to
//! 50 s where the network takes none; and a connection once its last message is given up. Guarantees: whoever
//! works on other connections meanwhile does not wait for that; and what a queue pair can touch stays where
//! it is until it is destroyed. What breaks it: a kernel that never comes back; then dropping this waits.

use super::manager::Id;
use super::memory::VerbsRegion;
use super::pair::Pair;
use crate::rdma::ProviderError;
use ibverbs_sys as sys;
use std::collections::VecDeque;
use std::fmt::{Debug, Formatter};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

/// What the thread destroys.
struct Remains {
    /// Null if it had none.
    pair: *mut sys::ibv_qp,
    id: super::manager::Remains,
}

// SAFETY: libibverbs and librdmacm lock what their objects share with others, and nobody else uses these two:
// their owners are `Dying`, which only keep them.
unsafe impl Send for Remains {}

impl Remains {
    /// Destroys all; `true` if the queue pair, if there was one, is gone.
    fn destroy(self) -> bool {
        let mut failed = 0;
        if !self.pair.is_null() {
            // SAFETY: a queue pair that was not destroyed, and is destroyed by nobody else: `Dying` has it,
            // and forgets it when it hears of this.
            failed = unsafe { sys::ibv_destroy_qp(self.pair) };
        }
        if failed != 0 {
            log::error!("cannot destroy a queue pair: error {failed}; its memory stays");
        }
        self.id.destroy();
        failed == 0
    }
}

/// What must stay until the thread says that it has destroyed the queue pair.
struct Dying<B> {
    pair: Option<Pair<B>>,
    id: Id,
    /// What its peer reached.
    lent: Vec<VerbsRegion>,
}

impl<B> Dying<B> {
    fn bury(self, is_destroyed: bool) {
        let Self { pair, mut id, lent } = self;
        id.was_destroyed();
        if !is_destroyed {
            return std::mem::forget((pair, lent));
        }
        pair.into_iter().for_each(Pair::was_destroyed);
    }
}

/// See the module.
pub(super) struct Reaper<B> {
    /// In the order in which the thread has them.
    dying: VecDeque<Dying<B>>,
    orders: Option<Sender<Remains>>,
    ends: Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl<B> Debug for Reaper<B> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper").field("dying", &self.dying.len()).finish_non_exhaustive()
    }
}

impl<B> Reaper<B> {
    pub(super) fn new() -> Result<Self, ProviderError> {
        let (orders, ordered) = channel::<Remains>();
        let (end, ends) = channel();
        // Nobody listens any more: then nobody waits, either.
        let work =
            move || ordered.into_iter().for_each(|one| end.send(one.destroy()).unwrap_or(()));
        let thread = Builder::new().name("rdma-reaper".to_owned()).spawn(work);
        let thread = thread.map_err(|source| ProviderError::System {
            what: "cannot start a thread that ends RDMA connections",
            source,
        })?;
        let (orders, thread) = (Some(orders), Some(thread));
        Ok(Self { dying: VecDeque::new(), orders, ends, thread })
    }

    /// Has a connection destroyed.
    pub(super) fn take(&mut self, pair: Option<Pair<B>>, id: Id) {
        let raw = pair.as_ref().map_or(std::ptr::null_mut(), Pair::raw);
        let remains = Remains { pair: raw, id: id.remains() };
        let dying = Dying { pair, id, lent: Vec::new() };
        match self.orders.as_ref().map(|orders| orders.send(remains)) {
            Some(Ok(())) => self.dying.push_back(dying),
            // The thread is gone: this destroys them here.
            _ => drop(dying),
        }
    }

    /// Keeps memory that the queue pair reached that was taken last, or one before.
    pub(super) fn keep(&mut self, region: VerbsRegion) {
        if let Some(last) = self.dying.back_mut() {
            last.lent.push(region);
        }
    }

    /// Lets go of what belonged to those that were destroyed meanwhile.
    pub(super) fn bury(&mut self) {
        while !self.dying.is_empty()
            && let Ok(is_destroyed) = self.ends.try_recv()
        {
            self.dying.pop_front().into_iter().for_each(|dying| dying.bury(is_destroyed));
        }
    }
}

impl<B> Drop for Reaper<B> {
    fn drop(&mut self) {
        self.orders = None;
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        self.bury();
        if !ended {
            // It may have been destroyed, or not: nobody may touch it again.
            std::mem::forget(std::mem::take(&mut self.dying));
        }
    }
}
