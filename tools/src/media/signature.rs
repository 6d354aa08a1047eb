//! What a device holds, told by its first and last bytes.

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

/// Signatures at the front, as libblkid knows them. The most telling first.
const FRONT: [Signature; 18] = [
    ("a Forebay pool", 0, &FOREBAY),
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

/// Whether what [`find`] found is a pool of ours.
pub(crate) fn is_ours(found: &str) -> bool {
    found.starts_with("a Forebay pool")
}

/// What `file` holds, or `None` if both of its ends are blank.
pub(crate) fn find(file: &mut (impl Read + Seek)) -> io::Result<Option<&'static str>> {
    let length = file.seek(SeekFrom::End(0))?;
    let front = read(file, 0, LOOK_BYTES)?;
    for (what, at, bytes) in FRONT {
        if front.get(at..at + bytes.len()) == Some(bytes) {
            return Ok(Some(what));
        }
    }
    if ZFS_RING.step_by(ZFS_STEP).any(|at| front.get(at..at + ZFS.len()) == Some(&ZFS)) {
        return Ok(Some("a ZFS member"));
    }
    let back = read(file, length.saturating_sub(LOOK_BYTES), LOOK_BYTES)?;
    let back_signature = |bytes: &[u8]| back.windows(bytes.len()).any(|window| window == bytes);
    if back_signature(b"EFI PART") {
        return Ok(Some("a GPT partition table (its second copy)"));
    }
    if back_signature(&FOREBAY) {
        return Ok(Some("a Forebay pool (its last superblocks)"));
    }
    let blank = front.iter().chain(&back).all(|byte| *byte == 0);
    Ok((!blank).then_some("data of unknown kind"))
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
    use std::io::Write;

    fn found(place: Option<(u64, &[u8])>) -> Option<&'static str> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.set_len(8 << 20).expect("8 MiB");
        if let Some((at, bytes)) = place {
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.write_all(bytes).expect("write");
        }
        find(&mut file).expect("readable")
    }

    #[test]
    fn every_signature_is_found_by_its_name() {
        for (what, at, bytes) in FRONT {
            assert_eq!(found(Some((at as u64, bytes))), Some(what));
        }
    }

    #[test]
    fn blank_is_blank_and_one_byte_at_either_end_is_not() {
        assert_eq!(found(None), None);
        assert_eq!(found(Some((5000, &[1]))), Some("data of unknown kind"));
        assert_eq!(found(Some(((8 << 20) - 1, &[1]))), Some("data of unknown kind"));
        let last = found(Some(((7 << 20), &FOREBAY)));
        assert_eq!(last, Some("a Forebay pool (its last superblocks)"));
        assert!(last.is_some_and(is_ours));
        let zfs = found(Some((200 << 10, &ZFS)));
        assert_eq!(zfs, Some("a ZFS member"));
        assert!(!zfs.is_some_and(is_ours));
    }

    #[test]
    fn a_file_shorter_than_any_signature_is_read_without_harm() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(find(&mut file).unwrap(), None);
        file.write_all(b"x").unwrap();
        assert_eq!(find(&mut file).unwrap(), Some("data of unknown kind"));
    }
}
