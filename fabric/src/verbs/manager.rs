//! The connection manager: librdmacm, declared by hand, with queue pairs of our own ("external").
//!
//! What is used of it is about messages: who asks whom, with which private data, and which attributes
//! a queue pair has to be given. Layouts are those of rdma-core 28 and later (the ABI of
//! librdmacm.so.1), asserted below; only fields that are looked at are named.

use super::device::Port;
use super::{last_error, number_error};
use crate::rdma::{Note, ProviderError};
use ibverbs_sys as sys;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// `RDMA_PS_TCP`: reliable, connected.
const PORT_SPACE_TCP: c_int = 0x0106;
/// How long resolving an address, and then a route, may take, in milliseconds.
const RESOLVE_MS: c_int = 2000;
/// Connections that may wait to be looked at.
const BACKLOG: c_int = 1024;
/// `RDMA_OPTION_ID`, `RDMA_OPTION_ID_REUSEADDR`.
const OPTION_REUSE: (c_int, c_int) = (0, 1);

#[repr(C)]
struct RawChannel {
    fd: c_int,
}

#[repr(C)]
struct RawId {
    verbs: *mut sys::ibv_context,
    channel: *mut RawChannel,
    context: *mut c_void,
    qp: *mut sys::ibv_qp,
    /// `struct rdma_route`: two addresses, the GIDs, the path.
    route: [u64; 39],
    port_space: c_int,
    port: u8,
}
const _: () = assert!(offset_of!(RawId, route) == 32);
const _: () = assert!(offset_of!(RawId, port_space) == 344);
const _: () = assert!(offset_of!(RawId, port) == 348);

#[repr(C)]
#[derive(Clone, Copy)]
struct RawParameters {
    private_data: *const c_void,
    private_data_length: u8,
    responder_resources: u8,
    initiator_depth: u8,
    flow_control: u8,
    retry_count: u8,
    rnr_retry_count: u8,
    srq: u8,
    qp_number: u32,
}
const _: () = assert!(offset_of!(RawParameters, rnr_retry_count) == 13);
const _: () = assert!(offset_of!(RawParameters, qp_number) == 16);
const _: () = assert!(size_of::<RawParameters>() == 24);

#[repr(C)]
struct RawEvent {
    id: *mut RawId,
    listener: *mut RawId,
    kind: c_int,
    status: c_int,
    /// The connected half of a union.
    parameters: RawParameters,
}
const _: () = assert!(offset_of!(RawEvent, kind) == 16);
const _: () = assert!(offset_of!(RawEvent, status) == 20);
const _: () = assert!(offset_of!(RawEvent, parameters) == 24);

#[link(name = "rdmacm")]
unsafe extern "C" {
    fn rdma_create_event_channel() -> *mut RawChannel;
    fn rdma_destroy_event_channel(channel: *mut RawChannel);
    fn rdma_create_id(
        channel: *mut RawChannel,
        id: *mut *mut RawId,
        context: *mut c_void,
        port_space: c_int,
    ) -> c_int;
    fn rdma_destroy_id(id: *mut RawId) -> c_int;
    fn rdma_set_option(
        id: *mut RawId,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        length: usize,
    ) -> c_int;
    fn rdma_bind_addr(id: *mut RawId, address: *mut libc::sockaddr) -> c_int;
    fn rdma_listen(id: *mut RawId, backlog: c_int) -> c_int;
    fn rdma_get_src_port(id: *mut RawId) -> u16;
    fn rdma_resolve_addr(
        id: *mut RawId,
        from: *mut libc::sockaddr,
        to: *mut libc::sockaddr,
        timeout_ms: c_int,
    ) -> c_int;
    fn rdma_resolve_route(id: *mut RawId, timeout_ms: c_int) -> c_int;
    fn rdma_connect(id: *mut RawId, parameters: *mut RawParameters) -> c_int;
    fn rdma_establish(id: *mut RawId) -> c_int;
    fn rdma_accept(id: *mut RawId, parameters: *mut RawParameters) -> c_int;
    fn rdma_reject(id: *mut RawId, private_data: *const c_void, length: u8) -> c_int;
    fn rdma_disconnect(id: *mut RawId) -> c_int;
    fn rdma_get_cm_event(channel: *mut RawChannel, event: *mut *mut RawEvent) -> c_int;
    fn rdma_ack_cm_event(event: *mut RawEvent) -> c_int;
    fn rdma_init_qp_attr(
        id: *mut RawId,
        attributes: *mut sys::ibv_qp_attr,
        mask: *mut c_int,
    ) -> c_int;
}

