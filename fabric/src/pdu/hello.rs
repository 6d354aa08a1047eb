//! The handshake: what each side speaks, and where everything is.

use super::{
    CommonHeader, DecodeError, ENDPOINTS_MAX, FRAGMENTS_MAX, HELLO_ACK_BYTES_MAX, ITEMS_MAX,
    PduType, REACTORS_MAX, SHARDS_MAX, VALUE_BYTES_MAX, check, crc32c,
};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Hello {
    /// Type [`PduType::Hello`], `length` 64.
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

/// What a client offers, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The protocol versions it speaks; never empty.
    pub versions: RangeInclusive<u16>,
    /// [`features`] it would like; bits of later versions may be set.
    pub features: u64,
    /// Names this client over all its connections.
    pub client_id: [u8; 16],
    /// Commands in flight it would like.
    pub queue_depth: u16,
    /// The largest capsule it would like to send, in bytes.
    pub capsule_bytes: u32,
    /// How long the connection may be silent, in milliseconds; 0: as the server likes.
    pub keep_alive_ms: u32,
}

impl Hello {
    /// The first bytes of every connection.
    pub const MAGIC: [u8; 4] = *b"FORE";

    /// The bytes that say `offer`.
    #[must_use]
    pub fn new(offer: &Offer) -> Self {
        let Offer { versions, features, client_id, queue_depth, capsule_bytes, keep_alive_ms } =
            offer;
        let mut hello = Self {
            header: CommonHeader::new(PduType::Hello, 0, size_of::<Self>()),
            magic: Self::MAGIC,
            version_min: U16::new(*versions.start()),
            version_max: U16::new(*versions.end()),
            features: U64::new(*features),
            client_id: *client_id,
            queue_depth: U16::new(*queue_depth),
            reserved: U16::ZERO,
            capsule_bytes: U32::new(*capsule_bytes),
            keep_alive_ms: U32::new(*keep_alive_ms),
            reserved2: U32::ZERO,
            reserved3: U32::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut hello);
        hello
    }

    /// What the client offers.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8]) -> Result<Offer, DecodeError> {
        let hello: &Self = check::whole(pdu, PduType::Hello)?;
        if hello.magic != Self::MAGIC {
            return Err(DecodeError::Field("magic"));
        }
        check::reserved(
            hello.reserved.get() == 0 && hello.reserved2.get() == 0 && hello.reserved3.get() == 0,
        )?;
        let versions = hello.version_min.get()..=hello.version_max.get();
        if versions.is_empty() {
            return Err(DecodeError::Field("version range"));
        }
        Ok(Offer {
            versions,
            features: hello.features.get(),
            client_id: hello.client_id,
            queue_depth: hello.queue_depth.get(),
            capsule_bytes: hello.capsule_bytes.get(),
            keep_alive_ms: hello.keep_alive_ms.get(),
        })
    }
}

/// Server → client: 96 bytes, then `endpoints` [`Endpoint`]s, then `shards` reactor numbers (u16
/// each): the key → reactor map, with [`crate::route::shard_of`], then the CRC32C (u32) of all that
/// is behind the 96 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct HelloAck {
    /// Type [`PduType::HelloAck`].
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
    /// How many endpoints there are: at least one for each reactor.
    pub endpoints: U16,
    /// The most fragments of a command; 0: on this transport a command names no memory.
    pub fragments_max: U16,
    /// Zero.
    pub reserved: U16,
    /// Zero.
    pub reserved2: U64,
    /// CRC32C of the 92 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<HelloAck>() == 96);

/// Where one reactor listens with one transport: 24 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Endpoint {
    /// IPv6 address, or IPv4 mapped into it (RFC 4291, 2.5.5.2). All zero: the address that the
    /// client has connected to.
    pub address: [u8; 16],
    /// The port; over shared memory, the number behind the socket's path.
    pub port: U16,
    /// The reactor's number.
    pub reactor: U16,
    /// [`TRANSPORT_TCP`], [`TRANSPORT_RDMA`] or [`TRANSPORT_SHM`]. Those of later versions are passed over.
    pub transport: U16,
    /// Of a reactor's endpoints with one transport, the one with the lowest number is tried first.
    pub preference: U16,
}
/// Bytes of one [`Endpoint`].
pub const ENDPOINT_BYTES: usize = 24;
const _: () = assert!(size_of::<Endpoint>() == ENDPOINT_BYTES);
/// [`Endpoint::transport`]: TCP.
pub const TRANSPORT_TCP: u16 = 1;
/// [`Endpoint::transport`]: RDMA.
pub const TRANSPORT_RDMA: u16 = 2;
/// [`Endpoint::transport`]: shared memory.
pub const TRANSPORT_SHM: u16 = 3;

