//! Memory that a command names, and what the server has placed there.
//!
//! That is memory which the connection lends, or fragments of the caller's own where the server reaches
//! them: then nothing is copied on this side. Data of fragments that it does not reach goes through lent
//! memory by one copy.

use super::data::Data;
use super::error::LinkError;
use super::landing::Landing;
use super::link::protocol;
use super::operation::{Buffers, Operation};
use super::receive::Got;
use super::stream::{Lent, Memory, Reach};
use crate::Status;
use crate::crc32c::Digest;
use crate::pdu::{Command, Fragment, ItemResult, Opcode, Outcome, crc32c, response_flags};
use std::io;
use zerocopy::little_endian::{U32, U64};

/// How much is copied out of lent memory before its checksum is computed: it is in the cache then, and
/// what comes next is on its way there meanwhile.
const COPY_BYTES: usize = 16 << 10;

/// From this many bytes on a value is not copied out of lent memory, but handed out where it lies.
const VIEW_BYTES: usize = 2 << 10;

/// What a command in flight has named.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Placement {
    #[default]
    Nothing,
    /// All of its data is, or goes, there.
    Lent(Lent),
    /// The operation's own fragments, and memory for the results of a batch.
    Own { results: Option<Lent> },
}

impl Placement {
    /// Memory to give back once the command is answered.
    pub(super) fn lent(self) -> Option<Lent> {
        match self {
            Self::Nothing => None,
            Self::Lent(lent) => Some(lent),
            Self::Own { results } => results,
        }
    }
}

/// Where the data of an answer is.
pub(super) struct Source<'a> {
    pub memory: &'a mut dyn Memory,
    /// Where that of the answer behind it is, which will be looked at soon.
    pub next: Option<Lent>,
}

impl Source<'_> {
    /// Has the beginning of the next answer come.
    fn prefetch_next(&self) {
        if let Some(next) = self.next {
            self.memory.prefetch(next, 0, COPY_BYTES.min(next.bytes as usize));
        }
    }
}

/// What a command may name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    pub fragments_max: usize,
    /// Bytes of the capsule.
    pub capsule_bytes: usize,
}

/// Names the memory that `op` sends from, or is answered into: in `command`, or as `named`.
///
/// # Errors
/// The server cannot reach it, and no processor can copy it.
pub(super) fn name(
    op: &Operation,
    command: &mut Command,
    named: &mut Vec<Fragment>,
    memory: &mut dyn Memory,
    room: Room,
) -> io::Result<Placement> {
    if !op.fragments.is_empty()
        && let Some(placement) = name_own(op, command, named, memory, room)?
    {
        return Ok(placement);
    }
    named.clear();
    Ok(lend(op, command, memory).map_or(Placement::Nothing, Placement::Lent))
}

/// Names the operation's fragments. `None`: their data is copied.
fn name_own(
    op: &Operation,
    command: &mut Command,
    named: &mut Vec<Fragment>,
    memory: &mut dyn Memory,
    room: Room,
) -> io::Result<Option<Placement>> {
    let has_results = op.lands() && !op.items.is_empty();
    // Behind this one, if it is there, every item has one, and else none is empty.
    named.extend(has_results.then(|| Fragment::new(0, 0, 0)));
    let mut last = None;
    for held in op.fragments.iter().filter(|held| has_results || !held.is_empty()) {
        let key = match last {
            Some((region, key)) if held.region().is_same(region) => key,
            _ => match memory.reach(held.region())? {
                Reach::Key(key) => key,
                Reach::Copied => return Ok(None),
            },
        };
        last = Some((held.region(), key));
        named.push(Fragment::new(held.device_address(), key, held.len()));
    }
    let capsule_bytes = op.capsule_bytes() + size_of_val(named.as_slice());
    if named.len() > room.fragments_max.max(1) || capsule_bytes > room.capsule_bytes {
        let text = "more fragments of dma-buf memory than the server takes in one command";
        return if op.is_unseen() { Err(io::Error::other(text)) } else { Ok(None) };
    }
    let mut results = None;
    if has_results {
        let bytes = size_of::<ItemResult>() * op.items.len();
        let Some(lent) = memory.lend(bytes) else { return Ok(None) };
        named[0] = Fragment::new(lent.address, lent.key, lent.bytes);
        results = Some(lent);
    }
    if let ([only], None) = (named.as_slice(), results) {
        (command.address, command.memory_key) = (only.address, only.key);
        named.clear();
    }
    Ok(Some(Placement::Own { results }))
}

/// Lends the memory that `op` sends from, or is answered into, and names it in `command`.
fn lend(op: &Operation, command: &mut Command, memory: &mut dyn Memory) -> Option<Lent> {
    let bytes = Some(op.memory_bytes()).filter(|bytes| *bytes > 0)?;
    let lent = memory.lend(bytes)?;
    let mut offset = 0;
    for value in &op.values {
        memory.put(lent, offset, value);
        offset += value.len();
    }
    for held in op.fragments.iter().filter(|_| op.opcode.sends_data()) {
        held.read_pieces(0..held.len() as usize, |piece| {
            memory.put(lent, offset, piece);
            offset += piece.len();
        });
    }
    command.address = U64::new(lent.address);
    command.memory_key = U32::new(lent.key);
    Some(lent)
}

