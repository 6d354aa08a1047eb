//! The first message of a client: its memfd, and how large it is. What a server checks before it maps.

use super::layout::{AREA, RING_BYTES};
use super::mapping::{Mapping, PAGE_BYTES};
use super::socket;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The only version there is.
const VERSION: u16 = 1;
/// The largest area that a server maps, in bytes: its pages count as memory of whoever touches them
/// first, which may be the server.
pub const AREA_BYTES_MAX: u64 = 256 << 20;
/// Without these the memory could shrink under the server.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Client → server on the socket, with the memfd: 24 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(super) struct Open {
    /// `b"FSHM"`.
    pub(super) magic: [u8; 4],
    pub(super) version: U16,
    /// Zero.
    pub(super) reserved: U16,
    /// Bytes of each ring; this version has one size.
    pub(super) ring_bytes: U32,
    /// Zero.
    pub(super) reserved2: U32,
    /// Bytes of the area: whole pages, at most [`AREA_BYTES_MAX`].
    pub(super) area_bytes: U64,
}
const _: () = assert!(size_of::<Open>() == 24);

/// Why a server does not take a client's memory; the number is what it says on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// The first message is none, or came without exactly one descriptor.
    #[error("its first message is not the one of a Forebay client")]
    Message = 1,
    /// Another version.
    #[error("it speaks another version of the shared memory's layout")]
    Version = 2,
    /// Ring or area size.
    #[error("its rings or its area have an impossible size")]
    Size = 3,
    /// Not a memfd of ordinary pages.
    #[error("what it passed is no memfd of ordinary pages")]
    NotMemory = 4,
    /// The seals are missing.
    #[error("its memfd is not sealed against shrinking, growing and further seals")]
    NotSealed = 5,
    /// Another user.
    #[error("it runs as another user, and the socket's mode is 0600")]
    NotAllowed = 6,
    /// The server cannot map it.
    #[error("the server cannot map it")]
    Unmappable = 7,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::Message,
        Self::Version,
        Self::Size,
        Self::NotMemory,
        Self::NotSealed,
        Self::NotAllowed,
        Self::Unmappable,
    ];

    /// What the number means.
    #[must_use]
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| *refusal as u8 == number)
    }
}

impl Open {
    fn new(area_bytes: usize) -> Self {
        Self {
            magic: *b"FSHM",
            version: U16::new(VERSION),
            reserved: U16::ZERO,
            ring_bytes: U32::new(RING_BYTES as u32),
            reserved2: U32::ZERO,
            area_bytes: U64::new(area_bytes as u64),
        }
    }

    /// Bytes of the whole memfd, if everything else is as it must be.
    fn check(&self) -> Result<usize, Refusal> {
        let Self { magic, version, reserved, ring_bytes, reserved2, area_bytes } = self;
        if magic != b"FSHM" || reserved.get() != 0 || reserved2.get() != 0 {
            return Err(Refusal::Message);
        }
        if version.get() != VERSION {
            return Err(Refusal::Version);
        }
        let area_bytes = area_bytes.get();
        let whole = area_bytes.is_multiple_of(PAGE_BYTES as u64) && area_bytes <= AREA_BYTES_MAX;
        if !whole || ring_bytes.get() as usize != RING_BYTES {
            return Err(Refusal::Size);
        }
        Ok(AREA + area_bytes as usize)
    }
}

/// Makes the memory, and offers it to the server on `socket`.
pub(super) fn offer(socket: &OwnedFd, area_bytes: usize) -> io::Result<Mapping> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memfd = memfd_create("forebay", flags)?;
    let bytes = AREA + area_bytes;
    nix::unistd::ftruncate(&memfd, bytes as i64)?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SEALS))?;
    let mapping = Mapping::new(memfd.as_fd(), bytes)?;
    socket::send_open(socket, Open::new(area_bytes).as_bytes(), memfd.as_fd())?;
    Ok(mapping)
}

/// The memory that a client offers. `None`: nothing has come yet.
pub(super) fn take(socket: BorrowedFd<'_>) -> Option<Result<Mapping, Refusal>> {
    // One byte more than there may be: a longer message shows.
    let mut bytes = [0; size_of::<Open>() + 1];
    match socket::receive_open(socket, &mut bytes) {
        Ok((count, memfd)) => Some(admit(&bytes[..count], memfd)),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => None,
        Err(_) => Some(Err(Refusal::Message)),
    }
}

