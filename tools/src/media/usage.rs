//! Whether the system uses a block device: mounted, swapped on, held by another device, or served.
//!
//! A hint, so that the refusal can name the reason; the kernel's own exclusive open is what keeps
//! two users apart. Not seen here: mounts in other mount namespaces, and what ZFS holds.

use super::{DeviceId, System, attribute, name_of, names};
use std::fs;
use std::path::{Path, PathBuf};

/// How `path` is in use, as the end of a sentence that begins with its name.
pub(crate) fn in_use(path: &Path) -> Option<String> {
    let Some(DeviceId::Block(major, minor)) = DeviceId::of(path) else { return None };
    let system = System::here();
    let link = system.sys(format!("dev/block/{major}:{minor}"));
    of_disk(&system, &fs::canonicalize(&link).unwrap_or(link))
}

/// How the block device whose folder in sysfs is `whole`, or a partition of it, is in use.
pub(crate) fn of_disk(system: &System, whole: &Path) -> Option<String> {
    let users = Users::read(system);
    let nodes = std::iter::once(whole.to_owned()).chain(partitions(whole));
    nodes.into_iter().find_map(|node| users.of(&node))
}

/// The folders of a block device's partitions.
pub(crate) fn partitions(whole: &Path) -> Vec<PathBuf> {
    let folders = names(whole).into_iter().map(|name| whole.join(name));
    folders.filter(|folder| folder.join("partition").exists()).collect()
}

/// Who uses block devices.
struct Users<'a> {
    system: &'a System,
    mounts: String,
    swaps: String,
    /// A path to a device, as whoever set it up typed it, and what serves it without holding it: loop
    /// devices, the NVMe target.
    served: Vec<(String, String)>,
}

impl<'a> Users<'a> {
    fn read(system: &'a System) -> Self {
        let table = |path| fs::read_to_string(system.proc(path)).unwrap_or_default();
        let mut served = loops(system);
        served.extend(targets(system));
        Self { system, mounts: table("self/mountinfo"), swaps: table("swaps"), served }
    }

    fn of(&self, node: &Path) -> Option<String> {
        let name = name_of(node);
        let numbers = attribute(node.join("dev"))?;
        let held = || names(node.join("holders")).first().map(|by| format!("is used by {by}"));
        self.mounted(&numbers, &name)
            .or_else(|| self.swapped(&name))
            .or_else(held)
            .or_else(|| self.served(node))
    }

    /// By `major:minor`, or by the source where the file system has a number of its own, as Btrfs
    /// has (proc_pid_mountinfo(5)).
    fn mounted(&self, numbers: &str, name: &str) -> Option<String> {
        let device = format!("/dev/{name}");
        for line in self.mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let separator = fields.iter().position(|field| *field == "-");
            let source = separator.and_then(|at| fields.get(at + 2));
            if fields.get(2) == Some(&numbers) || source == Some(&device.as_str()) {
                return Some(format!("is mounted on {}", fields.get(4).unwrap_or(&"?")));
            }
        }
        None
    }

    fn swapped(&self, name: &str) -> Option<String> {
        let device = format!("/dev/{name}");
        let swapped =
            self.swaps.lines().any(|line| line.split_whitespace().next() == Some(&device));
        swapped.then(|| "is a swap area in use".to_owned())
    }

    fn served(&self, node: &Path) -> Option<String> {
        let (device, known) = (self.system.dev(name_of(node)), DeviceId::of_block(node));
        let is_node =
            |path: &Path| path == device || (known.is_some() && DeviceId::of(path) == known);
        let user = self.served.iter().find(|(path, _)| is_node(&self.system.resolve(path)));
        user.map(|(_, by)| format!("is used by {by}"))
    }
}

fn loops(system: &System) -> Vec<(String, String)> {
    let folder = system.sys("block");
    let backing = |name: String| {
        let file = attribute(folder.join(&name).join("loop/backing_file"))?;
        Some((file, name))
    };
    names(&folder).into_iter().filter_map(backing).collect()
}

