//! What the server knows of one connection: where its handshake is, and its commands in flight.

use super::RequestId;
use crate::Status;
use crate::pdu::{Capsule, DecodeError, Fragment, ItemResult, Opcode, PduType, features};
use crate::transport::{ConnId, KeptMemory, RemoteMemory};
use zerocopy::FromBytes;

/// Where a session is. `PROTOCOL.md` draws it; [`STEPS`] says what each state takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No connection.
    Vacant,
    /// Nothing has come yet.
    AwaitHello,
    /// HELLO_ACK was sent.
    AwaitAuth,
    /// Commands flow.
    Ready,
    /// The server has said GOAWAY: commands in flight are answered, new ones refused.
    Draining,
    /// The client has said GOAWAY: closes when the last command in flight has been answered.
    Leaving,
    /// Being closed: what still comes is not looked at.
    Closing,
}

/// What to do with a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read the offer; grant; next comes AUTH.
    Greet,
    /// Look at the credentials; commands may flow.
    Admit,
    /// A command for the service.
    Take,
    /// A command that is answered with "shutting down".
    Refuse,
    /// Give a command up.
    Cancel,
    /// Answer with PONG.
    Pong,
    /// It has shown that the peer lives.
    Note,
    /// The client leaves.
    Leave,
    /// Not looked at.
    Ignore,
    /// The peer broke the protocol.
    Violation,
}

use Step::{Admit, Cancel, Greet, Ignore, Leave, Note, Pong, Refuse, Take, Violation};

/// State by state, what is done with each PDU that a client may send; every other type is a
/// violation (DATA never gets here: it is the transport's).
#[rustfmt::skip]
const STEPS: [(State, [Step; 7]); 7] = [
    //                   Hello      Auth       Command    Cancel     Ping       Pong       GoAway
    (State::Vacant,     [Ignore,    Ignore,    Ignore,    Ignore,    Ignore,    Ignore,    Ignore]),
    (State::AwaitHello, [Greet,     Violation, Violation, Violation, Violation, Violation, Violation]),
    (State::AwaitAuth,  [Violation, Admit,     Violation, Violation, Violation, Violation, Leave]),
    (State::Ready,      [Violation, Violation, Take,      Cancel,    Pong,      Note,      Leave]),
    (State::Draining,   [Violation, Violation, Refuse,    Cancel,    Pong,      Note,      Leave]),
    (State::Leaving,    [Violation, Violation, Violation, Cancel,    Pong,      Note,      Note]),
    (State::Closing,    [Ignore,    Ignore,    Ignore,    Ignore,    Ignore,    Ignore,    Ignore]),
];

impl State {
    pub(super) fn step(self, pdu_type: PduType) -> Step {
        let row = &STEPS[self as usize].1;
        match pdu_type {
            PduType::Hello => row[0],
            PduType::Auth => row[1],
            PduType::Command => row[2],
            PduType::Cancel => row[3],
            PduType::Ping => row[4],
            PduType::Pong => row[5],
            PduType::GoAway => row[6],
            PduType::HelloAck
            | PduType::AuthAck
            | PduType::Response
            | PduType::Data
            | PduType::ReadyToTransfer => match self {
                Self::Vacant | Self::Closing => Ignore,
                _ => Violation,
            },
        }
    }
}

/// What the memory that a command names is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Purpose {
    /// Its data comes from there.
    #[default]
    Source,
    /// Its answer's data goes there.
    Answer,
    /// Its item results go into the first fragment, and each item's data into one of its own.
    Items,
}

/// One command identifier of a session.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Grows with every command that uses it.
    pub(super) generation: u32,
    /// A command is in flight: taken and not answered.
    pub(super) active: bool,
    /// A pull has not ended; it may outlive its command.
    pub(super) pulling: bool,
    /// The generation of the command that pulls.
    pub(super) pull_generation: u32,
    /// What the command names of the client's memory; if nothing, how much data there is.
    memory: KeptMemory,
    purpose: Purpose,
}

impl Slot {
    /// Room for the memory that most commands name.
    pub(super) fn reserve(&mut self) {
        self.memory.reserve(1);
    }

    /// Notes which memory a command names, and what for: one that sends data names where that is, every
    /// other one where its answer goes.
    pub(super) fn note(&mut self, capsule: &Capsule<'_>) {
        let Capsule { command, opcode, items, fragments, .. } = capsule;
        self.purpose = match opcode {
            Some(opcode) if opcode.sends_data() => Purpose::Source,
            Some(Opcode::Retrieve) if !items.is_empty() && !fragments.is_empty() => Purpose::Items,
            _ => Purpose::Answer,
        };
        if !fragments.is_empty() {
            return self.memory.keep(RemoteMemory::new(fragments));
        }
        let data_length = command.data_length.get();
        let results = match self.purpose {
            Purpose::Source => 0,
            Purpose::Answer | Purpose::Items => items.len() * size_of::<ItemResult>(),
        };
        let length = data_length.saturating_add(results as u32);
        match command.memory_key.get() {
            0 => self.memory.keep(RemoteMemory::none(length)),
            key => {
                let one = [Fragment::new(command.address.get(), key, length)];
                self.memory.keep(RemoteMemory::new(&one));
            }
        }
    }

