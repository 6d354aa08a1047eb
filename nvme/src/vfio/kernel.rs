//! The system calls of VFIO, each as one safe function (Linux, `include/uapi/linux/vfio.h`).
//!
//! Guarantees: the kernel gets pointers only to memory of the length that it is told, which lives for as long as the
//! call; what it answers is bytes or integers, not yet checked. What breaks it: a descriptor of something
//! else, which is an error of the kernel (`ENOTTY`) and no harm.

#![expect(unsafe_code, reason = "ioctl(2): each call carries its proof")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio as sys;

use crate::arena::Span;

/// The ioctls as nix makes them: `_IO(';', 100 + n)`, all without a size in their code.
mod raw {
    use nix::libc::c_char;
    use nix::{
        ioctl_none_bad, ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr_bad,
        request_code_none,
    };
    use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

    use super::{IrqSet, sys};

    ioctl_none_bad!(get_api_version, request_code_none!(VFIO_TYPE, VFIO_BASE));
    ioctl_write_int_bad!(check_extension, request_code_none!(VFIO_TYPE, VFIO_BASE + 1));
    ioctl_write_int_bad!(set_iommu, request_code_none!(VFIO_TYPE, VFIO_BASE + 2));
    ioctl_readwrite_bad!(
        group_get_status,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 3),
        sys::vfio_group_status
    );
    ioctl_write_ptr_bad!(group_set_container, request_code_none!(VFIO_TYPE, VFIO_BASE + 4), i32);
    ioctl_write_ptr_bad!(group_get_device_fd, request_code_none!(VFIO_TYPE, VFIO_BASE + 6), c_char);
    ioctl_readwrite_bad!(
        device_get_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 7),
        sys::vfio_device_info
    );
    ioctl_readwrite_bad!(get_region_info, request_code_none!(VFIO_TYPE, VFIO_BASE + 8), u8);
    ioctl_readwrite_bad!(
        get_irq_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 9),
        sys::vfio_irq_info
    );
    ioctl_write_ptr_bad!(set_irqs, request_code_none!(VFIO_TYPE, VFIO_BASE + 10), IrqSet);
    ioctl_none_bad!(device_reset, request_code_none!(VFIO_TYPE, VFIO_BASE + 11));
    ioctl_readwrite_bad!(iommu_get_info, request_code_none!(VFIO_TYPE, VFIO_BASE + 12), u8);
    ioctl_write_ptr_bad!(
        map_dma,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 13),
        sys::vfio_iommu_type1_dma_map
    );
    ioctl_readwrite_bad!(
        unmap_dma,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 14),
        sys::vfio_iommu_type1_dma_unmap
    );
}

/// `vfio_irq_set` with the one descriptor that follows it.
#[repr(C)]
struct IrqSet {
    header: sys::vfio_irq_set,
    eventfd: i32,
}

const _: () = assert!(size_of::<IrqSet>() == 24 && std::mem::offset_of!(IrqSet, eventfd) == 20);

/// Answers of variable length that are longer than this are not believed.
const ANSWER_BYTES_MAX: usize = 1 << 16;

/// The version of the interface: 0, as long as there is one.
pub(super) fn api_version(container: &File) -> io::Result<i32> {
    // SAFETY: takes no argument.
    Ok(unsafe { raw::get_api_version(container.as_raw_fd()) }?)
}

/// Whether this kernel has IOMMUs of type 1, version 2.
pub(super) fn has_type1v2(container: &File) -> io::Result<bool> {
    let extension = sys::VFIO_TYPE1v2_IOMMU as i32;
    // SAFETY: the argument is an integer.
    Ok(unsafe { raw::check_extension(container.as_raw_fd(), extension) }? > 0)
}

/// Gives a container with a group in it an IOMMU of type 1, version 2.
pub(super) fn set_type1v2(container: &File) -> io::Result<()> {
    // SAFETY: the argument is an integer.
    unsafe { raw::set_iommu(container.as_raw_fd(), sys::VFIO_TYPE1v2_IOMMU as i32) }?;
    Ok(())
}

