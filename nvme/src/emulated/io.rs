//! I/O commands (NVM Command Set 1.0, "NVM Command Set Commands").

use zerocopy::FromBytes;

use super::config::oncs;
use super::device::{Device, Flight, Outcome};
use super::faults::Fault;
use super::namespace::Namespace;
use super::queues::QueueId;
use crate::BLOCK_BYTES;
use crate::spec::command::{ALL_NAMESPACES, DatasetRange, Submission};
use crate::spec::opcode::io;
use crate::spec::status::{Status, generic, media};

/// A write that has not come to its end: whole blocks, with their first.
#[derive(Debug)]
pub(super) struct PendingWrite {
    pub(super) nsid: u32,
    pub(super) block: u64,
    pub(super) bytes: Vec<u8>,
}

/// Write zeroes beyond this are not torn: they happen, or they do not.
const ZEROES_TORN_MAX: usize = 4 << 20;

impl Device {
    pub(super) fn io(
        &mut self,
        queue: QueueId,
        command: &Submission,
        fault: Option<Fault>,
    ) -> Outcome {
        if !self.has_command(command.opcode) {
            return self.refuse(queue, command, generic::INVALID_OPCODE);
        }
        if command.fused() {
            return self.refuse(queue, command, generic::INVALID_FIELD);
        }
        let nsid = command.nsid.get();
        let all = command.opcode == io::FLUSH && nsid == ALL_NAMESPACES;
        match self.namespaces.get(&nsid).map(Namespace::works) {
            _ if all => self.flush(nsid).into(),
            None => self.refuse(queue, command, generic::INVALID_NAMESPACE),
            Some(false) => self.refuse(queue, command, generic::INVALID_FIELD),
            Some(true) => self.io_on(nsid, queue, command, fault),
        }
    }

    fn has_command(&self, opcode: u8) -> bool {
        let bit = match opcode {
            io::READ | io::WRITE | io::FLUSH => return true,
            io::COMPARE => oncs::COMPARE,
            io::DATASET_MANAGEMENT => oncs::DATASET_MANAGEMENT,
            io::WRITE_ZEROES => oncs::WRITE_ZEROES,
            io::VERIFY => oncs::VERIFY,
            _ => 0,
        };
        self.config.identity.oncs & bit != 0
    }

    fn io_on(
        &mut self,
        nsid: u32,
        queue: QueueId,
        command: &Submission,
        fault: Option<Fault>,
    ) -> Outcome {
        match command.opcode {
            io::FLUSH => return self.flush(nsid).into(),
            io::DATASET_MANAGEMENT => return self.manage_dataset(nsid, queue, command),
            _ => {}
        }
        let Some((offset, bytes)) = self.range(command) else {
            return self.refuse(queue, command, generic::LBA_OUT_OF_RANGE);
        };
        let transfers = matches!(command.opcode, io::READ | io::WRITE | io::COMPARE);
        if transfers && bytes as u64 > self.transfer_bytes_max() {
            return self.refuse(queue, command, generic::INVALID_FIELD);
        }
        match command.opcode {
            io::READ => self.read(queue, command, (offset, bytes), fault),
            io::WRITE => self.write(queue, command, (offset, bytes)),
            io::COMPARE => self.compare(queue, command, (offset, bytes)),
            io::WRITE_ZEROES => {
                let durable = self.is_durable(command);
                self.on(nsid).map_or(Ok(()), |it| it.zero(offset, bytes, durable))
            }
            _ => self.on(nsid).map_or(Ok(()), |it| it.read(offset, bytes).map(drop)),
        }
        .into()
    }

    /// Whether what it writes is on media when it completes.
    fn is_durable(&self, command: &Submission) -> bool {
        (command.fua() && !self.config.identity.ignores_fua) || !self.caches()
    }

    fn on(&mut self, nsid: u32) -> Option<&mut Namespace> {
        self.namespaces.get_mut(&nsid)
    }

    fn range(&self, command: &Submission) -> Option<(u64, usize)> {
        let namespace = self.namespaces.get(&command.nsid.get())?;
        namespace.range(command.lba(), command.lbas().into())
    }

    /// MDTS, in units of the smallest page.
    fn transfer_bytes_max(&self) -> u64 {
        let page = 4096_u64 << (self.config.registers.page_min & 15);
        match self.config.identity.mdts {
            0 => u64::MAX,
            shift => 1_u64.checked_shl(shift.into()).unwrap_or(u64::MAX).saturating_mul(page),
        }
    }