impl Endpoint {
    /// Where `reactor` listens with TCP. An unspecified address (`0.0.0.0`, `::`) becomes "the one
    /// that you have connected to".
    #[must_use]
    pub fn tcp(reactor: u16, address: SocketAddr) -> Self {
        Self::on_a_network(TRANSPORT_TCP, reactor, address)
    }

    /// The same with RDMA.
    #[must_use]
    pub fn rdma(reactor: u16, address: SocketAddr) -> Self {
        Self::on_a_network(TRANSPORT_RDMA, reactor, address)
    }

    fn on_a_network(transport: u16, reactor: u16, address: SocketAddr) -> Self {
        let ip = match address.ip() {
            ip if ip.is_unspecified() => [0; 16],
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        Self {
            address: ip,
            port: U16::new(address.port()),
            reactor: U16::new(reactor),
            transport: U16::new(transport),
            preference: U16::ZERO,
        }
    }

    /// The same with another preference.
    #[must_use]
    pub fn with_preference(self, preference: u16) -> Self {
        Self { preference: U16::new(preference), ..self }
    }

    /// Where `reactor` listens over shared memory: at the path that the client has connected to, but
    /// for the number behind it.
    #[must_use]
    pub fn shm(reactor: u16) -> Self {
        Self {
            address: [0; 16],
            port: U16::new(reactor),
            reactor: U16::new(reactor),
            transport: U16::new(TRANSPORT_SHM),
            preference: U16::ZERO,
        }
    }

    /// Where to connect to, for a client that has reached the server at `reached`.
    #[must_use]
    pub fn socket_address(&self, reached: IpAddr) -> SocketAddr {
        let ip = if self.address == [0; 16] {
            reached
        } else {
            Ipv6Addr::from(self.address).to_canonical()
        };
        SocketAddr::new(ip, self.port.get())
    }
}

/// What the server grants and announces, checked and owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that is spoken.
    pub version: u16,
    /// The first credit limit: commands in flight, and the bound of their `cid`s. At least 1.
    pub queue_depth: u16,
    /// The largest capsule, in bytes.
    pub capsule_bytes: u32,
    /// The [`features`] that are spoken.
    pub features: u64,
    /// The pool's UUID: also the key of the routing hash.
    pub pool: [u8; 16],
    /// This start of the server.
    pub incarnation: [u8; 16],
    /// How long the connection may be silent, in milliseconds.
    pub keep_alive_ms: u32,
    /// The longest deadline the server keeps, in microseconds.
    pub timeout_max_us: u32,
    /// The largest value a store takes, in bytes.
    pub value_bytes_max: u32,
    /// The most items in a batch.
    pub items_max: u16,
    /// How many reactors there are; every number of one is below it.
    pub reactors: u16,
    /// The reactor that answers on this connection.
    pub reactor: u16,
    /// The reactor that keeps the checkpoint catalog.
    pub catalog_reactor: u16,
    /// The most fragments of a command, at most [`super::FRAGMENTS_MAX`]; 0: on this transport a
    /// command names no memory.
    pub fragments_max: u16,
    /// Where they listen: at least one for each reactor.
    pub endpoints: Vec<Endpoint>,
    /// Shard → reactor. At least one shard.
    pub shard_map: Vec<u16>,
}

