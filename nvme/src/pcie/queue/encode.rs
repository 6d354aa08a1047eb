//! From an operation to submission queue entries (NVM Command Set 1.0, "I/O Commands").
//!
//! Guarantees: a command stays inside its request, below what the controller transfers at a time, and on one
//! side of its boundaries; every address is inside the arena. Nothing is written per command but its entry:
//! a PRP list is a run of the arena's page table, and the list of a discard's one range is a page of its own.

use std::sync::atomic::Ordering::Relaxed;

use crate::arena::DmaWords;
use crate::hardware::Mapping;
use crate::pcie::facts::{COMMAND_BLOCKS_MAX, Facts};
use crate::spec::opcode::io;
use crate::{BLOCK_BYTES, DmaBuf, Operation};

/// Blocks of one command without data: its 16-bit count of 512 B logical blocks, from 0.
const DATALESS_BLOCKS_MAX: u64 = (1 << 16) / (BLOCK_BYTES as u64 / 512);
/// PSDT = 01b in the flags of a command: the data pointer is an SGL descriptor.
const SGL: u64 = 0x40 << 8;
/// FUA in command dword 12.
const FUA: u64 = 1 << 30;
/// Attribute "deallocate" in command dword 11 of Dataset Management.
const DEALLOCATE: u64 = 1 << 2;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a queue knows of its drive and its memory.
#[derive(Debug)]
pub(super) struct Encoder {
    mapping: Mapping,
    /// The arena's first address, its length, and its address for the device: the mapping's, at hand.
    base: usize,
    bytes: usize,
    iova: u64,
    /// IOVA of the arena's page table.
    page_table: u64,
    namespace: u64,
    lba_shift: u32,
    command_blocks_max: u32,
    boundary_blocks: u64,
    sgl: bool,
    /// What makes a write durable: nothing, where nothing is cached.
    fua: u64,
    /// One dataset management range for each place of a command.
    ranges: Option<(DmaWords, u64)>,
}

impl Encoder {
    pub(super) fn new(
        facts: &Facts,
        mapping: Mapping,
        page_table: u64,
        ranges: Option<(DmaWords, u64)>,
    ) -> Self {
        Self {
            base: mapping.span().address(),
            bytes: mapping.span().bytes(),
            iova: mapping.iova(),
            mapping,
            page_table,
            namespace: u64::from(facts.namespace) << 32,
            lba_shift: facts.lba_shift(),
            command_blocks_max: facts.command_blocks_max,
            boundary_blocks: u64::from(facts.boundary_blocks),
            sgl: facts.sgl,
            fua: if facts.volatile_write_cache { FUA } else { 0 },
            ranges,
        }
    }

    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Whether all of the buffer is memory that the device reaches.
    #[inline]
    pub(super) fn reaches(&self, buffer: &DmaBuf) -> bool {
        let offset = buffer.as_shared_ptr().addr().wrapping_sub(self.base);
        offset < self.bytes && buffer.len() <= self.bytes - offset
    }

    /// How many blocks the next command takes, of `left` that begin `offset` behind the operation's first.
    #[inline]
    pub(super) fn piece(&self, operation: &Operation, offset: u64, left: u64) -> u32 {
        let (block, most) = match operation {
            Operation::Read { block, buffer, .. }
            | Operation::Write { block, buffer, .. }
            | Operation::Compare { block, buffer, .. } => {
                if left == 1 {
                    return 1;
                }
                let page = (buffer.as_shared_ptr().addr() - self.base) as u64 / BLOCK + offset;
                // The rest of its entries in this page of the page table: a list ends there.
                let run = u64::from(COMMAND_BLOCKS_MAX) - page % u64::from(COMMAND_BLOCKS_MAX);
                (*block, run.min(u64::from(self.command_blocks_max)))
            }
            Operation::WriteZeroes { block, .. } | Operation::Verify { block, .. } => {
                (*block, DATALESS_BLOCKS_MAX.min(u64::from(self.command_blocks_max)))
            }
            // A range counts logical blocks in 32 bits.
            Operation::Discard { .. } => {
                return left.min(u64::from(u32::MAX) >> self.lba_shift) as u32;
            }
            Operation::Flush => return 1,
        };
        let to_boundary = match self.boundary_blocks {
            0 => u64::MAX,
            boundary => boundary - (block + offset) % boundary,
        };
        left.min(most).min(to_boundary) as u32
    }

