//! A container: the address space that all drives of this process share, while at least one is in it.
//!
//! Guarantees: an IOMMU stands before the groups in it, set once the first of them is there; the ranges are those
//! that all of them can translate. It is closed with the last group, for the kernel drops its IOMMU, with
//! all maps, at that moment.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::offset_of;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    vfio_iommu_type1_info,
};

use crate::arena::Span;
use crate::pci::PciAddress;

use super::OpenError;
use super::chain::{Malformed, capability, pairs, u32_at};
use super::iova::Ranges;
use super::kernel;

/// Where containers are opened.
const PATH: &str = "/dev/vfio/vfio";

/// An open container.
#[derive(Debug)]
pub(super) struct Container {
    file: File,
}

impl Container {
    /// A new one with `group` in it, and an IOMMU before it. Errors are about `address`.
    pub(super) fn around(group: &File, address: PciAddress) -> Result<Self, OpenError> {
        let file = open(PATH, address)?;
        let version =
            kernel::api_version(&file).map_err(OpenError::io(address, "speak to VFIO"))?;
        let known = version == VFIO_API_VERSION as i32;
        if !known || !kernel::has_type1v2(&file).map_err(OpenError::io(address, "ask VFIO"))? {
            return Err(OpenError::NoType1 { address });
        }
        let container = Self { file };
        container.add(group, address)?;
        kernel::set_type1v2(&container.file).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => OpenError::UnsafeInterrupts { address },
            _ => OpenError::Io { address, what: "set up its IOMMU", source: error },
        })?;
        Ok(container)
    }

    /// Puts one more group into it: the maps that are there hold for it as well.
    pub(super) fn add(&self, group: &File, address: PciAddress) -> Result<(), OpenError> {
        let what = "share memory between it and the drives that are open";
        kernel::set_container(group, &self.file).map_err(OpenError::io(address, what))
    }

    /// What can be mapped.
    pub(super) fn ranges(&self) -> io::Result<Ranges> {
        parse_ranges(&kernel::iommu_info(&self.file)?)?.ok_or_else(|| {
            io::Error::other("the kernel does not say which addresses it maps (Linux 5.4 does)")
        })
    }

    pub(super) fn map(&self, span: &Span, iova: u64) -> io::Result<()> {
        kernel::map(&self.file, span, iova)
    }

    /// Whether all of it was mapped before, and is not any more.
    pub(super) fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()> {
        match kernel::unmap(&self.file, iova, bytes)? {
            unmapped if unmapped == bytes => Ok(()),
            _ => Err(Errno::EINVAL.into()),
        }
    }
}

/// The ranges in a `vfio_iommu_type1_info` and what follows it; `None` if it names none.
fn parse_ranges(info: &[u8]) -> io::Result<Option<Ranges>> {
    let parse = || -> Result<Option<Ranges>, Malformed> {
        if u32_at(info, offset_of!(vfio_iommu_type1_info, flags))? & VFIO_IOMMU_INFO_CAPS == 0 {
            return Ok(None);
        }
        let first = u32_at(info, offset_of!(vfio_iommu_type1_info, cap_offset))?;
        let found = capability(info, first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?;
        found.map(|found| Ranges::new(pairs(found)?)).transpose()
    };
    parse().map_err(io::Error::other)
}

/// Opens one of VFIO's files for `address`.
pub(super) fn open(path: &str, address: PciAddress) -> Result<File, OpenError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|source| {
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => {
                OpenError::NoVfio { address, path }
            }
            Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => {
                OpenError::Permission { address, path }
            }
            _ => OpenError::Io { address, what: "open VFIO's file for it", source },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::encode;
    use super::*;

    fn info(flags: u32, first: u32, capabilities: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<vfio_iommu_type1_info>()];
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[16..20].copy_from_slice(&first.to_ne_bytes());
        bytes.extend(capabilities);
        bytes
    }

    #[test]
    fn the_ranges_are_read_behind_other_capabilities() {
        let mut chain = encode(3, 40 + 24, &[(65535, 0), (0, 0)]);
        chain.truncate(40);
        chain.extend(encode(1, 0, &[(0xFEF0_0000, 0x7F_FFFF_FFFF), (0, 0xFEDF_FFFF)]));
        let ranges = parse_ranges(&info(3, 24, &chain)).unwrap();
        assert_eq!(ranges.unwrap().to_string(), "0x0-0xfedfffff, 0xfef00000-0x7fffffffff");
    }

    #[test]
    fn a_kernel_that_names_no_ranges_is_not_guessed_at() {
        let chain = encode(1, 0, &[(0, 0xFFFF_FFFF)]);
        assert_eq!(parse_ranges(&info(1, 24, &chain)).unwrap(), None, "no capabilities");
        assert_eq!(parse_ranges(&info(3, 24, &encode(3, 0, &[]))).unwrap(), None, "others only");
        assert!(parse_ranges(&info(3, 24, &chain)[..50]).is_err());
        assert!(parse_ranges(&[]).is_err());
    }

    #[test]
    fn what_is_missing_or_forbidden_says_what_to_do() {
        let address = "03:00.0".parse().unwrap();
        let missing = open("/dev/vfio/no-such-file", address).unwrap_err().to_string();
        assert!(missing.contains("no /dev/vfio/no-such-file; load VFIO with `modprobe vfio-pci`"));
        let folder = tempfile::tempdir().unwrap();
        let other = open(folder.path().to_str().unwrap(), address).unwrap_err().to_string();
        assert!(other.contains("cannot open VFIO's file"), "{other}");
    }
}