/// Makes reads of a descriptor return at once.
pub(super) fn unblock(fd: BorrowedFd<'_>) -> Result<(), ProviderError> {
    let set = fcntl(fd, FcntlArg::F_GETFL).and_then(|flags| {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK))
    });
    set.map(|_| ()).map_err(|errno| ProviderError::System {
        what: "cannot make an RDMA event descriptor non-blocking",
        source: errno.into(),
    })
}

fn check(what: &'static str, outcome: c_int) -> Result<(), ProviderError> {
    if outcome == 0 { Ok(()) } else { Err(last_error(what)) }
}

/// Where the connection manager's events come from.
#[derive(Debug)]
pub(super) struct EventChannel {
    raw: *mut RawChannel,
}

/// What the connection manager has to tell. The number is the one its connection was given.
pub(super) enum ManagerEvent {
    Requested {
        id: Id,
        ask: Note,
        reads: u8,
    },
    AddressResolved(usize),
    RouteResolved(usize),
    /// The other side has accepted: the queue pair may be made ready.
    Accepted {
        number: usize,
        answer: Note,
    },
    Established(usize),
    Refused {
        number: usize,
        answer: Note,
    },
    Disconnected(usize),
    Removed(usize),
}

impl EventChannel {
    pub(super) fn new() -> Result<Rc<Self>, ProviderError> {
        // SAFETY: takes nothing.
        let raw = unsafe { rdma_create_event_channel() };
        if raw.is_null() {
            return Err(last_error(
                "cannot reach the RDMA connection manager: is the module rdma_ucm loaded?",
            ));
        }
        let channel = Self { raw };
        unblock(channel.fd())?;
        Ok(Rc::new(channel))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as the borrow, and has this descriptor.
        unsafe { BorrowedFd::borrow_raw((*self.raw).fd) }
    }

    /// The next event that means anything here, if there is one.
    pub(super) fn next_event(self: &Rc<Self>) -> Option<ManagerEvent> {
        loop {
            let mut event = std::ptr::null_mut();
            // SAFETY: the channel lives, its descriptor does not block, and there is room for the answer.
            if unsafe { rdma_get_cm_event(self.raw, &mut event) } != 0 {
                return None;
            }
            // SAFETY: `event` was just taken and is acknowledged below, after its last use.
            let found = unsafe { self.understand(&*event) };
            // SAFETY: acknowledged once; nothing of it is kept.
            unsafe { rdma_ack_cm_event(event) };
            if found.is_some() {
                return found;
            }
        }
    }

    /// # Safety
    /// `event` has not been acknowledged.
    unsafe fn understand(self: &Rc<Self>, event: &RawEvent) -> Option<ManagerEvent> {
        // SAFETY: the id of an event that has not been acknowledged is not destroyed.
        let number = unsafe { (*event.id).context }.addr();
        // SAFETY: as the caller promises.
        let note = || unsafe { private_data(&event.parameters) };
        // `enum rdma_cm_event_type`, in its order. A request that nobody has answered has no number.
        Some(match event.kind {
            kind if kind != 4 && number == 0 => return None,
            0 => ManagerEvent::AddressResolved(number),
            2 => ManagerEvent::RouteResolved(number),
            4 => ManagerEvent::Requested {
                id: Id { raw: event.id, _channel: Rc::clone(self) },
                ask: note(),
                reads: event.parameters.initiator_depth,
            },
            5 => ManagerEvent::Accepted { number, answer: note() },
            8 => ManagerEvent::Refused { number, answer: note() },
            1 | 3 | 6 | 7 => ManagerEvent::Refused { number, answer: Note::new(&[]) },
            9 => ManagerEvent::Established(number),
            10 => ManagerEvent::Disconnected(number),
            11 => ManagerEvent::Removed(number),
            // Multicast, changed addresses, the end of the time of waiting.
            _ => return None,
        })
    }
}

