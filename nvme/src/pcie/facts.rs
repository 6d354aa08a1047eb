//! What a drive is, as far as it can be believed: checked once at bring-up, and compared after each reset.

use super::PAGE_BYTES;
use super::error::Trouble;
use crate::spec::feature::async_events;
use crate::spec::identify::{IdentifyController, IdentifyNamespace, SglSupport};
use crate::{BLOCK_BYTES, Geometry};

/// The largest command in blocks: half of what a buffer can hold, so that the PRP list of each lies in one
/// page of the arena's page table (see [`crate::hardware::Mapping::page_table`]).
pub(super) const COMMAND_BLOCKS_MAX: u32 = (PAGE_BYTES / size_of::<u64>()) as u32;

/// What is heard where it is offered (OAES).
const EVENTS_OFFERED: u32 = async_events::NAMESPACE_CHANGED | async_events::FIRMWARE_ACTIVATION;

/// Models that complete a write with FUA while it is only in their cache. Of QEMU's (7.2), no such write was
/// handed on as one to the server behind it, and what had been written last was lost in a power cut.
const IGNORE_FUA: [&str; 1] = ["QEMU NVMe Ctrl"];

/// A controller and its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// The namespace in use.
    pub namespace: u32,
    /// Its size in blocks of [`BLOCK_BYTES`].
    pub blocks: u64,
    /// Its logical block size in bytes.
    pub lba_bytes: u32,
    /// The largest command, in blocks of [`BLOCK_BYTES`] (MDTS, and what this driver does).
    pub command_blocks_max: u32,
    /// No command crosses a multiple of so many blocks (NOIOB); 0: it may.
    pub boundary_blocks: u32,
    /// Data may be described by scatter gather lists.
    pub sgl: bool,
    /// Completed writes may be lost in a power cut until they are flushed.
    pub volatile_write_cache: bool,
    /// FUA does not keep a write out of that cache, whatever the specification says: a flush has to follow.
    pub ignores_fua: bool,
    /// Dataset management is there.
    pub discard: bool,
    /// Write zeroes is there.
    pub write_zeroes: bool,
    /// Compare is there.
    pub compare: bool,
    /// Verify is there.
    pub verify: bool,
    /// Doorbell buffers are there.
    pub doorbell_buffers: bool,
    /// A power cut leaves an aligned write of so many bytes whole or undone.
    pub atomic_write_bytes: u32,
    /// Aborts that may be under way at a time.
    pub aborts_max: u32,
    /// Asynchronous event requests that may be under way at a time.
    pub events_max: u32,
    /// Events that it is asked to report (Asynchronous Event Configuration).
    pub events: u32,
    /// The three delays that a status can ask for before a retry, in microseconds.
    pub retry_delays_us: [u64; 3],
    /// I/O queues that the controller has given us.
    pub queues: u16,
    /// Entries that a queue can have (CAP.MQES).
    pub queue_entries_max: u32,
}

impl Facts {
    /// What the two structures say, if it makes sense.
    pub(super) fn new(
        controller: &IdentifyController,
        namespace: &IdentifyNamespace,
        id: u32,
        queue_entries_max: u32,
    ) -> Result<Self, Trouble> {
        let lba_bytes = lba_bytes(namespace)?;
        let per_block = (BLOCK_BYTES as u32 / lba_bytes) as u64;
        let blocks = namespace.nsze.get() / per_block;
        if blocks == 0 {
            return Err(Trouble::Unusable { what: "its namespace has no size" });
        }
        if namespace.protected() || namespace.lba_format().metadata_bytes() != 0 {
            let what = "its namespace has metadata or protection information; give it to the kernel \
                        (`forebay devices unbind`) and format it without (`forebay devices format`)";
            return Err(Trouble::Unusable { what });
        }
        let command_blocks_max = command_blocks_max(controller)?;
        Ok(Self {
            serial: controller.serial().to_owned(),
            model: controller.model().to_owned(),
            firmware: controller.firmware().to_owned(),
            namespace: id,
            blocks,
            lba_bytes,
            command_blocks_max,
            boundary_blocks: boundary_blocks(namespace, per_block),
            sgl: matches!(controller.sgl_support(), SglSupport::Any | SglSupport::Dword),
            volatile_write_cache: controller.volatile_write_cache(),
            ignores_fua: controller.volatile_write_cache()
                && IGNORE_FUA.contains(&controller.model()),
            discard: controller.has_dataset_management(),
            write_zeroes: controller.has_write_zeroes(),
            compare: controller.has_compare(),
            verify: controller.has_verify(),
            doorbell_buffers: controller.has_doorbell_buffers(),
            atomic_write_bytes: atomic_write_bytes(controller, namespace, command_blocks_max),
            aborts_max: controller.aborts_max(),
            events_max: controller.async_event_requests_max(),
            events: async_events::ALL_SMART | controller.oaes.get() & EVENTS_OFFERED,
            retry_delays_us: [1, 2, 3].map(|index| controller.retry_delay_ms(index) * 1000),
            queues: 0,
            queue_entries_max,
        })
    }

