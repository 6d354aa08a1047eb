//! A progress bar on stderr: only on a terminal, and only once something has taken a second.

use crate::clock;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;

/// Shows how far a long operation has come. Harmless where there is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    started_ns: u64,
    shown: Cell<bool>,
}

impl Progress {
    /// Of `total_bytes`.
    pub(crate) fn of_bytes(total_bytes: u64, what: &str) -> Self {
        let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
        Self::new(total_bytes, what, style)
    }

    /// Of `total` things, such as keys or milliseconds.
    pub(crate) fn of_count(total: u64, what: &str) -> Self {
        Self::new(total, what, "{msg} {wide_bar} {human_pos}/{human_len} {eta}")
    }

    fn new(total: u64, what: &str, style: &str) -> Self {
        let style = ProgressStyle::with_template(style).expect("the template is a constant");
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_style(style);
        bar.set_message(what.to_owned());
        Self { bar, started_ns: clock::now_ns(), shown: Cell::new(false) }
    }

    /// `amount` more is done.
    pub(crate) fn inc(&self, amount: u64) {
        self.bar.inc(amount);
        self.show_when_late();
    }

    /// `amount` is done in all.
    pub(crate) fn set(&self, amount: u64) {
        self.bar.set_position(amount);
        self.show_when_late();
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn show_when_late(&self) {
        let late = clock::now_ns() - self.started_ns > 1_000_000_000;
        if late && !self.shown.replace(late) && std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
