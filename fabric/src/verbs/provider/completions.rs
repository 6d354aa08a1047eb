//! Completions: what each of them says of its connection.

use super::Verbs;
use crate::rdma::{Event, Qp, Violation};
use crate::verbs::completion::Completion;
use crate::verbs::memory::Steady;
use crate::verbs::pair::{Pair, WorkId};
use crate::verbs::shared::receive_of;
use ibverbs_sys as sys;
use std::rc::Rc;

/// How often a queue pair that was stopped is asked whether it still has work. A device flushes that in no
/// time; soft-RoCE whose interface is down never does.
const FLUSHES_MAX: usize = 5_000;
/// Completions that one poll takes from one queue, in batches.
const BATCHES_MAX: usize = 4;

/// What a failed completion says of the connection.
pub(super) fn violation(status: sys::ibv_wc_status::Type) -> Violation {
    use sys::ibv_wc_status as statuses;
    match status {
        statuses::IBV_WC_RETRY_EXC_ERR => Violation::Silent,
        statuses::IBV_WC_RNR_RETRY_EXC_ERR => Violation::NotReady,
        statuses::IBV_WC_REM_ACCESS_ERR => Violation::RemoteAccess,
        statuses::IBV_WC_LOC_ACCESS_ERR | statuses::IBV_WC_LOC_LEN_ERR => Violation::Forbidden,
        other => Violation::Other(other),
    }
}

impl<B: Steady> Verbs<B> {
    /// Stops a queue pair and takes back all that it had to do, the buffers of READs to `ended`: after that it
    /// touches no memory. Nothing, if it had to be destroyed for that.
    pub(super) fn still(
        &mut self,
        qp: Qp,
        mut pair: Pair<B>,
        ended: &mut dyn FnMut(u32, B),
    ) -> Option<Pair<B>> {
        pair.fail();
        let queue = Rc::clone(pair.queue());
        for _ in 0..FLUSHES_MAX {
            if pair.is_drained() {
                return Some(pair);
            }
            queue.poll(&mut self.completions);
            self.completions.retain(|completion| !retire(completion, qp, &mut pair, ended));
        }
        log::warn!("queue pair {} does not flush its work: destroying it", pair.number());
        pair.destroy(ended);
        // What it has left in the completion queue takes room that is now promised to others. It is not
        // known any more when it is looked at.
        while queue.poll(&mut self.completions) {}
        None
    }

    /// `true` if there were any, even if they say nothing.
    pub(super) fn take_completions(&mut self, events: &mut Vec<Event<B>>) -> bool {
        let mut found = std::mem::take(&mut self.completions);
        for queue in self.adapters.iter().flat_map(|adapter| &adapter.queues) {
            let mut batches = 0;
            while queue.poll(&mut found) && batches < BATCHES_MAX {
                batches += 1;
            }
        }
        let any = !found.is_empty();
        for completion in found.drain(..) {
            self.complete(completion, events);
        }
        self.completions = found;
        any
    }

    fn complete(&mut self, completion: Completion, events: &mut Vec<Event<B>>) {
        let Completion { id, status, length, immediate, .. } = completion;
        if let Some(receive) = receive_of(id) {
            return self.shared_completed(&completion, receive, events);
        }
        let WorkId { qp, receive, sequence } = WorkId::parse(id);
        let Some(connection) = self.connection_mut(qp) else { return };
        let Some(pair) = &mut connection.pair else { return };
        let success = status == sys::ibv_wc_status::IBV_WC_SUCCESS;
        match receive {
            Some(receive) => {
                pair.receive_completed(receive);
                if let (true, Some(immediate)) = (success, immediate) {
                    events.push(Event::Received { qp, receive, length, immediate });
                    return;
                }
            }
            None => pair.send_completed(sequence, success, |token, buffer, complete| {
                events.push(Event::Read { qp, token, buffer, complete });
            }),
        }
        if success && receive.is_none() {
            let said = matches!(events.last(), Some(Event::Progress { qp: last }) if *last == qp);
            if !said {
                events.push(Event::Progress { qp });
            }
        } else if !std::mem::replace(&mut connection.quiet, true) {
            // A message without a number beside it is one that this protocol does not have.
            let why = if success { Violation::Forbidden } else { violation(status) };
            events.push(Event::Broken { qp, why });
        }
    }
}

/// Of work of `qp`, which is being stopped: takes it back. `false`: it is of another one.
fn retire<B: Steady>(
    completion: &Completion,
    qp: Qp,
    pair: &mut Pair<B>,
    ended: &mut dyn FnMut(u32, B),
) -> bool {
    let work = WorkId::parse(completion.id);
    if receive_of(completion.id).is_some() || work.qp != qp {
        return false;
    }
    match work.receive {
        Some(receive) => pair.receive_completed(receive),
        None => pair.send_completed(work.sequence, false, |token, buffer, _| ended(token, buffer)),
    }
    true
}