/// Whether all devices of the group are free to be used from user space.
pub(super) fn is_viable(group: &File) -> io::Result<bool> {
    let mut status =
        sys::vfio_group_status { argsz: size_of::<sys::vfio_group_status>() as u32, flags: 0 };
    // SAFETY: `status` is a live struct of the type that the call fills, and says its size.
    unsafe { raw::group_get_status(group.as_raw_fd(), &raw mut status) }?;
    Ok(status.flags & sys::VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts the group into the container.
pub(super) fn set_container(group: &File, container: &File) -> io::Result<()> {
    let container = container.as_raw_fd();
    // SAFETY: the call reads one integer of 32 bits, which lives on this stack.
    unsafe { raw::group_set_container(group.as_raw_fd(), &raw const container) }?;
    Ok(())
}

/// Opens the device of the group that has this name.
pub(super) fn device(group: &File, name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the call reads a string that ends in a zero, which `name` is.
    let fd = unsafe { raw::group_get_device_fd(group.as_raw_fd(), name.as_ptr()) }?;
    // SAFETY: the kernel has just made this descriptor for us (with O_CLOEXEC), and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// What the device is.
pub(super) fn device_info(device: &File) -> io::Result<sys::vfio_device_info> {
    let argsz = size_of::<sys::vfio_device_info>() as u32;
    let mut info = sys::vfio_device_info { argsz, ..Default::default() };
    // SAFETY: `info` is a live struct of the type that the call fills, and says its size.
    unsafe { raw::device_get_info(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// A `vfio_region_info`, and the chain of capabilities behind it.
pub(super) fn region_info(device: &File, index: u32) -> io::Result<Vec<u8>> {
    let mut question = [0; size_of::<sys::vfio_region_info>()];
    let at = std::mem::offset_of!(sys::vfio_region_info, index);
    question[at..at + 4].copy_from_slice(&index.to_ne_bytes());
    whole_answer(&question, |answer| {
        // SAFETY: `answer` is live, and begins with its length (see `whole_answer`): the call neither reads
        // nor writes beyond that. It copies, so that no alignment is asked for.
        unsafe { raw::get_region_info(device.as_raw_fd(), answer.as_mut_ptr()) }
    })
}

/// A `vfio_iommu_type1_info`, and the chain of capabilities behind it.
pub(super) fn iommu_info(container: &File) -> io::Result<Vec<u8>> {
    whole_answer(&[0; size_of::<sys::vfio_iommu_type1_info>()], |answer| {
        // SAFETY: as in `region_info`.
        unsafe { raw::iommu_get_info(container.as_raw_fd(), answer.as_mut_ptr()) }
    })
}

/// Asks with `question` (whose first 32 bits are the room for the answer, filled in here), and again with more room
/// for as long as the kernel has more to say.
fn whole_answer(
    question: &[u8],
    mut ask: impl FnMut(&mut [u8]) -> nix::Result<i32>,
) -> io::Result<Vec<u8>> {
    let mut room = question.len();
    loop {
        let mut answer = question.to_vec();
        answer.resize(room, 0);
        answer[..4].copy_from_slice(&(room as u32).to_ne_bytes());
        ask(&mut answer)?;
        let wanted = super::chain::u32_at(&answer, 0).map_err(io::Error::other)? as usize;
        if wanted <= room {
            return Ok(answer);
        }
        if wanted > ANSWER_BYTES_MAX {
            return Err(io::Error::other(super::chain::Malformed));
        }
        room = wanted;
    }
}

/// How many interrupts the device has at `index`. An index that it does not know has none.
pub(super) fn interrupts(device: &File, index: u32) -> u32 {
    let argsz = size_of::<sys::vfio_irq_info>() as u32;
    let mut info = sys::vfio_irq_info { argsz, index, ..Default::default() };
    // SAFETY: `info` is a live struct of the type that the call fills, and says its size.
    let answered = unsafe { raw::get_irq_info(device.as_raw_fd(), &raw mut info) };
    if answered.is_ok() && info.flags & sys::VFIO_IRQ_INFO_EVENTFD != 0 { info.count } else { 0 }
}

/// Has the kernel signal `eventfd` for the first interrupt of `index`.
pub(super) fn signal(device: &File, index: u32, eventfd: BorrowedFd<'_>) -> io::Result<()> {
    let set = IrqSet {
        header: sys::vfio_irq_set {
            argsz: size_of::<IrqSet>() as u32,
            flags: sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_TRIGGER,
            index,
            start: 0,
            count: 1,
            ..Default::default()
        },
        eventfd: eventfd.as_raw_fd(),
    };
    // SAFETY: `set` is a live header with the one descriptor that it announces, and says its size. The kernel takes
    // a reference of its own to the eventfd.
    unsafe { raw::set_irqs(device.as_raw_fd(), &raw const set) }?;
    Ok(())
}

/// Resets the device.
pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::device_reset(device.as_raw_fd()) }?;
    Ok(())
}

/// Pins the memory of `span` and gives the devices of the container access to it at `iova`.
pub(super) fn map(container: &File, span: &Span, iova: u64) -> io::Result<()> {
    let map = sys::vfio_iommu_type1_dma_map {
        argsz: size_of::<sys::vfio_iommu_type1_dma_map>() as u32,
        flags: sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: span.address() as u64,
        iova,
        size: span.bytes() as u64,
    };
    // SAFETY: `map` is a live struct of the type that the call reads. The memory that devices reach from now on is an
    // arena's, which is made for that. Its pages are pinned until they are unmapped, so that a device never
    // reaches a page that is somebody else's by now, whatever becomes of the span.
    unsafe { raw::map_dma(container.as_raw_fd(), &raw const map) }?;
    Ok(())
}

/// Takes the access at `iova` back, and returns how many bytes that were.
pub(super) fn unmap(container: &File, iova: u64, bytes: u64) -> io::Result<u64> {
    let mut unmap = sys::vfio_iommu_type1_dma_unmap {
        argsz: size_of::<sys::vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size: bytes,
        ..Default::default()
    };
    // SAFETY: `unmap` is a live struct of the type that the call reads and fills (without flags there is nothing
    // behind it), and says its size.
    unsafe { raw::unmap_dma(container.as_raw_fd(), &raw mut unmap) }?;
    Ok(unmap.size)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    /// Answers as the kernel does: fills what fits, and says what it would have needed.
    fn answers(needs: usize) -> impl FnMut(&mut [u8]) -> nix::Result<i32> {
        move |room| {
            let told = u32::from_ne_bytes(*room.first_chunk().unwrap()) as usize;
            assert_eq!(told, room.len(), "the call may write this much");
            room[..4].copy_from_slice(&(needs as u32).to_ne_bytes());
            room[4..].fill(9);
            Ok(0)
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_is_asked_for_again() {
        for needs in [8, 16, 17, 4096] {
            let answer = whole_answer(&[0; 16], answers(needs)).unwrap();
            assert_eq!(answer.len(), needs.max(16));
            assert_eq!(answer[15], 9);
        }
    }

    #[test]
    fn an_answer_of_absurd_length_is_an_error() {
        for needs in [ANSWER_BYTES_MAX + 1, u32::MAX as usize] {
            assert!(whole_answer(&[0; 16], answers(needs)).is_err());
        }
        assert!(whole_answer(&[0; 16], |_| Err(Errno::EINVAL)).is_err());
    }

    #[test]
    fn what_is_no_vfio_is_an_error() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(api_version(&null).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert!(iommu_info(&null).is_err() && region_info(&null, 0).is_err());
        assert!(device(&null, "0000:03:00.0").is_err() && reset(&null).is_err());
        assert_eq!(interrupts(&null, 4), 0);
    }
}
