//! The catalog's records: what makes a checkpoint exist, and what keeps a session over a restart.
//!
//! Each has a magic, a version and a checksum of its own beside the store's: a record of another
//! version must never be taken for garbage, because its chunks would be freed.

use forebay_fabric::checkpoint::{
    CheckpointEntry, MANIFEST_BYTES_MAX, MANIFEST_PART_BYTES, NAME_BYTES_MAX, SessionId, check_name,
};
use forebay_fabric::pdu::{DecodeError, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the keys of [`CommitRecord`]s begin with; the checkpoint's name follows.
pub const COMMIT_PREFIX: &[u8] = b"ckpt/";
/// What the keys of [`SessionRecord`]s begin with; the session's id in hexadecimal follows.
pub const SESSION_PREFIX: &[u8] = b"ckpt-session/";
/// The most parts of a manifest.
pub const PARTS_MAX: usize = MANIFEST_BYTES_MAX / MANIFEST_PART_BYTES;
const VERSION: u16 = 1;
const COMMIT_MAGIC: [u8; 4] = *b"FBCC";
const SESSION_MAGIC: [u8; 4] = *b"FBCS";

/// The record that commits a checkpoint, under `ckpt/<name>`: 112 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommitRecord {
    /// `b"FBCC"`.
    pub magic: [u8; 4],
    /// 1.
    pub version: U16,
    /// How many parts the manifest has.
    pub parts: U16,
    /// Whose chunks these are.
    pub session: SessionId,
    /// The session's epoch.
    pub epoch: U64,
    /// Grows with each commit of the pool: the order of LIST.
    pub sequence: U64,
    /// When, in seconds of Unix time.
    pub committed_s: U64,
    /// Bytes of all tensors.
    pub data_bytes: U64,
    /// Bytes of the manifest.
    pub manifest_bytes: U64,
    /// How many ranks.
    pub world: U32,
    /// How many boxes.
    pub tensors: U32,
    /// How many chunks.
    pub chunks: U32,
    /// CRC32C of each part of the manifest; zero behind the last.
    pub part_crcs: [U32; PARTS_MAX],
    /// CRC32C of the 108 bytes before it.
    pub crc: U32,
}
const COMMIT_BYTES: usize = 112;
const _: () = assert!(size_of::<CommitRecord>() == COMMIT_BYTES);

impl CommitRecord {
    /// The key of the record of checkpoint `name`.
    #[must_use]
    pub fn key(name: &str) -> Vec<u8> {
        [COMMIT_PREFIX, name.as_bytes()].concat()
    }

    /// The record with magic, version and checksum filled in.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.magic = COMMIT_MAGIC;
        self.version = VERSION.into();
        self.crc = crc32c(&self.as_bytes()[..COMMIT_BYTES - 4]).into();
        self
    }

    /// Reads and checks a record, and the name in its key.
    ///
    /// # Errors
    /// [`DecodeError`]: damaged, or of another version.
    pub fn decode<'a>(key: &'a [u8], value: &[u8]) -> Result<(&'a str, Self), DecodeError> {
        let name = key.strip_prefix(COMMIT_PREFIX).ok_or(DecodeError::Field("key"))?;
        let record = *Self::ref_from_bytes(value).map_err(|_| DecodeError::Length)?;
        if record.magic != COMMIT_MAGIC {
            return Err(DecodeError::Field("magic"));
        }
        if crc32c(&value[..COMMIT_BYTES - 4]) != record.crc.get() {
            return Err(DecodeError::Checksum);
        }
        if record.version.get() != VERSION {
            return Err(DecodeError::Field("version"));
        }
        let parts = record.manifest_bytes.get().div_ceil(MANIFEST_PART_BYTES as u64);
        if u64::from(record.parts.get()) != parts || parts > PARTS_MAX as u64 {
            return Err(DecodeError::Field("parts"));
        }
        Ok((check_name(name)?, record))
    }

    /// Its entry in LIST's answer.
    #[must_use]
    pub fn entry(&self, name: &str) -> CheckpointEntry {
        CheckpointEntry {
            session: self.session,
            epoch: self.epoch,
            committed_s: self.committed_s,
            data_bytes: self.data_bytes,
            manifest_bytes: self.manifest_bytes,
            tensors: self.tensors,
            chunks: self.chunks,
            world: self.world,
            name_length: u16::try_from(name.len()).expect("names are short").into(),
            reserved: 0.into(),
        }
    }
}

/// The first 56 bytes of an open session's record, under `ckpt-session/<id>`; the name follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct SessionHeader {
    magic: [u8; 4],
    version: U16,
    name_length: U16,
    session: SessionId,
    epoch: U64,
    sequence: U64,
    deadline_ms: U64,
    world: U32,
    /// CRC32C of the 52 bytes before it and of the name.
    crc: U32,
}
const SESSION_BYTES: usize = 56;
const _: () = assert!(size_of::<SessionHeader>() == SESSION_BYTES);

