//! Devices: contexts of our own, their ports, and the GIDs by which a port has an address.

use super::last_error;
use crate::rdma::ProviderError;
use ibverbs_sys as sys;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;

/// What kind of network a GID belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand, or RoCE version 1.
    Older,
    /// RoCE version 2: over UDP, so that it is routed.
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Which port.
    pub port: u32,
    /// Where in its table; tables have gaps.
    pub index: u32,
    /// Its kind.
    pub kind: GidKind,
    /// The address that it stands for.
    pub address: IpAddr,
}

/// A device that was opened.
#[derive(Debug)]
pub(super) struct Context {
    raw: *mut sys::ibv_context,
    name: String,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `raw` came from ibv_open_device and is closed once; everything made on it holds the
        // `Rc` of this context, so that nothing of it is left.
        let failed = unsafe { sys::ibv_close_device(self.raw) };
        if failed != 0 {
            log::error!("cannot close RDMA device {}", self.name);
        }
    }
}

/// What of a port matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub active: bool,
    pub ethernet: bool,
    pub mtu: sys::ibv_mtu,
    pub message_bytes: usize,
}

/// What of a device matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    pub works: usize,
    pub pieces: usize,
    pub completions: usize,
    pub reads: u8,
    pub read_targets: u8,
    pub ports: u8,
}

/// Opens every device that speaks InfiniBand or RoCE.
///
/// # Errors
/// There is none, or one cannot be opened.
pub(super) fn open_all() -> Result<Vec<Rc<Context>>, ProviderError> {
    let mut count = 0;
    // SAFETY: `count` outlives the call; the list is freed below.
    let list = unsafe { sys::ibv_get_device_list(&mut count) };
    if list.is_null() {
        return Err(last_error("cannot list RDMA devices: is the module ib_uverbs loaded?"));
    }
    let opened: Result<Vec<_>, _> = (0..count as usize)
        .filter_map(|index| {
            // SAFETY: the list has `count` entries, and lives until ibv_free_device_list below.
            let device = unsafe { *list.add(index) };
            open(device).transpose()
        })
        .collect();
    // SAFETY: `list` came from ibv_get_device_list; a context outlives the list it was found in.
    unsafe { sys::ibv_free_device_list(list) };
    let opened = opened?;
    if opened.is_empty() {
        return Err(ProviderError::Unsuitable(
            "this machine has no RDMA device that speaks RoCE or InfiniBand: see `rdma link`, or \
             listen with transport = \"tcp\""
                .to_owned(),
        ));
    }
    Ok(opened)
}

/// Opens a device of the list, unless it speaks something else.
fn open(device: *mut sys::ibv_device) -> Result<Option<Rc<Context>>, ProviderError> {
    // SAFETY: `device` is an entry of a device list that has not been freed.
    let (name, transport) = unsafe { (device_name(device), (*device).transport_type) };
    if transport != sys::IBV_TRANSPORT_IB {
        log::info!("RDMA device {name} speaks neither RoCE nor InfiniBand: not used");
        return Ok(None);
    }
    // SAFETY: as above.
    let raw = unsafe { sys::ibv_open_device(device) };
    if raw.is_null() {
        return Err(last_error("cannot open an RDMA device (/dev/infiniband/uverbs*)"));
    }
    Ok(Some(Rc::new(Context { raw, name })))
}

/// # Safety
/// `device` is a device of a list that has not been freed, or of an open context.
unsafe fn device_name(device: *mut sys::ibv_device) -> String {
    // SAFETY: by this function's contract; the name is a C string inside the device.
    let name = unsafe { CStr::from_ptr(sys::ibv_get_device_name(device)) };
    name.to_string_lossy().into_owned()
}

/// The names of the devices that can be used.
///
/// # Errors
/// There is none.
pub fn devices() -> Result<Vec<String>, ProviderError> {
    Ok(open_all()?.iter().map(|context| context.name().to_owned()).collect())
}

