//! Where each reactor can be reached, and in which order that is tried.
//!
//! First by transport, in the order of the addresses that the client was given: one that is not among
//! them is not used. Then by the listener's preference. Listeners that are equal in both take turns: client
//! and reactor decide which comes first, so that the connections spread over the network cards.

use super::address::Address;
use crate::pdu::{Endpoint, Welcome};
use std::mem::discriminant;

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

/// Which of `paths`, or of the addresses that the client was told, is tried after so many `failures`:
/// first all paths twice, then in turn with one of `addresses`, as the server may have moved.
pub(super) fn choose<'a>(
    paths: &'a [Address],
    addresses: &'a [Address],
    failures: usize,
) -> &'a Address {
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