/// What is kept of an open session over a restart. Its deadline then runs anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// The checkpoint that it writes.
    pub name: String,
    /// Its id.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u64,
    /// Grows with each session: of two records of one name and epoch, the later one counts.
    pub sequence: u64,
    /// How long it may take, in milliseconds.
    pub deadline_ms: u64,
    /// How many ranks.
    pub world: u32,
}

impl SessionRecord {
    /// The key of the record of `session`.
    #[must_use]
    pub fn key(session: SessionId) -> Vec<u8> {
        [SESSION_PREFIX, session.to_string().as_bytes()].concat()
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { name, session, epoch, sequence, deadline_ms, world } = self;
        let mut header = SessionHeader {
            magic: SESSION_MAGIC,
            version: VERSION.into(),
            name_length: u16::try_from(name.len()).expect("names are short").into(),
            session: *session,
            epoch: (*epoch).into(),
            sequence: (*sequence).into(),
            deadline_ms: (*deadline_ms).into(),
            world: (*world).into(),
            crc: 0.into(),
        };
        header.crc = session_crc(&header, name.as_bytes()).into();
        [header.as_bytes(), name.as_bytes()].concat()
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// [`DecodeError`]: damaged, or of another version.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let (header, name) =
            SessionHeader::ref_from_prefix(value).map_err(|_| DecodeError::Truncated)?;
        if header.magic != SESSION_MAGIC {
            return Err(DecodeError::Field("magic"));
        }
        if name.len() != usize::from(header.name_length.get()) || name.len() > NAME_BYTES_MAX {
            return Err(DecodeError::Length);
        }
        if session_crc(header, name) != header.crc.get() {
            return Err(DecodeError::Checksum);
        }
        if header.version.get() != VERSION {
            return Err(DecodeError::Field("version"));
        }
        Ok(Self {
            name: check_name(name)?.to_owned(),
            session: header.session,
            epoch: header.epoch.get(),
            sequence: header.sequence.get(),
            deadline_ms: header.deadline_ms.get(),
            world: header.world.get(),
        })
    }
}

fn session_crc(header: &SessionHeader, name: &[u8]) -> u32 {
    crc32c(&[&header.as_bytes()[..SESSION_BYTES - 4], name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn commit() -> CommitRecord {
        let mut part_crcs = [0.into(); PARTS_MAX];
        part_crcs[0] = 0xaabb_ccdd.into();
        let record = CommitRecord {
            magic: [0; 4],
            version: 0.into(),
            parts: 1.into(),
            session: SessionId(*b"0123456789abcdef"),
            epoch: 1.into(),
            sequence: 2.into(),
            committed_s: 3.into(),
            data_bytes: 4.into(),
            manifest_bytes: 5.into(),
            world: 6.into(),
            tensors: 7.into(),
            chunks: 8.into(),
            part_crcs,
            crc: 0.into(),
        };
        record.sealed()
    }

    fn session() -> SessionRecord {
        SessionRecord {
            name: "run/1".to_owned(),
            session: SessionId(*b"0123456789abcdef"),
            epoch: 1,
            sequence: 2,
            deadline_ms: 3,
            world: 4,
        }
    }

    #[test]
    fn the_commit_record_has_its_golden_bytes() {
        let golden = concat!(
            "46424343",
            "0100",
            "0100",
            "30313233343536373839616263646566",
            "0100000000000000",
            "0200000000000000",
            "0300000000000000",
            "0400000000000000",
            "0500000000000000",
            "06000000",
            "07000000",
            "08000000",
            "ddccbbaa",
            "00000000000000000000000000000000000000000000000000000000",
            "e2cf0873",
        );
        assert_eq!(hex(commit().as_bytes()), golden);
        let key = CommitRecord::key("run/1");
        assert_eq!(key, b"ckpt/run/1");
        assert_eq!(CommitRecord::decode(&key, commit().as_bytes()), Ok(("run/1", commit())));
    }

    #[test]
    fn the_session_record_has_its_golden_bytes() {
        let golden = concat!(
            "46424353",
            "0100",
            "0500",
            "30313233343536373839616263646566",
            "0100000000000000",
            "0200000000000000",
            "0300000000000000",
            "04000000",
            "98a16c63",
            "72756e2f31",
        );
        assert_eq!(hex(&session().encode()), golden);
        let key = SessionRecord::key(session().session);
        assert_eq!(key, b"ckpt-session/30313233343536373839616263646566");
        assert_eq!(SessionRecord::decode(&session().encode()), Ok(session()));
    }

    #[test]
    fn a_flipped_bit_or_a_lost_byte_is_noticed() {
        let (commit, session) = (commit(), session().encode());
        for bit in 0..COMMIT_BYTES * 8 {
            let mut bytes = commit.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(CommitRecord::decode(b"ckpt/run/1", &bytes).is_err(), "bit {bit}");
        }
        for bit in 0..session.len() * 8 {
            let mut bytes = session.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SessionRecord::decode(&bytes).is_err(), "bit {bit}");
        }
        assert!(SessionRecord::decode(&session[..session.len() - 1]).is_err());
        assert!(CommitRecord::decode(b"ckpt/run", commit.as_bytes()).is_err());
    }
}