    /// The entry of the command `cid` for `blocks` blocks that begin `offset` behind the operation's first.
    #[inline]
    pub(super) fn entry(
        &self,
        operation: &Operation,
        cid: u16,
        offset: u64,
        blocks: u32,
    ) -> [u64; 8] {
        match operation {
            Operation::Read { block, buffer, .. } => {
                self.transfer(io::READ, cid, *block + offset, offset, blocks, buffer, 0)
            }
            Operation::Write { block, buffer, fua, .. } => {
                let flags = if *fua { self.fua } else { 0 };
                self.transfer(io::WRITE, cid, *block + offset, offset, blocks, buffer, flags)
            }
            Operation::Compare { block, buffer, .. } => {
                self.transfer(io::COMPARE, cid, *block + offset, offset, blocks, buffer, 0)
            }
            Operation::Flush => [self.head(io::FLUSH, cid), 0, 0, 0, 0, 0, 0, 0],
            Operation::WriteZeroes { block, .. } => {
                self.dataless(io::WRITE_ZEROES, cid, *block + offset, blocks)
            }
            Operation::Verify { block, .. } => {
                self.dataless(io::VERIFY, cid, *block + offset, blocks)
            }
            Operation::Discard { block, .. } => self.discard(cid, *block + offset, blocks),
        }
    }

    /// Dwords 0 and 1: opcode, CID, namespace.
    #[inline]
    fn head(&self, opcode: u8, cid: u16) -> u64 {
        u64::from(opcode) | u64::from(cid) << 16 | self.namespace
    }

    /// Dword 12: the count of logical blocks, from 0.
    #[inline]
    fn count(&self, blocks: u32) -> u64 {
        (u64::from(blocks) << self.lba_shift) - 1
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one entry")]
    #[inline]
    fn transfer(
        &self,
        opcode: u8,
        cid: u16,
        block: u64,
        offset: u64,
        blocks: u32,
        buffer: &DmaBuf,
        flags: u64,
    ) -> [u64; 8] {
        // Inside the arena: `reaches` was asked when the request came.
        let start = (buffer.as_shared_ptr().addr() - self.base) as u64 + offset * BLOCK;
        let iova = self.iova + start;
        let (head, data) = match blocks {
            1 => (0, [iova, 0]),
            2 => (0, [iova, iova + BLOCK]),
            _ if self.sgl => (SGL, [iova, u64::from(blocks) * BLOCK]),
            // The entries of the pages behind the first one.
            _ => (0, [iova, self.page_table + (start / BLOCK + 1) * 8]),
        };
        let head = head | self.head(opcode, cid);
        let lba = block << self.lba_shift;
        [head, 0, 0, data[0], data[1], lba, self.count(blocks) | flags, 0]
    }

    fn dataless(&self, opcode: u8, cid: u16, block: u64, blocks: u32) -> [u64; 8] {
        let lba = block << self.lba_shift;
        [self.head(opcode, cid), 0, 0, 0, 0, lba, self.count(blocks), 0]
    }

    /// Dataset Management with one range: attributes and length, then the first logical block.
    fn discard(&self, cid: u16, block: u64, blocks: u32) -> [u64; 8] {
        let (words, iova) = self.ranges.as_ref().expect("there if the drive has the command");
        let place = usize::from(super::commands::place_of(cid));
        let range = &words.words()[2 * place..2 * place + 2];
        range[0].store((u64::from(blocks) << self.lba_shift) << 32, Relaxed);
        range[1].store(block << self.lba_shift, Relaxed);
        let iova = iova + place as u64 * 16;
        [self.head(io::DATASET_MANAGEMENT, cid), 0, 0, iova, 0, DEALLOCATE << 32, 0, 0]
    }
}
