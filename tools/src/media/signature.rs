//! What a device holds, told by its first and last bytes.

use forebayd::store::format::Superblock;
use forebayd::store::format::superblock::MAGIC as FOREBAY;
use std::io::{self, Read, Seek, SeekFrom};

/// How much of each end is looked at, in bytes: every signature below lies in it, and so do our own
/// superblocks.
const LOOK_BYTES: u64 = 2 << 20;

/// A signature: what it stands for, where it begins, its bytes.
type Signature = (&'static str, usize, &'static [u8]);

/// ZFS keeps a ring of uberblocks in its first label, of which any may be the first written.
const ZFS_RING: std::ops::Range<usize> = 128 << 10..256 << 10;
/// How far apart they lie at least, in bytes.
const ZFS_STEP: usize = 1024;
/// What each begins with, as a little-endian machine writes it.
const ZFS: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();

/// Others' signatures at the front, as libblkid knows them. The most telling first.
const FRONT: [Signature; 17] = [
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an encrypted volume (LUKS)", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an md RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("an md RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("an ext file system", 1080, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 65_600, b"_BHRfS_M"),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("a bcachefs file system", 4120, &[0xc6, 0x85, 0x73, 0xf6]),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a swap area", 4086, b"SWAPSPACE2"),
    ("a squashfs file system", 0, b"hsqs"),
    ("an ISO 9660 file system", 32_769, b"CD001"),
    ("a partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// What a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A pool of ours, and nothing of anybody else's.
    Ours(&'static str),
    /// Something else.
    Foreign(&'static str),
}

impl Found {
    /// In words.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Ours(what) | Self::Foreign(what) => what,
        }
    }
}

/// What `file` holds, or `None` if both of its ends are blank.
///
/// What others wrote comes first: most leave some of what was there before them, so that an old
/// superblock of ours says little beside a file system.
pub(crate) fn find(file: &mut (impl Read + Seek)) -> io::Result<Option<Found>> {
    let length = file.seek(SeekFrom::End(0))?;
    let front = read(file, 0, LOOK_BYTES)?;
    let back = read(file, length.saturating_sub(LOOK_BYTES), LOOK_BYTES)?;
    Ok(foreign(&front, &back).map(Found::Foreign).or_else(|| own(&front, &back)))
}

/// The most telling signature of others'.
fn foreign(front: &[u8], back: &[u8]) -> Option<&'static str> {
    let at_front = |at: usize, bytes: &[u8]| front.get(at..at + bytes.len()) == Some(bytes);
    let found = FRONT.iter().find(|(_, at, bytes)| at_front(*at, bytes));
    if let Some((what, ..)) = found {
        return Some(what);
    }
    if ZFS_RING.step_by(ZFS_STEP).any(|at| at_front(at, &ZFS)) {
        return Some("a ZFS member");
    }
    contains(back, b"EFI PART").then_some("a GPT partition table (its second copy)")
}

/// A pool of ours, its remains, or what nobody knows.
fn own(front: &[u8], back: &[u8]) -> Option<Found> {
    let blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if Superblock::parse(front).is_ok() {
        return Some(Found::Ours("a Forebay pool"));
    }
    match (contains(back, &FOREBAY), blank(front)) {
        // Somebody wiped its front; its end is enough to know it, and not enough to open it.
        (true, true) => Some(Found::Ours("a Forebay pool (its last superblocks)")),
        (true, false) => Some(Found::Foreign("data of unknown kind over a Forebay pool")),
        (false, _) if front.starts_with(&FOREBAY) => {
            Some(Found::Foreign("what is left of a Forebay pool"))
        }
        (false, true) if blank(back) => None,
        (false, _) => Some(Found::Foreign("data of unknown kind")),
    }
}

/// Whether a sector begins so: all that is looked for behind the front does.
fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.chunks(512).any(|sector| sector.starts_with(what))
}

