//! What `make test-vm` has prepared: a kernel, an initramfs, and the binaries under test.

use anyhow::{Context as _, bail};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Names the folder that `tests/vm/prepare.sh` has filled; or is `separately`, for a run whose
/// caller runs the tests in the virtual machine by themselves.
const FOLDER: &str = "FOREBAY_VM";

/// The prepared folder and the built binaries.
#[derive(Clone, Debug)]
pub struct Prepared {
    folder: PathBuf,
    binaries: PathBuf,
    agent: PathBuf,
}

impl Prepared {
    /// Finds it; `None` where these tests are to be skipped, which is said aloud. `agent` is the
    /// binary `vm-guest`, beside which (or in whose target folder) `forebayd` and `forebay` lie.
    ///
    /// # Errors
    /// Something is missing, or a CI run would skip without having said that it means to.
    pub fn find(agent: &Path) -> anyhow::Result<Option<Self>> {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        match std::env::var_os(FOLDER) {
            Some(said) if said == "separately" => skip("this run leaves them to `make test-vm`"),
            None if ci => bail!(
                "the tests in the virtual machine would be skipped: run `make test-vm`, or say with \
                 {FOLDER}=separately that another step does"
            ),
            None => skip("run `make test-vm`"),
            Some(folder) => Self::at(Path::new(&folder), agent).map(Some),
        }
    }

    /// What lies in `folder`.
    ///
    /// # Errors
    /// Something is missing.
    pub fn at(folder: &Path, agent: &Path) -> anyhow::Result<Self> {
        let folder = folder.canonicalize().with_context(|| {
            format!("no folder {}: run `make test-vm`, which prepares it", folder.display())
        })?;
        let target = agent.ancestors().nth(2).context("the agent has no target folder")?;
        let prepared = Self { binaries: target.join("release"), folder, agent: agent.to_owned() };
        let needed = [prepared.kernel(), prepared.initramfs(), prepared.agent.clone()];
        let needed =
            needed.into_iter().chain(["forebayd", "forebay"].map(|name| prepared.binary(name)));
        for path in needed {
            if !path.exists() {
                bail!("no {}: run `make test-vm`, which makes it", path.display());
            }
        }
        Ok(prepared)
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("kernel/lib/modules")
    }

    pub(super) fn agent(&self) -> &Path {
        &self.agent
    }

    /// Where the logs of tests go that fail.
    pub(super) fn failed(&self) -> PathBuf {
        self.folder.join("failed")
    }

    /// A binary under test, the same on the host and in the guest.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// A program of the tests that runs in the guest, beside the agent.
    #[must_use]
    pub fn helper(&self, name: &str) -> PathBuf {
        self.agent.with_file_name(name)
    }
}

/// Says it where a test runner does not swallow it.
fn skip(why: &str) -> anyhow::Result<Option<Prepared>> {
    writeln!(std::io::stderr(), "skipped: it needs a virtual machine; {why}")?;
    Ok(None)
}
