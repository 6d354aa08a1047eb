//! A queue pair, and everything that a network card may touch on its behalf.
//!
//! The queue pair owns the buffers of its work until the work has completed, and its own memory for
//! messages. It is destroyed before any of that is dropped: what is left in flight then is over, since
//! a destroyed queue pair moves no byte.

use super::completion::Queue;
use super::device::Domain;
use super::manager::{Id, Tuning, modify};
use super::memory::{Registration, Slab, Steady};
use super::shared::SharedQueue;
use super::{last_error, number_error};
use crate::rdma::{Chain, Ended, InFlight, Ledger, Limits, ProviderError, Qp, Room, Shape, Work};
use ibverbs_sys as sys;
use std::fmt::{Debug, Formatter};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::rc::Rc;

/// Inline data is asked for in these steps, downwards: devices refuse more than they have.
const INLINE_BYTES: [u32; 5] = [512, 256, 128, 64, 0];
/// Marks the number of a receive among those of sends.
const RECEIVE: u64 = 1 << 31;

/// A buffer that work refers to.
struct Held<B> {
    // Deregistered before the buffer is dropped: fields are dropped in this order.
    registration: Option<Registration>,
    buffer: B,
}

/// What the network card may read and write.
struct Memory<B> {
    ledger: Ledger<Held<B>>,
    /// The receives, and behind them the bytes of PDUs that are too long to go inline.
    slab: Slab,
}

/// One queue pair.
pub(super) struct Pair<B> {
    /// Null once it is destroyed.
    raw: *mut sys::ibv_qp,
    memory: ManuallyDrop<Memory<B>>,
    queue: Rc<Queue>,
    /// Where its receives come from, if they are not its own.
    _shared: Option<Rc<SharedQueue>>,
    promised: usize,
    domain: Rc<Domain>,
    tag: u64,
    number: u32,
    inline_bytes: usize,
    receive_bytes: usize,
    /// Which receives the network card has.
    posted: Vec<bool>,
    posted_count: usize,
    reposted: Vec<u16>,
    receive_works: Vec<sys::ibv_recv_wr>,
    receive_pieces: Vec<sys::ibv_sge>,
    unheard: u32,
    works: Vec<sys::ibv_send_wr>,
    pieces: Vec<sys::ibv_sge>,
    keys: Vec<u32>,
    places: Vec<usize>,
}

impl<B> Debug for Pair<B> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A completion's number: which queue pair, and which work of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkId {
    pub qp: Qp,
    /// Of a receive, its number; of a send, its sequence number.
    pub receive: Option<u16>,
    pub sequence: u32,
}

impl WorkId {
    fn tag(qp: Qp) -> u64 {
        u64::from(qp.slot) << 48 | u64::from(qp.generation) << 32
    }

    pub(super) fn parse(number: u64) -> Self {
        let qp = Qp { slot: (number >> 48) as u16, generation: (number >> 32) as u16 };
        let sequence = (number & (RECEIVE - 1)) as u32;
        let receive = (number & RECEIVE != 0).then_some(sequence as u16);
        Self { qp, receive, sequence }
    }
}

/// What a device says of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairFacts {
    /// The number of the next packet that it sends.
    pub send_psn: u32,
    /// The number of the next packet that it expects.
    pub receive_psn: u32,
    /// How often a packet that nobody acknowledges is sent again; 7 is for ever on some devices.
    pub retries: u8,
    /// How often a peer that has no receive posted is asked again; 7 is for ever.
    pub not_ready_retries: u8,
    /// The wait for an acknowledgement is 4.096 µs × 2 to the power of this; 0 is for ever.
    pub ack_timeout: u8,
    /// What the peer may do to memory: bits of `ibv_access_flags`.
    pub access: u32,
}

/// What a queue pair is made of.
pub(super) struct Parts<'a> {
    pub qp: Qp,
    pub domain: &'a Rc<Domain>,
    pub queue: Rc<Queue>,
    pub limits: Limits,
    pub shape: Shape,
    pub shared: Option<Rc<SharedQueue>>,
}

