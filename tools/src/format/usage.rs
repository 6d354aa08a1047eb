//! Whether the system uses a block device: mounted, swapped on, or held by another device.
//!
//! A hint, so that the refusal can name the reason; the kernel's own exclusive open is what keeps
//! two users apart.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How `path` is in use, as the end of a sentence that begins with its name.
pub(super) fn in_use(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let whole = sysfs(metadata.rdev());
    for node in std::iter::once(whole.clone()).chain(partitions(&whole)) {
        let Ok(numbers) = fs::read_to_string(node.join("dev")) else { continue };
        let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(how) = used_by(&mounts, &swaps, numbers.trim(), &name) {
            return Some(how);
        }
        let mut holders = fs::read_dir(node.join("holders")).ok()?.flatten();
        if let Some(holder) = holders.next() {
            return Some(format!("is used by {}", holder.file_name().to_string_lossy()));
        }
    }
    None
}

/// The directory of a block device in sysfs.
fn sysfs(device: u64) -> PathBuf {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    fs::canonicalize(&link).unwrap_or(link)
}

fn partitions(whole: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(whole).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("partition").exists()).collect()
}

/// Looks a device up, by `major:minor` among the mounts (proc_pid_mountinfo(5)) and by name among
/// the swap areas.
fn used_by(mounts: &str, swaps: &str, numbers: &str, name: &str) -> Option<String> {
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        if fields.nth(2) == Some(numbers) {
            return Some(format!("is mounted on {}", fields.nth(1).unwrap_or("?")));
        }
    }
    let device = format!("/dev/{name}");
    let swapped = swaps.lines().any(|line| line.split_whitespace().next() == Some(&device));
    swapped.then(|| "is a swap area in use".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_swap_areas_by_name() {
        let mounts =
            "22 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n23 22 0:5 / /proc rw - proc p rw\n";
        let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p3 partition 1 0 -2\n";
        let used = |numbers, name| used_by(mounts, swaps, numbers, name);
        assert_eq!(used("259:2", "nvme0n1p2").as_deref(), Some("is mounted on /"));
        assert_eq!(used("259:3", "nvme0n1p3").as_deref(), Some("is a swap area in use"));
        assert_eq!(used("259:1", "nvme0n1"), None);
    }

    #[test]
    fn an_ordinary_file_is_not_in_use() {
        assert_eq!(in_use(Path::new("/proc/self/exe")), None);
        assert_eq!(in_use(Path::new("/nonexistent")), None);
    }
}