    fn read(
        &mut self,
        queue: QueueId,
        command: &Submission,
        (offset, bytes): (u64, usize),
        fault: Option<Fault>,
    ) -> Result<(), Status> {
        let bit = self.rng.usize(..BLOCK_BYTES * 8);
        let Some(namespace) = self.on(command.nsid.get()) else { return Ok(()) };
        if fault == Some(Fault::FlipBit) {
            namespace.flip(offset / BLOCK_BYTES as u64, bit);
        }
        let data = namespace.read(offset, bytes)?;
        self.counters.bytes_read += bytes as u64;
        self.push(queue, command, data, fault)
    }

    fn write(
        &mut self,
        queue: QueueId,
        command: &Submission,
        (offset, bytes): (u64, usize),
    ) -> Result<(), Status> {
        let data = self.pull(queue, command, bytes)?;
        self.counters.bytes_written += bytes as u64;
        let durable = self.is_durable(command);
        self.on(command.nsid.get()).map_or(Ok(()), |it| it.write(offset, &data, durable))
    }

    fn compare(
        &mut self,
        queue: QueueId,
        command: &Submission,
        (offset, bytes): (u64, usize),
    ) -> Result<(), Status> {
        let expected = self.pull(queue, command, bytes)?;
        let Some(namespace) = self.on(command.nsid.get()) else { return Ok(()) };
        if namespace.read(offset, bytes)? == expected {
            return Ok(());
        }
        Err(Status::new(media::COMPARE_FAILURE).with_do_not_retry())
    }

    fn flush(&mut self, nsid: u32) -> Result<(), Status> {
        let mut flushed = Ok(());
        for (id, namespace) in &mut self.namespaces {
            if nsid == *id || nsid == ALL_NAMESPACES {
                flushed = flushed.and(namespace.flush());
            }
        }
        flushed
    }

    fn manage_dataset(&mut self, nsid: u32, queue: QueueId, command: &Submission) -> Outcome {
        let count = command.ranges() as usize;
        let data = match self.pull(queue, command, count * size_of::<DatasetRange>()) {
            Ok(data) => data,
            Err(status) => return Err(status).into(),
        };
        let mut ranges = Vec::with_capacity(count);
        for bytes in data.chunks_exact(size_of::<DatasetRange>()) {
            let Ok(range) = DatasetRange::read_from_bytes(bytes) else { continue };
            let (lba, lbas) = (range.lba.get(), u64::from(range.lbas.get()));
            let Some(range) = self.namespaces.get(&nsid).and_then(|it| it.range(lba, lbas)) else {
                return self.refuse(queue, command, generic::LBA_OUT_OF_RANGE);
            };
            ranges.push(range);
        }
        // Only hints, unless it deallocates.
        if command.deallocates_ranges()
            && let Some(namespace) = self.on(nsid)
        {
            ranges.iter().for_each(|(offset, bytes)| namespace.discard(*offset, *bytes as u64));
        }
        Outcome::OK
    }

    /// A read that does not come to its end has moved its data all the same.
    pub(super) fn read_in_vain(&mut self, flight: &Flight) {
        let Flight { queue, command, .. } = flight;
        if *queue == 0 || command.opcode != io::READ {
            return;
        }
        if let Some((_, bytes)) = self.range(command)
            && bytes as u64 <= self.transfer_bytes_max()
        {
            let mut data = vec![0; bytes];
            self.rng.fill(&mut data);
            // Nobody hears of it if that fails.
            let moved = self.push(*queue, command, data, None);
            self.counters.bytes_read += if moved.is_ok() { bytes as u64 } else { 0 };
        }
    }

    /// How much longer a rule of the media lets a command take.
    pub(super) fn delay_us(&self, command: &Submission) -> u64 {
        let range = self.range(command);
        let delay = range.zip(self.namespaces.get(&command.nsid.get()));
        delay.map_or(0, |((offset, bytes), namespace)| {
            let (first, blocks) = Namespace::blocks(offset, bytes);
            namespace.state.delay_us(first, blocks)
        })
    }

    /// What a command would write; `None` if that is nothing, or cannot be read any more.
    pub(super) fn pending_write(&mut self, flight: &Flight) -> Option<PendingWrite> {
        let Flight { queue, command, .. } = flight;
        let (offset, bytes) = match command.opcode {
            io::WRITE | io::WRITE_ZEROES if *queue != 0 => self.range(command)?,
            _ => return None,
        };
        let nsid = command.nsid.get();
        if !self.namespaces.get(&nsid).is_some_and(Namespace::works) {
            return None;
        }
        let data = match command.opcode {
            io::WRITE if bytes as u64 <= self.transfer_bytes_max() => {
                self.pull(*queue, command, bytes).ok()?
            }
            io::WRITE_ZEROES if bytes <= ZEROES_TORN_MAX => vec![0; bytes],
            _ => return None,
        };
        let (block, whole) = self.namespaces.get(&nsid)?.whole_blocks(offset, &data);
        let bytes = whole.into_owned();
        Some(PendingWrite { nsid, block, bytes })
    }
}