    /// Where the command's data is.
    pub(super) fn source(&self) -> RemoteMemory<'_> {
        debug_assert!(self.purpose == Purpose::Source, "nothing is sent with this command");
        self.memory.get()
    }

    /// Where its answer's data goes.
    pub(super) fn answer(&self) -> RemoteMemory<'_> {
        match self.purpose {
            Purpose::Source => RemoteMemory::none(0),
            Purpose::Answer | Purpose::Items => self.memory.get(),
        }
    }

    /// Its items have fragments of their own.
    pub(super) fn has_items(&self) -> bool {
        self.purpose == Purpose::Items
    }

    /// The answer's data is `length` bytes and, if it `has_results`, begins like `head`. Where each item has
    /// a fragment of its own, only as much of it is used from now on as the item fills.
    ///
    /// # Panics
    /// If an item has more data than its fragment, or all of them more or less than `length`.
    pub(super) fn fit(&mut self, has_results: bool, head: &[u8], length: usize) {
        if self.purpose != Purpose::Items || length == 0 {
            return;
        }
        let items = self.memory.get().fragments().len() - 1;
        let results = <[ItemResult]>::ref_from_prefix_with_elems(head, items);
        let Some((results, _)) = results.ok().filter(|_| has_results) else {
            // Not what this memory is for: the data stands behind the response.
            return self.memory.keep(RemoteMemory::none(0));
        };
        let lengths = results.iter().map(|result| result.data_length.get());
        self.memory.shorten(std::iter::once(size_of_val(results) as u32).chain(lengths));
        assert!(
            self.memory.get().length() as usize == length,
            "results that do not fit their data"
        );
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) conn: ConnId,
    pub(super) state: State,
    /// Granted in the handshake.
    pub(super) queue_depth: u16,
    pub(super) capsule_bytes: u32,
    pub(super) keep_alive_us: u64,
    pub(super) features: u64,
    pub(super) version: u16,
    /// When the connection was made.
    pub(super) began_us: u64,
    /// When the last PDU came, and the last PING was sent.
    pub(super) heard_us: u64,
    pub(super) pinged_us: u64,
    /// Commands in flight.
    pub(super) active: u32,
    /// Commands that were answered for the service, which still has to end them: they keep its
    /// memory busy, so they are bounded. Survives the connection.
    pub(super) zombies: u32,
    /// By `cid`; as many as the granted queue depth. Generations survive the connection.
    pub(super) slots: Vec<Slot>,
}

impl Session {
    pub(super) fn new(slot: u16, queue_depth_max: u16) -> Self {
        Self {
            conn: ConnId { slot, generation: 0 },
            state: State::Vacant,
            queue_depth: 0,
            capsule_bytes: 0,
            keep_alive_us: 0,
            features: 0,
            version: 0,
            began_us: 0,
            heard_us: 0,
            pinged_us: 0,
            active: 0,
            zombies: 0,
            slots: Vec::with_capacity(usize::from(queue_depth_max)),
        }
    }

    /// A new connection takes this place.
    pub(super) fn begin(&mut self, conn: ConnId, keep_alive_us: u64, now_us: u64) {
        self.conn = conn;
        self.state = State::AwaitHello;
        self.keep_alive_us = keep_alive_us;
        self.began_us = now_us;
        self.heard_us = now_us;
        self.pinged_us = now_us;
        self.queue_depth = 0;
        self.active = 0;
    }

    /// The command that `id` names, if it is in flight.
    pub(super) fn active_slot(&mut self, id: RequestId) -> Option<&mut Slot> {
        if self.conn != id.conn || self.state == State::Vacant {
            return None;
        }
        let slot = self.slots.get_mut(usize::from(id.cid))?;
        (slot.active && slot.generation == id.generation).then_some(slot)
    }

    /// The capsule, if it keeps to what was negotiated.
    #[inline]
    pub(super) fn check<'a>(
        &self,
        pdu: &'a [u8],
        fragments_max: u16,
    ) -> Result<Capsule<'a>, DecodeError> {
        if pdu.len() > self.capsule_bytes as usize {
            return Err(DecodeError::Field("capsule larger than negotiated"));
        }
        let capsule = Capsule::parse(pdu)?;
        if capsule.fragments.len() > usize::from(fragments_max) {
            return Err(DecodeError::Field("more fragments than granted"));
        }
        let cid = capsule.command.header.cid.get();
        // As many identifiers as credits, each in use once: no client gets beyond its credits.
        if cid >= self.queue_depth {
            return Err(DecodeError::Field("cid past the queue depth"));
        }
        let slot = &self.slots[usize::from(cid)];
        if slot.active {
            return Err(DecodeError::Field("cid in flight already"));
        }
        if slot.pulling {
            return Err(DecodeError::Field("cid whose DATA has not come"));
        }
        Ok(capsule)
    }

    /// Why a command is not for the service, if it is not.
    pub(super) fn turn_away(&self, capsule: &Capsule<'_>) -> Option<Status> {
        if self.state == State::Draining {
            return Some(Status::ShuttingDown);
        }
        if self.zombies >= u32::from(self.queue_depth) {
            return Some(Status::Busy);
        }
        let is_spoken = |opcode| needs(opcode) & !self.features == 0;
        let is_batch = !capsule.items.is_empty();
        if !capsule.opcode.is_some_and(is_spoken)
            || (is_batch && self.features & features::BATCH == 0)
        {
            return Some(Status::Unsupported);
        }
        (!capsule.fragments_fit()).then_some(Status::Malformed)
    }

    pub(super) fn request_id(&self, cid: u16, generation: u32) -> RequestId {
        RequestId { conn: self.conn, cid, generation }
    }
}

