//! Connections that break at every byte, and random sessions on a network that breaks by itself.

use crate::world::*;
use forebay_fabric::Status;
use forebay_fabric::conformance::Peer;
use forebay_fabric::pdu::{
    Auth, Cancel, CommonHeader, GoAway, GoAwayReason, Hello, Opcode, PduType, Response,
};
use forebay_fabric::server::RequestId;
use forebay_fabric::stream::sim::{Direction, SimNet, SimProfile};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use zerocopy::IntoBytes;

const PULL_BYTES: usize = 700;

/// A pull and a push with their handshake; the connection breaks once `cut` bytes were sent in
/// `direction`. Returns whether everything was over before that.
fn exchange(cut: u64, direction: Direction) -> bool {
    let mut world = World::with(SimNet::new(cut, SimProfile::choppy()));
    let mut client = world.dial();
    world.net.cut_at(client.stream().id(), direction, cut);
    client.send(Hello::new(&offer()).as_bytes());
    client.send(Auth::none(PduType::Auth).as_bytes());
    client.lend(0, vec![7; PULL_BYTES]);
    client.send(&transfer(Opcode::Store, 0, PULL_BYTES, 0));
    client.send(&transfer(Opcode::Retrieve, 1, PULL_BYTES, 0));
    let mut tally = Tally::default();
    for _ in 0..500 {
        world.run(&mut [&mut client], TURN_US);
        tally.serve(&mut world);
    }
    let done = world.server.counters().responses == 2 && !client.is_closed();
    drop(client);
    for _ in 0..500 {
        world.run(&mut [], TURN_US);
        tally.serve(&mut world);
    }
    let what = format!("cut at byte {cut} {direction:?}: {tally:?}");
    assert_eq!(tally.pulled, tally.pulls, "{what}: every pull ends once");
    assert_eq!(world.buffers.live(), 0, "{what}: a buffer is lost");
    assert!(world.server.is_idle(), "{what}: {:?}", world.server);
    done
}

#[derive(Debug, Default)]
struct Tally {
    pulls: usize,
    pulled: usize,
    abandoned: Vec<RequestId>,
}

impl Tally {
    fn serve(&mut self, world: &mut World) {
        for told in world.told() {
            match told {
                Told::Request { id, opcode: Opcode::Store, length, .. } => {
                    self.pulls += 1;
                    world.pull(id, length);
                }
                Told::Request { id, length, .. } => world.reply_with(id, &vec![9; length]),
                Told::Pulled(id, bytes, complete) => {
                    self.pulled += 1;
                    assert!(!complete || bytes == [7; PULL_BYTES], "wrong bytes");
                    world.reply(id, Status::Ok);
                }
                Told::Abandoned(id, why) => {
                    // It was answered when it came, or when its pull ended.
                    assert!(!self.abandoned.contains(&id), "{id:?} is abandoned once");
                    assert_eq!(why, Status::Disconnected);
                    self.abandoned.push(id);
                }
            }
        }
    }
}

#[test]
fn buffers_come_back_from_a_connection_cut_at_every_byte_to_the_server() {
    let cut = (0..).find(|cut| exchange(*cut, Direction::ToServer)).unwrap();
    assert!(cut > 64 + 16 + 2 * 67 + 24 + PULL_BYTES as u64, "it was over after {cut} bytes");
}

#[test]
fn buffers_come_back_from_a_connection_cut_at_every_byte_to_the_client() {
    let cut = (0..).find(|cut| exchange(*cut, Direction::ToClient)).unwrap();
    assert!(cut > 96 + 16 + 24 + 2 * 32 + PULL_BYTES as u64, "it was over after {cut} bytes");
}

/// What a client of a random session has in flight, by identifier.
#[derive(Default)]
struct Player {
    client: Option<Client>,
    in_flight: BTreeMap<u16, usize>,
}