fn read(file: &mut (impl Read + Seek), from: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::blocks::Blocks;
    use forebay_nvme::sim::{SimConfig, SimDevice};
    use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue};
    use forebayd::store::geometry::FormatOptions;
    use forebayd::store::pool::{self, Identity};
    use std::io::Cursor;

    const FOREIGN: fn(&'static str) -> Option<Found> = |what| Some(Found::Foreign(what));

    /// What is found in 8 MiB of zeros but for these bytes.
    fn found(places: &[(usize, &[u8])]) -> Option<Found> {
        let mut bytes = vec![0; 8 << 20];
        for (at, what) in places {
            bytes[*at..at + what.len()].copy_from_slice(what);
        }
        find(&mut Cursor::new(bytes)).expect("readable")
    }

    /// The first block of a pool.
    fn superblock() -> Vec<u8> {
        let memory = Arena::on_demand(8 << 20).unwrap().pool();
        let device = SimDevice::new(SimConfig { blocks: 1 << 18, ..SimConfig::default() });
        let identity =
            Identity { pool: [1; 16], devices: vec![[2; 16]], hash_key: [3; 16], created_s: 4 };
        let queues: &mut [Box<dyn BlockQueue>] = &mut [Box::new(device.queue())];
        pool::format(queues, &memory, &identity, FormatOptions::default()).unwrap();
        let mut block = vec![0; BLOCK_BYTES];
        Blocks::new(queues[0].as_mut(), &memory).read_exact(&mut block).unwrap();
        block
    }

    #[test]
    fn every_signature_is_found_by_its_name() {
        for (what, at, bytes) in FRONT {
            assert_eq!(found(&[(at, bytes)]), FOREIGN(what));
        }
        assert_eq!(found(&[(200 << 10, &ZFS)]), FOREIGN("a ZFS member"));
    }

    #[test]
    fn blank_is_blank_and_one_byte_at_either_end_is_not() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[(5000, &[1])]), FOREIGN("data of unknown kind"));
        assert_eq!(found(&[((8 << 20) - 1, &[1])]), FOREIGN("data of unknown kind"));
    }

    #[test]
    fn a_pool_is_known_by_a_whole_superblock_or_by_its_end() {
        let superblock = superblock();
        let ours = Some(Found::Ours("a Forebay pool"));
        assert_eq!(found(&[(0, &superblock)]), ours);
        assert_eq!(found(&[(0, &superblock), (1 << 20, &superblock), (7 << 20, &FOREBAY)]), ours);
        let end = Some(Found::Ours("a Forebay pool (its last superblocks)"));
        assert_eq!(found(&[(7 << 20, &FOREBAY)]), end);
        assert_eq!(found(&[(0, &FOREBAY)]), FOREIGN("what is left of a Forebay pool"));
        let over = FOREIGN("data of unknown kind over a Forebay pool");
        assert_eq!(found(&[(9000, &[1]), (7 << 20, &FOREBAY)]), over);
    }

    /// Most of what is put on a device leaves alone what it does not need: an old superblock hid
    /// what came after it.
    #[test]
    fn an_old_superblock_hides_nothing_that_came_after_it() {
        let superblock = superblock();
        let outside = FRONT.iter().filter(|(_, at, _)| *at >= BLOCK_BYTES);
        assert_eq!(outside.clone().count(), 5);
        for (what, at, bytes) in outside {
            assert_eq!(found(&[(0, &superblock), (*at, bytes)]), FOREIGN(what));
        }
        for (what, at, bytes) in FRONT {
            assert_eq!(found(&[(at, bytes), (7 << 20, &FOREBAY)]), FOREIGN(what));
        }
        let second = (8 << 20) - 512;
        let gpt = FOREIGN("a GPT partition table (its second copy)");
        assert_eq!(found(&[(0, &superblock), (second, b"EFI PART")]), gpt);
        assert_eq!(found(&[(0, &superblock), (200 << 10, &ZFS)]), FOREIGN("a ZFS member"));
    }

    #[test]
    fn a_file_shorter_than_any_signature_is_read_without_harm() {
        assert_eq!(find(&mut Cursor::new(vec![])).unwrap(), None);
        assert_eq!(find(&mut Cursor::new(b"x")).unwrap(), FOREIGN("data of unknown kind"));
    }
}
