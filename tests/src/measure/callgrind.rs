//! Instructions and system calls, counted by valgrind inside of chosen functions.
//!
//! Guarantees: all that happens between such a function's first instruction and its last counts, whoever
//! is called, and nothing else; the same program gives the same count on every machine that has the same
//! instructions as valgrind (it has no AVX-512).

use anyhow::{Context as _, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// A run of this program under valgrind.
#[derive(Debug)]
pub struct Callgrind<'a> {
    /// Names of functions that are not inlined. What one of them does that another one has called is left out.
    pub functions: &'a [&'a str],
    /// What the program is started with.
    pub arguments: Vec<String>,
    /// A file for what valgrind writes.
    pub file: &'a Path,
}

/// What valgrind saw inside of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Instructions in user space.
    pub instructions: u64,
    /// System calls.
    pub system_calls: u64,
}

impl Callgrind<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// There is no valgrind, or the program fails.
    pub fn run(&self) -> anyhow::Result<Counts> {
        let Self { functions, arguments, file } = self;
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--collect-systime=yes"])
            .args(functions.iter().map(|name| format!("--toggle-collect=*{name}*")))
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(std::env::current_exe().context("this program's own path")?)
            .args(arguments)
            .stdin(Stdio::null());
        let output =
            command.output().context("cannot run valgrind: the make target installs it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "valgrind ended with {}: {said}", output.status);
        let text = std::fs::read_to_string(file).context("what valgrind counted")?;
        Counts::parse(&text).with_context(|| format!("valgrind counted nothing: {said}"))
    }
}

impl Counts {
    /// The sums of a callgrind file: `events:` names them, `totals:` has them.
    fn parse(text: &str) -> Option<Self> {
        let fields = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace())
        };
        let totals: Vec<u64> = fields("totals:")?.filter_map(|field| field.parse().ok()).collect();
        let total = |event: &str| {
            let at = fields("events:")?.position(|name| name == event)?;
            // Zeros at the end of a line are left out.
            Some(totals.get(at).copied().unwrap_or(0))
        };
        let counts = Self { instructions: total("Ir")?, system_calls: total("sysCount")? };
        (counts.instructions > 0).then_some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_a_callgrind_file_are_read() {
        let text = "version: 1\nevents: Ir sysCount sysTime \n\nfn=(1) f\n1 5\n\ntotals: 1234 2\n";
        let counts = Counts { instructions: 1234, system_calls: 2 };
        assert_eq!(Counts::parse(text), Some(counts));
        assert_eq!(Counts::parse("events: Ir\ntotals: 1234\n"), None, "nobody counted the calls");
        assert_eq!(Counts::parse("events: Ir sysCount\ntotals: 0\n"), None, "never collected");
    }
}
