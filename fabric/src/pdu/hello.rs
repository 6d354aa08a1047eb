//! The handshake: what each side speaks, and where everything is.

use super::CommonHeader;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bits; each side offers what it has, and the intersection is spoken.
pub mod features {
    /// Batches with per-item status.
    pub const BATCH: u64 = 1 << 0;
    /// The checkpoint commands.
    pub const CHECKPOINT: u64 = 1 << 1;
    /// Everything this version has.
    pub const ALL: u64 = BATCH | CHECKPOINT;
}

/// Client → server, the first PDU. 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// Type [`super::PduType::Hello`], `length` 64.
    pub header: CommonHeader,
    /// `b"FORE"`: so that a stray HTTP or TLS client is told apart at once.
    pub magic: [u8; 4],
    /// The lowest protocol version the client speaks.
    pub version_min: U16,
    /// The highest.
    pub version_max: U16,
    /// [`features`] it would like.
    pub features: U64,
    /// Names this client over all its connections.
    pub client_id: [u8; 16],
    /// Commands in flight it would like.
    pub queue_depth: U16,
    /// Zero.
    pub reserved: U16,
    /// The largest capsule it would like to send, in bytes.
    pub capsule_bytes: U32,
    /// How long the connection may be silent, in milliseconds.
    pub keep_alive_ms: U32,
    /// Zero.
    pub reserved2: U32,
    /// Zero.
    pub reserved3: U32,
    /// CRC32C of the 60 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Hello>() == 64);

/// Server → client: 96 bytes, then `reactors` [`Endpoint`]s, then `shards` reactor numbers (u16
/// each): the key → reactor map, with [`crate::route::shard_of`], then the CRC32C (u32) of all that
/// is behind the 96 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HelloAck {
    /// Type [`super::PduType::HelloAck`].
    pub header: CommonHeader,
    /// The version that is spoken.
    pub version: U16,
    /// The granted queue depth: the first credit limit.
    pub queue_depth: U16,
    /// The granted capsule size, in bytes.
    pub capsule_bytes: U32,
    /// The [`features`] that are spoken.
    pub features: U64,
    /// The pool's UUID: also the key of the routing hash.
    pub pool: [u8; 16],
    /// This start of the server: changes with every restart.
    pub incarnation: [u8; 16],
    /// The granted keep-alive, in milliseconds.
    pub keep_alive_ms: U32,
    /// The longest deadline the server keeps, in microseconds.
    pub timeout_max_us: U32,
    /// The largest value a store takes, in bytes.
    pub value_bytes_max: U32,
    /// The most items in a batch.
    pub items_max: U16,
    /// The reactor that answers on this connection.
    pub reactor: U16,
    /// How many reactors there are.
    pub reactors: U16,
    /// How many virtual shards there are.
    pub shards: U16,
    /// The reactor that keeps the checkpoint catalog.
    pub catalog_reactor: U16,
    /// Zero.
    pub reserved: U16,
    /// Zero.
    pub reserved2: U64,
    /// Zero.
    pub reserved3: U32,
    /// CRC32C of the 92 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<HelloAck>() == 96);

/// Where one reactor listens on the transport of this connection: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Endpoint {
    /// IPv6 address, or IPv4 mapped into it (RFC 4291, 2.5.5.2). All zero: the address that the
    /// client has connected to.
    pub address: [u8; 16],
    /// The port.
    pub port: U16,
    /// The reactor's number.
    pub reactor: U16,
    /// 1: tcp.
    pub transport: U16,
    /// Zero.
    pub reserved: U16,
}
/// Bytes of one [`Endpoint`].
pub const ENDPOINT_BYTES: usize = 24;
const _: () = assert!(size_of::<Endpoint>() == ENDPOINT_BYTES);
