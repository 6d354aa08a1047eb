//! From an operation to submission queue entries (NVM Command Set 1.0, "I/O Commands"): a [`Plan`] is worked out
//! once, and cut into commands.
//!
//! Guarantees: a command stays inside its request, below what the controller transfers at a time, and on one
//! side of its boundaries; every address is inside the arena. Nothing is written per command but its entry:
//! a PRP list is a run of the arena's page table, and the list of a discard's one range is a page of its own.

use std::sync::atomic::Ordering::Relaxed;

use crate::arena::DmaWords;
use crate::hardware::Mapping;
use crate::pcie::facts::{COMMAND_BLOCKS_MAX, Facts};
use crate::pcie::ring::SubmissionRing;
use crate::spec::opcode::io;
use crate::{BLOCK_BYTES, BlockError, DmaBuf, Operation};

/// Blocks of one command without data: its 16-bit count of 512 B logical blocks, from 0.
const DATALESS_BLOCKS_MAX: u64 = (1 << 16) / (BLOCK_BYTES as u64 / 512);
/// PSDT = 01b in the flags of a command: the data pointer is an SGL descriptor.
const SGL: u64 = 0x40 << 8;
/// FUA in command dword 12.
const FUA: u64 = 1 << 30;
/// Attribute "deallocate" in command dword 11 of Dataset Management.
const DEALLOCATE: u64 = 1 << 2;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A request as its commands need it: worked out once, and looked at for each of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    opcode: u8,
    /// How it fails when the media does.
    pub(super) failure: BlockError,
    /// The first block on the device.
    block: u64,
    /// Blocks in all; 1 for a flush.
    pub(super) blocks: u64,
    /// Where its buffer begins, in bytes from the start of the arena.
    start: u64,
    /// FUA, where it is asked for and makes a difference.
    flags: u64,
    /// A flush follows, for the drive takes no notice of FUA.
    pub(super) then_flush: bool,
}

impl Plan {
    /// All of the drive's cache goes to media.
    pub(super) const FLUSH: Self = Self {
        opcode: io::FLUSH,
        failure: BlockError::Flush,
        block: 0,
        blocks: 1,
        start: 0,
        flags: 0,
        then_flush: false,
    };
}

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
    /// It does not, and a flush has to follow.
    flush_for_fua: bool,
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
            flush_for_fua: facts.ignores_fua,
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

    /// Takes an operation apart that the drive can do, and whose buffer it reaches.
    #[inline(always)]
    pub(super) fn plan(&self, operation: Operation) -> (Plan, Option<DmaBuf>) {
        let transfer = |opcode, failure, block, blocks, buffer: DmaBuf, flags| {
            let start = (buffer.as_shared_ptr().addr() - self.base) as u64;
            let blocks = u64::from(blocks);
            let then_flush = flags != 0 && self.flush_for_fua;
            (Plan { opcode, failure, block, blocks, start, flags, then_flush }, Some(buffer))
        };
        let other = |opcode, failure, block, blocks| {
            (Plan { opcode, failure, block, blocks, ..Plan::FLUSH }, None)
        };
        match operation {
            Operation::Read { block, blocks, buffer } => {
                transfer(io::READ, BlockError::Read, block, blocks, buffer, 0)
            }
            Operation::Write { block, blocks, buffer, fua } => {
                let flags = if fua { self.fua } else { 0 };
                transfer(io::WRITE, BlockError::Write, block, blocks, buffer, flags)
            }
            Operation::Compare { block, blocks, buffer } => {
                transfer(io::COMPARE, BlockError::Read, block, blocks, buffer, 0)
            }
            Operation::Flush => (Plan::FLUSH, None),
            Operation::Discard { block, blocks } => {
                other(io::DATASET_MANAGEMENT, BlockError::Write, block, blocks)
            }
            Operation::WriteZeroes { block, blocks } => {
                other(io::WRITE_ZEROES, BlockError::Write, block, blocks)
            }
            Operation::Verify { block, blocks } => {
                other(io::VERIFY, BlockError::Read, block, blocks)
            }
        }
    }

    /// How many blocks the next command takes, of `left` that begin `offset` behind the plan's first.
    #[inline(always)]
    pub(super) fn piece(&self, plan: &Plan, offset: u64, left: u64) -> u32 {
        if left == 1 { 1 } else { self.piece_of_many(plan, offset, left) }
    }

    fn piece_of_many(&self, plan: &Plan, offset: u64, left: u64) -> u32 {
        let most = match plan.opcode {
            io::READ | io::WRITE | io::COMPARE => {
                let page = plan.start / BLOCK + offset;
                // The rest of its entries in this page of the page table: a list ends there.
                let run = u64::from(COMMAND_BLOCKS_MAX) - page % u64::from(COMMAND_BLOCKS_MAX);
                run.min(u64::from(self.command_blocks_max))
            }
            // A range counts logical blocks in 32 bits.
            io::DATASET_MANAGEMENT => {
                return left.min(u64::from(u32::MAX) >> self.lba_shift) as u32;
            }
            _ => DATALESS_BLOCKS_MAX.min(u64::from(self.command_blocks_max)),
        };
        let to_boundary = match self.boundary_blocks {
            0 => u64::MAX,
            boundary => boundary - (plan.block + offset) % boundary,
        };
        left.min(most).min(to_boundary) as u32
    }

    /// Writes the entry of the command `cid` for `blocks` blocks that begin `offset` behind the plan's first.
    #[inline(always)]
    pub(super) fn push(
        &self,
        ring: &mut SubmissionRing,
        plan: &Plan,
        cid: u16,
        (offset, blocks): (u64, u32),
    ) {
        match plan.opcode {
            io::READ | io::WRITE | io::COMPARE => {
                ring.push(self.transfer(plan, cid, offset, blocks));
            }
            _ => self.push_dataless(ring, plan, cid, (offset, blocks)),
        }
    }

    #[cold]
    fn push_dataless(
        &self,
        ring: &mut SubmissionRing,
        plan: &Plan,
        cid: u16,
        (offset, blocks): (u64, u32),
    ) {
        let (head, block) = (self.head(plan.opcode, cid), plan.block + offset);
        ring.push(match plan.opcode {
            io::FLUSH => [head, 0, 0, 0, 0, 0, 0, 0],
            io::DATASET_MANAGEMENT => self.discard(cid, block, blocks),
            _ => [head, 0, 0, 0, 0, block << self.lba_shift, self.count(blocks), 0],
        });
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

    #[inline(always)]
    fn transfer(&self, plan: &Plan, cid: u16, offset: u64, blocks: u32) -> [u64; 8] {
        // Inside the arena: `reaches` was asked when the request came.
        let start = plan.start + offset * BLOCK;
        let iova = self.iova + start;
        let (flags, data) = match blocks {
            1 => (0, 0),
            2 => (0, iova + BLOCK),
            _ if self.sgl => (SGL, u64::from(blocks) * BLOCK),
            // The entries of the pages behind the first one.
            _ => (0, self.page_table + (start / BLOCK + 1) * 8),
        };
        let head = self.head(plan.opcode, cid) | flags;
        let lba = (plan.block + offset) << self.lba_shift;
        [head, 0, 0, iova, data, lba, self.count(blocks) | plan.flags, 0]
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
