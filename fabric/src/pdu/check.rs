//! What all fixed parts have in common: the type first, a CRC32C of everything before it last.

use super::{CommonHeader, DecodeError, PduType, crc32c};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const CRC_BYTES: usize = 4;

/// Writes the checksum into the last 4 bytes of a fixed part.
pub(super) fn seal<T: FromBytes + IntoBytes + KnownLayout>(fixed: &mut T) {
    let (covered, crc) = fixed.as_mut_bytes().split_at_mut(size_of::<T>() - CRC_BYTES);
    crc.copy_from_slice(&crc32c(covered).to_le_bytes());
}

/// Views the beginning of `pdu` as the fixed part `T` of a PDU of `pdu_type`, if its checksum says
/// that it is one. Whether `length` is right is left to the caller.
pub(super) fn fixed<T>(pdu: &[u8], pdu_type: PduType) -> Result<&T, DecodeError>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
{
    let (fixed, _) = T::ref_from_prefix(pdu).map_err(|_| DecodeError::Truncated)?;
    let (covered, crc) = fixed.as_bytes().split_at(size_of::<T>() - CRC_BYTES);
    if covered[0] != pdu_type as u8 {
        return Err(DecodeError::Type);
    }
    if crc32c(covered).to_le_bytes() != crc {
        return Err(DecodeError::Checksum);
    }
    Ok(fixed)
}

/// [`fixed`], for a PDU that is nothing but its fixed part and has no flags.
pub(super) fn whole<T>(pdu: &[u8], pdu_type: PduType) -> Result<&T, DecodeError>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
{
    let layout = fixed::<T>(pdu, pdu_type)?;
    let (header, _) = CommonHeader::ref_from_prefix(pdu).map_err(|_| DecodeError::Truncated)?;
    if header.length.get() as usize != size_of::<T>() || pdu.len() != size_of::<T>() {
        return Err(DecodeError::Length);
    }
    if header.flags != 0 {
        return Err(DecodeError::Reserved);
    }
    Ok(layout)
}

/// Refuses a reserved field that is not zero: it may mean something one day.
pub(super) fn reserved(zero: bool) -> Result<(), DecodeError> {
    if zero { Ok(()) } else { Err(DecodeError::Reserved) }
}
