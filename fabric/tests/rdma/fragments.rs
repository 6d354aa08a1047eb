//! Fragments end to end: what is stored comes from them in order, what is retrieved lands in them, and every other
//! byte of the client's memory stays as it was, whatever the fabric does.
//!
//! `FOREBAY_RDMA_RUNS` is how many seeds there are, `FOREBAY_SEED` the only one.

use crate::house::{House, SharedHouse, each_seed, settle};
use crate::raw::{RawPeer, raw_peer, until};
use forebay_fabric::Status;
use forebay_fabric::conformance::{MemoryPeer, Peer};
use forebay_fabric::pdu::{
    Command, Fragment, Item, ItemResult, Opcode, Outcome, PduType, Ping, Response, crc32c,
    response_flags,
};
use forebay_fabric::rdma::Limits;
use forebay_fabric::rdma::client::client_shape;
use forebay_fabric::rdma::fake::{FakeNet, FakeProfile};
use forebay_fabric::transport::Transport;
use std::collections::BTreeMap;
use std::ops::Range;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Commands in flight of each client.
const DEPTH: u16 = 8;
/// Commands of each client.
const OPERATIONS: u32 = 24;

/// Network cards with room for 4 and for 256 fragments of a command; others have room for 15.
const SMALL: Limits =
    Limits { works: 138, buffers: 64, pieces: 2, message_bytes: 64 << 10, send_bytes: 64 << 10 };
const LARGE: Limits =
    Limits { works: 650, buffers: 512, pieces: 16, message_bytes: 64 << 10, send_bytes: 64 << 10 };

/// A fabric of `seed`'s own.
fn house(seed: u64) -> SharedHouse {
    let net = FakeNet::new(seed, FakeProfile::kind());
    match seed % 3 {
        0 => net.set_limits(SMALL),
        1 => net.set_limits(LARGE),
        _ => {}
    }
    House::over(net, 0)
}

fn fragments_max(house: &SharedHouse) -> usize {
    let house = house.borrow();
    house.server.as_ref().expect("a server").transport().fragments_max().into()
}

/// Memory of a client's with fragments in it, in any order, with gaps between some of them.
struct Laid {
    whole: Fragment,
    fragments: Vec<Fragment>,
    /// Where each of them is.
    places: Vec<Range<usize>>,
    /// What is in it, as it should be.
    bytes: Vec<u8>,
}

impl Laid {
    fn new(peer: &mut RawPeer, rng: &mut fastrand::Rng, lengths: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        rng.shuffle(&mut order);
        let (mut places, mut end) = (vec![0..0; lengths.len()], rng.usize(..4));
        for number in order {
            places[number] = end..end + lengths[number];
            end += lengths[number] + rng.usize(..4);
        }
        let mut bytes = vec![0; end + 1];
        rng.fill(&mut bytes);
        let whole = peer.share(&bytes);
        let of = |place: &Range<usize>| {
            Fragment::new(
                whole.address.get() + place.start as u64,
                whole.key.get(),
                place.len() as u32,
            )
        };
        let fragments = places.iter().map(of).collect();
        Self { whole, fragments, places, bytes }
    }

    /// `data` should lie in the fragments from number `first` on, one behind the other.
    fn lands(&mut self, first: usize, data: &[u8]) {
        let places = self.places[first..].iter().cloned().flatten();
        places.zip(data).for_each(|(at, byte)| self.bytes[at] = *byte);
    }

    /// The bytes of the fragments, one behind the other.
    fn joined(&self) -> Vec<u8> {
        self.places.iter().cloned().flatten().map(|at| self.bytes[at]).collect()
    }

    fn is_as_it_should_be(&self, peer: &mut RawPeer) -> bool {
        peer.look(self.whole) == self.bytes
    }

    /// Outside of the fragments nothing has changed.
    fn is_spared(&self, peer: &mut RawPeer) -> bool {
        let found = peer.look(self.whole);
        let inside = |at: usize| self.places.iter().any(|place| place.contains(&at));
        let mut outside = (0..found.len()).filter(|at| !inside(*at));
        outside.all(|at| found[at] == self.bytes[at])
    }
}

/// `total` cut into `count` lengths, some of them 0.
fn cut(rng: &mut fastrand::Rng, total: usize, count: usize) -> Vec<usize> {
    let mut marks: Vec<usize> = (1..count).map(|_| rng.usize(0..=total)).collect();
    marks.sort_unstable();
    marks.push(total);
    let mut before = 0;
    let length = |mark: usize| mark - std::mem::replace(&mut before, mark);
    marks.into_iter().map(length).collect()
}