/// All GIDs of all devices, with their device's name.
///
/// # Errors
/// There is no device.
pub fn gids() -> Result<Vec<(String, Gid)>, ProviderError> {
    let contexts = open_all()?;
    let of = |context: &Rc<Context>| {
        let name = context.name().to_owned();
        context.gids().into_iter().map(move |gid| (name.clone(), gid))
    };
    Ok(contexts.iter().flat_map(of).collect())
}

impl Context {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_context {
        self.raw
    }

    /// It is the device of another context: one that the connection manager has opened.
    ///
    /// # Safety
    /// `other` is an open context.
    pub(super) unsafe fn is_device_of(&self, other: *mut sys::ibv_context) -> bool {
        // SAFETY: by this function's contract; an open context has a device.
        unsafe { device_name((*other).device) == self.name }
    }

    pub(super) fn abilities(&self) -> Result<Abilities, ProviderError> {
        let mut found = MaybeUninit::<sys::ibv_device_attr>::zeroed();
        // SAFETY: the context is open, and there is room for the answer.
        let failed = unsafe { sys::ibv_query_device(self.raw, found.as_mut_ptr()) };
        if failed != 0 {
            return Err(super::number_error("cannot ask an RDMA device what it can do", failed));
        }
        // SAFETY: all zeros is a value of this struct of numbers, and the call has filled it in.
        let found = unsafe { found.assume_init() };
        Ok(Abilities {
            works: found.max_qp_wr as usize,
            pieces: found.max_sge as usize,
            completions: found.max_cqe as usize,
            reads: found.max_qp_init_rd_atom.clamp(0, 255) as u8,
            read_targets: found.max_qp_rd_atom.clamp(0, 255) as u8,
            ports: found.phys_port_cnt,
        })
    }

    pub(super) fn port(&self, number: u8) -> Result<Port, ProviderError> {
        let mut found = MaybeUninit::<sys::ibv_port_attr>::zeroed();
        // SAFETY: the library fills in its version of the struct, which is a prefix of this one.
        let failed = unsafe { sys::ibv_query_port(self.raw, number, found.as_mut_ptr().cast()) };
        if failed != 0 {
            return Err(super::number_error("cannot ask for the state of an RDMA port", failed));
        }
        // SAFETY: all zeros is a value of this struct of numbers, and the call has filled it in.
        let found = unsafe { found.assume_init() };
        Ok(Port {
            active: found.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
            ethernet: u32::from(found.link_layer) == sys::IBV_LINK_LAYER_ETHERNET,
            mtu: found.active_mtu,
            message_bytes: found.max_msg_sz as usize,
        })
    }

    /// The GID tables of all ports.
    pub(super) fn gids(&self) -> Vec<Gid> {
        let empty = MaybeUninit::<sys::ibv_gid_entry>::zeroed();
        let mut table = vec![empty; 1024];
        let entry_bytes = size_of::<sys::ibv_gid_entry>();
        // SAFETY: the table has room for as many entries as are said, of the size that is said.
        let count = unsafe {
            sys::_ibv_query_gid_table(
                self.raw,
                table.as_mut_ptr().cast(),
                table.len(),
                0,
                entry_bytes,
            )
        };
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: all zeros is a value of an entry, and the first `count` were filled in.
        table[..count].iter().map(|entry| gid(unsafe { entry.assume_init_ref() })).collect()
    }

    /// The GID that stands for `address`, of RoCE v2 where there is the choice.
    pub(super) fn gid_for(&self, address: IpAddr) -> Option<Gid> {
        let mut found: Vec<_> =
            self.gids().into_iter().filter(|gid| gid.address == address.to_canonical()).collect();
        found.sort_by_key(|gid| gid.kind != GidKind::RoceV2);
        found.first().copied()
    }

    /// One entry of a port's GID table.
    pub(super) fn gid_at(&self, port: u8, index: u8) -> Option<Gid> {
        let wanted = |gid: &Gid| gid.port == u32::from(port) && gid.index == u32::from(index);
        self.gids().into_iter().find(wanted)
    }

