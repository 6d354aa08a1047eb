//! A namespace: its format, and its media.
//!
//! Guarantees: those of the simulated media (`crate::sim`), at the size of its logical blocks. A write of less
//! than 4 KiB takes its neighbours along as they are at that moment, as drives with larger physical blocks do.

use std::borrow::Cow;

use fastrand::Rng;

use super::config::NamespaceConfig;
use crate::BLOCK_BYTES;
use crate::sim::Faults;
use crate::sim::faults::{FaultState, Rule, WriteFate};
use crate::sim::media::{Block, Media};
use crate::spec::status::{Status, media};

const BLOCK: u64 = BLOCK_BYTES as u64;

#[derive(Debug)]
pub(super) struct Namespace {
    config: NamespaceConfig,
    media: Media,
    pub(super) state: FaultState,
}

impl Namespace {
    pub(super) fn new(config: NamespaceConfig, faults: Faults, seed: u64) -> Self {
        let state = FaultState { faults, rules: Vec::new(), rng: Rng::with_seed(seed) };
        Self { config, media: Media::default(), state }
    }

    pub(super) fn config(&self) -> &NamespaceConfig {
        &self.config
    }

    pub(super) fn config_mut(&mut self) -> &mut NamespaceConfig {
        &mut self.config
    }

    pub(super) fn nsid(&self) -> u32 {
        self.config.nsid
    }

    pub(super) fn bytes(&self) -> u64 {
        self.config.lbas.saturating_mul(self.config.lba_bytes())
    }

    /// Where these logical blocks are, in bytes; `None`: not all of them are there.
    pub(super) fn range(&self, lba: u64, lbas: u64) -> Option<(u64, usize)> {
        let lba_bytes = self.config.lba_bytes();
        let end = lba.checked_add(lbas).filter(|end| *end <= self.config.lbas)?;
        end.checked_mul(lba_bytes).filter(|_| lba_bytes > 0)?;
        Some((lba * lba_bytes, usize::try_from(lbas * lba_bytes).ok()?))
    }

    /// Its logical blocks can be emulated: they have no metadata, and a size that there is.
    pub(super) fn works(&self) -> bool {
        self.config.lba_bytes() > 0 && self.config.protection & 7 == 0
    }

    /// The blocks of 4 KiB that hold a range of bytes: the first, and how many.
    pub(super) fn blocks(offset: u64, bytes: usize) -> (u64, u64) {
        let first = offset / BLOCK;
        (first, (offset + bytes as u64).div_ceil(BLOCK) - first)
    }

    /// What the media holds, without faults.
    pub(super) fn content(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let (first, blocks) = Self::blocks(offset, bytes);
        let mut whole = vec![0; blocks as usize * BLOCK_BYTES];
        self.media.read(first, &mut whole);
        let skip = (offset % BLOCK) as usize;
        if skip != 0 || whole.len() != bytes {
            whole.copy_within(skip..skip + bytes, 0);
            whole.truncate(bytes);
        }
        whole
    }