/// The features without which an opcode is not spoken.
fn needs(opcode: Opcode) -> u64 {
    match opcode {
        Opcode::CheckpointBegin
        | Opcode::CheckpointReserve
        | Opcode::CheckpointPut
        | Opcode::CheckpointSeal
        | Opcode::CheckpointCommit
        | Opcode::CheckpointAbort
        | Opcode::CheckpointList
        | Opcode::CheckpointManifest
        | Opcode::CheckpointRead
        | Opcode::CheckpointDelete => features::CHECKPOINT,
        Opcode::Store
        | Opcode::Retrieve
        | Opcode::List
        | Opcode::Delete
        | Opcode::Exist
        | Opcode::Namespaces
        | Opcode::Stats => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::{Command, Item};
    use zerocopy::IntoBytes;

    /// Every state with every PDU type, spelt out once more by the rules of PROTOCOL.md.
    #[test]
    fn every_state_has_a_step_for_every_pdu() {
        for (index, (state, _)) in STEPS.iter().enumerate() {
            assert_eq!(*state as usize, index, "the table is in the order of the states");
            for pdu_type in PduType::ALL {
                assert_eq!(
                    state.step(pdu_type),
                    expected(*state, pdu_type),
                    "{state:?} {pdu_type:?}"
                );
            }
        }
    }

    fn expected(state: State, pdu_type: PduType) -> Step {
        use PduType as P;
        use State as S;
        match (state, pdu_type) {
            (S::Vacant | S::Closing, _) => Ignore,
            (S::AwaitHello, P::Hello) => Greet,
            (S::AwaitAuth, P::Auth) => Admit,
            (S::AwaitAuth | S::Ready | S::Draining, P::GoAway) => Leave,
            (S::Ready, P::Command) => Take,
            (S::Draining, P::Command) => Refuse,
            (S::Ready | S::Draining | S::Leaving, P::Cancel) => Cancel,
            (S::Ready | S::Draining | S::Leaving, P::Ping) => Pong,
            (S::Ready | S::Draining | S::Leaving, P::Pong) => Note,
            (S::Leaving, P::GoAway) => Note,
            _ => Violation,
        }
    }

    /// A slot whose command retrieves three items into fragments of their own.
    fn scattered(test: impl FnOnce(&mut Slot)) {
        let items = [10, 20, 30].map(|wanted| Item::new(1, 0, wanted, 0, 0));
        let fragments = [(1, 50), (100, 10), (200, 25), (300, 30)];
        let fragments = fragments.map(|(address, length)| Fragment::new(address, 7, length));
        let mut command = Command::new(Opcode::Retrieve, 0);
        command.seal_fragments(&items, &fragments, b"abc");
        let lists = [items.as_bytes(), fragments.as_bytes()].concat();
        let pdu = [command.as_bytes(), &lists, b"abc"].concat();
        let mut slot = Slot::default();
        slot.note(&Capsule::parse(&pdu).unwrap());
        test(&mut slot);
    }

    fn results(lengths: [u32; 3]) -> Vec<u8> {
        let results = lengths.map(|length| ItemResult::new(Status::Ok, length, 0, 0));
        results.as_slice().as_bytes().to_vec()
    }

    #[test]
    fn of_each_fragment_only_what_its_item_brings_is_used() {
        scattered(|slot| {
            slot.fit(true, &[&results([10, 0, 7])[..], b"data"].concat(), 48 + 17);
            let used = [(1, 48), (100, 10), (200, 0), (300, 7)];
            let used = used.map(|(address, length)| Fragment::new(address, 7, length));
            assert_eq!(slot.answer(), RemoteMemory::new(&used));
        });
    }

    #[test]
    fn data_that_is_not_of_items_goes_into_no_items_memory() {
        scattered(|slot| {
            slot.fit(false, b"words for people", 16);
            assert!(!slot.answer().is_named());
        });
    }

    #[test]
    #[should_panic(expected = "results that do not fit their data")]
    fn item_results_that_contradict_the_data_are_a_bug_of_our_own() {
        scattered(|slot| slot.fit(true, &results([10, 0, 7]), 48 + 18));
    }
}
