//! The small PDUs: authentication slot, R2T and DATA, CANCEL, PING/PONG, GOAWAY.
//!
//! A parser of each takes the whole PDU (DATA: its first 24 bytes) and answers what it says, or why
//! it says nothing.

use super::{AUTH_BYTES_MAX, CommonHeader, DecodeError, PduType, VALUE_BYTES_MAX, check};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// AUTH and AUTH_ACK, 16 bytes: method 0 (`none`) is the only one so far; a method's own bytes
/// would follow, counted by `header.length`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Auth {
    /// Type Auth or AuthAck.
    pub header: CommonHeader,
    /// 0: none.
    pub method: U16,
    /// Zero.
    pub reserved: U16,
    /// CRC32C of the 12 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Auth>() == 16);

impl Auth {
    /// No authentication.
    pub const NONE: u16 = 0;

    /// An AUTH or AUTH_ACK of method `none`.
    #[must_use]
    pub fn none(pdu_type: PduType) -> Self {
        let mut auth = Self {
            header: CommonHeader::new(pdu_type, 0, size_of::<Self>()),
            method: U16::new(Self::NONE),
            reserved: U16::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut auth);
        auth
    }

    /// The method, and the bytes of its own.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8], pdu_type: PduType) -> Result<(u16, &[u8]), DecodeError> {
        let auth: &Self = check::fixed(pdu, pdu_type)?;
        let length = auth.header.length.get() as usize;
        if length != pdu.len() || length > size_of::<Self>() + AUTH_BYTES_MAX {
            return Err(DecodeError::Length);
        }
        check::reserved(auth.header.flags == 0 && auth.reserved.get() == 0)?;
        Ok((auth.method.get(), &pdu[size_of::<Self>()..]))
    }
}

/// What an R2T asks for and a DATA brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The command.
    pub cid: u16,
    /// The first byte of its data.
    pub offset: u32,
    /// How many bytes: 1 to [`VALUE_BYTES_MAX`].
    pub length: u32,
}

impl Transfer {
    fn checked(self) -> Result<Self, DecodeError> {
        let end = u64::from(self.offset) + u64::from(self.length);
        if self.length == 0 || end > VALUE_BYTES_MAX as u64 {
            return Err(DecodeError::Field("transfer out of range"));
        }
        Ok(self)
    }
}

/// R2T, 24 bytes: the server has memory ready for `length` bytes of the value, from `offset` on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReadyToTransfer {
    /// Type ReadyToTransfer, the command's `cid`.
    pub header: CommonHeader,
    /// First byte wanted.
    pub offset: U32,
    /// Bytes wanted.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 20 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<ReadyToTransfer>() == 24);

impl ReadyToTransfer {
    /// Asks for `transfer`.
    #[must_use]
    pub fn new(transfer: Transfer) -> Self {
        let Transfer { cid, offset, length } = transfer;
        let mut pdu = Self {
            header: CommonHeader::new(PduType::ReadyToTransfer, cid, size_of::<Self>()),
            offset: U32::new(offset),
            length: U32::new(length),
            reserved: U32::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut pdu);
        pdu
    }

    /// What is asked for.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8]) -> Result<Transfer, DecodeError> {
        let pdu: &Self = check::whole(pdu, PduType::ReadyToTransfer)?;
        check::reserved(pdu.reserved.get() == 0)?;
        let (offset, length) = (pdu.offset.get(), pdu.length.get());
        Transfer { cid: pdu.header.cid.get(), offset, length }.checked()
    }
}

/// DATA, 24 bytes and then the bytes that an R2T asked for, all of them; the value as a whole is
/// covered by the command's `data_crc`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Data {
    /// Type Data, the command's `cid`; `length` counts the bytes that follow.
    pub header: CommonHeader,
    /// As in the R2T.
    pub offset: U32,
    /// As in the R2T.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 20 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Data>() == 24);

impl Data {
    /// The 24 bytes before the data of `transfer`.
    #[must_use]
    pub fn new(transfer: Transfer) -> Self {
        let Transfer { cid, offset, length } = transfer;
        let bytes = size_of::<Self>() + length as usize;
        let mut pdu = Self {
            header: CommonHeader::new(PduType::Data, cid, bytes),
            offset: U32::new(offset),
            length: U32::new(length),
            reserved: U32::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut pdu);
        pdu
    }

