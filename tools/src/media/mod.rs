//! What a device holds and who uses it: looked at before anything is destroyed or taken away.
//!
//! Shared by `forebay format`, which writes over a device, and `forebay devices`, which takes it from
//! the kernel. Both leave alone what is in use, and ask twice for what holds something.

pub(crate) mod blocks;
pub(crate) mod signature;
pub(crate) mod usage;

use std::fs;
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