    pub(super) fn read(&mut self, offset: u64, bytes: usize) -> Result<Vec<u8>, Status> {
        let (first, blocks) = Self::blocks(offset, bytes);
        if self.state.read_fails(first, blocks) {
            return Err(Status::new(media::UNRECOVERED_READ_ERROR).with_do_not_retry());
        }
        if self.state.hit(self.state.faults.bit_rot_per_mille) {
            let block = first + self.state.rng.u64(..blocks);
            let bit = self.state.rng.usize(..BLOCK_BYTES * 8);
            self.flip(block, bit);
        }
        Ok(self.content(offset, bytes))
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> Result<(), Status> {
        let (first, data) = self.whole_blocks(offset, data);
        let blocks = (data.len() / BLOCK_BYTES) as u64;
        let device_blocks = self.bytes().div_ceil(BLOCK);
        match self.state.write_fate(first, blocks, device_blocks) {
            WriteFate::Written => self.media.write(first, &data, durable),
            WriteFate::Lost => {}
            WriteFate::LandsAt(other) => self.media.write(other, &data, durable),
            WriteFate::Failed => {
                let rng = &mut self.state.rng;
                self.media.write_some(first, &data, durable, |_| rng.bool());
                return Err(Status::new(media::WRITE_FAULT).with_do_not_retry());
            }
        }
        Ok(())
    }

    /// Zeroes without a transfer. Whole blocks share one.
    pub(super) fn zero(&mut self, offset: u64, bytes: usize, durable: bool) -> Result<(), Status> {
        let (first, blocks) = Self::blocks(offset, bytes);
        let whole = offset.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK_BYTES);
        if !whole {
            return self.write(offset, &vec![0; bytes], durable);
        }
        let device_blocks = self.bytes().div_ceil(BLOCK);
        match self.state.write_fate(first, blocks, device_blocks) {
            WriteFate::Failed => Err(Status::new(media::WRITE_FAULT).with_do_not_retry()),
            WriteFate::Lost => Ok(()),
            WriteFate::Written | WriteFate::LandsAt(_) => {
                self.media.zero(first, blocks, durable);
                Ok(())
            }
        }
    }

    /// The write in whole blocks, with what is around it.
    pub(super) fn whole_blocks<'a>(&self, offset: u64, data: &'a [u8]) -> (u64, Cow<'a, [u8]>) {
        let (first, blocks) = Self::blocks(offset, data.len());
        let skip = (offset % BLOCK) as usize;
        if skip == 0 && data.len().is_multiple_of(BLOCK_BYTES) {
            return (first, Cow::Borrowed(data));
        }
        let mut whole = vec![0; blocks as usize * BLOCK_BYTES];
        self.media.read(first, &mut whole);
        whole[skip..skip + data.len()].copy_from_slice(data);
        (first, Cow::Owned(whole))
    }

    /// Writes those of some whole blocks for which `keep` says so.
    pub(super) fn write_some(
        &mut self,
        first: u64,
        data: &[u8],
        durable: bool,
        keep: impl FnMut(u64) -> bool,
    ) {
        self.media.write_some(first, data, durable, keep);
    }

    /// The blocks that lie wholly in the range become zeroes, or not.
    pub(super) fn discard(&mut self, offset: u64, bytes: u64) {
        let first = offset.div_ceil(BLOCK);
        let end = (offset + bytes) / BLOCK;
        if first < end {
            self.media.discard(first, end - first, &mut self.state.rng);
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Status> {
        if self.state.flush_fails() {
            self.media.fail_flush(&mut self.state.rng);
            return Err(Status::new(media::WRITE_FAULT).with_do_not_retry());
        }
        self.media.flush();
        Ok(())
    }

    /// Everything becomes durable.
    pub(super) fn settle(&mut self) {
        self.media.flush();
    }

    /// Gives it another LBA format, and blank media. `false`: it has no such format.
    pub(super) fn format(&mut self, format: u8) -> bool {
        if usize::from(format) >= self.config.formats.len() {
            return false;
        }
        let bytes = self.bytes();
        self.config.format = format;
        self.config.lbas = bytes / self.config.lba_bytes().max(1);
        self.media = Media::default();
        true
    }

    pub(super) fn crash<'a>(
        &mut self,
        in_flight: impl Iterator<Item = (u64, &'a [u8])>,
        rng: &mut Rng,
    ) {
        let faults = self.state.faults;
        self.media.crash(in_flight, faults.atomic_bytes, faults.reordering, rng);
    }

    /// Turns one bit over, for good.
    pub(super) fn flip(&mut self, block: u64, bit: usize) {
        self.edit(block, |data| data[bit / 8] ^= 1 << (bit % 8));
    }

    pub(super) fn edit(&mut self, block: u64, change: impl FnMut(&mut Block)) {
        self.media.edit(block, change);
    }

    pub(super) fn add_rule(&mut self, rule: Rule) {
        self.state.rules.push(rule);
    }
}
