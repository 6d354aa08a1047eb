//! What a device holds and who uses it: looked at before anything is destroyed or taken away.
//!
//! Shared by `forebay format`, which writes over a device, and `forebay devices`, which takes it from
//! the kernel. Both leave alone what is in use, and ask twice for what holds something.

pub(crate) mod blocks;
pub(crate) mod signature;
pub(crate) mod usage;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The machine as its files show it: `/sys`, `/proc` and `/dev`, below a root that tests choose.
#[derive(Clone, Debug)]
pub(crate) struct System {
    root: PathBuf,
}

impl System {
    /// This machine.
    pub(crate) fn here() -> Self {
        Self::at("/")
    }

    /// The machine whose `/sys`, `/proc` and `/dev` lie below `root`.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn sys(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join("sys").join(path)
    }

    pub(crate) fn proc(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join("proc").join(path)
    }

    pub(crate) fn dev(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join("dev").join(path)
    }

    /// What an absolute path of this machine leads to, behind all links; itself if that is nothing.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        let path = self.root.join(path.trim_start_matches('/'));
        fs::canonicalize(&path).unwrap_or(path)
    }
}

/// What a device file stands for, whatever it is called: the kernel goes by nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DeviceId {
    Block(u64, u64),
    Character(u64, u64),
}

impl DeviceId {
    /// Of the file at `path`, behind all links; `None` if it is no device.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        let (kind, device) = (file.file_type(), file.rdev());
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        if kind.is_block_device() {
            Some(Self::Block(major, minor))
        } else {
            kind.is_char_device().then_some(Self::Character(major, minor))
        }
    }

    /// Of the block device whose folder in sysfs is `folder`.
    pub(crate) fn of_block(folder: &Path) -> Option<Self> {
        numbers(folder).map(|(major, minor)| Self::Block(major, minor))
    }

    /// Of the character device whose folder in sysfs is `folder`.
    pub(crate) fn of_character(folder: &Path) -> Option<Self> {
        numbers(folder).map(|(major, minor)| Self::Character(major, minor))
    }
}

/// A device's numbers as its folder in sysfs says them.
fn numbers(folder: &Path) -> Option<(u64, u64)> {
    let text = attribute(folder.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A small file of the kernel's without its line end; `None` if it is not there or is empty.
pub(crate) fn attribute(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The names in a folder, in order; none if it is not there.
pub(crate) fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The last part of a path, for people.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