/// Completions that a queue pair of this shape can have at a time, beside those of shared receives.
pub(super) fn completions(limits: &Limits, shape: &Shape) -> usize {
    limits.works + usize::from(own_receives(shape))
}

fn own_receives(shape: &Shape) -> u16 {
    if shape.shared { 0 } else { shape.receives }
}

impl<B: Steady> Pair<B> {
    /// A queue pair that is not connected; `queue` has promised room for its completions.
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, ProviderError> {
        let Parts { qp, domain, queue, limits, shape, shared } = parts;
        let promised = completions(&limits, &shape);
        let receive_bytes = shape.receive_bytes as usize;
        let receives = usize::from(own_receives(&shape));
        let slab_bytes = receives * receive_bytes + limits.send_bytes;
        let made = Slab::new(domain, slab_bytes).and_then(|slab| {
            Ok((slab, create(domain, &queue, &limits, &shape, shared.as_deref())?))
        });
        let (slab, (raw, inline_bytes)) = match made {
            Ok(made) => made,
            Err(error) => {
                queue.give_back(promised);
                return Err(error);
            }
        };
        let ledger = Ledger::new(limits.works, limits.buffers, limits.send_bytes);
        // SAFETY: it was just made.
        let number = unsafe { (*raw).qp_num };
        Ok(Self {
            raw,
            memory: ManuallyDrop::new(Memory { ledger, slab }),
            queue,
            _shared: shared,
            promised,
            domain: Rc::clone(domain),
            tag: WorkId::tag(qp),
            number,
            inline_bytes: inline_bytes as usize,
            receive_bytes,
            posted: vec![false; receives],
            posted_count: 0,
            reposted: (0..own_receives(&shape)).collect(),
            receive_works: Vec::with_capacity(receives),
            receive_pieces: Vec::with_capacity(receives),
            unheard: 0,
            works: Vec::with_capacity(limits.works),
            pieces: Vec::with_capacity(limits.works),
            keys: Vec::with_capacity(limits.buffers),
            places: Vec::with_capacity(limits.buffers),
        })
    }