enum What {
    Store {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// What should come, and how long the whole value is.
    Retrieve {
        data: Vec<u8>,
        result: u64,
    },
    /// For each item what should come, if there is anything under its key.
    Items {
        opcode: Opcode,
        values: Vec<Option<(Vec<u8>, u32)>>,
    },
    /// One of its fragments is not the client's.
    Bad,
}

struct Client {
    seed: u64,
    name: u8,
    most: usize,
    peer: RawPeer,
    asked: BTreeMap<u16, (Laid, What)>,
    /// What is stored for certain.
    known: BTreeMap<Vec<u8>, Vec<u8>>,
    next: u32,
    has_lied: bool,
}

impl Client {
    fn new(house: &SharedHouse, seed: u64, name: u8) -> Self {
        let (peer, most) = (raw_peer(house, client_shape(DEPTH)), fragments_max(house));
        let (asked, known) = (BTreeMap::new(), BTreeMap::new());
        Self { seed, name, most, peer, asked, known, next: 0, has_lied: false }
    }

    fn ask(&mut self, rng: &mut fastrand::Rng) {
        let cid = (0..DEPTH).find(|cid| !self.asked.contains_key(cid)).expect("a free cid");
        self.next += 1;
        match rng.u8(..4) {
            0 if !self.known.is_empty() => self.ask_retrieve(cid, rng),
            1 if !self.known.is_empty() => self.ask_items(cid, rng),
            _ => self.ask_store(cid, rng),
        }
    }

    fn send(
        &mut self,
        mut command: Command,
        items: &[Item],
        keys: &[u8],
        (laid, what): (Laid, What),
    ) {
        command.seal_fragments(items, &laid.fragments, keys);
        let lists = [items.as_bytes(), laid.fragments.as_bytes()].concat();
        self.peer.send(&[command.as_bytes(), &lists, keys].concat());
        self.asked.insert(command.header.cid.get(), (laid, what));
    }

    fn ask_store(&mut self, cid: u16, rng: &mut fastrand::Rng) {
        let key = [&[self.name][..], &self.next.to_le_bytes()].concat();
        let (length, count) = (rng.usize(1..60_000), rng.usize(1..=self.most));
        let lengths = cut(rng, length, count);
        let laid = Laid::new(&mut self.peer, rng, &lengths);
        let value = laid.joined();
        let mut command = Command::new(Opcode::Store, cid);
        command.data_length = U32::new(length as u32);
        command.data_crc = U32::new(crc32c(&value));
        self.send(command, &[], &key.clone(), (laid, What::Store { key, value }));
    }

    fn any_known(&self, rng: &mut fastrand::Rng) -> (Vec<u8>, Vec<u8>) {
        let at = rng.usize(..self.known.len());
        let (key, value) = self.known.iter().nth(at).expect("one that is known");
        (key.clone(), value.clone())
    }

    fn ask_retrieve(&mut self, cid: u16, rng: &mut fastrand::Rng) {
        let (key, value) = self.any_known(rng);
        let offset = rng.usize(..value.len());
        // The rest of the value and more, or only a part of it; and memory for more than that.
        let wanted = rng.usize(1..70_000);
        let (room, count) = (wanted + rng.usize(..100), rng.usize(1..=self.most));
        let lengths = cut(rng, room, count);
        let laid = Laid::new(&mut self.peer, rng, &lengths);
        let mut command = Command::new(Opcode::Retrieve, cid);
        command.offset = U64::new(offset as u64);
        command.data_length = U32::new(wanted as u32);
        let data = value[offset..value.len().min(offset + wanted)].to_vec();
        let what = What::Retrieve { data, result: value.len() as u64 };
        self.send(command, &[], &key, (laid, what));
    }

    fn ask_items(&mut self, cid: u16, rng: &mut fastrand::Rng) {
        let opcode = if rng.bool() { Opcode::Retrieve } else { Opcode::Exist };
        let count = rng.usize(1..=(self.most - 1).min(64));
        let (mut items, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (key, value) = match rng.u8(..4) {
                0 => (b"nothing".to_vec(), None),
                _ => {
                    let (key, value) = self.any_known(rng);
                    (key, Some(value))
                }
            };
            let wanted = if opcode == Opcode::Retrieve { rng.usize(..9_000) } else { 0 };
            items.push(Item::new(key.len() as u16, 0, wanted as u32, 0, 0));
            keys.extend_from_slice(&key);
            values.push(value.map(|value| {
                let data = value[..value.len().min(wanted)].to_vec();
                (data, value.len() as u32)
            }));
        }
        let results = count * size_of::<ItemResult>();
        let lengths = if opcode == Opcode::Retrieve {
            let room = items.iter().map(|item| item.data_length.get() as usize + rng.usize(..9));
            let mut lengths = vec![results + 5];
            lengths.extend(room);
            lengths
        } else {
            let count = rng.usize(1..=self.most);
            cut(rng, results + 3, count)
        };
        let laid = Laid::new(&mut self.peer, rng, &lengths);
        let mut command = Command::new(opcode, cid);
        let wanted: u32 = items.iter().map(|item| item.data_length.get()).sum();
        command.data_length = U32::new(wanted);
        self.send(command, &items, &keys, (laid, What::Items { opcode, values }));
    }

