//! Clients over shared memory that mean harm: everything that a process can do to memory and a socket
//! which it shares with the server.

#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

use forebay_fabric::Status;
use forebay_fabric::conformance::{MemoryPeer, Peer, StreamPeer, response};
use forebay_fabric::pdu::{Command, Fragment, Opcode, Outcome, PduType, Ping, Response};
use forebay_fabric::shm::{Refusal, Shm, ShmStream};
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use forebay_fabric::transport::{
    CloseReason, ConnId, Payload, Payloads, RemoteMemory, Sink, Transport,
};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    socket,
};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::IntoBytes;

/// Where everything is in the memfd, as PROTOCOL.md says.
const CLIENT_TAIL: u64 = 0;
const CLIENT_HEAD: u64 = 0x80;
const CLIENT_SLEEP: u64 = 0x100;
const SERVER_TAIL: u64 = 0x400;
const SERVER_HEAD: u64 = 0x480;
const RING: u64 = 256 << 10;
const TO_SERVER: u64 = 4096;
const AREA: u64 = TO_SERVER + 2 * RING;
const AREA_BYTES: u64 = 1 << 20;

/// Writes down what a transport reports.
#[derive(Default)]
struct Log {
    pdus: Vec<(ConnId, Vec<u8>)>,
    connected: Vec<ConnId>,
    closed: Vec<(ConnId, CloseReason)>,
    pulled: Vec<bool>,
}

impl Sink<Vec<u8>> for Log {
    fn connected(&mut self, conn: ConnId) {
        self.connected.push(conn);
    }

    fn pdu(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), &'static str> {
        // What a server does first with each: the checks must hold for the copy.
        let known = forebay_fabric::pdu::Capsule::parse(pdu).is_ok()
            || Ping::parse(pdu, PduType::Ping).is_ok();
        self.pdus.push((conn, pdu.to_vec()));
        if known { Ok(()) } else { Err("neither a command nor a PING") }
    }

    fn pulled(&mut self, _: ConnId, _: u16, _: Vec<u8>, complete: bool) {
        self.pulled.push(complete);
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason) {
        self.closed.push((conn, reason));
    }
}

struct House {
    folder: tempfile::TempDir,
    transport: StreamTransport<Shm, Vec<u8>>,
    log: Log,
    now_us: u64,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shm = Shm::bind(&folder.path().join("shm"), 0, 0o600).unwrap();
        let transport = StreamTransport::new(shm, StreamConfig::default());
        Self { folder, transport, log: Log::default(), now_us: 0 }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shm.0")
    }

    fn turn(&mut self) {
        self.now_us += 10;
        self.transport.poll(self.now_us, &mut self.log);
        self.transport.flush(self.now_us);
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    /// A client that does no harm.
    fn good(&mut self) -> (StreamPeer<ShmStream>, ConnId) {
        let peer = StreamPeer::new(ShmStream::connect_with(&self.path(), 1 << 20).unwrap());
        self.turns(200);
        (peer, *self.log.connected.last().unwrap())
    }

    /// It still gets an answer.
    fn serves(&mut self, peer: &mut StreamPeer<ShmStream>, conn: ConnId) {
        let ping = Ping::new(PduType::Ping, self.now_us);
        peer.send(ping.as_bytes());
        peer.turn();
        self.turns(100);
        let seen = (conn, ping.as_bytes().to_vec());
        assert!(self.log.pdus.contains(&seen), "the good client is not heard");
        self.transport.send(conn, ping.as_bytes());
        self.turn();
        peer.turn();
        assert_eq!(peer.received().last().map(Vec::as_slice), Some(ping.as_bytes()));
    }

    fn end_of(&self, conn: ConnId) -> Option<CloseReason> {
        self.log.closed.iter().find(|(closed, _)| *closed == conn).map(|(_, reason)| *reason)
    }
}

/// A client that writes into its memory whatever it likes.
struct Raw {
    socket: OwnedFd,
    memory: File,
}

fn dial(path: &Path) -> OwnedFd {
    let fd =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    fd
}

impl Raw {
    fn connect(path: &Path) -> Self {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        Self::connect_with(path, AREA + AREA_BYTES, seals)
    }

