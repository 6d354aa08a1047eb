//! A pool read from its devices: superblocks, index checkpoints, journals, values. Never written.

use crate::exit::{Code, Failure};
use anyhow::{Context as _, bail, ensure};
use forebay_nvme::BLOCK_BYTES;
use forebayd::store::checksum;
use forebayd::store::format::journal_page::RingId;
use forebayd::store::format::superblock::COPIES;
use forebayd::store::format::{
    Copies, FormatError, IndexHeader, IndexPage, JournalPage, RecordKind, Superblock, UNIT_BYTES,
    crc32c,
};
use forebayd::store::geometry::ShardRegion;
use forebayd::store::index::{KeyHash, Pointer};
use forebayd::store::{self, Pool};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One device, open for reading.
pub(crate) struct Device {
    path: PathBuf,
    file: File,
    blocks: u64,
}

impl Device {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Self { path: path.to_owned(), file, blocks: length / BLOCK_BYTES as u64 })
    }

    fn read(&self, block: u64, blocks: u64) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        self.file
            .read_exact_at(&mut bytes, block * BLOCK_BYTES as u64)
            .with_context(|| format!("cannot read block {block} of {}", self.path.display()))?;
        Ok(bytes)
    }

    /// Its four superblocks, each with its block.
    pub(crate) fn copies(&self) -> (Vec<u64>, Copies) {
        let places = (0..COPIES).map(|copy| match self.blocks {
            // Too small for any: the first block will say so.
            0..2048 => 0,
            blocks => Superblock::block_of_copy(copy, blocks),
        });
        let places: Vec<u64> = places.collect();
        let copies = places.iter().map(|block| match self.read(*block, 1) {
            Ok(bytes) => Superblock::parse(&bytes),
            Err(_) => Err(FormatError::Field("unreadable block")),
        });
        let copies = Copies::new(copies.collect());
        (places, copies)
    }
}

/// A whole pool.
pub(crate) struct Image {
    /// By their number in the pool.
    devices: Vec<Device>,
    pub(crate) pool: Pool,
}

/// Where a record of a key was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Checkpoint { generation: u64 },
    Journal { sequence: u64 },
}

/// A key that is there.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) pointer: Pointer,
    pub(crate) key: Vec<u8>,
    pub(crate) source: Source,
}

/// What recovery would find in a shard.
#[derive(Debug, Default)]
pub(crate) struct ShardImage {
    pub(crate) keys: BTreeMap<KeyHash, Found>,
    /// Of the newest index checkpoint; 0: there is none.
    pub(crate) generation: u64,
    /// Journal pages behind it.
    pub(crate) journal_pages: u64,
}

impl Image {
    /// Opens the pool on `paths`, in any order.
    pub(crate) fn open(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for path in paths {
            let device = Device::open(path)?;
            let (_, copies) = device.copies();
            let superblock = copies.quorum().map_err(|error| {
                let hint = "look with `forebay inspect superblock`";
                let what = format!("{}: no good superblock ({error}); {hint}", path.display());
                Failure::new(Code::Integrity, what)
            })?;
            found.push((superblock.clone(), device));
        }
        found.sort_by_key(|(superblock, _)| superblock.device_index);
        let first = found.first().map(|(superblock, _)| superblock.clone());
        let first = first.context("no device was named")?;
        for (number, (superblock, device)) in found.iter().enumerate() {
            let shown = device.path.display();
            ensure!(superblock.pool == first.pool, "{shown} belongs to another pool");
            ensure!(
                superblock.device_index as usize == number,
                "{shown} is device {} of the pool, and device {number} is missing",
                superblock.device_index
            );
        }
        let (have, want) = (found.len(), first.device_count);
        ensure!(have == want as usize, "the pool has {want} devices, and {have} were named");
        let devices = found.into_iter().map(|(_, device)| device).collect();
        Ok(Self { devices, pool: Pool::inspect(&first) })
    }

    pub(crate) fn path(&self, device: usize) -> &Path {
        &self.devices[device].path
    }

    fn ring(&self, shard: u32) -> RingId {
        RingId { pool: self.pool.tag(), shard: shard as u16 }
    }

