//! Credits: how many messages the other side has posted receives for.
//!
//! Each side counts the receives that it has ever granted and says the count with every message, in
//! the number that travels beside it. A side with messages to send keeps the last credit for a
//! message that says nothing but the count, so that both sides being out of credits cannot last:
//! whoever owes the other half of its receives says so at once, and that takes one credit. How many
//! receives a side grants again is its own business (`grants`), as long as they are never fewer than
//! [`GRANT_MIN`].

/// The fewest receives that a side has granted: fewer cannot carry credits.
pub(super) const GRANT_MIN: u32 = 4;
/// The most that it may have granted.
pub(super) const GRANT_MAX: u32 = 4096;

/// The credits of one connection, both ways. Counts are modulo 2³².
#[derive(Clone, Copy, Debug)]
pub(super) struct Credits {
    /// Messages sent, and how many the other side has granted.
    sent: u32,
    limit: u32,
    /// Messages that have come, how many were granted, and how many of these the other side knows of.
    taken: u32,
    granted: u32,
    said: u32,
}

impl Credits {
    /// Of a connection whose sides have granted so many messages.
    pub(super) fn new(own: u32, others: u32) -> Self {
        Self { sent: 0, limit: others, taken: 0, granted: own, said: own }
    }

    fn left(&self) -> u32 {
        self.limit.wrapping_sub(self.sent)
    }

    /// A message may be sent.
    pub(super) fn can_send(&self) -> bool {
        self.left() > 1
    }

    /// Messages that were granted and have not come: so many receives are the other side's.
    pub(super) fn outstanding(&self) -> u32 {
        self.granted.wrapping_sub(self.taken)
    }

    /// Messages that the other side may send as far as it has been told, if all that it has sent has come.
    pub(super) fn others_left(&self) -> u32 {
        self.said.wrapping_sub(self.taken)
    }

    /// The other side has to be told of grants, and may be.
    pub(super) fn must_tell(&self) -> bool {
        let untold = self.granted.wrapping_sub(self.said);
        self.left() > 0 && untold > 0 && 2 * untold >= self.outstanding()
    }

    /// A message is sent; the number beside it.
    pub(super) fn send(&mut self) -> u32 {
        self.sent = self.sent.wrapping_add(1);
        self.said = self.granted;
        self.granted
    }

    /// So many more messages may come.
    pub(super) fn grant(&mut self, count: u32) {
        self.granted = self.granted.wrapping_add(count);
    }

    /// A message has come, with this number beside it.
    pub(super) fn hear(&mut self, limit: u32) -> Result<(), &'static str> {
        if self.outstanding() == 0 {
            return Err("a message without a credit");
        }
        let ahead = limit.wrapping_sub(self.sent);
        if ahead > GRANT_MAX || ahead < self.left() {
            return Err("impossible credits");
        }
        self.taken = self.taken.wrapping_add(1);
        self.limit = limit;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::grants::{Pool, Share};
    use super::*;
    use std::collections::VecDeque;

    /// A client whose receives are its own, and a server whose receives are shared with others.
    struct Line {
        client: Credits,
        server: Credits,
        share: Share,
        to_server: VecDeque<u32>,
        to_client: VecDeque<u32>,
        client_receives: usize,
        sent: [u32; 2],
    }

    impl Line {
        fn new(pool: &mut Pool, receives: u32, most: u32) -> Option<Self> {
            let first = pool.admit(most)?;
            let mut line = Self {
                client: Credits::new(receives, first),
                server: Credits::new(first, receives),
                share: Share::new(first, most),
                to_server: VecDeque::new(),
                to_client: VecDeque::new(),
                client_receives: receives as usize,
                sent: [0; 2],
            };
            // Close to where the counts wrap.
            for side in [&mut line.client, &mut line.server] {
                let Credits { sent, limit, taken, granted, said } = side;
                for count in [sent, limit, taken, granted, said] {
                    *count = count.wrapping_sub(20);
                }
            }
            Some(line)
        }

        /// Each side sends what it may, or takes what has come.
        fn step(&mut self, pool: &mut Pool, rng: &mut fastrand::Rng) {
            match rng.u8(..4) {
                0 if self.client.can_send() || self.client.must_tell() => {
                    self.sent[0] += u32::from(self.client.can_send());
                    self.to_server.push_back(self.client.send());
                }
                1 if self.server.can_send() || self.server.must_tell() => {
                    self.sent[1] += u32::from(self.server.can_send());
                    self.to_client.push_back(self.server.send());
                    assert!(self.to_client.len() <= self.client_receives, "an overrun");
                }
                2 => {
                    if let Some(limit) = self.to_server.pop_front() {
                        self.server.hear(limit).unwrap();
                        pool.came_back(1);
                        self.share.refill(&mut self.server, pool);
                    }
                }
                3 => {
                    if let Some(limit) = self.to_client.pop_front() {
                        self.client.hear(limit).unwrap();
                        self.client.grant(1);
                    }
                }
                _ => {}
            }
        }
    }

    /// Receives that are the pool's, granted, or hold a message that has not been taken.
    fn account(pool: &Pool, lines: &[Line], total: u32, seed: u64) {
        let outstanding: u32 = lines.iter().map(|line| line.server.outstanding()).sum();
        assert_eq!(pool.free() + outstanding, total, "seed {seed}");
        let waiting: usize = lines.iter().map(|line| line.to_server.len()).sum();
        assert!(waiting <= outstanding as usize, "an overrun, seed {seed}");
    }

    /// Both sides always have something to send; messages take their time; clients come and go.
    #[test]
    fn sides_that_send_all_they_may_never_overrun_a_shared_pool_and_never_stand_still() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let total = rng.u32(8..200);
            let mut pool = Pool::new(total);
            let mut lines = Vec::new();
            for step in 0..20_000 {
                if (step == 0 || rng.u16(..1000) == 0)
                    && let Some(line) = Line::new(&mut pool, rng.u32(4..40), rng.u32(4..80))
                {
                    lines.push(line);
                }
                if lines.len() > 1 && rng.u16(..4000) == 0 {
                    let gone = lines.swap_remove(rng.usize(..lines.len()));
                    pool.came_back(gone.server.outstanding());
                }
                let at = rng.usize(..lines.len());
                lines[at].step(&mut pool, &mut rng);
                account(&pool, &lines, total, seed);
            }
            // Who is there can go on, however many others there are.
            for line in &mut lines {
                line.sent = [0; 2];
            }
            for _ in 0..1000 * lines.len() {
                let at = rng.usize(..lines.len());
                lines[at].step(&mut pool, &mut rng);
            }
            let all = lines.iter().all(|line| line.sent.iter().all(|count| *count > 10));
            assert!(all, "standstill, seed {seed}");
        }
    }

    #[test]
    fn credits_that_cannot_be_are_refused() {
        let mut credits = Credits::new(8, 8);
        credits.send();
        assert!(credits.hear(7).is_err(), "fewer than were known");
        assert!(credits.hear(2 + GRANT_MAX).is_err(), "more than any side grants");
        assert!(credits.hear(9).is_ok());
        for _ in 0..7 {
            credits.hear(9).unwrap();
        }
        assert!(credits.hear(9).is_err(), "more messages than were granted");
    }
}