    /// What the first 24 bytes of a DATA announce.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8]) -> Result<Transfer, DecodeError> {
        let pdu: &Self = check::fixed(pdu, PduType::Data)?;
        check::reserved(pdu.header.flags == 0 && pdu.reserved.get() == 0)?;
        let (offset, length) = (pdu.offset.get(), pdu.length.get());
        if pdu.header.length.get() as usize != size_of::<Self>() + length as usize {
            return Err(DecodeError::Length);
        }
        Transfer { cid: pdu.header.cid.get(), offset, length }.checked()
    }
}

/// CANCEL, 16 bytes: answer `cid` now with `Cancelled`, if it has not been answered.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Cancel {
    /// Type Cancel, the `cid` to cancel.
    pub header: CommonHeader,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 12 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Cancel>() == 16);

impl Cancel {
    /// Gives up `cid`.
    #[must_use]
    pub fn new(cid: u16) -> Self {
        let mut pdu = Self {
            header: CommonHeader::new(PduType::Cancel, cid, size_of::<Self>()),
            reserved: U32::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut pdu);
        pdu
    }

    /// The command to give up.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8]) -> Result<u16, DecodeError> {
        let pdu: &Self = check::whole(pdu, PduType::Cancel)?;
        check::reserved(pdu.reserved.get() == 0)?;
        Ok(pdu.header.cid.get())
    }
}

/// PING and PONG, 24 bytes; a PONG returns the PING's `nonce`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Ping {
    /// Type Ping or Pong.
    pub header: CommonHeader,
    /// Any number.
    pub nonce: U64,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 20 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Ping>() == 24);

impl Ping {
    /// A PING or PONG.
    #[must_use]
    pub fn new(pdu_type: PduType, nonce: u64) -> Self {
        let mut pdu = Self {
            header: CommonHeader::new(pdu_type, 0, size_of::<Self>()),
            nonce: U64::new(nonce),
            reserved: U32::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut pdu);
        pdu
    }

    /// The nonce of a PING or PONG.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8], pdu_type: PduType) -> Result<u64, DecodeError> {
        let pdu: &Self = check::whole(pdu, pdu_type)?;
        check::reserved(pdu.reserved.get() == 0)?;
        Ok(pdu.nonce.get())
    }
}

/// GOAWAY, 16 bytes: no new commands on this connection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct GoAway {
    /// Type GoAway.
    pub header: CommonHeader,
    /// A [`GoAwayReason`].
    pub reason: U16,
    /// Zero.
    pub reserved: U16,
    /// CRC32C of the 12 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<GoAway>() == 16);

impl GoAway {
    /// No new commands, because of `reason`.
    #[must_use]
    pub fn new(reason: GoAwayReason) -> Self {
        let mut pdu = Self {
            header: CommonHeader::new(PduType::GoAway, 0, size_of::<Self>()),
            reason: U16::new(reason as u16),
            reserved: U16::ZERO,
            header_crc: U32::ZERO,
        };
        check::seal(&mut pdu);
        pdu
    }

    /// The reason.
    ///
    /// # Errors
    /// [`DecodeError`]; a reason that is not known here is one.
    pub fn parse(pdu: &[u8]) -> Result<GoAwayReason, DecodeError> {
        let pdu: &Self = check::whole(pdu, PduType::GoAway)?;
        check::reserved(pdu.reserved.get() == 0)?;
        GoAwayReason::from_wire(pdu.reason.get()).ok_or(DecodeError::Field("goaway reason"))
    }
}

/// Why a side says GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum GoAwayReason {
    /// The server drains: commands in flight are still answered; then it closes.
    Drain = 0,
    /// The peer broke the protocol; the connection closes at once.
    Protocol = 1,
    /// No version in common.
    Version = 2,
    /// Authentication was refused.
    Auth = 3,
    /// No room for another connection.
    Full = 4,
    /// The peer was silent for too long.
    KeepAlive = 5,
}

impl GoAwayReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 6] =
        [Self::Drain, Self::Protocol, Self::Version, Self::Auth, Self::Full, Self::KeepAlive];

    /// The reason with this number, if there is one.
    #[must_use]
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}
