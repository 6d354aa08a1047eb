//! The table of connections, and what each of them is made with.

use super::{Connection, QUEUE_ENTRIES, Slot, Verbs};
use crate::rdma::{ProviderError, Qp, Shape};
use crate::verbs::completion::Queue;
use crate::verbs::manager::{Id, Tuning};
use crate::verbs::memory::Steady;
use crate::verbs::pair::{Pair, Parts, completions};
use crate::verbs::shared::Shared;
use std::rc::Rc;

/// A connection's number in the connection manager, and back. Never 0: that is a listener's.
pub(super) fn number_of(qp: Qp) -> usize {
    usize::from(qp.slot) << 16 | usize::from(qp.generation) | 1 << 32
}

pub(super) fn qp_of(number: usize) -> Qp {
    Qp { slot: (number >> 16) as u16, generation: number as u16 }
}

impl<B: Steady> Verbs<B> {
    pub(super) fn connection(&self, qp: Qp) -> Option<&Connection<B>> {
        let slot = self.slots.get(usize::from(qp.slot))?;
        slot.connection.as_ref().filter(|_| slot.generation == qp.generation)
    }

    pub(super) fn connection_mut(&mut self, qp: Qp) -> Option<&mut Connection<B>> {
        let slot = self.slots.get_mut(usize::from(qp.slot))?;
        slot.connection.as_mut().filter(|_| slot.generation == qp.generation)
    }

    /// A free slot under a new generation.
    pub(super) fn reserve(&mut self) -> Result<Qp, ProviderError> {
        let free = self.slots.iter().position(|slot| slot.connection.is_none());
        let index = free.unwrap_or(self.slots.len());
        // The last one marks shared receives.
        let slot = u16::try_from(index).ok().filter(|slot| *slot < u16::MAX);
        let slot = slot.ok_or(ProviderError::Full)?;
        if index == self.slots.len() {
            self.slots.push(Slot { generation: 0, connection: None });
        }
        let generation = self.slots[index].generation.wrapping_add(1);
        self.slots[index].generation = generation;
        Ok(Qp { slot, generation })
    }

    pub(super) fn put(&mut self, qp: Qp, connection: Connection<B>) {
        self.slots[usize::from(qp.slot)].connection = Some(connection);
    }

    /// Our own context of the device that a connection runs over.
    pub(super) fn adapter_of(&self, id: &Id) -> Result<usize, ProviderError> {
        let (theirs, _) = id.device().ok_or(ProviderError::Gone)?;
        // SAFETY: the connection manager keeps the context of a live connection open.
        let found = self
            .adapters
            .iter()
            .position(|adapter| unsafe { adapter.context.is_device_of(theirs) });
        found.ok_or_else(|| {
            ProviderError::Unsuitable("a connection over an RDMA device that is not used".into())
        })
    }

    /// A completion queue with room for one more queue pair.
    fn queue(&mut self, adapter: usize, shape: &Shape) -> Result<Rc<Queue>, ProviderError> {
        let (wanted, number) = (completions(&self.limits, shape), adapter);
        let adapter = &mut self.adapters[adapter];
        // Every shared receive may complete in any of the queues.
        let shared = adapter.shared.as_ref().map_or(0, Shared::receives);
        if let Some(found) = adapter.queues.iter().find(|queue| queue.promise(wanted)) {
            return Ok(Rc::clone(found));
        }
        let entries = (QUEUE_ENTRIES.max(wanted) + shared).min(adapter.abilities.completions);
        let queue = Queue::new(&adapter.context, &adapter.channel, number, entries)?;
        if self.armed {
            queue.arm();
        }
        adapter.queues.push(Rc::clone(&queue));
        if queue.promise(shared) && queue.promise(wanted) {
            Ok(queue)
        } else {
            Err(ProviderError::Full)
        }
    }

    pub(super) fn pair(
        &mut self,
        qp: Qp,
        adapter: usize,
        shape: Shape,
    ) -> Result<Pair<B>, ProviderError> {
        let queue = self.queue(adapter, &shape)?;
        let (adapter, limits) = (&mut self.adapters[adapter], self.limits);
        let shared = adapter.shared.as_ref().filter(|_| shape.shared).map(Shared::queue).cloned();
        let pair = Pair::new(Parts { qp, domain: &adapter.domain, queue, limits, shape, shared })?;
        if shape.shared {
            adapter.sharers.insert(pair.number(), qp);
        }
        Ok(pair)
    }

    pub(super) fn tuning(&self, adapter: usize, shape: &Shape, reads: u8) -> Tuning {
        let abilities = self.adapters[adapter].abilities;
        let most = if shape.remote_access { abilities.read_targets } else { abilities.reads };
        let reads = reads.min(shape.reads).min(most);
        Tuning { reads, remote_access: shape.remote_access }
    }
}
