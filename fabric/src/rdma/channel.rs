//! One connection: messages both ways under credits, and READs and WRITEs within the queue pair's room.
//!
//! Both sides of the protocol use it; what its messages mean is not its business.

use super::chain::Chain;
use super::credits::Credits;
use super::grants::{Pool, Share};
use super::greeting::Greeting;
use super::output::Output;
use super::provider::{Provider, Qp, Room, Shape};
use crate::Buffer;
use crate::transport::{KeptMemory, RemoteMemory};
use std::collections::VecDeque;

/// A READ that has not been posted.
#[derive(Debug)]
pub(super) struct Waiting<B> {
    pub(super) token: u32,
    pub(super) remote: KeptMemory,
    pub(super) buffer: B,
}

/// READs in flight, and their bytes: of one connection or of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    pub(super) works: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Channel<B> {
    pub(super) qp: Qp,
    credits: Credits,
    /// Of a pool of receives that others have a part of, too.
    share: Option<Share>,
    /// The longest message that the other side takes.
    message_bytes: usize,
    pub(super) output: Output<B>,
    pub(super) waiting: VecDeque<Waiting<B>>,
    /// What READs had their memory in that have been posted: to be used again.
    spare: Vec<KeptMemory>,
    pub(super) reading: Reading,
    reads_max: usize,
    /// The READs that have been posted, and what they take.
    posted: Vec<(u32, Reading)>,
}

impl<B: Buffer> Channel<B> {
    /// Over a connected queue pair of this `shape`, whose other side has said `greeting` and
    /// answers `reads` READs at a time.
    pub(super) fn new(qp: Qp, shape: &Shape, greeting: Greeting, reads: u8) -> Self {
        Self {
            qp,
            credits: Credits::new(shape.receives.into(), greeting.receives),
            share: None,
            message_bytes: greeting.receive_bytes as usize,
            output: Output::new(),
            waiting: VecDeque::new(),
            spare: Vec::new(),
            reading: Reading::default(),
            reads_max: usize::from(reads.min(shape.reads)),
            posted: Vec::new(),
        }
    }

    /// Its receives are part of a pool; it may have `most` of them.
    #[must_use]
    pub(super) fn sharing(mut self, most: u32) -> Self {
        self.share = Some(Share::new(self.credits.outstanding(), most));
        self
    }

    /// Receives that the other side may still use: back in the pool once it cannot any more.
    pub(super) fn granted(&self) -> u32 {
        if self.share.is_some() { self.credits.outstanding() } else { 0 }
    }

    /// The longest message that the other side takes.
    pub(super) fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// This number came with a message whose receive is posted again: to a `pool` if there is one.
    pub(super) fn hear(&mut self, immediate: u32, pool: &mut Pool) -> Result<(), &'static str> {
        self.credits.hear(immediate)?;
        match &mut self.share {
            Some(share) => {
                pool.came_back(1);
                share.refill(&mut self.credits, pool);
            }
            None => self.credits.grant(1),
        }
        Ok(())
    }

    /// Nothing waits to be posted.
    pub(super) fn is_empty(&self) -> bool {
        self.output.is_empty() && self.waiting.is_empty()
    }

    /// READs are under way, or wait.
    pub(super) fn has_reads(&self) -> bool {
        !self.waiting.is_empty() || !self.posted.is_empty()
    }

    /// The READ `token` is under way.
    pub(super) fn is_reading(&self, token: u32) -> bool {
        self.posted.iter().any(|(posted, _)| *posted == token)
    }

    /// READs are possible at all.
    pub(super) fn can_read(&self) -> bool {
        self.reads_max > 0
    }

    /// Queues a READ.
    pub(super) fn want(&mut self, token: u32, remote: RemoteMemory<'_>, buffer: B) {
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.keep(remote);
        self.waiting.push_back(Waiting { token, remote: kept, buffer });
    }

    /// Gives up the READ `token` if it has not been posted.
    pub(super) fn give_up(&mut self, token: u32) -> Option<(u32, B)> {
        let at = self.waiting.iter().position(|waiting| waiting.token == token)?;
        self.waiting.remove(at).map(|waiting| (token, waiting.buffer))
    }

    /// The READ `token` has ended.
    pub(super) fn read_ended(&mut self, token: u32, all: &mut Reading) {
        let Some(at) = self.posted.iter().position(|(posted, _)| *posted == token) else { return };
        let (_, taken) = self.posted.swap_remove(at);
        for reading in [&mut self.reading, all] {
            reading.works -= taken.works;
            reading.bytes -= taken.bytes;
        }
    }

    /// Posts what there is room for, with one doorbell; `true` if anything.
    pub(super) fn pump<P: Provider<Buffer = B>>(
        &mut self,
        provider: &mut P,
        chain: &mut Chain<B>,
        all: &mut Reading,
        budget_bytes: usize,
    ) -> bool {
        let limits = provider.limits();
        let mut room = provider.room(self.qp);
        while self.start_read(provider, chain, &mut room, all, budget_bytes) {}
        let credits = &mut self.credits;
        let mut credit = || credits.can_send().then(|| credits.send());
        while self.output.pop(chain, &mut room, &limits, &mut credit) {}
        if self.credits.must_tell() && room.works > 0 {
            chain.send(&[], self.credits.send());
        }
        if chain.is_empty() {
            provider.ring_receives(self.qp);
            return false;
        }
        provider.post(self.qp, chain);
        true
    }

    /// Moves the next READ into the chain, within the bounds of this connection and of all.
    fn start_read<P: Provider<Buffer = B>>(
        &mut self,
        provider: &P,
        chain: &mut Chain<B>,
        room: &mut Room,
        all: &mut Reading,
        budget_bytes: usize,
    ) -> bool {
        let limits = provider.limits();
        let Some(next) = self.waiting.front() else { return false };
        let bytes = next.remote.get().length() as usize;
        let works = Chain::<B>::works_to_read(next.remote.get(), &limits);
        // One READ may always be under way, however large it is: the network card does no more of its
        // work requests at a time than was agreed on.
        let crowded = self.reading.works > 0 && self.reading.works + works > self.reads_max;
        let spent = all.bytes > 0 && all.bytes + bytes > budget_bytes;
        if crowded || spent || room.works < works || room.buffers < 1 {
            return false;
        }
        let Some(Waiting { token, remote, buffer }) = self.waiting.pop_front() else {
            return false;
        };
        chain.read(token, remote.get(), buffer, &limits);
        self.spare.push(remote);
        self.posted.push((token, Reading { works, bytes }));
        room.works -= works;
        room.buffers -= 1;
        for reading in [&mut self.reading, all] {
            reading.works += works;
            reading.bytes += bytes;
        }
        true
    }
}
