//! What the fuzz targets share: how an input is read, and how the seeds get to disk.
//!
//! The first byte of an input chooses a structure, the second whether its checksums are put right before it
//! is parsed. With wrong checksums hardly anything goes past the first check; with right ones every field
//! is reached, as if an attacker had written it.

use std::path::Path;

/// Bytes in a block on media.
pub const BLOCK_BYTES: usize = 4096;

/// An input, taken apart.
#[derive(Debug)]
pub struct Input<'a> {
    /// Which structure.
    pub structure: u8,
    /// Its checksums are to be put right.
    pub reseal: bool,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// Takes `data` apart; `None` if it is too short to choose.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Option<Self> {
        let [structure, reseal, bytes @ ..] = data else { return None };
        Some(Self { structure: *structure, reseal: reseal & 1 == 1, bytes })
    }

    /// The bytes as a block, with zeroes behind them.
    #[must_use]
    pub fn block(&self) -> Vec<u8> {
        let mut block = self.bytes.to_vec();
        block.resize(BLOCK_BYTES, 0);
        block
    }
}

/// If `FOREBAY_SEEDS` names a folder, writes `seeds` into it and ends the process: so the corpus begins
/// with whole structures. Blocks lose the zeroes at their end.
pub fn write_seeds(seeds: impl Fn() -> Vec<(u8, Vec<u8>)>) {
    let Some(folder) = std::env::var_os("FOREBAY_SEEDS") else { return };
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder).expect("the folder of the seeds");
    for (number, (structure, bytes)) in seeds().into_iter().enumerate() {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for reseal in [0, 1] {
            let name = folder.join(format!("{structure:02}-{number:02}-{reseal}"));
            let seed = [&[structure, reseal], &bytes[..used]].concat();
            std::fs::write(name, seed).expect("a seed");
        }
    }
    std::process::exit(0);
}

/// Writes the CRC32C of `covered` at `at`.
pub fn put_crc(bytes: &mut [u8], at: usize, covered: std::ops::Range<usize>) {
    let crc = forebay_fabric::pdu::crc32c(&bytes[covered]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