    /// The number that the network knows it by.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn queue(&self) -> &Rc<Queue> {
        &self.queue
    }

    pub(super) fn room(&self) -> Room {
        self.memory.ledger.room()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.memory.ledger.in_flight()
    }

    /// The network card has nothing of it any more.
    pub(super) fn is_drained(&self) -> bool {
        self.memory.ledger.in_flight() == 0 && self.posted_count == 0
    }

    /// Makes it ready to receive what the other side sends: INIT, and all receives are posted.
    pub(super) fn prepare(&mut self, id: &Id, tuning: &Tuning) -> Result<(), ProviderError> {
        self.advance(id, sys::ibv_qp_state::IBV_QPS_INIT, tuning)?;
        self.ring_receives()
    }

    /// Connects it: RTR, then RTS.
    pub(super) fn connect(&mut self, id: &Id, tuning: &Tuning) -> Result<(), ProviderError> {
        self.advance(id, sys::ibv_qp_state::IBV_QPS_RTR, tuning)?;
        self.advance(id, sys::ibv_qp_state::IBV_QPS_RTS, tuning)
    }

    fn advance(
        &mut self,
        id: &Id,
        state: sys::ibv_qp_state::Type,
        tuning: &Tuning,
    ) -> Result<(), ProviderError> {
        let context = &self.domain.context;
        let number = id.device().map_or(1, |(_, port)| port);
        let port = context.port(number)?;
        let (attributes, mask) = id.attributes(state, tuning, Some(&port))?;
        if state == sys::ibv_qp_state::IBV_QPS_RTR && port.ethernet {
            let index = attributes.ah_attr.grh.sgid_index;
            let kind = context.gid_at(number, index).map(|gid| gid.kind);
            if kind != Some(super::device::GidKind::RoceV2) {
                return Err(ProviderError::Unsuitable(format!(
                    "RDMA device {} would use RoCE v1 (GID {index}): set default_roce_mode to \
                     \"RoCE v2\" in the configfs of rdma_cm",
                    context.name()
                )));
            }
        }
        // SAFETY: it has not been destroyed: that takes `self`.
        unsafe { modify(self.raw, attributes, mask) }
    }

    /// What the device says that it was given.
    pub(super) fn facts(&self) -> Result<PairFacts, ProviderError> {
        use sys::ibv_qp_attr_mask as bits;
        let mut found = MaybeUninit::<sys::ibv_qp_attr>::zeroed();
        let mut made = MaybeUninit::<sys::ibv_qp_init_attr>::zeroed();
        // SAFETY: the queue pair was not destroyed, and there is room for both answers, for which all zeros is
        // a value: they are structs of numbers and pointers that are not followed.
        let (failed, found) = unsafe {
            let asked = (bits::IBV_QP_SQ_PSN
                | bits::IBV_QP_RQ_PSN
                | bits::IBV_QP_RETRY_CNT
                | bits::IBV_QP_RNR_RETRY
                | bits::IBV_QP_TIMEOUT
                | bits::IBV_QP_ACCESS_FLAGS)
                .0 as i32;
            let failed = sys::ibv_query_qp(self.raw, found.as_mut_ptr(), asked, made.as_mut_ptr());
            (failed, found.assume_init())
        };
        if failed != 0 {
            return Err(number_error("an RDMA device does not tell of a queue pair", failed));
        }
        Ok(PairFacts {
            send_psn: found.sq_psn,
            receive_psn: found.rq_psn,
            retries: found.retry_cnt,
            not_ready_retries: found.rnr_retry,
            ack_timeout: found.timeout,
            access: found.qp_access_flags,
        })
    }

    /// Stops it: what is in flight is flushed.
    pub(super) fn fail(&mut self) {
        let mut attributes = MaybeUninit::<sys::ibv_qp_attr>::zeroed();
        // SAFETY: all zeros is a value of this struct of numbers; the queue pair was not destroyed.
        let failed = unsafe {
            (*attributes.as_mut_ptr()).qp_state = sys::ibv_qp_state::IBV_QPS_ERR;
            let mask = sys::ibv_qp_attr_mask::IBV_QP_STATE.0 as i32;
            modify(self.raw, attributes.assume_init(), mask)
        };
        failed.unwrap_or_else(|error| log::debug!("queue pair {}: {error}", self.number));
    }

    /// A receive has completed: the network card is done with it.
    pub(super) fn receive_completed(&mut self, receive: u16) {
        let posted = self.posted.get_mut(usize::from(receive));
        if posted.is_some_and(|posted| std::mem::replace(posted, false)) {
            self.posted_count -= 1;
        }
    }

    /// The message in a receive that has completed.
    pub(super) fn message(&self, receive: u16, length: u32) -> &[u8] {
        let (index, length) = (usize::from(receive), length as usize);
        assert!(!self.posted[index] && length <= self.receive_bytes, "a receive that was not said");
        // SAFETY: this receive is not posted, so that the network card does not write to it; it is posted
        // only by `ring_receives`, which takes `self` mutably.
        unsafe { self.memory.slab.slice(index * self.receive_bytes, length) }
    }

    pub(super) fn repost(&mut self, receive: u16) {
        debug_assert!(!self.posted[usize::from(receive)], "reposted twice");
        self.reposted.push(receive);
    }

    /// Posts the receives that were given back.
    pub(super) fn ring_receives(&mut self) -> Result<(), ProviderError> {
        if self.reposted.is_empty() {
            return Ok(());
        }
        let (slab, bytes, tag) = (&self.memory.slab, self.receive_bytes, self.tag);
        let pieces = self.reposted.iter().map(|&receive| sys::ibv_sge {
            addr: slab.address_of(usize::from(receive) * bytes),
            length: bytes as u32,
            lkey: slab.local_key(),
        });
        self.receive_pieces.clear();
        self.receive_pieces.extend(pieces);
        let works = self.reposted.iter().zip(&mut self.receive_pieces);
        let works = works.map(|(&receive, piece)| sys::ibv_recv_wr {
            wr_id: tag | RECEIVE | u64::from(receive),
            next: std::ptr::null_mut(),
            sg_list: piece,
            num_sge: 1,
        });
        self.receive_works.clear();
        self.receive_works.extend(works);
        for index in 1..self.receive_works.len() {
            self.receive_works[index - 1].next = &raw mut self.receive_works[index];
        }
        for receive in self.reposted.drain(..) {
            let posted = &mut self.posted[usize::from(receive)];
            self.posted_count += usize::from(!*posted);
            *posted = true;
        }
        let mut refused = std::ptr::null_mut();
        // SAFETY: a queue pair that was not destroyed; the list and its pieces outlive the call, which
        // copies them. Each piece is a receive's part of the slab, which lives until the queue pair is
        // destroyed, and which nobody reads while `posted` says so.
        let failed = unsafe {
            let post = (*(*self.raw).context).ops.post_recv;
            post.map_or(libc::EOPNOTSUPP, |post| {
                post(self.raw, self.receive_works.as_mut_ptr(), &mut refused)
            })
        };
        if failed == 0 {
            return Ok(());
        }
        Err(number_error("an RDMA device does not take receives", failed))
    }

    /// Posts all of a chain, with one doorbell. `key` finds the key of registered memory.
    ///
    /// # Errors
    /// The queue pair is useless now: stop it.
    pub(super) fn post(
        &mut self,
        chain: &mut Chain<B>,
        key: impl Fn(usize, usize) -> Option<u32>,
    ) -> Result<(), ProviderError> {
        let room = self.memory.ledger.room();
        let fits = chain.steps().len() <= room.works && chain.buffer_count() <= room.buffers;
        assert!(fits, "a send queue overruns");
        self.hold(chain, key);
        self.works.clear();
        self.pieces.clear();
        let count = chain.steps().len();
        for index in 0..count {
            self.prepare_work(chain, index, index + 1 == count);
        }
        // Neither vector grows any more: addresses into them hold.
        let mut at = 0;
        for index in 0..count {
            let pieces = self.works[index].num_sge as usize;
            self.works[index].sg_list = self.pieces[at..].as_mut_ptr();
            at += pieces;
            if index > 0 {
                self.works[index - 1].next = &raw mut self.works[index];
            }
        }
        let mut refused = std::ptr::null_mut();
        // SAFETY: a queue pair that was not destroyed. The list and its pieces outlive the call, which
        // copies them. Each piece is memory of a buffer that the ledger holds, in the place where it
        // stays, until the work has completed or the queue pair is destroyed, and that keeps its bytes
        // where they are meanwhile (`Steady`); or bytes of the slab's ring
        // that the ledger has taken for as long; or inline bytes of the chain, which the call copies. A
        // READ's piece is memory that its buffer gave out mutably, and the buffer is not touched until then.
        let failed = unsafe {
            let post = (*(*self.raw).context).ops.post_send;
            post.map_or(libc::EOPNOTSUPP, |post| {
                post(self.raw, self.works.as_mut_ptr(), &mut refused)
            })
        };
        chain.clear();
        if failed == 0 {
            return Ok(());
        }
        Err(number_error("an RDMA device does not take work", failed))
    }

    /// Takes the chain's buffers over, and finds the keys of their memory. Memory that nobody has
    /// registered is registered for this once; where that fails, the work will, with key 0.
    fn hold(&mut self, chain: &mut Chain<B>, key: impl Fn(usize, usize) -> Option<u32>) {
        self.keys.clear();
        self.places.clear();
        for buffer in chain.take_buffers() {
            let place = self.memory.ledger.hold(Held { registration: None, buffer });
            let held = self.memory.ledger.at(place);
            let bytes: &[u8] = &held.buffer;
            let (address, length) = (bytes.as_ptr().addr(), bytes.len());
            let found = key(address, length).unwrap_or_else(|| {
                match Registration::local(&self.domain, address, length, None) {
                    Ok(made) => held.registration.insert(made).local_key(),
                    Err(error) => {
                        log::error!("{error}");
                        0
                    }
                }
            });
            self.keys.push(found);
            self.places.push(place);
        }
    }

    /// Adds one work request, and its pieces, to those that are posted next.
    fn prepare_work(&mut self, chain: &Chain<B>, index: usize, last: bool) {
        use sys::ibv_send_flags as flags;
        use sys::ibv_wr_opcode as opcodes;
        let step = &chain.steps()[index];
        let mut set =
            if step.is_signalled(last, &mut self.unheard) { flags::IBV_SEND_SIGNALED.0 } else { 0 };
        let (before, mut ring_bytes, mut remote, mut immediate) = (self.pieces.len(), 0, (0, 0), 0);
        let opcode = match &step.work {
            Work::Send { bytes, immediate: number } => {
                immediate = *number;
                let bytes = &chain.bytes()[bytes.clone()];
                if !bytes.is_empty() && bytes.len() <= self.inline_bytes {
                    set |= flags::IBV_SEND_INLINE.0;
                    let (addr, length) =
                        (bytes.as_ptr().expose_provenance() as u64, bytes.len() as u32);
                    self.pieces.push(sys::ibv_sge { addr, length, lkey: 0 });
                } else if !bytes.is_empty() {
                    ring_bytes = self.copy_to_ring(bytes);
                }
                opcodes::IBV_WR_SEND_WITH_IMM
            }
            Work::Write { pieces, address, key } => {
                remote = (*address, *key);
                for piece in &chain.pieces()[pieces.clone()] {
                    let held = self.memory.ledger.at(self.places[piece.buffer]);
                    let bytes = &held.buffer[piece.range.clone()];
                    self.pieces.push(sys::ibv_sge {
                        addr: bytes.as_ptr().expose_provenance() as u64,
                        length: bytes.len() as u32,
                        lkey: self.keys[piece.buffer],
                    });
                }
                opcodes::IBV_WR_RDMA_WRITE
            }
            Work::Read { piece, address, key, .. } => {
                remote = (*address, *key);
                let piece = &chain.pieces()[*piece];
                let held = self.memory.ledger.at(self.places[piece.buffer]);
                let bytes = &mut held.buffer[piece.range.clone()];
                self.pieces.push(sys::ibv_sge {
                    addr: bytes.as_mut_ptr().expose_provenance() as u64,
                    length: bytes.len() as u32,
                    lkey: self.keys[piece.buffer],
                });
                opcodes::IBV_WR_RDMA_READ
            }
        };
        let token = step.token();
        let in_flight = InFlight { releases: step.releases, ring_bytes, token };
        let sequence = self.memory.ledger.post(in_flight);
        // SAFETY: all zeros is a value of this struct of numbers, null pointers and unions of numbers.
        let mut work = unsafe { MaybeUninit::<sys::ibv_send_wr>::zeroed().assume_init() };
        work.wr_id = self.tag | u64::from(sequence);
        work.num_sge = (self.pieces.len() - before) as i32;
        work.opcode = opcode;
        work.send_flags = set;
        work.__bindgen_anon_1.imm_data = immediate.to_be();
        work.wr.rdma.remote_addr = remote.0;
        work.wr.rdma.rkey = remote.1;
        self.works.push(work);
    }

    /// Copies bytes to where they stay until they have left; how much of the ring that takes.
    fn copy_to_ring(&mut self, bytes: &[u8]) -> u32 {
        let start = self.posted.len() * self.receive_bytes;
        let memory = &mut *self.memory;
        let place = memory.ledger.ring.take(bytes.len());
        let (offset, taken) = place.expect("a chain is posted where its bytes have room");
        memory.slab.write(start + offset, bytes);
        let addr = memory.slab.address_of(start + offset);
        let (length, lkey) = (bytes.len() as u32, memory.slab.local_key());
        self.pieces.push(sys::ibv_sge { addr, length, lkey });
        taken
    }

    /// A send has completed, and with it all before it.
    pub(super) fn send_completed(
        &mut self,
        sequence: u32,
        success: bool,
        mut ended: impl FnMut(u32, B, bool),
    ) {
        self.memory.ledger.complete(sequence, success, |Ended { token, held, complete }| {
            let Held { registration, buffer } = held;
            drop(registration);
            ended(token, buffer, complete);
        });
    }

    /// Destroys it and gives the buffers of its READs back.
    pub(super) fn destroy(mut self, ended: &mut dyn FnMut(u32, B)) {
        if self.destroy_pair() {
            self.memory.ledger.give_up(|Ended { token, held, .. }| {
                let Held { registration, buffer } = held;
                drop(registration);
                ended(token, buffer);
            });
        }
    }
}

