//! When the next command is due.
//!
//! A closed loop's is due at once; an open loop's at its place in a fixed timetable, which never
//! waits for the server: what is late stays due at its own time.

/// A worker's timetable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    Closed,
    Open {
        start_ns: u64,
        /// Between two commands of this worker, in nanoseconds.
        interval_ns: f64,
        /// How many have been taken.
        taken: u64,
    },
}

impl Pace {
    /// `rate` commands a second over `workers` workers, this one's shifted by its number so that
    /// they do not come in bursts; without a rate: a closed loop.
    pub(crate) fn new(rate: Option<f64>, workers: u64, worker: u64, start_ns: u64) -> Self {
        match rate {
            None => Self::Closed,
            Some(rate) => {
                let interval_ns = 1e9 * workers as f64 / rate;
                let shift_ns = interval_ns * worker as f64 / workers as f64;
                Self::Open { start_ns: start_ns + shift_ns as u64, interval_ns, taken: 0 }
            }
        }
    }

    /// When the next command is due, in nanoseconds, seen from `now_ns`.
    pub(crate) fn due_ns(&self, now_ns: u64) -> u64 {
        match *self {
            Self::Closed => now_ns,
            Self::Open { start_ns, interval_ns, taken } => {
                start_ns + (taken as f64 * interval_ns) as u64
            }
        }
    }

    /// The next command is taken from the timetable.
    pub(crate) fn take(&mut self) {
        if let Self::Open { taken, .. } = self {
            *taken += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_keeps_its_timetable_whatever_the_server_does() {
        // 1000 a second over two workers: each every 2 ms, the second one 1 ms later.
        let mut first = Pace::new(Some(1000.0), 2, 0, 5_000_000);
        let second = Pace::new(Some(1000.0), 2, 1, 5_000_000);
        assert_eq!(second.due_ns(0), 6_000_000);
        for number in 0..1000u64 {
            // Asked a whole second late, the command is still due at its own time.
            assert_eq!(first.due_ns(1_000_000_000), 5_000_000 + number * 2_000_000);
            first.take();
        }
    }

    #[test]
    fn a_closed_loop_is_always_due_now() {
        let mut pace = Pace::new(None, 4, 3, 77);
        pace.take();
        assert_eq!(pace.due_ns(123), 123);
    }
}