impl Welcome {
    /// Appends the HELLO_ACK that says this to `out`.
    ///
    /// # Panics
    /// If there are more endpoints or shards than the format holds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.endpoints.len() <= usize::from(ENDPOINTS_MAX));
        assert!(self.shard_map.len() <= usize::from(SHARDS_MAX));
        let behind = self.endpoints.len() * ENDPOINT_BYTES + self.shard_map.len() * 2 + 4;
        let mut ack = HelloAck {
            header: CommonHeader::new(PduType::HelloAck, 0, size_of::<HelloAck>() + behind),
            version: U16::new(self.version),
            queue_depth: U16::new(self.queue_depth),
            capsule_bytes: U32::new(self.capsule_bytes),
            features: U64::new(self.features),
            pool: self.pool,
            incarnation: self.incarnation,
            keep_alive_ms: U32::new(self.keep_alive_ms),
            timeout_max_us: U32::new(self.timeout_max_us),
            value_bytes_max: U32::new(self.value_bytes_max),
            items_max: U16::new(self.items_max),
            reactor: U16::new(self.reactor),
            reactors: U16::new(self.reactors),
            shards: U16::new(self.shard_map.len() as u16),
            catalog_reactor: U16::new(self.catalog_reactor),
            endpoints: U16::new(self.endpoints.len() as u16),
            fragments_max: U16::new(self.fragments_max),
            reserved: U16::ZERO,
            reserved2: U64::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut ack);
        out.extend_from_slice(ack.as_bytes());
        let tail = out.len();
        out.extend_from_slice(self.endpoints.as_slice().as_bytes());
        out.extend(self.shard_map.iter().flat_map(|reactor| reactor.to_le_bytes()));
        let crc = crc32c(&out[tail..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// What a HELLO_ACK says. Allocates at most what a HELLO_ACK of the longest length holds.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8]) -> Result<Self, DecodeError> {
        let ack: &HelloAck = check::fixed(pdu, PduType::HelloAck)?;
        if ack.header.length.get() as usize != pdu.len() || pdu.len() > HELLO_ACK_BYTES_MAX {
            return Err(DecodeError::Length);
        }
        check::reserved(ack.header.flags == 0)?;
        check::reserved(ack.reserved.get() == 0 && ack.reserved2.get() == 0)?;
        let (endpoints, shard_map) = Self::tables(ack, &pdu[size_of::<HelloAck>()..])?;
        let known = |reactor: &U16| reactor.get() < ack.reactors.get();
        let named = endpoints.iter().map(|endpoint| &endpoint.reactor).chain(shard_map);
        if !named.chain([&ack.reactor, &ack.catalog_reactor]).all(known) {
            return Err(DecodeError::Field("reactor number"));
        }
        if !all_listen(ack.reactors.get(), endpoints) {
            return Err(DecodeError::Field("a reactor without an endpoint"));
        }
        if ack.queue_depth.get() == 0 || shard_map.is_empty() {
            return Err(DecodeError::Field("queue depth or shards of 0"));
        }
        if usize::from(ack.fragments_max.get()) > FRAGMENTS_MAX {
            return Err(DecodeError::Field("more fragments than a command names"));
        }
        Ok(Self {
            version: ack.version.get(),
            queue_depth: ack.queue_depth.get(),
            capsule_bytes: ack.capsule_bytes.get(),
            features: ack.features.get(),
            pool: ack.pool,
            incarnation: ack.incarnation,
            keep_alive_ms: ack.keep_alive_ms.get(),
            timeout_max_us: ack.timeout_max_us.get(),
            value_bytes_max: ack.value_bytes_max.get(),
            items_max: ack.items_max.get(),
            reactors: ack.reactors.get(),
            reactor: ack.reactor.get(),
            catalog_reactor: ack.catalog_reactor.get(),
            fragments_max: ack.fragments_max.get(),
            endpoints: endpoints.to_vec(),
            shard_map: shard_map.iter().map(|reactor| reactor.get()).collect(),
        })
    }

    /// Cuts the two tables out of what is behind the 96 bytes, and checks their checksum.
    fn tables<'a>(
        ack: &HelloAck,
        rest: &'a [u8],
    ) -> Result<(&'a [Endpoint], &'a [U16]), DecodeError> {
        let (reactors, shards) = (ack.reactors.get(), ack.shards.get());
        let count = ack.endpoints.get();
        if reactors > REACTORS_MAX || shards > SHARDS_MAX || count > ENDPOINTS_MAX {
            return Err(DecodeError::Field("reactors, shards or endpoints"));
        }
        let (covered, crc) = rest.split_last_chunk::<4>().ok_or(DecodeError::Truncated)?;
        let (endpoints, shard_map) =
            <[Endpoint]>::ref_from_prefix_with_elems(covered, usize::from(count))
                .map_err(|_| DecodeError::Truncated)?;
        let shard_map = <[U16]>::ref_from_bytes_with_elems(shard_map, usize::from(shards))
            .map_err(|_| DecodeError::Length)?;
        if crc32c(covered) != u32::from_le_bytes(*crc) {
            return Err(DecodeError::Checksum);
        }
        Ok((endpoints, shard_map))
    }
}

/// Every reactor listens somewhere.
fn all_listen(reactors: u16, endpoints: &[Endpoint]) -> bool {
    let mut listens = vec![false; usize::from(reactors)];
    endpoints.iter().for_each(|endpoint| listens[usize::from(endpoint.reactor.get())] = true);
    listens.into_iter().all(|listens| listens)
}

/// The limits that every server of this version announces.
impl Default for Welcome {
    fn default() -> Self {
        Self {
            version: super::VERSION,
            queue_depth: 1,
            capsule_bytes: super::CAPSULE_BYTES_DEFAULT as u32,
            features: features::ALL,
            pool: [0; 16],
            incarnation: [0; 16],
            keep_alive_ms: 10_000,
            timeout_max_us: 30_000_000,
            value_bytes_max: VALUE_BYTES_MAX as u32,
            items_max: ITEMS_MAX as u16,
            reactors: 0,
            reactor: 0,
            catalog_reactor: 0,
            fragments_max: 0,
            endpoints: Vec::new(),
            shard_map: vec![0],
        }
    }
}