/// # Safety
/// These are the parameters of an event that has one of the kinds with private data, and that has not been
/// acknowledged.
unsafe fn private_data(parameters: &RawParameters) -> Note {
    if parameters.private_data.is_null() {
        return Note::new(&[]);
    }
    let length = usize::from(parameters.private_data_length);
    // SAFETY: by this function's contract there are so many bytes there.
    Note::new(unsafe { std::slice::from_raw_parts(parameters.private_data.cast(), length) })
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; ids hold the `Rc` of this channel.
        unsafe { rdma_destroy_event_channel(self.raw) };
    }
}

/// One connection, or a listener.
#[derive(Debug)]
pub(super) struct Id {
    raw: *mut RawId,
    _channel: Rc<EventChannel>,
}

impl Drop for Id {
    fn drop(&mut self) {
        self.remains().destroy();
    }
}

/// What is left of a connection: it is to be destroyed.
pub(super) struct Remains(*mut RawId);

impl Remains {
    /// Waits until the kernel has given up its messages. Whoever takes events acknowledges them at once, so
    /// that it does not wait for those.
    pub(super) fn destroy(self) {
        // SAFETY: made once, destroyed once: it is null in an `Id` that somebody else destroys, or has.
        if !self.0.is_null() && unsafe { rdma_destroy_id(self.0) } != 0 {
            log::error!("cannot destroy a connection: {}", std::io::Error::last_os_error());
        }
    }
}

/// What a queue pair is given beside what the connection manager knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    pub reads: u8,
    /// The other side may READ and WRITE here.
    pub remote_access: bool,
}

impl Id {
    /// For somebody who destroys it; [`Id::was_destroyed`] has to follow, and nothing in between.
    pub(super) fn remains(&self) -> Remains {
        Remains(self.raw)
    }

    /// Nothing is left to do for [`Drop`].
    pub(super) fn was_destroyed(&mut self) {
        self.raw = std::ptr::null_mut();
    }