    /// Events of the device itself come here.
    pub(super) fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as the borrow, and has this descriptor.
        unsafe { BorrowedFd::borrow_raw(self.raw_event_fd()) }
    }

    fn raw_event_fd(&self) -> RawFd {
        // SAFETY: an open context.
        unsafe { (*self.raw).async_fd }
    }

    /// The next event of the device; its descriptor does not block.
    pub(super) fn next_event(&self) -> Option<DeviceEvent> {
        let mut event = MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: an open context, and room for an event.
        let failed = unsafe { sys::ibv_get_async_event(self.raw, event.as_mut_ptr()) };
        if failed != 0 {
            return None;
        }
        // SAFETY: the call has filled it in.
        let mut event = unsafe { event.assume_init() };
        let found = match event.event_type {
            sys::IBV_EVENT_QP_FATAL | sys::IBV_EVENT_QP_REQ_ERR | sys::IBV_EVENT_QP_ACCESS_ERR => {
                let forbidden = event.event_type != sys::IBV_EVENT_QP_FATAL;
                // SAFETY: events of these types have a queue pair, which is not destroyed before the
                // event is acknowledged.
                let number = unsafe { (*event.element.qp).qp_num };
                DeviceEvent::QueuePair { number, forbidden }
            }
            sys::IBV_EVENT_SRQ_LIMIT_REACHED => DeviceEvent::FewReceives,
            sys::IBV_EVENT_SRQ_ERR => DeviceEvent::Receives,
            sys::IBV_EVENT_CQ_ERR => DeviceEvent::CompletionQueue,
            sys::IBV_EVENT_DEVICE_FATAL => DeviceEvent::Device,
            sys::IBV_EVENT_PORT_ERR => DeviceEvent::Port { up: false },
            sys::IBV_EVENT_PORT_ACTIVE => DeviceEvent::Port { up: true },
            other => DeviceEvent::Other(other),
        };
        // SAFETY: each event is acknowledged once, right after it was taken.
        unsafe { sys::ibv_ack_async_event(&mut event) };
        Some(found)
    }
}

/// What a device says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum DeviceEvent {
    /// A queue pair has failed; `forbidden`: by what its peer has tried.
    QueuePair {
        number: u32,
        forbidden: bool,
    },
    /// There are few shared receives left.
    FewReceives,
    /// The shared receives have failed.
    Receives,
    /// A completion queue has overrun: a broken invariant of ours.
    CompletionQueue,
    /// The device is gone.
    Device,
    /// A port has gone up or down.
    Port {
        up: bool,
    },
    Other(u32),
}

fn gid(entry: &sys::ibv_gid_entry) -> Gid {
    // SAFETY: a GID is 16 bytes, however it is looked at.
    let raw = unsafe { entry.gid.raw };
    let kind = match entry.gid_type {
        sys::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
        _ => GidKind::Older,
    };
    let address = IpAddr::V6(Ipv6Addr::from(raw)).to_canonical();
    Gid { port: entry.port_num, index: entry.gid_index, kind, address }
}

/// Memory and queue pairs that may work together.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) context: Rc<Context>,
    raw: *mut sys::ibv_pd,
}

impl Domain {
    pub(super) fn new(context: Rc<Context>) -> Result<Rc<Self>, ProviderError> {
        // SAFETY: an open context.
        let raw = unsafe { sys::ibv_alloc_pd(context.raw) };
        if raw.is_null() {
            return Err(last_error("cannot make a protection domain"));
        }
        Ok(Rc::new(Self { context, raw }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_pd {
        self.raw
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: made once, freed once; registrations and queue pairs hold the `Rc` of this domain.
        let failed = unsafe { sys::ibv_dealloc_pd(self.raw) };
        if failed != 0 {
            log::error!("cannot free a protection domain: error {failed}");
        }
    }
}
