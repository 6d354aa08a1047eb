//! Where each reactor can be reached, and in which order that is tried.
//!
//! First by transport, in the order of the addresses that the client was given: one that is not among
//! them is not used. Then by the listener's preference. Listeners that are equal in both take turns: client
//! and reactor decide which comes first, so that the connections spread over the network cards.
//!
//! A link that had to take a lesser path goes back when it is time: it drains, and then tries the first one
//! for a moment. If that fails the link is on the lesser path again, and waits longer before the next try.

use super::address::Address;
use crate::pdu::{Endpoint, Welcome};
use std::mem::discriminant;

/// How long a link stays on a lesser path at first, in microseconds; twice as long each time.
const STAY_FIRST_US: u64 = 30_000_000;
/// And at most.
const STAY_LONGEST_US: u64 = 600_000_000;

/// What a client knows of where its server is.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// As the client was told.
    pub addresses: &'a [Address],
    /// Where the server has said the rest.
    pub reached: &'a Address,
    /// Differs from client to client.
    pub spread: usize,
}

impl Known<'_> {
    /// Where reactor `reactor` is, the first to be tried first; never empty.
    pub(super) fn paths(&self, welcome: &Welcome, reactor: u16) -> Vec<Address> {
        let endpoints = welcome.endpoints.iter().filter(|found| found.reactor.get() == reactor);
        let mut found: Vec<_> = endpoints.filter_map(|endpoint| self.place(endpoint)).collect();
        found.sort_by_key(|(order, _)| *order);
        for equals in found.chunk_by_mut(|(left, _), (right, _)| left == right) {
            let turns = (self.spread + usize::from(reactor)) % equals.len();
            equals.rotate_left(turns);
        }
        let mut paths: Vec<_> = found.into_iter().map(|(_, address)| address).collect();
        paths.dedup();
        if paths.is_empty() {
            paths.push(self.reached.clone());
        }
        paths
    }

    /// An endpoint's address, and its place in the order; `None` if its transport is not used.
    fn place(&self, endpoint: &Endpoint) -> Option<((usize, u16), Address)> {
        let addresses = [self.reached].into_iter().chain(self.addresses);
        let address = addresses.filter_map(|known| known.of(endpoint)).next()?;
        let same = |known: &Address| discriminant(known) == discriminant(&address);
        let rank = self.addresses.iter().position(same)?;
        Some(((rank, endpoint.preference.get()), address))
    }
}

/// The paths of one link, and how it goes with them.
#[derive(Debug)]
pub(super) struct Paths {
    /// The most preferred first; empty until the server has said.
    known: Vec<Address>,
    /// Attempts that have failed since the link was last up.
    attempts: usize,
    /// Where the connection goes, while there is one or one is being made.
    current: Option<Address>,
    /// When to go back to the first one; never from there.
    back_at_us: u64,
    /// How long to stay on a lesser one.
    stay_us: u64,
    /// The link drains to go back; then, it tries to.
    draining: bool,
    trying: bool,
}

impl Paths {
    pub(super) fn new(known: Vec<Address>) -> Self {
        let (attempts, current) = (0, None);
        let (back_at_us, stay_us) = (u64::MAX, STAY_FIRST_US);
        Self { known, attempts, current, back_at_us, stay_us, draining: false, trying: false }
    }

    /// How many there are to try, if the client was told `addresses`.
    pub(super) fn count(&self, addresses: &[Address]) -> usize {
        if self.known.is_empty() { addresses.len() } else { self.known.len() }
    }

    /// Where the link is, or is tried next.
    pub(super) fn address<'a>(&'a self, addresses: &'a [Address]) -> &'a Address {
        let known = if self.known.is_empty() { addresses } else { &self.known };
        self.current.as_ref().unwrap_or_else(|| choose(known, addresses, self.attempts))
    }

    /// A connection to `address` is being made; whether it has only a moment.
    pub(super) fn opened(&mut self, address: Address) -> bool {
        self.current = Some(address);
        self.trying
    }

    /// The link is up.
    pub(super) fn ready(&mut self, now_us: u64) {
        (self.attempts, self.trying) = (0, false);
        if self.is_lesser() {
            self.back_at_us = now_us.saturating_add(self.stay_us);
        } else {
            (self.back_at_us, self.stay_us) = (u64::MAX, STAY_FIRST_US);
        }
    }

    /// On another path than the first one. An address that the server does not know of is as good as any
    /// with its transport.
    fn is_lesser(&self) -> bool {
        let (Some(current), Some(first)) = (&self.current, self.known.first()) else {
            return false;
        };
        let same = discriminant(current) == discriminant(first);
        self.known.iter().position(|path| path == current).map_or(!same, |at| at > 0)
    }

    /// It is time to go back, and the link is to drain for it.
    pub(super) fn goes_back(&mut self, now_us: u64) -> bool {
        let goes = now_us >= self.back_at_us;
        if goes {
            (self.draining, self.back_at_us) = (true, u64::MAX);
        }
        goes
    }

