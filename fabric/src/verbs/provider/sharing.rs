//! Receives that the connections of a device share.

use super::completions::violation;
use super::{Adapter, Connection, Verbs};
use crate::rdma::{Event, ProviderError, Qp, Violation};
use crate::verbs::completion::Completion;
use crate::verbs::device::DeviceEvent;
use crate::verbs::memory::Steady;
use crate::verbs::shared::Shared;
use ibverbs_sys as sys;

impl<B: Steady> Verbs<B> {
    /// From now on the connections that are accepted share so many receives of so many bytes on each device,
    /// instead of having their own. Once, before the first of them.
    ///
    /// # Errors
    /// A device does not have so many, or the memory cannot be locked.
    pub fn share_receives(&mut self, receives: u16, bytes: u32) -> Result<(), ProviderError> {
        for adapter in &mut self.adapters {
            adapter.shared = Some(Shared::new(&adapter.domain, receives, bytes as usize)?);
        }
        Ok(())
    }

    /// A message for one of the queue pairs that share receives, or for one that is gone.
    pub(super) fn shared_completed(
        &mut self,
        completion: &Completion,
        receive: u16,
        events: &mut Vec<Event<B>>,
    ) {
        let Completion { status, length, immediate, number, adapter, .. } = *completion;
        let Adapter { shared, sharers, .. } = &mut self.adapters[adapter];
        let Some(shared) = shared else { return };
        shared.completed(receive);
        let success = status == sys::ibv_wc_status::IBV_WC_SUCCESS;
        let qp = sharers.get(&number).copied();
        if let (Some(qp), true, Some(immediate)) = (qp, success, immediate) {
            return events.push(Event::Received { qp, receive, length, immediate });
        }
        shared.repost(receive);
        let Some(qp) = qp else { return };
        let Some(connection) = self.connection_mut(qp) else { return };
        if !std::mem::replace(&mut connection.quiet, true) {
            let why = if success { Violation::Forbidden } else { violation(status) };
            events.push(Event::Broken { qp, why });
        }
    }

    /// Posts the shared receives that were given back.
    pub(super) fn ring_shared(&mut self) {
        for number in 0..self.adapters.len() {
            let adapter = &mut self.adapters[number];
            let Some(Err(error)) = adapter.shared.as_mut().map(Shared::ring) else { continue };
            log::error!("RDMA device {}: {error}", adapter.context.name());
            self.hear_device(number, DeviceEvent::Receives);
        }
    }

    /// What a queue pair's receives are shared with others in, if they are.
    pub(super) fn shared_of(&mut self, qp: Qp) -> Option<&mut Shared> {
        let Connection { adapter, shape, .. } = self.connection(qp)?;
        let (adapter, shared) = (*adapter, shape.shared);
        self.adapters[adapter].shared.as_mut().filter(|_| shared)
    }
}