    /// The drive as the store sees it, on a queue of this depth.
    pub(super) fn geometry(&self, depth: u32) -> Geometry {
        Geometry {
            blocks: self.blocks,
            max_transfer_blocks: (crate::arena::BUFFER_BYTES_MAX / BLOCK_BYTES) as u32,
            depth,
            volatile_write_cache: self.volatile_write_cache,
            discard: self.discard,
            write_zeroes: self.write_zeroes,
            compare: self.compare,
            verify: self.verify,
            atomic_write_bytes: self.atomic_write_bytes,
        }
    }

    /// How many logical blocks make a block, as a power of two.
    pub(super) fn lba_shift(&self) -> u32 {
        (BLOCK_BYTES as u32 / self.lba_bytes).trailing_zeros()
    }

    /// Is it still the drive that it was? The firmware may have changed, and what the controller grants; but
    /// what queues and store have been told has to hold.
    pub(super) fn still_hold(&self, now: &Self) -> bool {
        let place = |of: &Self| (of.namespace, of.blocks, of.lba_bytes);
        let able = self.abilities().iter().zip(now.abilities()).all(|(had, has)| has || !had);
        self.serial == now.serial
            && place(self) == place(now)
            && able
            && self.command_blocks_max <= now.command_blocks_max
            && self.atomic_write_bytes <= now.atomic_write_bytes
    }

    /// What somebody may rely on.
    fn abilities(&self) -> [bool; 7] {
        let Self { sgl, discard, write_zeroes, compare, verify, .. } = *self;
        let Self { volatile_write_cache, ignores_fua, .. } = *self;
        [sgl, discard, write_zeroes, compare, verify, !volatile_write_cache, !ignores_fua]
    }
}

fn lba_bytes(namespace: &IdentifyNamespace) -> Result<u32, Trouble> {
    match namespace.lba_format().bytes() {
        Some(bytes @ (512 | 1024 | 2048 | 4096)) => Ok(bytes),
        _ => Err(Trouble::Unusable {
            what: "its logical blocks are not of 512 to 4096 bytes; give it to the kernel \
                   (`forebay devices unbind`) and format it with 4096 (`forebay devices format`)",
        }),
    }
}

/// AWUPF or NAWUPF, as far as one command of this driver keeps it: a power of two, so that no aligned write of
/// that size is cut by the largest command or crosses a boundary (NOIOB, NABSPF).
fn atomic_write_bytes(
    controller: &IdentifyController,
    namespace: &IdentifyNamespace,
    command_blocks_max: u32,
) -> u32 {
    let lba_bytes = namespace.lba_format().bytes().unwrap_or(0);
    let boundary = namespace.atomic_boundary_power_fail_lbas();
    if boundary.is_some() && namespace.nabo.get() != 0 {
        // Counted from elsewhere: only one logical block crosses none of them.
        return lba_bytes;
    }
    let lbas = [boundary, namespace.optimal_boundary_lbas()]
        .into_iter()
        .flatten()
        .map(|boundary| 1 << boundary.trailing_zeros())
        .fold(namespace.atomic_lbas_power_fail(controller), u32::min);
    let bytes = lbas.saturating_mul(lba_bytes).min(command_blocks_max * BLOCK_BYTES as u32);
    1 << bytes.max(1).ilog2()
}

/// MDTS, in blocks, up to what this driver sends at a time. An absurd one is no limit.
fn command_blocks_max(controller: &IdentifyController) -> Result<u32, Trouble> {
    let bytes = controller.transfer_bytes_max(PAGE_BYTES).unwrap_or(u64::MAX);
    match u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX) {
        0 => Err(Trouble::Unusable { what: "it transfers less than 4096 bytes at a time (MDTS)" }),
        blocks => Ok(blocks.min(COMMAND_BLOCKS_MAX)),
    }
}

/// NOIOB in blocks; one that is no multiple of a block is of no use here, and it is only advice.
fn boundary_blocks(namespace: &IdentifyNamespace, per_block: u64) -> u32 {
    let boundary = u64::from(namespace.optimal_boundary_lbas().unwrap_or(0));
    if boundary.is_multiple_of(per_block) { (boundary / per_block) as u32 } else { 0 }
}