    /// When [`Paths::goes_back`] has something to do.
    pub(super) fn next_us(&self) -> u64 {
        self.back_at_us
    }

    /// The connection is gone, or was not made; `true` if that was wanted, to go back.
    pub(super) fn lost(&mut self, was_up: bool, has_drained: bool) -> bool {
        self.current = None;
        self.back_at_us = u64::MAX;
        let wanted = std::mem::take(&mut self.draining) && has_drained;
        self.attempts = if was_up { 0 } else { self.attempts + 1 };
        self.trying = wanted;
        if wanted {
            self.stay_us = (self.stay_us * 2).min(STAY_LONGEST_US);
        }
        wanted
    }
}

/// Which of `paths`, or of the addresses that the client was told, is tried after so many failures: first
/// all paths twice, then in turn with one of `addresses`, as the server may have moved.
fn choose<'a>(paths: &'a [Address], addresses: &'a [Address], failures: usize) -> &'a Address {
    match failures.checked_sub(2 * paths.len()) {
        None => &paths[failures % paths.len()],
        Some(late) if late.is_multiple_of(2) => &addresses[(late / 2 + 1) % addresses.len()],
        Some(late) => &paths[late / 2 % paths.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn welcome() -> Welcome {
        let at = |last: u8, port: u16| ([10, 0, 0, last], port).into();
        let endpoints = (0..2).flat_map(|reactor| {
            [
                Endpoint::tcp(reactor, at(1, 7400 + reactor)),
                Endpoint::rdma(reactor, at(3, 7400 + reactor)).with_preference(1),
                Endpoint::rdma(reactor, at(1, 7400 + reactor)),
                Endpoint::rdma(reactor, at(2, 7400 + reactor)),
                Endpoint::shm(reactor),
            ]
        });
        Welcome { reactors: 2, endpoints: endpoints.collect(), ..Welcome::default() }
    }

    fn paths(addresses: &[&str], reached: usize, spread: usize, reactor: u16) -> Vec<String> {
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let known = Known { addresses: &addresses, reached: &addresses[reached], spread };
        known.paths(&welcome(), reactor).iter().map(Address::to_string).collect()
    }

    #[test]
    fn only_transports_that_were_asked_for_are_used_and_in_that_order() {
        assert_eq!(paths(&["10.0.0.1:7400"], 0, 5, 1), ["10.0.0.1:7401"]);
        let both = paths(&["rdma:10.0.0.1:7400", "10.0.0.1:7400"], 1, 0, 0);
        let expected =
            ["rdma:10.0.0.1:7400", "rdma:10.0.0.2:7400", "rdma:10.0.0.3:7400", "10.0.0.1:7400"];
        assert_eq!(both, expected);
        let shm = paths(&["shm:/run/shm", "10.0.0.1:7400"], 1, 0, 1);
        assert_eq!(shm, ["shm:/run/shm.1", "10.0.0.1:7401"]);
    }

    #[test]
    fn equal_listeners_share_the_clients_and_the_reactors() {
        let first = |spread, reactor| paths(&["rdma:10.0.0.1:7400"], 0, spread, reactor).remove(0);
        let network = |path: String| path[..13].to_owned();
        let over_reactors: BTreeSet<_> = (0..2).map(|reactor| network(first(0, reactor))).collect();
        assert_eq!(over_reactors.len(), 2);
        let over_clients: BTreeSet<_> = (0..2).map(|client| first(client, 0)).collect();
        assert_eq!(over_clients.len(), 2);
        let last = paths(&["rdma:10.0.0.1:7400"], 0, 1, 0).pop();
        assert_eq!(last.as_deref(), Some("rdma:10.0.0.3:7400"), "the preference comes before that");
    }

    #[test]
    fn a_server_that_announces_nothing_of_use_is_where_it_was_found() {
        let addresses: Vec<Address> = vec!["rdma:10.0.0.9:7400".parse().unwrap()];
        let known = Known { addresses: &addresses, reached: &addresses[0], spread: 0 };
        let welcome = Welcome {
            reactors: 1,
            endpoints: vec![Endpoint::tcp(0, ([10, 0, 0, 1], 7400).into())],
            ..Welcome::default()
        };
        assert_eq!(known.paths(&welcome, 0), addresses);
    }

    #[test]
    fn every_path_is_tried_and_so_is_every_address_that_was_given() {
        let paths: Vec<Address> = (0..3).map(|n| Address::Tcp(([10, 0, 0, n], 1).into())).collect();
        let given: Vec<Address> = (0..2).map(|n| Address::Tcp(([10, 1, 0, n], 1).into())).collect();
        let tried: Vec<_> = (0..12).map(|failures| choose(&paths, &given, failures)).collect();
        assert_eq!(tried[..3], [&paths[0], &paths[1], &paths[2]]);
        assert!(paths.iter().all(|path| tried[6..].contains(&path)));
        assert!(given.iter().all(|path| tried[6..].contains(&path)));
    }
}
