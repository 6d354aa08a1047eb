//! Turns the kernel's refusal to map an arena into advice.
//!
//! VFIO charges every page that it pins to the process (`RLIMIT_MEMLOCK`), on top of what mlock(2) has charged
//! for the same page: an arena that is locked and mapped counts twice. The advice therefore begins from what is
//! charged now.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::hardware::MapError;

/// Capability to lock memory without limit (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// What limits the memory that a process may pin.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// What may be charged; nothing limits a process with CAP_IPC_LOCK.
    limit_bytes: u64,
    /// What is charged.
    charged_bytes: u64,
}

impl Limits {
    fn of_this_process() -> Self {
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::from_status(&status, limit)
    }

    /// `status` is the text of `/proc/self/status`.
    fn from_status(status: &str, limit_bytes: u64) -> Self {
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let charged_kib =
            field("VmLck:").and_then(|text| text.strip_suffix("kB")?.trim().parse().ok());
        let capabilities = field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
        let unlimited = capabilities.unwrap_or(0) >> CAP_IPC_LOCK & 1 == 1;
        Self {
            limit_bytes: if unlimited { u64::MAX } else { limit_bytes },
            charged_bytes: charged_kib.unwrap_or(0_u64).saturating_mul(1024),
        }
    }
}

/// The kernel refused to map `bytes` bytes: what to do.
pub(super) fn refused(bytes: usize, source: io::Error) -> MapError {
    let what = format!("cannot map an arena of {} MiB for the drives", bytes >> 20);
    let advice = advice(bytes as u64, &source, Limits::of_this_process());
    MapError { what, source, advice }
}

fn advice(bytes: u64, source: &io::Error, limits: Limits) -> String {
    let needed = limits.charged_bytes.saturating_add(bytes);
    let needed_kib = needed.div_ceil(1024);
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOMEM) if needed > limits.limit_bytes => format!(
            "locked memory is limited to {} KiB, and this takes {needed_kib} KiB, with more to come: run \
             `ulimit -l unlimited` before the daemon, or put `LimitMEMLOCK=infinity` or \
             `AmbientCapabilities=CAP_IPC_LOCK` into its systemd unit",
            limits.limit_bytes >> 10,
        ),
        Some(Errno::ENOMEM) => "make the arena smaller or free memory".into(),
        Some(Errno::ENOSPC) => "all maps are in use: give fewer arenas, or raise \
             /sys/module/vfio_iommu_type1/parameters/dma_entry_limit before the daemon starts"
            .into(),
        _ => "`dmesg` may say more; a restart of the daemon begins with no maps".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tforebayd\nVmLck:\t   65536 kB\nCapEff:\t0000000000000000\n";

    fn told(errno: Errno, limits: Limits) -> String {
        advice(64 << 20, &errno.into(), limits)
    }

    #[test]
    fn a_limit_is_told_with_what_is_needed_and_three_ways_around_it() {
        // What is locked for the arena already is charged beside what is mapped.
        for (status, limit_kib, needed) in [(STATUS, 65536, 131_072), ("VmLck: 0 kB", 8192, 65536)]
        {
            let text = told(Errno::ENOMEM, Limits::from_status(status, limit_kib << 10));
            let told = format!("limited to {limit_kib} KiB, and this takes {needed} KiB, ");
            assert!(text.contains(&told), "{text}");
            for way in ["`ulimit -l unlimited`", "`LimitMEMLOCK=infinity`", "CAP_IPC_LOCK"] {
                assert!(text.contains(way), "{text}");
            }
        }
    }

    #[test]
    fn who_may_lock_without_limit_is_short_of_memory_itself() {
        let status = STATUS.replace("0000000000000000", "0000000000004000");
        for limits in [Limits::from_status(&status, 0), Limits::from_status(STATUS, u64::MAX)] {
            assert!(told(Errno::ENOMEM, limits).contains("smaller or free memory"));
        }
    }

    #[test]
    fn every_refusal_has_an_advice() {
        let limits = Limits::from_status("", 0);
        assert!(
            told(Errno::ENOMEM, limits).contains("this takes 65536 KiB"),
            "a status without fields"
        );
        assert!(told(Errno::ENOSPC, limits).contains("dma_entry_limit"));
        assert!(told(Errno::EEXIST, limits).contains("dmesg"));
        let error = refused(64 << 20, Errno::ENOSPC.into()).to_string();
        assert!(error.starts_with("cannot map an arena of 64 MiB for the drives: "), "{error}");
        assert!(!error.contains('\n'));
    }
}
