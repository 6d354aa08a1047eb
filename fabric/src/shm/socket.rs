//! The Unix socket: who is there, the memfd on its way, and the doorbell.
//!
//! Guarantees: nothing here waits; every descriptor that arrives is owned at once, and those that
//! nobody asked for are closed. Datagrams (`SOCK_SEQPACKET`): the first one of a client is its
//! [`super::open::Open`] with the memfd; a datagram of one byte rings; one of two bytes, from the
//! server, refuses.
#![expect(
    unsafe_code,
    reason = "takes ownership of descriptors that the kernel has just made, and has it name them"
)]

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept4, bind, connect, getsockopt, listen, recv, send, sendmsg, socket,
    sockopt,
};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Peers that the system lets wait to be accepted.
const BACKLOG: i32 = 128;
/// Room for what comes with a message: one descriptor is right, and the kernel closes those that do
/// not fit.
const CONTROL_BYTES: usize = 32;
/// Rings that are taken off the socket in one go.
const RINGS_MAX: usize = 64;
const RING: [u8; 1] = [0];

/// Aligned for the header of a control message.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);
const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());

fn new() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// Takes over a descriptor that a system call has just returned.
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made `fd` for this process, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Listens at `path`, which only `mode` may connect to. A socket that a dead daemon has left there is
/// replaced; anything else is not.
pub(super) fn serve(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {
            // Whatever else is wrong, somebody may listen there: with a full backlog, say.
            if dial(path).err() != Some(Errno::ECONNREFUSED) {
                return Err(io::Error::other("a daemon that runs listens there"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::other("something that is no socket is there")),
        Err(_) => {}
    }
    let fd = new()?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Nobody can connect before `listen`: the mode is right from the first peer on.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

/// Connects, or fails at once.
pub(super) fn dial(path: &Path) -> nix::Result<OwnedFd> {
    let fd = new()?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// The next peer that waits.
pub(super) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
        Ok(fd) => Ok(Some(own(fd))),
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process at the other end, as it was when it connected.
pub(super) fn peer(fd: &OwnedFd) -> io::Result<UnixCredentials> {
    Ok(getsockopt(fd, sockopt::PeerCredentials)?)
}

/// Sends the first message, with the memfd.
pub(super) fn send_open(fd: &OwnedFd, bytes: &[u8], memfd: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [memfd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<UnixAddr>(fd.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)?;
    Ok(())
}

/// What the first message has brought: its bytes in `into`, how many, and a descriptor if there was
/// exactly one.
pub(super) fn receive_open(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut piece = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: zeroes are a header that names nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `piece` and `control` are this function's to write, as long as the header says.
    let count = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let count = Errno::result(count)? as usize;
    let mut owned = descriptors(&message);
    let only = if owned.len() == 1 { owned.pop() } else { None };
    Ok((count, only))
}

/// Takes over every descriptor that came with a message which `recvmsg` has just filled in. Those of a
/// message that was cut short as well: nix gives none of them out, and they would stay open for ever.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut owned = Vec::new();
    // SAFETY: `msg_control` is the buffer, and the kernel has written whole control messages into its
    // first `msg_controllen` bytes; the next two walk from one to the next of these.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: as above; null behind the last one.
    while let Some(header) = unsafe { next.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: `cmsg_len` counts the header and the descriptors behind it.
            let (data, before) = unsafe { (libc::CMSG_DATA(header), libc::CMSG_LEN(0)) };
            for number in 0..(header.cmsg_len - before as usize) / size_of::<RawFd>() {
                // SAFETY: inside of this control message, by the bound.
                owned.push(own(unsafe { data.cast::<RawFd>().add(number).read_unaligned() }));
            }
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    owned
}

/// Wakes the peer. A socket that is full has rings that the peer has not heard yet, and a broken one
/// is found out by reading: neither is an error here.
pub(super) fn ring(fd: BorrowedFd<'_>) {
    tell(fd, &RING);
}

/// Tells the peer that it is refused, and why.
pub(super) fn refuse(fd: BorrowedFd<'_>, reason: u8) {
    tell(fd, &[1, reason]);
}

fn tell(fd: BorrowedFd<'_>, message: &[u8]) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    match send(fd.as_raw_fd(), message, flags) {
        Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET) => {}
        Err(error) => log::debug!("a peer cannot be rung: {error}"),
    }
}

/// What was heard on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing, or rings; the peer is there.
    Rings,
    /// The server refuses this client, for this reason.
    Refused(u8),
    /// The peer is gone.
    End,
}

/// Takes the rings off the socket, at most so many that a peer that does nothing but ring gains
/// nothing by it.
pub(super) fn hear(fd: BorrowedFd<'_>) -> Heard {
    for _ in 0..RINGS_MAX {
        let mut message = [0; 2];
        match recv(fd.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
            Ok(1) => {}
            Ok(2) => return Heard::Refused(message[1]),
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return Heard::End,
        }
    }
    Heard::Rings
}

/// Ends both directions now, also where the descriptor is still held elsewhere.
pub(super) fn shut(fd: &OwnedFd) {
    let ended =
        nix::sys::socket::shutdown(fd.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both);
    if let Err(error) = ended {
        log::trace!("the peer was gone already: {error}");
    }
}