    /// One of the fragments is not this client's: a wrong key, or out of the bounds of its memory.
    fn lie(&mut self, rng: &mut fastrand::Rng) {
        self.next += 1;
        let lies = self.peer.elsewhere(50);
        let lie = lies[rng.usize(..lies.len())];
        let (length, count) = (rng.usize(1..20_000), rng.usize(1..self.most));
        let lengths = cut(rng, length, count);
        let mut laid = Laid::new(&mut self.peer, rng, &lengths);
        laid.fragments.insert(rng.usize(..=count), lie);
        // What is sent is READ; an answer that is long enough is WRITTEN.
        let mut long = self.known.iter().filter(|(_, value)| value.len() >= length + 50);
        let (opcode, key) = match long.next() {
            Some((key, _)) if rng.bool() => (Opcode::Retrieve, key.clone()),
            _ => (Opcode::Store, b"lie".to_vec()),
        };
        let mut command = Command::new(opcode, DEPTH - 1);
        command.data_length = U32::new(length as u32 + 50);
        self.has_lied = true;
        self.send(command, &[], &key, (laid, What::Bad));
    }

    /// Looks at what has come.
    fn take(&mut self) {
        for pdu in self.peer.received() {
            match PduType::from_wire(pdu[0]) {
                Some(PduType::Ping) => {
                    let nonce = Ping::parse(&pdu, PduType::Ping).expect("a PING");
                    self.peer.send(Ping::new(PduType::Pong, nonce).as_bytes());
                }
                Some(PduType::Response) => {
                    let outcome = Response::parse(&pdu).expect("a response");
                    assert_eq!(pdu.len(), 32, "seed {}: data behind a response", self.seed);
                    self.check(&outcome);
                }
                _ => {}
            }
        }
    }

    fn check(&mut self, outcome: &Outcome) {
        let seed = self.seed;
        let (mut laid, what) = self.asked.remove(&outcome.cid).expect("something was asked");
        let mut placed = outcome.data_length > 0;
        assert_eq!(outcome.status, Status::Ok, "seed {seed}");
        match what {
            What::Store { key, value } => {
                placed = false;
                self.known.insert(key, value);
            }
            What::Retrieve { data, result } => {
                assert_eq!((outcome.data_length as usize, outcome.result), (data.len(), result));
                assert_eq!(outcome.data_crc, crc32c(&data));
                laid.lands(0, &data);
            }
            What::Items { opcode, values } => {
                let result = |value: &Option<(Vec<u8>, u32)>| match value {
                    Some((data, length)) => {
                        ItemResult::new(Status::Ok, data.len() as u32, *length, crc32c(data))
                    }
                    None => ItemResult::new(Status::NotFound, 0, 0, crc32c(b"")),
                };
                let results: Vec<ItemResult> = values.iter().map(result).collect();
                laid.lands(0, results.as_slice().as_bytes());
                for (number, value) in values.iter().enumerate() {
                    if let (Opcode::Retrieve, Some((data, _))) = (opcode, value) {
                        laid.lands(number + 1, data);
                    }
                }
            }
            What::Bad => panic!("seed {seed}: memory of nobody's was reached"),
        }
        let is_placed = outcome.flags & response_flags::PLACED != 0;
        assert_eq!(is_placed, placed, "seed {seed}");
        assert!(laid.is_as_it_should_be(&mut self.peer), "seed {seed}: other bytes in memory");
    }

