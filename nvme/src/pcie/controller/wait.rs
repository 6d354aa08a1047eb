//! Waiting without blocking: a condition is looked at once in each poll of the controller.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// The time that the controller was last polled at, in microseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Rc<Cell<u64>>);

impl Clock {
    pub(super) fn set(&self, now_us: u64) {
        self.0.set(self.0.get().max(now_us));
    }

    pub(super) fn now_us(&self) -> u64 {
        self.0.get()
    }

    /// Waits until `look` finds something, or for `ms` milliseconds: `None`. It is looked at least twice.
    pub(super) async fn until<T>(&self, ms: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline_us = self.now_us().saturating_add(ms.saturating_mul(1000));
        poll_fn(|_| match look() {
            Some(found) => Poll::Ready(Some(found)),
            None if self.now_us() >= deadline_us => Poll::Ready(None),
            None => Poll::Pending,
        })
        .await
    }

    /// Lets one poll pass.
    pub(super) async fn tick(&self) {
        let mut passed = false;
        poll_fn(
            |_| if std::mem::replace(&mut passed, true) { Poll::Ready(()) } else { Poll::Pending },
        )
        .await;
    }
}