    fn new(channel: &Rc<EventChannel>) -> Result<Self, ProviderError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the channel lives, and there is room for the answer.
        let made =
            unsafe { rdma_create_id(channel.raw, &mut raw, std::ptr::null_mut(), PORT_SPACE_TCP) };
        check("cannot make an RDMA connection", made)?;
        Ok(Self { raw, _channel: Rc::clone(channel) })
    }

    /// Listens at `address`.
    pub(super) fn listen(
        channel: &Rc<EventChannel>,
        address: SocketAddr,
    ) -> Result<Self, ProviderError> {
        let (id, address) = (Self::new(channel)?, SockaddrStorage::from(address));
        let mut reuse: c_int = 1;
        let (level, name) = OPTION_REUSE;
        // SAFETY: the id lives, and the option is an int.
        let set = unsafe {
            rdma_set_option(id.raw, level, name, (&raw mut reuse).cast(), size_of::<c_int>())
        };
        check("cannot set up an RDMA listener", set)?;
        // SAFETY: the address outlives the call, which does not write to it.
        let bound = unsafe { rdma_bind_addr(id.raw, address.as_ptr().cast_mut()) };
        check("cannot listen for RDMA there: is the address one of an RDMA device?", bound)?;
        // SAFETY: the id lives.
        check("cannot listen for RDMA", unsafe { rdma_listen(id.raw, BACKLOG) })?;
        Ok(id)
    }

    /// The port that a listener was given.
    pub(super) fn port(&self) -> u16 {
        // SAFETY: the id lives.
        u16::from_be(unsafe { rdma_get_src_port(self.raw) })
    }

    /// Begins to look for a way to `address`; ends in `AddressResolved` or `Refused`.
    pub(super) fn resolve(
        channel: &Rc<EventChannel>,
        address: SocketAddr,
        number: usize,
    ) -> Result<Self, ProviderError> {
        let (id, address) = (Self::new(channel)?, SockaddrStorage::from(address));
        id.set_number(number);
        // SAFETY: the id lives; the address outlives the call, which does not write to it.
        let begun = unsafe {
            let to = address.as_ptr().cast_mut();
            rdma_resolve_addr(id.raw, std::ptr::null_mut(), to, RESOLVE_MS)
        };
        check("cannot reach that address by RDMA", begun)?;
        Ok(id)
    }

    /// Begins to look for a route; ends in `RouteResolved` or `Refused`.
    pub(super) fn resolve_route(&self) -> Result<(), ProviderError> {
        // SAFETY: the id lives.
        check("cannot find an RDMA route", unsafe { rdma_resolve_route(self.raw, RESOLVE_MS) })
    }

    /// Events of this connection carry this number from now on.
    pub(super) fn set_number(&self, number: usize) {
        // SAFETY: the id lives; the field is its user's, and nobody takes the number for a pointer.
        unsafe { (*self.raw).context = std::ptr::without_provenance_mut(number) };
    }

    /// The context that the connection manager has opened for the device, and its port.
    pub(super) fn device(&self) -> Option<(*mut sys::ibv_context, u8)> {
        // SAFETY: the id lives.
        let (verbs, port) = unsafe { ((*self.raw).verbs, (*self.raw).port) };
        (!verbs.is_null()).then_some((verbs, port))
    }

    /// What the queue pair has to be given to get into `state`.
    pub(super) fn attributes(
        &self,
        state: sys::ibv_qp_state::Type,
        tuning: &Tuning,
        port: Option<&Port>,
    ) -> Result<(sys::ibv_qp_attr, c_int), ProviderError> {
        let mut attributes = MaybeUninit::<sys::ibv_qp_attr>::zeroed();
        let mut mask = 0;
        // SAFETY: all zeros is a value of this struct of numbers; `state` says what is asked for, and there
        // is room for the answer.
        let (asked, mut found) = unsafe {
            (*attributes.as_mut_ptr()).qp_state = state;
            let asked = rdma_init_qp_attr(self.raw, attributes.as_mut_ptr(), &mut mask);
            (asked, attributes.assume_init())
        };
        check("the RDMA connection manager has no attributes for a queue pair", asked)?;
        tune(&mut found, &mut mask, state, tuning, port);
        Ok((found, mask))
    }

    /// Asks for the connection.
    pub(super) fn connect(
        &self,
        qp_number: u32,
        ask: &Note,
        reads: u8,
    ) -> Result<(), ProviderError> {
        let mut parameters = parameters(qp_number, ask, (reads, 0));
        // SAFETY: the id lives; the parameters and what they point to outlive the call.
        check("cannot connect by RDMA", unsafe { rdma_connect(self.raw, &mut parameters) })
    }

    /// The queue pair is ready: tells the other side.
    pub(super) fn establish(&self) -> Result<(), ProviderError> {
        // SAFETY: the id lives.
        check("cannot end an RDMA handshake", unsafe { rdma_establish(self.raw) })
    }

    /// Takes the connection.
    pub(super) fn accept(
        &self,
        qp_number: u32,
        answer: &Note,
        reads: u8,
    ) -> Result<(), ProviderError> {
        let mut parameters = parameters(qp_number, answer, (0, reads));
        // SAFETY: the id lives; the parameters and what they point to outlive the call.
        check("cannot accept by RDMA", unsafe { rdma_accept(self.raw, &mut parameters) })
    }

    /// Refuses it. That may fail because the peer is gone, which is as well.
    pub(super) fn reject(&self, answer: &Note) {
        let bytes = answer.bytes();
        // SAFETY: the id lives; the bytes outlive the call, and fit into every refusal.
        let told = unsafe { rdma_reject(self.raw, bytes.as_ptr().cast(), bytes.len() as u8) };
        log::debug!("an RDMA peer was refused (and told: {})", told == 0);
    }

    /// Tells the other side that it is over. That may fail because it has said so already.
    pub(super) fn disconnect(&self) {
        // SAFETY: the id lives.
        let told = unsafe { rdma_disconnect(self.raw) };
        log::trace!("an RDMA connection was ended (and the peer told: {})", told == 0);
    }
}

