//! The kernel's NVMe driver as a way to a controller: admin commands through `/dev/nvmeN`.
//!
//! For the tools, while the kernel has a drive: a daemon never comes here. Guarantees: only commands
//! are sent whose data is known here to the byte ([`transfer_bytes`]), and only with a buffer of that
//! length, since the kernel maps what it is given and a device writes what the command says. Each call
//! blocks until the command has ended; the kernel's timeout ends it if the device does not.
//!
//! Beside it [`reread_partitions`], for after a format.
//!
//! What breaks it: a controller that writes past what it was asked for, on a machine without an IOMMU.

#![expect(
    unsafe_code,
    reason = "gives the kernel the address of a buffer for the length of one ioctl; the block carries \
              its proof"
)]

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::spec::command::Submission;
use crate::spec::identify::IDENTIFY_BYTES;
use crate::spec::opcode::admin;
use crate::spec::status::Status;

/// `struct nvme_admin_cmd` of `linux/nvme_ioctl.h`.
#[derive(Debug, Default)]
#[repr(C)]
struct AdminCommand {
    opcode: u8,
    flags: u8,
    reserved2: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}
const _: () = assert!(size_of::<AdminCommand>() == 72);
const _: () = assert!(offset_of!(AdminCommand, metadata) == 16);
const _: () = assert!(offset_of!(AdminCommand, address) == 24);
const _: () = assert!(offset_of!(AdminCommand, data_bytes) == 36);
const _: () = assert!(offset_of!(AdminCommand, cdw10) == 40);
const _: () = assert!(offset_of!(AdminCommand, timeout_ms) == 64);
const _: () = assert!(offset_of!(AdminCommand, result) == 68);

nix::ioctl_readwrite!(
    /// `NVME_IOCTL_ADMIN_CMD`: runs one admin command; returns its status.
    admin_command,
    b'N',
    0x41,
    AdminCommand
);
const _: () = assert!(nix::request_code_readwrite!(b'N', 0x41, 72) == 0xc048_4e41);

nix::ioctl_none!(
    /// `BLKRRPART` of `linux/fs.h`.
    block_reread_partitions,
    0x12,
    95
);

/// Has the kernel look at the partition table of an open block device again; it must be the whole one.
/// A descriptor that claims the device (`O_EXCL`) may do so, and needs not let go of it.
///
/// # Errors
/// One of its partitions is in use, the caller is not root, or it is no whole block device.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call has no argument. On what is no block device it is ENOTTY.
    unsafe { block_reread_partitions(disk.as_raw_fd()) }?;
    Ok(())
}

/// Why a command was not done. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}; {}", path.display(), advice(source))]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no character device.
    #[error("{} is no NVMe controller; give one like /dev/nvme0", path.display())]
    NoController {
        /// The path.
        path: PathBuf,
    },
    /// A command whose transfer is not known here.
    #[error("admin command {opcode:#04x} ({}) is not sent through the kernel; use nvme-cli for it", admin_name(*opcode))]
    Unknown {
        /// Its opcode.
        opcode: u8,
    },
    /// The buffer is not what the command transfers.
    #[error("{} transfers {wanted} bytes, not {given}", admin_name(*opcode))]
    Length {
        /// The command's opcode.
        opcode: u8,
        /// What it transfers.
        wanted: u64,
        /// The length of the buffer.
        given: usize,
    },
    /// The controller refuses the command, or failed at it.
    #[error("{}: {status}", admin_name(*opcode))]
    Status {
        /// The command's opcode.
        opcode: u8,
        /// What the controller said.
        status: Status,
    },
    /// The kernel did not send it, or the controller did not answer.
    #[error("{}: {source}; {}", admin_name(*opcode), advice(source))]
    Kernel {
        /// The command's opcode.
        opcode: u8,
        /// What the kernel said.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => "run as root",
        Some(Errno::ENOTTY) => "it is no NVMe controller",
        Some(Errno::EINTR) => {
            "the controller did not answer in time, and was reset: dmesg says more"
        }
        _ => "dmesg may say more",
    }
}

fn admin_name(opcode: u8) -> &'static str {
    crate::spec::opcode::admin_name(opcode)
}

/// A controller that the kernel's driver has.
#[derive(Debug)]
pub struct KernelController {
    file: File,
}