    fn connect_with(path: &Path, bytes: u64, seals: SealFlag) -> Self {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memory = File::from(memfd_create("hostile", flags).unwrap());
        memory.set_len(bytes).unwrap();
        if !seals.is_empty() {
            fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        }
        let raw = Self { socket: dial(path), memory };
        let mut open = [0; 24];
        open[..6].copy_from_slice(b"FSHM\x01\x00");
        open[8..12].copy_from_slice(&(RING as u32).to_le_bytes());
        open[16..].copy_from_slice(&AREA_BYTES.to_le_bytes());
        raw.tell(&open);
        raw
    }

    fn tell(&self, message: &[u8]) {
        let descriptors = [self.memory.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let iov = [IoSlice::new(message)];
        let fd = self.socket.as_raw_fd();
        sendmsg::<UnixAddr>(fd, &iov, &rights, MsgFlags::empty(), None).unwrap();
    }

    fn poke(&self, at: u64, word: u64) {
        self.memory.write_all_at(&word.to_le_bytes(), at).unwrap();
    }

    /// Puts bytes at the beginning of its ring, and says that `tail` bytes are there.
    fn say(&self, bytes: &[u8], tail: u64) {
        self.memory.write_all_at(bytes, TO_SERVER).unwrap();
        self.poke(CLIENT_TAIL, tail);
    }
}

fn store(cid: u16, data: &[u8]) -> Vec<u8> {
    let mut command = Command::new(Opcode::Store, cid);
    command.seal(&[], b"key", data);
    [command.as_bytes(), b"key", data].concat()
}

/// Clients do not look at what lies in their memory: the server has, with its last copy.
#[test]
fn bytes_that_are_not_what_their_checksum_says_are_answered_as_corrupt() {
    let mut house = House::new();
    let (mut peer, conn) = house.good();
    let value: Vec<u8> = (0..10_000_u32).map(|at| at as u8).collect();
    let outcome = response(0, &value);
    let corrupt = Outcome::bare(0, Status::Corrupt, outcome.credit_limit);
    for place in [Some(0), Some(4_096), Some(9_999), None] {
        let mut changed = value.clone();
        place.into_iter().for_each(|place| changed[place] ^= 1);
        // In one piece, and in pieces at any place.
        for fragments in [1, 3] {
            let shared = peer.share(&value);
            let (address, key) = (shared.address.get(), shared.key.get());
            let length = 10_000 / fragments;
            let parts = (0..fragments).map(|number| {
                let rest = if number + 1 == fragments { 10_000 - number * length } else { length };
                Fragment::new(address + u64::from(number * length), key, rest)
            });
            let parts: Vec<_> = parts.collect();
            let payload = Payload { buffer: changed.clone(), range: 0..value.len() };
            let remote = RemoteMemory::new(&parts);
            house.transport.push(conn, &outcome, remote, Payloads::One(&mut Some(payload)));
            house.turns(10);
            peer.turn();
            let expected = match place {
                Some(_) => Response::new(&corrupt),
                None => Response::placed(&outcome),
            };
            assert_eq!(peer.received(), [expected.as_bytes()], "{place:?} in {fragments}");
        }
    }
    house.serves(&mut peer, conn);
}

#[test]
fn indices_that_cannot_be_end_their_connection_and_no_other() {
    let mut house = House::new();
    let (mut good, conn) = house.good();
    let lies = [RING + 1, u64::MAX, 1 << 63, u64::from(u32::MAX) + 1];
    for (word, lie) in [CLIENT_TAIL, CLIENT_HEAD].into_iter().flat_map(|w| lies.map(|l| (w, l))) {
        let raw = Raw::connect(&house.path());
        house.turns(200);
        let bad = *house.log.connected.last().unwrap();
        assert_ne!(bad, conn);
        raw.poke(word, lie);
        // For the head to be looked at, the ring has to fill up.
        for _ in 0..RING / 24 + 1 {
            house.transport.send(bad, Ping::new(PduType::Ping, 0).as_bytes());
        }
        house.turns(200);
        assert!(matches!(house.end_of(bad), Some(CloseReason::Protocol(_))), "{word:#x}: {lie:#x}");
        house.serves(&mut good, conn);
    }
}

#[test]
fn an_index_that_goes_back_ends_its_connection() {
    let mut house = House::new();
    let raw = Raw::connect(&house.path());
    let ping = Ping::new(PduType::Ping, 1);
    raw.say(ping.as_bytes(), 24);
    house.turns(200);
    assert_eq!(house.log.pdus.len(), 1);
    raw.poke(CLIENT_TAIL, 23);
    house.turns(200);
    let bad = house.log.connected[0];
    assert!(matches!(house.end_of(bad), Some(CloseReason::Protocol(_))), "{:?}", house.log.closed);
}

#[test]
fn a_capsule_that_comes_byte_by_byte_is_handed_up_once() {
    let mut house = House::new();
    let raw = Raw::connect(&house.path());
    let capsule = store(3, &[7; 100]);
    for tail in 0..=capsule.len() as u64 {
        raw.say(&capsule, tail);
        house.turns(if tail == 0 { 200 } else { 1 });
        assert_eq!(house.log.pdus.is_empty(), tail < capsule.len() as u64, "{tail}");
    }
    house.turns(10);
    assert_eq!(house.log.pdus, [(house.log.connected[0], capsule)]);
}

/// The server's own words are the client's to overwrite: the server never reads them back.
#[test]
fn what_the_server_has_written_may_be_overwritten() {
    let mut house = House::new();
    let raw = Raw::connect(&house.path());
    let ping = Ping::new(PduType::Ping, 1);
    house.turns(200);
    let conn = house.log.connected[0];
    for round in 1..50u64 {
        raw.poke(SERVER_TAIL, u64::MAX / round);
        raw.poke(SERVER_HEAD, u64::MAX / round);
        raw.memory.write_all_at(ping.as_bytes(), TO_SERVER + (round - 1) * 24).unwrap();
        raw.poke(CLIENT_TAIL, round * 24);
        house.transport.send(conn, ping.as_bytes());
        house.turns(100);
        let mut tail = [0; 8];
        raw.memory.read_exact_at(&mut tail, SERVER_TAIL).unwrap();
        assert_eq!(u64::from_le_bytes(tail), round * 24);
        assert_eq!(house.log.pdus.len() as u64, round);
    }
    assert_eq!(house.end_of(conn), None);
}

/// Another thread writes noise over the ring, the words and the area while the server reads them.
#[test]
fn memory_that_changes_all_the_time_harms_nobody() {
    let mut house = House::new();
    let (mut good, conn) = house.good();
    for seed in 0..20 {
        let raw = Raw::connect(&house.path());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = fastrand::Rng::with_seed(seed);
                let capsules = [store(1, &[1; 3000]), store(2, &[2; 50])];
                let mut noise = vec![0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let at = rng.u64(..RING / 4);
                    match rng.u8(..4) {
                        0 => rng.fill(&mut noise[..512]),
                        1 => raw.memory.write_all_at(&noise[..512], TO_SERVER + at).unwrap(),
                        2 => raw.memory.write_all_at(&noise, AREA + at).unwrap(),
                        _ => {
                            let capsule = &capsules[rng.usize(..2)];
                            raw.memory.write_all_at(capsule, TO_SERVER).unwrap();
                            raw.poke(CLIENT_TAIL, capsule.len() as u64);
                            raw.poke(CLIENT_SLEEP, rng.u64(..4));
                        }
                    }
                }
            });
            house.turns(300);
            let bad = *house.log.connected.last().unwrap();
            for cid in 0..30 {
                let fragments = [Fragment::new(4096, 1, 20_000), Fragment::new(1 << 16, 1, 40_000)];
                let remote = RemoteMemory::new(&fragments);
                house.transport.pull(bad, cid, remote, vec![0; 60_000]);
                house.turns(3);
            }
            house.serves(&mut good, conn);
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(house.log.pulled.len(), 30, "seed {seed}: each pull ends once");
        house.log.pulled.clear();
    }
}