    /// The connection is over: what was under way may have landed, and nothing else.
    fn check_end(mut self, stored: &BTreeMap<Vec<u8>, Vec<u8>>) {
        for (laid, _) in self.asked.values() {
            assert!(laid.is_spared(&mut self.peer), "seed {}: something was hit", self.seed);
        }
        for (key, value) in &self.known {
            assert!(stored.get(key) == Some(value), "seed {}: other bytes stored", self.seed);
        }
    }
}

/// One run: two clients store and retrieve by fragments; one of them may lie, and the fabric may be rough. On a
/// kind one the honest client notices nothing.
fn run(seed: u64) {
    let house = house(seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut clients = [b'a', b'b'].map(|name| Client::new(&house, seed, name));
    let (is_rough, lies) = (rng.bool(), rng.bool());
    if is_rough {
        house.borrow().net.set_profile(FakeProfile::rough());
    }
    let ends = |client: &Client| {
        client.peer.is_closed() || client.next >= OPERATIONS && client.asked.is_empty()
    };
    for turn in 0_u64.. {
        assert!(turn < 100_000, "seed {seed}: it hangs");
        if clients.iter().all(ends) {
            break;
        }
        for client in &mut clients {
            client.take();
            let idle = client.asked.len() < usize::from(DEPTH) - 1 && !client.has_lied;
            if idle && client.next < OPERATIONS && !client.peer.is_closed() && rng.bool() {
                client.ask(&mut rng);
            }
            // A queue pair with nothing to send never notices that the other side has gone.
            if turn % 1000 == 999 {
                client.peer.send(Ping::new(PduType::Ping, turn).as_bytes());
            }
            client.peer.turn();
        }
        let liar = &mut clients[0];
        if lies && liar.next > OPERATIONS / 2 && !liar.has_lied && !liar.peer.is_closed() {
            liar.lie(&mut rng);
        }
        house.borrow_mut().step();
        house.borrow().net.advance(50);
    }
    if !is_rough {
        assert_eq!(clients[0].peer.is_closed(), lies, "seed {seed}");
        assert!(!clients[1].peer.is_closed(), "seed {seed}: the honest client was closed");
    }
    let stored = house.borrow().desk.values.clone();
    clients.into_iter().for_each(|client| client.check_end(&stored));
    house.borrow().net.set_profile(FakeProfile::kind());
    settle(&house, seed);
    let counters = house.borrow().server.as_ref().expect("a server").counters();
    let expected = u64::from(lies);
    assert!(is_rough || counters.protocol_errors == expected, "seed {seed}: {counters:?}");
}

#[test]
fn what_moves_by_fragments_lands_there_and_nowhere_else() {
    each_seed(1, run);
}

/// A single command, and the status of its answer; `None` if the connection ended instead.
fn status_of(house: &SharedHouse, pdu: &[u8]) -> Option<Status> {
    let mut peer = raw_peer(house, client_shape(DEPTH));
    peer.send(pdu);
    let mut received = Vec::new();
    until(house, &mut peer, |peer| {
        received.append(&mut peer.received());
        peer.is_closed() || received.iter().any(|pdu| pdu[0] == PduType::Response as u8)
    });
    let response = received.iter().find(|pdu| pdu[0] == PduType::Response as u8);
    response.map(|pdu| Response::parse(pdu).expect("a response").status)
}

#[test]
fn fragments_that_do_not_fit_their_command_are_malformed_and_the_connection_stays() {
    let house = house(1);
    let fragment = |length| Fragment::new(1 << 20, 7, length);
    let command = |opcode, data_length, items: &[Item], fragments: &[Fragment]| {
        let mut command = Command::new(opcode, 0);
        command.data_length = U32::new(data_length);
        let keys = vec![b'k'; items.len().max(1)];
        command.seal_fragments(items, fragments, &keys);
        [command.as_bytes(), items.as_bytes(), fragments.as_bytes(), &keys].concat()
    };
    let items = [Item::new(1, 0, 10, 0, 0), Item::new(1, 0, 20, 0, 0)];
    for pdu in [
        command(Opcode::Store, 10, &[], &[fragment(4), fragment(5)]),
        command(Opcode::Store, 10, &[], &[fragment(4), fragment(7)]),
        command(Opcode::Retrieve, 10, &[], &[fragment(9)]),
        command(Opcode::Retrieve, 30, &items, &[fragment(32), fragment(10), fragment(19)]),
        command(Opcode::Retrieve, 30, &items, &[fragment(31), fragment(10), fragment(20)]),
        command(Opcode::Retrieve, 30, &items, &[fragment(32), fragment(30)]),
    ] {
        assert_eq!(status_of(&house, &pdu), Some(Status::Malformed));
    }
    let many = vec![fragment(0); 16];
    assert_eq!(
        status_of(&house, &command(Opcode::Retrieve, 0, &[], &many)),
        Some(Status::NotFound)
    );
    // Network cards that cannot do so much grant less, and a client keeps to that.
    let small = self::house(2);
    assert_eq!(fragments_max(&small), 15);
    assert_eq!(status_of(&small, &command(Opcode::Retrieve, 0, &[], &many)), None);
}