impl KernelController {
    /// Opens `/dev/nvmeN`.
    ///
    /// # Errors
    /// It is not there, is no character device, or may not be opened.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let fail = |source| KernelError::Open { path: path.into(), source };
        let file = File::open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.file_type().is_char_device() {
            return Err(KernelError::NoController { path: path.into() });
        }
        Ok(Self { file })
    }

    /// Runs an admin command, with the kernel's own timeout (60 s unless it was told another); the
    /// completion's result. The command's data pointer does not matter.
    ///
    /// # Errors
    /// [`KernelError`]; what `data` holds then is not said.
    pub fn admin(&self, command: &Submission, data: &mut [u8]) -> Result<u32, KernelError> {
        self.admin_within(command, data, 0)
    }

    /// The same, with a timeout; 0 is the kernel's own.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn admin_within(
        &self,
        command: &Submission,
        data: &mut [u8],
        timeout_ms: u32,
    ) -> Result<u32, KernelError> {
        let opcode = command.opcode;
        let wanted = transfer_bytes(command).ok_or(KernelError::Unknown { opcode })?;
        let given = data.len();
        // The kernel counts in 32 bits; a log page may say more.
        let data_bytes = u32::try_from(given).ok().filter(|bytes| u64::from(*bytes) == wanted);
        let data_bytes = data_bytes.ok_or(KernelError::Length { opcode, wanted, given })?;
        let mut call = AdminCommand {
            address: if data.is_empty() { 0 } else { data.as_mut_ptr().expose_provenance() as u64 },
            data_bytes,
            timeout_ms,
            ..AdminCommand::of(command)
        };
        // SAFETY: the descriptor is open, and `call` is a struct of the layout that the kernel reads and
        // writes (asserted above). It lets the device write to `address` for `data_bytes` bytes, which is
        // `data`: borrowed exclusively until the call returns, when the kernel has unmapped it again. The
        // command transfers exactly that many bytes, towards the host, by its own words (checked above).
        // A descriptor that is no NVMe controller's answers ENOTTY.
        let status = unsafe { admin_command(self.file.as_raw_fd(), &raw mut call) };
        match status {
            Ok(0) => Ok(call.result),
            Ok(status) => Err(KernelError::Status { opcode, status: Status(status as u16) }),
            Err(errno) => Err(KernelError::Kernel { opcode, source: errno.into() }),
        }
    }
}

impl AdminCommand {
    /// The command without its data; the kernel has its own idea of flags and identifier.
    fn of(command: &Submission) -> Self {
        Self {
            opcode: command.opcode,
            nsid: command.nsid.get(),
            cdw2: command.cdw2.get(),
            cdw3: command.cdw3.get(),
            cdw10: command.cdw10.get(),
            cdw11: command.cdw11.get(),
            cdw12: command.cdw12.get(),
            cdw13: command.cdw13.get(),
            cdw14: command.cdw14.get(),
            cdw15: command.cdw15.get(),
            ..Self::default()
        }
    }
}

/// How many bytes a command makes the device write to the host; `None` for a command that is not sent
/// here: one of other data, or of data towards the device.
#[must_use]
pub fn transfer_bytes(command: &Submission) -> Option<u64> {
    match command.opcode {
        admin::IDENTIFY => Some(IDENTIFY_BYTES as u64),
        // NUMDL in dword 10, 31:16; NUMDU in dword 11, 15:0; one less (Base, "Get Log Page command").
        admin::GET_LOG_PAGE => {
            let (low, high) = (command.cdw10.get() >> 16, command.cdw11.get() & 0xffff);
            Some((u64::from(low | high << 16) + 1) * 4)
        }
        admin::FORMAT_NVM => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::command::{Data, SecureErase};

    const DATA: Data = Data::Prp(0, 0);

    #[test]
    fn a_command_transfers_what_its_words_say() {
        for (command, bytes) in [
            (Submission::identify_controller(DATA), Some(4096)),
            (Submission::get_log_page(2, 1, 512, DATA), Some(512)),
            (Submission::get_log_page(7, 1, 1 << 20, DATA), Some(1 << 20)),
            (Submission::get_log_page(2, 1, 512, DATA).with_retained_event(), Some(512)),
            (Submission::format_nvm(1, 0, SecureErase::None), Some(0)),
            (Submission::set_host_behavior(DATA), None),
            (Submission::new(admin::FIRMWARE_DOWNLOAD, 0), None),
            (Submission::new(0xc0, 0), None),
        ] {
            assert_eq!(transfer_bytes(&command), bytes, "{command:?}");
        }
        let mut whole = Submission::get_log_page(2, 1, 4, DATA);
        whole.cdw10.set(0xffff_0002);
        whole.cdw11.set(0xffff);
        assert_eq!(transfer_bytes(&whole), Some(16 << 30), "no overflow at the largest");
    }

    #[test]
    fn nothing_is_sent_with_a_buffer_of_another_length() {
        let null = KernelController::open(Path::new("/dev/null")).unwrap();
        let mut data = [0; 4096];
        let identify = Submission::identify_controller(DATA);
        let short = null.admin(&identify, &mut data[..512]).unwrap_err();
        assert_eq!(short.to_string(), "identify transfers 4096 bytes, not 512");
        let unknown = null.admin(&Submission::new(0x11, 0), &mut data).unwrap_err();
        assert!(matches!(unknown, KernelError::Unknown { opcode: 0x11 }), "{unknown}");
        let refused = null.admin(&identify, &mut data).unwrap_err();
        assert!(refused.to_string().contains("it is no NVMe controller"), "{refused}");
    }

    #[test]
    fn only_a_disk_has_partitions() {
        let null = reread_partitions(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(null.raw_os_error(), Some(Errno::ENOTTY as i32), "{null}");
    }

    #[test]
    fn what_is_no_character_device_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nvme0");
        let missing = KernelController::open(&file).unwrap_err();
        assert!(matches!(missing, KernelError::Open { .. }), "{missing}");
        std::fs::write(&file, "").unwrap();
        let plain = KernelController::open(&file).unwrap_err();
        assert!(plain.to_string().contains("give one like /dev/nvme0"), "{plain}");
    }
}