impl Player {
    /// Counts what has come back; every response is for a command in flight.
    fn hear(&mut self, seed: u64) {
        let Some(client) = &mut self.client else { return };
        for pdu in client.received() {
            match CommonHeader::peek(&pdu) {
                Ok(Some((PduType::Response, _))) => {
                    let outcome = Response::parse(&pdu).expect("a response");
                    let wanted = self.in_flight.remove(&outcome.cid);
                    let wanted = wanted.unwrap_or_else(|| panic!("seed {seed}: {outcome:?}"));
                    let data = outcome.data_length as usize;
                    assert!(data == 0 || data == wanted, "seed {seed}: {outcome:?}");
                }
                Ok(Some((PduType::HelloAck | PduType::AuthAck, _))) => {}
                // The server has not yet noticed that earlier ones are gone.
                Ok(Some((PduType::GoAway, _))) => {
                    assert_eq!(GoAway::parse(&pdu), Ok(GoAwayReason::Full), "seed {seed}");
                }
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        if client.is_closed() {
            self.client = None;
            self.in_flight.clear();
        }
    }

    fn act(&mut self, world: &mut World, rng: &mut fastrand::Rng) {
        let Some(client) = &mut self.client else {
            let mut client = world.dial();
            client.send(Hello::new(&offer()).as_bytes());
            client.send(Auth::none(PduType::Auth).as_bytes());
            self.client = Some(client);
            return;
        };
        let cid = rng.u16(..DEPTH);
        let (length, timeout_us) = (rng.usize(1..20_000), rng.u32(1..20_000));
        match self.in_flight.entry(cid) {
            Entry::Occupied(_) if rng.u8(..4) == 0 => client.send(Cancel::new(cid).as_bytes()),
            Entry::Occupied(_) => {}
            Entry::Vacant(entry) => {
                entry.insert(length);
                let opcode = if rng.bool() { Opcode::Retrieve } else { Opcode::Store };
                client.lend(cid, vec![cid as u8; length]);
                client.send(&transfer(opcode, cid, length, timeout_us));
            }
        }
        if rng.u16(..400) == 0 {
            self.client = None;
            self.in_flight.clear();
        }
    }
}

/// Random commands, cancels, deadlines, answers at random times, on a network that cuts
/// connections: every request ends exactly once, for the client and for the service.
#[test]
fn random_sessions_lose_nothing() {
    for seed in 0..60 {
        random_session(seed);
    }
}

fn random_session(seed: u64) {
    let profile = SimProfile { cut_per_million: 300, ..SimProfile::choppy() };
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::with(SimNet::new(seed, profile));
    let mut players: Vec<Player> = (0..4).map(|_| Player::default()).collect();
    let mut open = BTreeMap::new();
    for step in 0..3000 {
        for player in &mut players {
            if step < 2000 {
                player.act(&mut world, &mut rng);
            }
            if let Some(client) = &mut player.client {
                client.turn();
            }
            player.hear(seed);
        }
        world.turn();
        for told in world.told() {
            match told {
                Told::Request { id, opcode: Opcode::Store, length, .. } => {
                    let before = open.insert(id, Work::Store(length));
                    assert_eq!(before, None, "seed {seed}: {id:?} twice");
                }
                Told::Request { id, length, .. } => {
                    let before = open.insert(id, Work::Retrieve(length));
                    assert_eq!(before, None, "seed {seed}: {id:?} twice");
                }
                Told::Pulled(id, ..) => {
                    let before = open.insert(id, Work::Pulled);
                    assert_eq!(before, Some(Work::Pulling), "seed {seed}: {id:?}");
                }
                Told::Abandoned(id, _) => assert!(open.contains_key(&id), "seed {seed}: {id:?}"),
            }
        }
        answer_some(&mut world, &mut open, &mut rng, step);
    }
    players.clear();
    world.run(&mut [], 10_000);
    assert!(open.is_empty(), "seed {seed}");
    assert_eq!(world.buffers.live(), 0, "seed {seed}");
    assert!(world.server.is_idle(), "seed {seed}: {:?}", world.server.counters());
    let counters = world.server.counters();
    assert_eq!(counters.protocol_errors, 0, "seed {seed}: {counters:?}");
    assert!(counters.timeouts > 0 && counters.cancelled > 0, "seed {seed}: {counters:?}");
}

/// A request that the service has not ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    Retrieve(usize),
    Store(usize),
    Pulling,
    Pulled,
}

fn answer_some(
    world: &mut World,
    open: &mut BTreeMap<RequestId, Work>,
    rng: &mut fastrand::Rng,
    step: usize,
) {
    let all: Vec<_> = open.iter().map(|(id, work)| (*id, *work)).collect();
    for (id, work) in all {
        if step < 2000 && rng.u8(..8) > 0 {
            continue;
        }
        match work {
            Work::Pulling => continue,
            Work::Store(length) if rng.u8(..4) > 0 => {
                open.insert(id, Work::Pulling);
                world.pull(id, length);
                continue;
            }
            Work::Retrieve(length) if rng.u8(..4) > 0 => world.reply_with(id, &vec![1; length]),
            _ => world.reply(id, Status::Ok),
        }
        open.remove(&id);
    }
}