fn admit(message: &[u8], memfd: Option<OwnedFd>) -> Result<Mapping, Refusal> {
    let open = Open::ref_from_bytes(message).map_err(|_| Refusal::Message)?;
    let (bytes, memfd) = (open.check()?, memfd.ok_or(Refusal::Message)?);
    let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(|_| Refusal::NotMemory)?;
    if !SealFlag::from_bits_retain(seals).contains(SEALS) {
        return Err(Refusal::NotSealed);
    }
    // Huge pages can be sealed too, but a hole in them may have no page to be filled with.
    let on = fstatfs(&memfd).map_err(|_| Refusal::NotMemory)?.filesystem_type();
    if on != TMPFS_MAGIC {
        return Err(Refusal::NotMemory);
    }
    // After the seals: from here on the size stays.
    let stat = fstat(&memfd).map_err(|_| Refusal::NotMemory)?;
    if stat.st_size != bytes as i64 {
        return Err(Refusal::Size);
    }
    Mapping::new(memfd.as_fd(), bytes).map_err(|_| Refusal::Unmappable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd(flags: MFdFlags, bytes: usize, seals: SealFlag) -> Option<OwnedFd> {
        let memfd = memfd_create("test", MFdFlags::MFD_CLOEXEC | flags).unwrap();
        nix::unistd::ftruncate(&memfd, bytes as i64).unwrap();
        if !seals.is_empty() {
            fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        }
        Some(memfd)
    }

    fn outcome(open: &Open, memfd: Option<OwnedFd>) -> Result<(), Refusal> {
        admit(open.as_bytes(), memfd).map(drop)
    }

    #[test]
    fn the_first_message_has_these_bytes() {
        let expected: [u8; 24] =
            [b'F', b'S', b'H', b'M', 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0];
        assert_eq!(Open::new(64 << 20).as_bytes(), expected);
    }

    #[test]
    fn only_sealed_memory_of_the_right_size_is_mapped() {
        let (open, sealing) = (Open::new(8192), MFdFlags::MFD_ALLOW_SEALING);
        let whole = AREA + 8192;
        assert_eq!(outcome(&open, memfd(sealing, whole, SEALS)), Ok(()));
        for seals in [
            SealFlag::empty(),
            SEALS.difference(SealFlag::F_SEAL_SHRINK),
            SEALS.difference(SealFlag::F_SEAL_GROW),
            SEALS.difference(SealFlag::F_SEAL_SEAL),
        ] {
            let found = outcome(&open, memfd(sealing, whole, seals));
            assert_eq!(found, Err(Refusal::NotSealed), "{seals:?}");
        }
        for bytes in [0, 4096, whole - 1, whole + 1, 2 * whole] {
            let found = outcome(&open, memfd(sealing, bytes, SEALS));
            assert_eq!(found, Err(Refusal::Size), "{bytes}");
        }
        let unwritable = memfd(sealing, whole, SEALS | SealFlag::F_SEAL_FUTURE_WRITE);
        assert_eq!(outcome(&open, unwritable), Err(Refusal::Unmappable));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(outcome(&open, Some(file.into())), Err(Refusal::NotMemory));
        let (pipe, _other) = io::pipe().unwrap();
        assert_eq!(outcome(&open, Some(pipe.into())), Err(Refusal::NotMemory));
        assert_eq!(outcome(&open, None), Err(Refusal::Message));
    }

    #[test]
    fn a_first_message_that_is_wrong_in_any_byte_is_refused() {
        let good = Open::new(8192);
        for at in 0..size_of::<Open>() {
            for bit in 0..8 {
                let mut open = good;
                open.as_mut_bytes()[at] ^= 1 << bit;
                let memfd = memfd(MFdFlags::MFD_ALLOW_SEALING, AREA + 8192, SEALS);
                assert!(outcome(&open, memfd).is_err(), "byte {at}, bit {bit}");
            }
        }
        let memfd = memfd(MFdFlags::MFD_ALLOW_SEALING, AREA + 8192, SEALS);
        let longer = [good.as_bytes(), &[0]].concat();
        assert_eq!(admit(&longer, memfd).map(drop), Err(Refusal::Message));
    }

    #[test]
    fn every_refusal_has_its_number() {
        for (number, refusal) in (1..).zip(Refusal::ALL) {
            assert_eq!((refusal as u8, Refusal::from_wire(number)), (number, Some(refusal)));
        }
        assert_eq!(Refusal::from_wire(0), None);
    }
}
