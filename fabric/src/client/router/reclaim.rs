//! Taking memory back that operations still hold.

use super::super::error::LinkError;
use super::super::operation::State;
use super::Router;
use crate::Status;
use crate::region::Region;

impl Router {
    /// Ends every operation that holds some of `region`, and the connections that may still use it: their
    /// links are closed, and their streams are to be dropped.
    pub(in super::super) fn reclaim(&mut self, region: &Region, now_us: u64) {
        let mut concerned = vec![false; self.peers.len()];
        for id in self.ops.ids() {
            let op = &self.ops[id];
            if !op.fragments.iter().any(|held| held.region().is_same(region)) {
                continue;
            }
            let link = usize::from(op.link);
            match op.state {
                State::Free => {}
                State::Queued => {
                    self.peers[link].backlog.retain(|&queued| queued != id);
                    self.conclude_with(id, Status::Cancelled);
                    self.ops.release(id);
                }
                State::Sent(cid) => {
                    self.conclude_with(id, Status::Cancelled);
                    self.ops[id].state = State::Ended(cid);
                    concerned[link] = true;
                }
                State::Ended(_) => concerned[link] = true,
            }
        }
        for (link, is_concerned) in concerned.into_iter().enumerate() {
            if is_concerned || self.peers[link].link.holds(region) {
                self.lost(link, now_us, LinkError::Reclaimed);
            }
        }
    }
}
