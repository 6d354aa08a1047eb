//! The suite that every [`Transport`] passes, whatever is beneath it.
//!
//! Guarantees checked: those of [`crate::transport`], one function each, named as a claim. A failed
//! claim panics with what was expected and the seed. A transport brings a [`Wire`]: itself, peers
//! that speak its language ([`StreamPeer`] does for byte streams), and a clock.

mod buffers;
mod ending;
mod fragments;
mod memory;
mod moving;
mod rig;
mod stream_peer;

pub use buffers::{Buffers, Counted};
pub use stream_peer::StreamPeer;

use crate::pdu::Fragment;
use crate::transport::{KeptMemory, RemoteMemory, Transport};
pub use rig::response;
use rig::{Recorder, Rig};

/// Connections that the transport under test has room for.
pub const CONNECTIONS_MAX: u16 = 4;

/// A client of the transport under test. Dropping it cuts its connection.
pub trait Peer {
    /// Sends a PDU.
    fn send(&mut self, pdu: &[u8]);
    /// Its memory is read and written while it does nothing (RDMA).
    const IS_PASSIVE: bool = false;
    /// Memory that the server may pull for command `cid`, once.
    fn lend(&mut self, cid: u16, memory: Vec<u8>) -> KeptMemory;
    /// Memory of so many bytes that the server may push the data of command `cid` to. A peer that is
    /// not passive does not answer a pull of it.
    fn expect(&mut self, _cid: u16, length: usize) -> KeptMemory {
        KeptMemory::of(RemoteMemory::none(length as u32))
    }
    /// Moves what can be moved.
    fn turn(&mut self);
    /// The PDUs that have arrived since the last call, each with its bulk data behind it.
    fn received(&mut self) -> Vec<Vec<u8>>;
    /// The connection is over.
    fn is_closed(&self) -> bool;
}

/// A [`Peer`] that lends the server memory.
pub trait MemoryPeer: Peer {
    /// Memory that holds `bytes`.
    fn share(&mut self, bytes: &[u8]) -> Fragment;
    /// Changes what is in memory that was shared.
    fn fill(&mut self, memory: Fragment, bytes: &[u8]);
    /// What is in memory that was shared, now.
    fn look(&mut self, memory: Fragment) -> Vec<u8>;
    /// Memory that this peer does not have, of `length` bytes.
    fn elsewhere(&mut self, length: u32) -> Vec<Fragment>;
}

/// A transport under test, fresh, with [`CONNECTIONS_MAX`], and the world around it.
pub trait Wire {
    /// The transport.
    type Transport: Transport<Buffer = Counted>;
    /// Its clients.
    type Peer: Peer;
    /// The transport.
    fn transport(&mut self) -> &mut Self::Transport;
    /// A new client.
    fn connect(&mut self) -> Self::Peer;
    /// Lets a little time pass; what the clock says then.
    fn tick(&mut self) -> u64;
}

/// Holds the transports that `make` makes to every guarantee of the seam.
///
/// # Panics
/// At the first guarantee that does not hold.
pub fn run<W: Wire>(make: &mut dyn FnMut() -> W, seed: u64) {
    let claims: [fn(&mut Rig<W>); 14] = [
        moving::pdus_arrive_whole_once_and_in_order,
        moving::what_is_sent_arrives_in_order_with_its_data,
        moving::pulls_bring_each_clients_bytes_into_its_own_buffer,
        moving::a_pull_of_nothing_is_complete,
        moving::a_payload_is_dropped_when_it_has_left,
        ending::every_pull_ends_once_when_the_peer_vanishes,
        ending::payloads_are_dropped_when_the_peer_vanishes,
        ending::a_stale_connection_is_ignored,
        ending::closing_in_order_delivers_what_was_queued,
        ending::aborting_gives_every_buffer_back,
        ending::a_refused_pdu_closes_its_connection_and_no_other,
        ending::a_peer_beyond_the_limit_is_told,
        ending::a_slot_is_used_again_under_a_new_generation,
        moving::a_flood_on_one_connection_does_not_stop_the_others,
    ];
    hold(&claims, make, seed);
}

/// [`run`]'s like, for transports whose peers lend memory.
///
/// # Panics
/// At the first guarantee that does not hold.
pub fn run_memory<W: Wire<Peer: MemoryPeer>>(make: &mut dyn FnMut() -> W, seed: u64) {
    let claims: [fn(&mut Rig<W>); 7] = [
        memory::a_push_lands_in_the_peers_memory,
        memory::a_pull_takes_what_is_in_the_peers_memory,
        memory::data_that_the_memory_does_not_hold_stands_behind_its_response,
        memory::memory_that_is_not_the_peers_ends_its_connection_and_no_other,
        fragments::a_push_fills_its_fragments_and_nothing_else,
        fragments::a_pull_gathers_its_fragments_in_order,
        fragments::a_bad_fragment_among_good_ones_ends_its_connection_and_no_other,
    ];
    hold(&claims, make, seed);
}

fn hold<W: Wire>(claims: &[fn(&mut Rig<W>)], make: &mut dyn FnMut() -> W, seed: u64) {
    for claim in claims {
        let mut rig = Rig {
            wire: make(),
            recorder: Recorder::default(),
            buffers: Buffers::default(),
            rng: fastrand::Rng::with_seed(seed),
            seed,
        };
        claim(&mut rig);
        drop(rig.wire);
        assert_eq!(rig.buffers.live(), 0, "seed {seed}: a buffer outlived its transport");
    }
}