impl<B> Pair<B> {
    /// For somebody else who destroys it; [`Pair::was_destroyed`] has to follow, and nothing in between.
    pub(super) fn raw(&self) -> *mut sys::ibv_qp {
        self.raw
    }

    /// The network card touches nothing of it any more.
    pub(super) fn was_destroyed(mut self) {
        self.raw = std::ptr::null_mut();
        self.queue.give_back(self.promised);
    }

    /// Afterwards, if it says `true`, the network card touches nothing of it any more.
    fn destroy_pair(&mut self) -> bool {
        if self.raw.is_null() {
            return true;
        }
        // SAFETY: made once, destroyed once: `raw` is null from here on.
        let failed = unsafe { sys::ibv_destroy_qp(self.raw) };
        if failed != 0 {
            log::error!(
                "cannot destroy queue pair {}: error {failed}; its memory stays",
                self.number
            );
            return false;
        }
        self.raw = std::ptr::null_mut();
        self.queue.give_back(self.promised);
        true
    }
}

impl<B> Drop for Pair<B> {
    fn drop(&mut self) {
        if self.destroy_pair() {
            // SAFETY: dropped once, here, and not used afterwards. The queue pair is destroyed: nothing
            // is read or written on its behalf any more. Otherwise the memory is leaked.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// Creates a queue pair with as much inline data as the device has.
fn create(
    domain: &Rc<Domain>,
    queue: &Queue,
    limits: &Limits,
    shape: &Shape,
    shared: Option<&SharedQueue>,
) -> Result<(*mut sys::ibv_qp, u32), ProviderError> {
    for inline_bytes in INLINE_BYTES {
        let mut wanted = sys::ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: queue.raw(),
            recv_cq: queue.raw(),
            srq: shared.map_or(std::ptr::null_mut(), SharedQueue::raw),
            cap: sys::ibv_qp_cap {
                max_send_wr: limits.works as u32,
                max_recv_wr: own_receives(shape).into(),
                max_send_sge: limits.pieces as u32,
                max_recv_sge: 1,
                max_inline_data: inline_bytes,
            },
            qp_type: sys::ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: a domain and queues of the same context that outlive the queue pair, which holds the
        // `Rc` of all; `wanted` outlives the call, which writes the real capacities into it.
        let raw = unsafe { sys::ibv_create_qp(domain.raw(), &mut wanted) };
        if !raw.is_null() {
            return Ok((raw, wanted.cap.max_inline_data));
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    Err(last_error("cannot make a queue pair: see max_qp and max_qp_wr of `ibv_devinfo -v`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_recognised_by_its_number() {
        let qp = Qp { slot: 513, generation: 65_535 };
        let send = WorkId::parse(WorkId::tag(qp) | 0x7fff_ffff);
        assert_eq!(send, WorkId { qp, receive: None, sequence: 0x7fff_ffff });
        let receive = WorkId::parse(WorkId::tag(qp) | RECEIVE | 143);
        assert_eq!((receive.qp, receive.receive), (qp, Some(143)));
    }
}