/// The data of this answer goes to fragments.
///
/// # Errors
/// It is not of the kind that was asked for.
pub(super) fn lands(op: &Operation, outcome: &Outcome) -> Result<bool, LinkError> {
    if !op.lands() || outcome.status != Status::Ok {
        return Ok(false);
    }
    let has_items = outcome.flags & response_flags::ITEMS != 0;
    let results = size_of::<ItemResult>() * op.items.len();
    if has_items == op.items.is_empty() || (outcome.data_length as usize) < results {
        return Err(LinkError::Protocol("an answer to something else"));
    }
    Ok(true)
}

/// Takes in what the server has placed in the memory that the command of `outcome` has named.
///
/// # Errors
/// It cannot be there.
pub(super) fn fetch(
    placement: Placement,
    outcome: &Outcome,
    op: &Operation,
    source: Source<'_>,
    buffers: &mut Buffers,
) -> Result<Got, LinkError> {
    let length = outcome.data_length as usize;
    let head = if lands(op, outcome)? { size_of::<ItemResult>() * op.items.len() } else { length };
    let lands = op.lands() && outcome.status == Status::Ok;
    match placement {
        Placement::Lent(lent) if length <= lent.bytes as usize => {
            if is_value(op, outcome)
                && let Some(view) = source.memory.view(lent, length)
            {
                // The server has checked what it copied here.
                return Ok(Got { data: Data::placed(view), intact: true, landed: None });
            }
            source.prefetch_next();
            let memory = &*source.memory;
            let mut data = buffers.take(head);
            let crc = copy_out(memory, lent, &mut data);
            if lands {
                return land(outcome, op, data, Some((memory, lent)));
            }
            let has_items = outcome.flags & response_flags::ITEMS != 0;
            let intact = has_items || crc == outcome.data_crc;
            Ok(Got { data: data.into(), intact, landed: None })
        }
        Placement::Own { results } if lands => {
            let mut data = buffers.take(head);
            results.iter().for_each(|lent| source.memory.get(*lent, 0, &mut data));
            land(outcome, op, data, None)
        }
        _ => Err(LinkError::Protocol("data in memory that was not lent")),
    }
}

/// The data of this answer is one value that goes to the caller as it is, and is worth a page of the area:
/// what this client reads itself it copies first.
fn is_value(op: &Operation, outcome: &Outcome) -> bool {
    let is_read = matches!(op.opcode, Opcode::Retrieve | Opcode::CheckpointRead);
    let is_whole = op.items.is_empty() && op.fragments.is_empty();
    let is_large = outcome.data_length as usize >= VIEW_BYTES;
    is_read && is_whole && is_large && outcome.status == Status::Ok
}

/// Data in fragments, behind the results in `data`: it is there, or is copied out of what was lent.
fn land(
    outcome: &Outcome,
    op: &Operation,
    data: Vec<u8>,
    source: Option<(&dyn Memory, Lent)>,
) -> Result<Got, LinkError> {
    let mut landing = Landing::begin(op, outcome, &data).map_err(protocol)?;
    let layout = op.layout(&data);
    let Some((memory, lent)) = source else {
        landing.advance(layout, landing.left(), |_, _| ());
        return Ok(Got::landed(outcome, data, landing));
    };
    let mut offset = data.len();
    while landing.left() > 0 {
        let count = landing.left().min(COPY_BYTES);
        let next = COPY_BYTES.min(landing.left() - count);
        memory.prefetch(lent, offset + count, next);
        landing.advance(layout, count, |held, range| {
            held.fill_pieces(range, |piece| {
                memory.get(lent, offset, piece);
                offset += piece.len();
            });
        });
    }
    Ok(Got::landed(outcome, data, landing))
}

