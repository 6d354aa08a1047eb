//! Moving a command's data: PRPs, lists of them, SGL data blocks (NVMe Base 2.0, "Physical Region Page Entry and
//! List", "Scatter Gather List").
//!
//! Guarantees: no byte moves outside of what the command names and the IOMMU allows; an entry with an offset
//! that it must not have is remembered as a violation, and refused.

use super::counters::Violation;
use super::device::Device;
use super::faults::Fault;
use super::queues::QueueId;
use crate::spec::command::{Data, Submission};
use crate::spec::status::{Status, generic};

const ENTRY_BYTES: usize = 8;

/// A piece of memory, for the device.
type Piece = (u64, usize);

impl Device {
    /// The device reads memory. `false`: it may not.
    pub(super) fn read_memory(&mut self, iova: u64, into: &mut [u8]) -> bool {
        self.may_access() && self.dma.read(iova, into)
    }

    /// The device writes memory. `false`: it may not.
    pub(super) fn write_memory(&mut self, iova: u64, from: &[u8]) -> bool {
        self.may_access() && self.dma.write(iova, from)
    }

    /// As [`Device::read_memory`], without a trace in the counters when the bus is not its own.
    pub(super) fn peek_memory(&self, iova: u64, into: &mut [u8]) -> bool {
        self.bus_master && self.dma.read(iova, into)
    }

    fn may_access(&mut self) -> bool {
        self.counters.bus_master_blocked += u64::from(!self.bus_master);
        self.bus_master
    }

    /// A write to where nobody told it to.
    pub(super) fn stray(&mut self) {
        self.counters.stray_dma += 1;
        let iova = self.dma.nowhere() + self.rng.u64(..1 << 20) * 4096;
        // The IOMMU blocks it: that is what it is made for.
        let done = self.write_memory(iova, &[0xBA; 64]);
        debug_assert!(!done, "{iova:#x} is mapped");
    }

    /// The command's data, from the host.
    pub(super) fn pull(
        &mut self,
        queue: QueueId,
        command: &Submission,
        bytes: usize,
    ) -> Result<Vec<u8>, Status> {
        let pieces = self.pieces(queue, command, bytes)?;
        let mut data = vec![0; bytes];
        let mut rest = &mut data[..];
        for (iova, bytes) in pieces {
            let (piece, behind) = rest.split_at_mut(bytes);
            if !self.read_memory(iova, piece) {
                return Err(Status::new(generic::DATA_TRANSFER_ERROR));
            }
            rest = behind;
        }
        Ok(data)
    }

    /// The command's data, to the host; spoiled as the fault says.
    pub(super) fn push(
        &mut self,
        queue: QueueId,
        command: &Submission,
        mut data: Vec<u8>,
        fault: Option<Fault>,
    ) -> Result<(), Status> {
        let pieces = self.pieces(queue, command, data.len())?;
        match fault {
            Some(Fault::Garbage) => self.rng.fill(&mut data),
            Some(Fault::Zeroes) => data.fill(0),
            Some(Fault::Short(bytes)) => data.truncate(bytes & !7),
            _ => {}
        }
        let mut rest = &data[..];
        for (iova, bytes) in pieces {
            let (piece, behind) = rest.split_at(bytes.min(rest.len()));
            if !piece.is_empty() && !self.write_memory(iova, piece) {
                return Err(Status::new(generic::DATA_TRANSFER_ERROR));
            }
            rest = behind;
        }
        Ok(())
    }

    /// Where the command's data is.
    fn pieces(
        &mut self,
        queue: QueueId,
        command: &Submission,
        bytes: usize,
    ) -> Result<Vec<Piece>, Status> {
        match command.data() {
            Some(Data::Prp(first, second)) => self.prp_pieces(first, second, bytes),
            // Base, "Command Dword 0": admin commands on PCIe use PRPs.
            Some(Data::Sgl { address, bytes: there }) if queue != 0 && self.has_sgl() => {
                self.sgl_pieces(address, there as usize, bytes)
            }
            Some(Data::Sgl { .. }) => Err(invalid(generic::INVALID_FIELD)),
            None if self.has_sgl() => Err(invalid(generic::INVALID_SGL_TYPE)),
            None => Err(invalid(generic::INVALID_FIELD)),
        }
    }

    fn has_sgl(&self) -> bool {
        matches!(self.config.identity.sgls & 3, 1 | 2)
    }

    fn sgl_pieces(
        &mut self,
        address: u64,
        there: usize,
        bytes: usize,
    ) -> Result<Vec<Piece>, Status> {
        // SGLS bit 18: a descriptor may be longer than the transfer.
        let longer = self.config.identity.sgls & 1 << 18 != 0;
        if there < bytes || there > bytes && !longer {
            return Err(invalid(generic::INVALID_DATA_SGL_LENGTH));
        }
        if address & 3 != 0 {
            self.violation(Violation::MisalignedPrp { address });
            return Err(invalid(generic::INVALID_SGL_OFFSET));
        }
        Ok(vec![(address, bytes)])
    }

    fn prp_pieces(&mut self, first: u64, second: u64, bytes: usize) -> Result<Vec<Piece>, Status> {
        let page = self.page_bytes;
        self.check_alignment(first, 4)?;
        let head = bytes.min(page - first as usize % page);
        let mut pieces = vec![(first, head)];
        let mut left = bytes - head;
        if left > page {
            for entry in self.prp_list(second, left.div_ceil(page))? {
                self.check_alignment(entry, page)?;
                pieces.push((entry, left.min(page)));
                left -= left.min(page);
            }
        } else if left > 0 {
            self.check_alignment(second, page)?;
            pieces.push((second, left));
        }
        Ok(pieces)
    }

    /// `count` entries of a list that begins at `list`, at any offset in a page. The last entry of a page that
    /// is not the end of the list points to its next page.
    fn prp_list(&mut self, mut list: u64, count: usize) -> Result<Vec<u64>, Status> {
        let page = self.page_bytes;
        let mut entries = Vec::with_capacity(count);
        // A page with nothing but a pointer is allowed once, at the beginning.
        for _ in 0..=count {
            self.check_alignment(list, ENTRY_BYTES)?;
            let left = count - entries.len();
            let room = (page - list as usize % page) / ENTRY_BYTES;
            let mut bytes = vec![0; left.min(room) * ENTRY_BYTES];
            if !self.read_memory(list, &mut bytes) {
                return Err(Status::new(generic::DATA_TRANSFER_ERROR));
            }
            entries.extend(bytes.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)));
            if left <= room {
                return Ok(entries);
            }
            list = entries.pop().unwrap_or_default();
        }
        Err(self.misaligned(list))
    }

    fn check_alignment(&mut self, address: u64, to: usize) -> Result<(), Status> {
        if address.is_multiple_of(to as u64) { Ok(()) } else { Err(self.misaligned(address)) }
    }

    fn misaligned(&mut self, address: u64) -> Status {
        self.violation(Violation::MisalignedPrp { address });
        invalid(generic::INVALID_PRP_OFFSET)
    }
}

/// The host's fault.
fn invalid(full: u16) -> Status {
    Status::new(full).with_do_not_retry()
}
