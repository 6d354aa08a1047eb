//! Credits: how many messages the other side has posted receives for.
//!
//! Each side counts the receives that it has ever posted and says the count with every message, in
//! the number that travels beside it. A side with messages to send keeps the last credit for a
//! message that says nothing but the count, so that both sides being out of credits cannot last:
//! whoever owes the other half of its receives says so at once, and that takes one credit.

/// The credits of one connection, both ways. Counts are modulo 2³².
#[derive(Clone, Copy, Debug)]
pub(super) struct Credits {
    /// Receives on this side.
    own: u32,
    /// Receives on the other side.
    others: u32,
    /// Messages sent, and how many the other side has posted receives for.
    sent: u32,
    limit: u32,
    /// Receives posted, and how many the other side knows of.
    posted: u32,
    said: u32,
}

impl Credits {
    /// Of a connection whose sides have posted so many receives.
    pub(super) fn new(own: u32, others: u32) -> Self {
        Self { own, others, sent: 0, limit: others, posted: own, said: own }
    }

    fn left(&self) -> u32 {
        self.limit.wrapping_sub(self.sent)
    }

    /// A message may be sent.
    pub(super) fn can_send(&self) -> bool {
        self.left() > 1
    }

    /// The other side has to be told of receives, and may be.
    pub(super) fn must_tell(&self) -> bool {
        self.left() > 0 && self.posted.wrapping_sub(self.said) >= self.own / 2
    }

    /// A message is sent; the number beside it.
    pub(super) fn send(&mut self) -> u32 {
        self.sent = self.sent.wrapping_add(1);
        self.said = self.posted;
        self.posted
    }

    /// A receive has been posted again.
    pub(super) fn repost(&mut self) {
        self.posted = self.posted.wrapping_add(1);
    }

    /// This number came with a message.
    pub(super) fn hear(&mut self, limit: u32) -> Result<(), &'static str> {
        let ahead = limit.wrapping_sub(self.sent);
        if ahead > self.others || ahead < self.left() {
            return Err("impossible credits");
        }
        self.limit = limit;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Both sides always have something to send; messages take their time.
    #[test]
    fn two_sides_that_send_all_they_may_never_overrun_and_never_stand_still() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let receives = [rng.u32(4..40), rng.u32(4..40)];
            let mut sides =
                [Credits::new(receives[0], receives[1]), Credits::new(receives[1], receives[0])];
            for side in &mut sides {
                // Close to where the counts wrap.
                for count in [&mut side.sent, &mut side.limit, &mut side.posted, &mut side.said] {
                    *count = count.wrapping_sub(20);
                }
            }
            let mut posted = receives;
            let mut wires: [VecDeque<u32>; 2] = Default::default();
            let mut data = [0; 2];
            for _ in 0..20_000 {
                let (from, to) = if rng.bool() { (0, 1) } else { (1, 0) };
                if rng.bool() {
                    let is_data = sides[from].can_send();
                    if is_data || sides[from].must_tell() {
                        data[from] += u32::from(is_data);
                        let number = sides[from].send();
                        wires[to].push_back(number);
                        assert!(wires[to].len() <= posted[to] as usize, "overrun, seed {seed}");
                    }
                } else if let Some(limit) = wires[to].pop_front() {
                    posted[to] -= 1;
                    sides[to].hear(limit).unwrap();
                    posted[to] += 1;
                    sides[to].repost();
                }
            }
            assert!(data.iter().all(|&count| count > 1000), "standstill, seed {seed}: {data:?}");
        }
    }

    #[test]
    fn credits_that_cannot_be_are_refused() {
        let mut credits = Credits::new(8, 8);
        credits.send();
        assert!(credits.hear(7).is_err(), "fewer than were known");
        assert!(credits.hear(10).is_err(), "more than there are receives");
        assert!(credits.hear(9).is_ok());
    }
}