    /// Reads a shard as recovery does: newest checkpoint, then the journal's tail.
    pub(crate) fn shard(&self, shard: u32) -> anyhow::Result<ShardImage> {
        let region = self.pool.region(shard);
        let mut image = ShardImage::default();
        let (mut sequence, mut pages_block) = (1, None);
        for block in region.index_block {
            let bytes = self.devices[region.device].read(block, 1)?;
            let Ok(header) = IndexHeader::parse(&bytes, self.ring(shard)) else { continue };
            if header.generation > image.generation {
                image.generation = header.generation;
                sequence = header.journal_sequence;
                pages_block = Some((block + 1, header.pages));
            }
        }
        if let Some((block, pages)) = pages_block {
            self.load_checkpoint(shard, block, pages, &mut image)
                .with_context(|| format!("shard {shard}: its index checkpoint is damaged"))?;
        }
        self.replay(shard, &region, sequence, &mut image)?;
        Ok(image)
    }

    fn load_checkpoint(
        &self,
        shard: u32,
        block: u64,
        pages: u32,
        image: &mut ShardImage,
    ) -> anyhow::Result<()> {
        let device = &self.devices[self.pool.region(shard).device];
        let source = Source::Checkpoint { generation: image.generation };
        for number in 0..pages {
            let bytes = device.read(block + u64::from(number), 1)?;
            let page = IndexPage::parse(&bytes, self.ring(shard), image.generation, number)?;
            for entry in page.entries() {
                let (entry, key) = entry?;
                let found = Found { pointer: entry.pointer(), key: key.to_vec(), source };
                image.keys.insert(entry.hash(), found);
            }
        }
        Ok(())
    }

    /// Applies the journal from page `sequence` on, to its end.
    fn replay(
        &self,
        shard: u32,
        region: &ShardRegion,
        sequence: u64,
        image: &mut ShardImage,
    ) -> anyhow::Result<()> {
        let ring_pages = u64::from(self.pool.layout().journal_blocks);
        for expected in sequence..sequence + ring_pages {
            let block = region.journal_block + expected % ring_pages;
            let bytes = self.devices[region.device].read(block, 1)?;
            let Ok(page) = JournalPage::parse(&bytes, self.ring(shard)) else { break };
            if page.sequence != expected {
                break;
            }
            image.journal_pages += 1;
            for record in page.records() {
                let record = record.with_context(|| format!("journal page {expected}"))?;
                image.apply(record.kind, record.key, Source::Journal { sequence: expected });
            }
        }
        Ok(())
    }

    /// Reads a value and checks it, as a retrieve does.
    pub(crate) fn value(&self, shard: u32, pointer: &Pointer) -> anyhow::Result<Vec<u8>> {
        let region = self.pool.region(shard);
        let device = &self.devices[region.device];
        let (block_bytes, length) = (BLOCK_BYTES as u64, pointer.length as usize);
        let start = region.segments_block * block_bytes + pointer.address * UNIT_BYTES;
        let first = start / block_bytes;
        let within = (start % block_bytes) as usize;
        let data_blocks = (within + length).div_ceil(BLOCK_BYTES) as u64;
        let page_blocks = u64::from(checksum::has_checksum_page(pointer.length));
        let mut bytes = device.read(first, data_blocks + page_blocks)?;
        let sound = if page_blocks == 1 {
            let (data, page) = bytes.split_at(data_blocks as usize * BLOCK_BYTES);
            checksum::verify(&data[..length], 0, page, pointer.crc).is_some()
        } else {
            crc32c(&bytes[within..within + length]) == pointer.crc
        };
        if !sound {
            bail!(Failure::new(Code::Integrity, "the value does not match its checksum"));
        }
        bytes.truncate(within + length);
        Ok(bytes.split_off(within))
    }

    /// The shard of a key, and the key's identity there.
    pub(crate) fn locate(&self, namespace: u32, key: &[u8]) -> (u32, KeyHash) {
        let hash = store::key_hash(&self.pool.superblock().hash_key, namespace, key);
        let shard = match namespace {
            store::namespace::CATALOG => 0,
            _ => {
                let shards = self.pool.shards();
                forebay_fabric::route::shard_of(self.pool.uuid(), namespace, key, shards)
            }
        };
        (shard, hash)
    }
}

impl ShardImage {
    fn apply(&mut self, kind: RecordKind, key: &[u8], source: Source) {
        match kind {
            RecordKind::Put(entry) => {
                let found = Found { pointer: entry.pointer(), key: key.to_vec(), source };
                self.keys.insert(entry.hash(), found);
            }
            RecordKind::Delete(hash) => {
                self.keys.remove(&hash);
            }
            RecordKind::Move { from, to } => {
                let found = self.keys.get_mut(&to.hash());
                if let Some(found) = found.filter(|found| found.pointer.address == from) {
                    found.pointer = to.pointer();
                    found.source = source;
                }
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checkpoint { generation } => write!(f, "index checkpoint {generation}"),
            Self::Journal { sequence } => write!(f, "journal page {sequence}"),
        }
    }
}