#[test]
fn memory_without_seals_or_of_another_size_is_refused_in_words() {
    let mut house = House::new();
    let (mut good, conn) = house.good();
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    for (bytes, seals, expected) in [
        (AREA + AREA_BYTES, SealFlag::empty(), Refusal::NotSealed),
        (AREA + AREA_BYTES, SealFlag::F_SEAL_SHRINK, Refusal::NotSealed),
        (AREA + AREA_BYTES - 4096, seals, Refusal::Size),
        (0, seals, Refusal::Size),
    ] {
        let raw = Raw::connect_with(&house.path(), bytes, seals);
        house.turns(200);
        let mut told = [0; 3];
        let count = recv(raw.socket.as_raw_fd(), &mut told, MsgFlags::empty()).unwrap();
        assert_eq!(told[..count], [1, expected as u8], "{expected}");
        house.serves(&mut good, conn);
    }
    let noise = Raw { socket: dial(&house.path()), memory: File::open("/dev/null").unwrap() };
    noise.tell(&[7; 24]);
    house.turns(200);
    assert_eq!(house.log.connected.len(), 1, "nobody else was let in");
    house.serves(&mut good, conn);
}

/// More descriptors than a message may bring: the kernel cuts it short, but hands over those that fit.
#[test]
fn descriptors_that_nobody_asked_for_do_not_stay_open() {
    let mut house = House::new();
    for count in [2, 3, 5, 60, 253] {
        let raw = Raw { socket: dial(&house.path()), memory: File::open("/dev/null").unwrap() };
        let (mut reader, writer) = std::io::pipe().unwrap();
        let descriptors = vec![writer.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let (fd, iov) = (raw.socket.as_raw_fd(), [IoSlice::new(&[7; 24])]);
        sendmsg::<UnixAddr>(fd, &iov, &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);
        house.turns(200);
        let mut told = [0; 3];
        let length = recv(raw.socket.as_raw_fd(), &mut told, MsgFlags::empty()).unwrap();
        assert_eq!(told[..length], [1, Refusal::Message as u8], "{count}");
        fcntl(&reader, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let end = std::io::Read::read(&mut reader, &mut [0]);
        assert_eq!(end.unwrap(), 0, "{count}: somebody still has the other end");
    }
}

#[test]
fn those_who_connect_and_say_nothing_keep_nobody_out() {
    let mut house = House::new();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(dial(&house.path()));
        house.turn();
    }
    let (mut good, conn) = house.good();
    house.serves(&mut good, conn);
    // The last of them has still its place, and speaks now.
    let late = Raw { socket: silent.pop().unwrap(), memory: Raw::connect(&house.path()).memory };
    let mut open = [0; 24];
    open[..6].copy_from_slice(b"FSHM\x01\x00");
    open[8..12].copy_from_slice(&(RING as u32).to_le_bytes());
    open[16..].copy_from_slice(&AREA_BYTES.to_le_bytes());
    let before = house.log.connected.len();
    house.turns(200);
    late.tell(&open);
    house.turns(200);
    assert!(house.log.connected.len() > before, "it was let in");
}

/// It says that it sleeps, all the time, and never takes a ring off its socket: the server sends on.
#[test]
fn a_client_that_never_hears_its_rings_blocks_nobody() {
    let mut house = House::new();
    let raw = Raw::connect(&house.path());
    house.turns(200);
    let conn = house.log.connected[0];
    let ping = Ping::new(PduType::Ping, 1);
    for round in 1..5_000u64 {
        raw.poke(CLIENT_SLEEP, 2);
        raw.poke(CLIENT_HEAD, (round - 1) * 24);
        house.transport.send(conn, ping.as_bytes());
        house.turn();
    }
    assert_eq!(house.end_of(conn), None);
    let payload = Payload { buffer: vec![1; 100], range: 0..100 };
    let outside = [Fragment::new(0, 1, 50), Fragment::new(1 << 21, 1, 50)];
    let remote = RemoteMemory::new(&outside);
    house.transport.push(conn, &response(0, &[1; 100]), remote, Payloads::One(&mut Some(payload)));
    house.turns(200);
    assert!(matches!(house.end_of(conn), Some(CloseReason::Protocol(_))));
}

#[test]
fn a_socket_of_a_dead_daemon_is_replaced_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shm");
    let first = Shm::bind(&path, 0, 0o600).unwrap();
    let text = Shm::bind(&path, 0, 0o600).unwrap_err().to_string();
    assert_eq!(text, "a daemon that runs listens there");
    let mode = std::fs::metadata(first.path()).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    drop(first);
    assert!(!folder.path().join("shm.0").exists(), "it is removed in the end");
    std::fs::write(folder.path().join("shm.0"), "precious").unwrap();
    assert!(Shm::bind(&path, 0, 0o600).is_err(), "a file is not replaced");
    std::fs::remove_file(folder.path().join("shm.0")).unwrap();
    // Nor is another program's socket, even one of another kind.
    let other = std::os::unix::net::UnixListener::bind(folder.path().join("shm.0")).unwrap();
    assert!(Shm::bind(&path, 0, 0o600).is_err(), "somebody else listens there");
    // A daemon that dies leaves its socket behind.
    drop(other);
    assert!(Shm::bind(&path, 0, 0o660).is_ok());
}