/// What the kernel's NVMe target exports; it opens its devices without claiming them.
fn targets(system: &System) -> Vec<(String, String)> {
    let folder = system.sys("kernel/config/nvmet/subsystems");
    let mut exports = Vec::new();
    for subsystem in names(&folder) {
        let namespaces = folder.join(&subsystem).join("namespaces");
        for namespace in names(&namespaces).iter().map(|name| namespaces.join(name)) {
            let on = attribute(namespace.join("enable")).as_deref() == Some("1");
            let device = attribute(namespace.join("device_path")).filter(|_| on);
            exports.extend(device.map(|path| (path, format!("the NVMe target {subsystem}"))));
        }
    }
    exports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A drive with three partitions, of which nothing is in use yet.
    fn machine() -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let disk = "sys/block/nvme0n1";
        put(folder.path(), &format!("{disk}/dev"), "259:0\n");
        for number in 1..=3 {
            let part = format!("{disk}/nvme0n1p{number}");
            put(folder.path(), &format!("{part}/dev"), &format!("259:{number}\n"));
            put(folder.path(), &format!("{part}/partition"), &format!("{number}\n"));
        }
        let system = System::at(folder.path());
        (folder, system)
    }

    fn used(system: &System) -> Option<String> {
        of_disk(system, &system.sys("block/nvme0n1"))
    }

    #[test]
    fn a_mount_is_found_by_number_and_by_source() {
        for (line, place) in [
            ("22 1 259:2 / / rw - ext4 /dev/root rw", "/"),
            ("31 1 0:44 /@ /data rw shared:9 - btrfs /dev/nvme0n1p3 rw", "/data"),
        ] {
            let (folder, system) = machine();
            assert_eq!(used(&system), None);
            let others = "23 22 0:5 / /proc rw - proc proc rw\n24 22 259:20 / /b rw - xfs x rw\n";
            put(folder.path(), "proc/self/mountinfo", &format!("{others}{line}\n"));
            assert_eq!(used(&system), Some(format!("is mounted on {place}")));
        }
    }

    #[test]
    fn swap_holders_loops_and_exports_are_uses() {
        let nvmet = "sys/kernel/config/nvmet/subsystems/nqn.a/namespaces/1";
        let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p3 partition 1 0 -2\n";
        let cases: [(&[(&str, &str)], _); 4] = [
            (&[("proc/swaps", swaps)], "is a swap area in use"),
            (&[("sys/block/nvme0n1/nvme0n1p1/holders/md0/x", "")], "is used by md0"),
            (&[("sys/block/loop4/loop/backing_file", "/dev/nvme0n1\n")], "is used by loop4"),
            (
                &[
                    (&format!("{nvmet}/enable"), "1\n"),
                    (&format!("{nvmet}/device_path"), "/dev/nvme0n1\n"),
                ],
                "is used by the NVMe target nqn.a",
            ),
        ];
        for (files, expected) in cases {
            let (folder, system) = machine();
            files.iter().for_each(|(path, text)| put(folder.path(), path, text));
            assert_eq!(used(&system).as_deref(), Some(expected));
        }
    }

    /// Who exports a drive names it by what stays the same: `/dev/disk/by-id/…`.
    #[test]
    fn an_export_by_a_links_name_is_a_use_too() {
        let (folder, system) = machine();
        put(folder.path(), "dev/nvme0n1", "");
        put(folder.path(), "dev/nvme1n1", "");
        fs::create_dir_all(folder.path().join("dev/disk/by-id")).unwrap();
        for (name, to) in [("nvme-this", "nvme0n1"), ("nvme-that", "nvme1n1")] {
            let link = folder.path().join("dev/disk/by-id").join(name);
            std::os::unix::fs::symlink(format!("../../{to}"), link).unwrap();
        }
        let namespace = "sys/kernel/config/nvmet/subsystems/nqn.a/namespaces/1";
        put(folder.path(), &format!("{namespace}/enable"), "1\n");
        let device = format!("{namespace}/device_path");
        put(folder.path(), &device, "/dev/disk/by-id/nvme-that\n");
        assert_eq!(used(&system), None);
        put(folder.path(), &device, "/dev/disk/by-id/nvme-this\n");
        assert_eq!(used(&system).as_deref(), Some("is used by the NVMe target nqn.a"));
    }

    #[test]
    fn an_ordinary_file_is_not_in_use() {
        assert_eq!(in_use(Path::new("/proc/self/exe")), None);
        assert_eq!(in_use(Path::new("/nonexistent")), None);
    }
}