/// Copies data out of lent memory; its checksum.
fn copy_out(memory: &dyn Memory, lent: Lent, data: &mut [u8]) -> u32 {
    if data.len() <= COPY_BYTES {
        memory.get(lent, 0, data);
        return crc32c(data);
    }
    let mut digest = Digest::new();
    let mut begin = 0;
    while begin < data.len() {
        let end = data.len().min(begin + COPY_BYTES);
        memory.get(lent, begin, &mut data[begin..end]);
        memory.prefetch(lent, end, COPY_BYTES.min(data.len() - end));
        digest.update(&data[begin..end]);
        begin = end;
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::operation::Operations;
    use super::super::request::{NamespaceId, Target};
    use super::*;
    use crate::pdu::{Capsule, Item, Opcode};
    use crate::region::{Held, Region};
    use zerocopy::IntoBytes;

    /// A device that reaches every region, and has one piece to lend.
    struct Board {
        registered: Vec<Region>,
        copies: bool,
    }

    impl Memory for Board {
        fn lend(&mut self, bytes: usize) -> Option<Lent> {
            Some(Lent { address: 64, key: 99, bytes: bytes as u32 })
        }
        fn put(&mut self, _: Lent, _: usize, _: &[u8]) {}
        fn get(&self, _: Lent, _: usize, _: &mut [u8]) {}
        fn prefetch(&self, _: Lent, _: usize, _: usize) {}
        fn take_back(&mut self, _: Lent) {}

        fn reach(&mut self, region: &Region) -> io::Result<Reach> {
            if self.copies {
                return Reach::by_copy(region);
            }
            let known = self.registered.iter().position(|other| other.is_same(region));
            let place = known.unwrap_or(self.registered.len());
            if place == self.registered.len() {
                self.registered.push(region.clone());
            }
            Ok(Reach::Key(1 + place as u32))
        }
    }

    /// What a command names, as its server reads it: (address, key, length).
    struct Named {
        fragments: Vec<(u64, u32, u32)>,
        single: (u64, u32),
        placement: Placement,
    }

    fn named(opcode: Opcode, held: Vec<Held>, items: usize, board: &mut Board) -> Named {
        let mut ops = Operations::default();
        let id = ops.take();
        let op = &mut ops[id];
        op.begin(opcode, Target::Key, NamespaceId(16), 0);
        let bytes = held.iter().map(|one| one.len()).sum();
        op.data_length = bytes;
        if opcode.sends_data() {
            op.value_bytes = bytes;
        }
        op.keys = vec![b'k'; items.max(1)];
        op.items = held[..items].iter().map(|one| Item::new(1, 0, one.len(), 0, 0)).collect();
        op.fragments = held;
        let (mut command, mut list) = (op.command(1, 1), Vec::new());
        let room = Room { fragments_max: 128, capsule_bytes: 8192 };
        let placement = name(op, &mut command, &mut list, board, room).unwrap();
        command.seal_fragments(&op.items, &list, &op.keys);
        let parts = [command.as_bytes(), op.items.as_bytes(), list.as_bytes(), &op.keys];
        let pdu = parts.concat();
        let capsule = Capsule::parse(&pdu).expect("a server takes it");
        assert!(capsule.fragments_fit());
        let read = |one: &Fragment| (one.address.get(), one.key.get(), one.length.get());
        Named {
            fragments: capsule.fragments.iter().map(read).collect(),
            single: (command.address.get(), command.memory_key.get()),
            placement,
        }
    }

    fn regions() -> (Region, Region, Board) {
        let board = Board { registered: Vec::new(), copies: false };
        (Region::new(1 << 20).unwrap(), Region::new(1 << 20).unwrap(), board)
    }

    #[test]
    fn one_fragment_is_an_address_and_several_are_a_list_without_the_empty_ones() {
        let (one, two, mut board) = regions();
        let held = |region: &Region, from| Held::new(&region.fragment(from..from + 100));
        for opcode in [Opcode::Store, Opcode::Retrieve] {
            let found = named(opcode, vec![held(&one, 5)], 0, &mut board);
            assert_eq!(found.single, (one.device_address() + 5, 1));
            assert!(matches!(found.placement, Placement::Own { results: None }));
            let empty = Held::new(&two.fragment(7..7));
            let list = vec![held(&two, 0), empty, held(&one, 500), held(&one, 50)];
            let found = named(opcode, list, 0, &mut board);
            let expected = [
                (two.device_address(), 2, 100),
                (one.device_address() + 500, 1, 100),
                (one.device_address() + 50, 1, 100),
            ];
            assert_eq!((found.fragments.as_slice(), found.single), (&expected[..], (0, 0)));
        }
    }

    #[test]
    fn a_batch_of_retrieves_has_its_results_in_lent_memory_and_an_item_in_each_fragment() {
        let (one, _, mut board) = regions();
        let held: Vec<_> = [0..100, 200..200, 300..500].map(|r| Held::new(&one.fragment(r))).into();
        let found = named(Opcode::Retrieve, held.clone(), 3, &mut board);
        let at = |offset: u64, length| (one.device_address() + offset, 1, length);
        let expected = [(64, 99, 48), at(0, 100), at(200, 0), at(300, 200)];
        assert_eq!(found.fragments, expected);
        let lent = Lent { address: 64, key: 99, bytes: 48 };
        assert_eq!(found.placement.lent(), Some(lent), "given back after the answer");
        let found = named(Opcode::Store, held, 3, &mut board);
        assert_eq!(found.fragments, [at(0, 100), at(300, 200)]);
        assert_eq!(found.placement.lent(), None);
    }

    #[test]
    fn what_is_too_much_for_a_list_or_cannot_be_reached_goes_through_lent_memory() {
        let (one, _, mut board) = regions();
        let held = |count: usize| -> Vec<_> {
            (0..count).map(|n| Held::new(&one.fragment(n..n + 1))).collect()
        };
        let found = named(Opcode::Store, held(128), 0, &mut board);
        assert!(matches!(found.placement, Placement::Own { .. }) && found.fragments.len() == 128);
        for (count, copies) in [(129, false), (2, true)] {
            board.copies = copies;
            let found = named(Opcode::Store, held(count), 0, &mut board);
            assert!(found.fragments.is_empty(), "{count}");
            assert_eq!(
                (found.single, found.placement.lent().unwrap().bytes),
                ((64, 99), count as u32)
            );
        }
    }
}