fn parameters(qp_number: u32, note: &Note, (responder, initiator): (u8, u8)) -> RawParameters {
    RawParameters {
        private_data: note.bytes().as_ptr().cast(),
        private_data_length: note.bytes().len() as u8,
        responder_resources: responder,
        initiator_depth: initiator,
        flow_control: 1,
        retry_count: RETRIES,
        rnr_retry_count: RNR_FOR_EVER,
        srq: 0,
        qp_number,
    }
}

/// How often a message that nobody acknowledges is sent again: 7 would be for ever on soft-RoCE.
const RETRIES: u8 = 6;
/// The local ACK timeout, 4.096 µs × 2^16 (IBTA 9.7.6.1.3): about 2 s until the peer is given up.
const ACK_TIMEOUT: u8 = 16;
/// How long a peer without a posted receive asks to wait, code 12: 0.64 ms (IBTA table 46). 0 would be
/// 655 ms.
const MIN_RNR_TIMER: u8 = 12;
/// Retries of a peer that has no receive posted: a client waits for its server for ever.
const RNR_FOR_EVER: u8 = 7;
/// A server does not: its clients have posted receives for all that they are sent.
const RNR_OF_SERVERS: u8 = 3;

/// Overrides what the connection manager took from its defaults, or from the peer.
fn tune(
    attributes: &mut sys::ibv_qp_attr,
    mask: &mut c_int,
    state: sys::ibv_qp_state::Type,
    tuning: &Tuning,
    port: Option<&Port>,
) {
    use sys::{ibv_access_flags as access, ibv_qp_attr_mask as bits};
    let allowed = if tuning.remote_access {
        access::IBV_ACCESS_REMOTE_READ | access::IBV_ACCESS_REMOTE_WRITE
    } else {
        access(0)
    };
    match state {
        sys::ibv_qp_state::IBV_QPS_INIT => {
            attributes.qp_access_flags = allowed.0;
            *mask |= bits::IBV_QP_ACCESS_FLAGS.0 as c_int;
        }
        sys::ibv_qp_state::IBV_QPS_RTR => {
            attributes.min_rnr_timer = MIN_RNR_TIMER;
            attributes.max_dest_rd_atomic = if tuning.remote_access { tuning.reads } else { 0 };
            let added = bits::IBV_QP_MIN_RNR_TIMER | bits::IBV_QP_MAX_DEST_RD_ATOMIC;
            *mask |= added.0 as c_int;
            if let Some(port) = port {
                attributes.path_mtu = attributes.path_mtu.min(port.mtu);
            }
        }
        _ => {
            attributes.timeout = ACK_TIMEOUT;
            attributes.retry_cnt = RETRIES;
            attributes.rnr_retry = if tuning.remote_access { RNR_FOR_EVER } else { RNR_OF_SERVERS };
            // A client starts no READ; some devices take 0 for a mistake.
            attributes.max_rd_atomic = if tuning.remote_access { 1 } else { tuning.reads };
            let added = bits::IBV_QP_TIMEOUT
                | bits::IBV_QP_RETRY_CNT
                | bits::IBV_QP_RNR_RETRY
                | bits::IBV_QP_MAX_QP_RD_ATOMIC;
            *mask |= added.0 as c_int;
        }
    }
}

/// Moves a queue pair on.
///
/// # Safety
/// `qp` is a queue pair that was not destroyed.
pub(super) unsafe fn modify(
    qp: *mut sys::ibv_qp,
    mut attributes: sys::ibv_qp_attr,
    mask: c_int,
) -> Result<(), ProviderError> {
    // SAFETY: by this function's contract; the attributes outlive the call.
    let failed = unsafe { sys::ibv_modify_qp(qp, &mut attributes, mask) };
    if failed == 0 {
        return Ok(());
    }
    Err(number_error("an RDMA device refuses a queue pair's attributes", failed))
}
