//! The table of sessions: every decision of the checkpoint store, without I/O and without a clock.
//!
//! A session is `Open`; each rank seals; COMMIT merges and makes it `Committing`; then it leaves the
//! table: committed, aborted, expired or fenced. What has left answers `NoSession` (to COMMIT of a
//! committed one: Ok, so that a lost answer can be asked for again). `Doubt` is a commit whose
//! record may or may not be on media: only COMMIT may touch it, until the record is known to be
//! there or gone.
//!
//! ```text
//!          BEGIN            SEAL × world, COMMIT             record durable
//!   none ────────▶ Open ───────────────────────▶ Committing ───────────────▶ committed
//!                  │  ▲                           │   │  ▲
//!                  │  └────── nothing written ────┘   ▼  │ COMMIT
//!                  └─ ABORT, deadline, higher epoch   Doubt
//! ```

use super::Refusal;
use super::coverage;
use super::record::{CommitRecord, SessionRecord};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{
    BeginRequest, MANIFEST_BYTES_MAX, Manifest, SealRequest, SessionId,
};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// How much the table holds and how long a session may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most open sessions.
    pub sessions_max: usize,
    /// The most bytes of sealed manifests in memory, over all sessions.
    pub held_bytes_max: usize,
    /// The deadline of a session that names none, in milliseconds.
    pub deadline_default_ms: u64,
    /// The longest deadline, in milliseconds.
    pub deadline_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 256,
            held_bytes_max: 2 * MANIFEST_BYTES_MAX,
            deadline_default_ms: 3_600_000,
            deadline_max_ms: 7 * 24 * 3_600_000,
        }
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Committing,
    Doubt,
}

/// What a rank has sealed so far: the encoded manifest, so that a repeated slice is recognised.
#[derive(Debug, Default)]
struct Seal {
    bytes: Vec<u8>,
    total_bytes: usize,
    sealed: bool,
}

#[derive(Debug)]
struct Session {
    record: SessionRecord,
    deadline_us: u64,
    phase: Phase,
    seals: BTreeMap<u32, Seal>,
}

/// A committed checkpoint.
#[derive(Debug)]
struct Committed {
    record: CommitRecord,
    deleting: bool,
}

/// BEGIN's answer, and what has to be durable before it is given.
#[derive(Debug, PartialEq, Eq)]
pub struct Begun {
    /// The session, as its record keeps it.
    pub record: SessionRecord,
    /// It was there already.
    pub resumed: bool,
}

/// What COMMIT has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum CommitStep {
    /// Verify the chunks, write this manifest and its record, then say [`Table::committed`] or
    /// [`Table::commit_failed`].
    Write {
        /// The checkpoint's name.
        name: String,
        /// The ranks' manifests, merged and checked.
        manifest: Manifest,
        /// The order of commits.
        sequence: u64,
    },
    /// It is committed: the answer was lost. The manifest has so many bytes.
    Done(u64),
}

/// Every open session and every committed checkpoint. See the module.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    sessions: BTreeMap<SessionId, Session>,
    open_names: BTreeMap<String, SessionId>,
    committed: BTreeMap<String, Committed>,
    names: BTreeMap<SessionId, String>,
    order: BTreeMap<u64, String>,
    next_sequence: u64,
    held_bytes: usize,
    garbage: VecDeque<SessionId>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            open_names: BTreeMap::new(),
            committed: BTreeMap::new(),
            names: BTreeMap::new(),
            order: BTreeMap::new(),
            next_sequence: 1,
            held_bytes: 0,
            garbage: VecDeque::new(),
        }
    }

    /// At start: a checkpoint that the catalog holds. All of them go before the sessions.
    pub fn restore_committed(&mut self, name: &str, record: CommitRecord) {
        self.insert_committed(name.to_owned(), record);
    }

    /// At start: a session that was open. One that has been committed since, that another session
    /// beat to its name, or that a higher epoch fenced, is garbage.
    pub fn restore_session(&mut self, record: SessionRecord, now_us: u64) {
        self.next_sequence = self.next_sequence.max(record.sequence.saturating_add(1));
        if self.names.contains_key(&record.session) {
            return;
        }
        if self.committed.contains_key(&record.name) {
            return self.garbage.push_back(record.session);
        }
        if let Some(other) = self.open_names.get(&record.name).copied() {
            let kept = &self.sessions[&other].record;
            if (kept.epoch, kept.sequence) >= (record.epoch, record.sequence) {
                return self.garbage.push_back(record.session);
            }
            self.end(other);
        }
        self.insert_session(record, now_us);
    }

    /// BEGIN: opens, resumes (same epoch) or fences (higher epoch). `fresh` is a new session's id.
    ///
    /// # Errors
    /// `CheckpointExists`; `NoSession` for an epoch that is fenced, `result` the one in force;
    /// `Malformed` for another world than the session's; `Busy`.
    pub fn begin(
        &mut self,
        now_us: u64,
        name: &str,
        request: &BeginRequest,
        fresh: SessionId,
    ) -> Result<Begun, Refusal> {
        if self.committed.contains_key(name) {
            let text = format!("checkpoint {name:?} exists; checkpoints are immutable");
            return Err(Refusal::new(Status::CheckpointExists, text));
        }
        let record = SessionRecord {
            name: name.to_owned(),
            session: fresh,
            epoch: request.epoch.get(),
            sequence: self.next_sequence,
            deadline_ms: self.deadline_ms(request.deadline_ms.get()),
            world: request.world.get(),
        };
        let Some(existing) = self.open_names.get(name).copied() else {
            if self.sessions.len() >= self.limits.sessions_max {
                return Err(Refusal::new(Status::Busy, "too many open checkpoint sessions"));
            }
            return Ok(self.insert_session(record, now_us));
        };
        let session = self.sessions.get_mut(&existing).expect("a name leads to its session");
        session.may_change()?;
        let in_force = session.record.epoch;
        match record.epoch.cmp(&in_force) {
            std::cmp::Ordering::Less => {
                let text = format!("epoch {} was fenced by epoch {in_force}", record.epoch);
                Err(Refusal::new(Status::NoSession, text).naming(in_force))
            }
            std::cmp::Ordering::Equal => session.resume(record, now_us),
            std::cmp::Ordering::Greater => {
                self.end(existing);
                Ok(self.insert_session(record, now_us))
            }
        }
    }

    /// Takes back a BEGIN whose record could not be written, unless it had resumed.
    pub fn begin_failed(&mut self, begun: &Begun) {
        if !begun.resumed && self.sessions.contains_key(&begun.record.session) {
            self.end(begun.record.session);
        }
    }

    /// RESERVE: may this rank of this session still put?
    ///
    /// # Errors
    /// `NoSession`, `Busy` while it commits, `Malformed` for a rank outside the world.
    pub fn reserve(&self, session: SessionId, rank: u32) -> Result<(), Refusal> {
        let session = self.sessions.get(&session).ok_or_else(no_session)?;
        session.may_change()?;
        session.check_rank(rank)
    }

    /// SEAL: a slice of a rank's manifest. The rank is sealed with the last one.
    ///
    /// # Errors
    /// As [`Table::reserve`]; `Malformed` for a slice out of order or a manifest that is not this
    /// rank's; `Busy` when too many bytes are held.
    pub fn seal(&mut self, request: &SealRequest<'_>) -> Result<(), Refusal> {
        let session = self.sessions.get_mut(&request.session).ok_or_else(no_session)?;
        session.may_change()?;
        session.check_rank(request.rank)?;
        let seal = session.seals.entry(request.rank).or_default();
        if seal.has(request) {
            return Ok(());
        }
        if request.offset == 0 {
            let held = self.held_bytes - seal.total_bytes + request.total_bytes as usize;
            if held > self.limits.held_bytes_max {
                return Err(Refusal::new(Status::Busy, "too many manifests in memory"));
            }
            self.held_bytes = held;
            *seal = Seal { total_bytes: request.total_bytes as usize, ..Seal::default() };
        }
        seal.append(request)?;
        if seal.bytes.len() < seal.total_bytes {
            return Ok(());
        }
        let checked = session.record.check_seal(request.rank, &seal.bytes);
        match checked {
            Ok(()) => seal.sealed = true,
            Err(_) => {
                self.held_bytes -= seal.total_bytes;
                session.seals.remove(&request.rank);
            }
        }
        checked
    }

    /// COMMIT: merges what the ranks sealed and checks that it is whole.
    ///
    /// # Errors
    /// `NoSession`; `Busy` while a commit is under way; `Incomplete`, naming a rank that has not
    /// sealed or whose box overlaps; `Malformed` for manifests that contradict each other.
    pub fn commit(&mut self, id: SessionId) -> Result<CommitStep, Refusal> {
        if let Some(committed) = self.names.get(&id).and_then(|name| self.committed.get(name)) {
            return Ok(CommitStep::Done(committed.record.manifest_bytes.get()));
        }
        let session = self.sessions.get_mut(&id).ok_or_else(no_session)?;
        if session.phase == Phase::Committing {
            return Err(Refusal::new(Status::Busy, "the checkpoint is being committed"));
        }
        session.all_sealed()?;
        let manifest = session.merge()?;
        coverage::check(&manifest.tensors)?;
        session.phase = Phase::Committing;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Ok(CommitStep::Write { name: session.record.name.clone(), manifest, sequence })
    }

    /// The commit's record is durable: the checkpoint exists.
    pub fn committed(&mut self, id: SessionId, record: CommitRecord) {
        let session = self.remove(id);
        assert_eq!(session.phase, Phase::Committing, "only a commit under way can end");
        self.insert_committed(session.record.name, record);
    }

    /// The commit's record was not written; `doubt`: it may be on media nevertheless.
    pub fn commit_failed(&mut self, id: SessionId, doubt: bool) {
        let session = self.sessions.get_mut(&id).expect("a session that commits stays");
        session.phase = if doubt { Phase::Doubt } else { Phase::Open };
    }

    /// A commit in doubt whose record should now be deleted; then [`Table::commit_failed`] says
    /// whether it is gone.
    pub fn next_doubt(&mut self) -> Option<(String, SessionId)> {
        let doubt = |session: &&mut Session| session.phase == Phase::Doubt;
        let session = self.sessions.values_mut().find(doubt)?;
        session.phase = Phase::Committing;
        Some(session.named())
    }

    /// ABORT: the session ends, its chunks are garbage.
    ///
    /// # Errors
    /// `NoSession`; `Busy` while it commits.
    pub fn abort(&mut self, id: SessionId) -> Result<(), Refusal> {
        self.sessions.get(&id).ok_or_else(no_session)?.may_change()?;
        self.end(id);
        Ok(())
    }

    /// Ends every open session whose deadline has passed; their names and ids.
    pub fn expire(&mut self, now_us: u64) -> Vec<(String, SessionId)> {
        let late =
            |session: &&Session| session.phase == Phase::Open && session.deadline_us <= now_us;
        let ended: Vec<_> = self.sessions.values().filter(late).map(Session::named).collect();
        for (_, id) in &ended {
            self.end(*id);
        }
        ended
    }

    /// When the next session expires.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        let open = self.sessions.values().filter(|session| session.phase == Phase::Open);
        open.map(|session| session.deadline_us).min()
    }

    /// DELETE: from now on the checkpoint is hidden; its record has to be deleted, then
    /// [`Table::deleted`] or [`Table::delete_failed`].
    ///
    /// # Errors
    /// `NoCheckpoint`; `Busy` while another DELETE is under way.
    pub fn delete(&mut self, name: &str) -> Result<(), Refusal> {
        let committed = self.committed.get_mut(name).ok_or_else(|| no_checkpoint(name))?;
        if committed.deleting {
            return Err(Refusal::new(Status::Busy, "the checkpoint is being deleted"));
        }
        committed.deleting = true;
        Ok(())
    }

    /// The record is gone: the chunks are garbage, the name is free.
    pub fn deleted(&mut self, name: &str) {
        let committed = self.committed.remove(name).expect("what is being deleted stays");
        self.names.remove(&committed.record.session);
        self.order.remove(&committed.record.sequence.get());
        self.garbage.push_back(committed.record.session);
    }

    /// The record could not be deleted: the checkpoint is there as before.
    pub fn delete_failed(&mut self, name: &str) {
        self.committed.get_mut(name).expect("what is being deleted stays").deleting = false;
    }

    /// The record of a checkpoint.
    ///
    /// # Errors
    /// `NoCheckpoint`.
    pub fn find(&self, name: &str) -> Result<&CommitRecord, Refusal> {
        let committed = self.committed.get(name).filter(|committed| !committed.deleting);
        committed.map(|committed| &committed.record).ok_or_else(|| no_checkpoint(name))
    }

    /// Committed checkpoints whose name begins with `prefix`, in the order of their commits, after
    /// the one of sequence number `after`.
    pub fn list(&self, prefix: &str, after: u64) -> impl Iterator<Item = (&str, &CommitRecord)> {
        let later = self.order.range((Bound::Excluded(after), Bound::Unbounded));
        later.filter(move |(_, name)| name.starts_with(prefix)).filter_map(|(_, name)| {
            let committed = &self.committed[name];
            (!committed.deleting).then_some((name.as_str(), &committed.record))
        })
    }

    /// May a chunk of this session be on media?
    #[must_use]
    pub fn is_live(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id) || self.names.contains_key(&id)
    }

    /// A session whose chunks are to be freed; put it back with [`Table::free_failed`].
    pub fn next_garbage(&mut self) -> Option<SessionId> {
        self.garbage.pop_front()
    }

    /// Freeing did not end: try again later.
    pub fn free_failed(&mut self, id: SessionId) {
        self.garbage.push_back(id);
    }

    /// There is something to free, or a doubt to settle.
    #[must_use]
    pub fn has_chores(&self) -> bool {
        let doubt = |session: &Session| session.phase == Phase::Doubt;
        !self.garbage.is_empty() || self.sessions.values().any(doubt)
    }

    fn deadline_ms(&self, asked_ms: u64) -> u64 {
        let asked_ms = if asked_ms == 0 { self.limits.deadline_default_ms } else { asked_ms };
        asked_ms.min(self.limits.deadline_max_ms)
    }

    fn insert_session(&mut self, record: SessionRecord, now_us: u64) -> Begun {
        let id = record.session;
        let deadline_us = deadline_us(&record, now_us);
        self.next_sequence = self.next_sequence.max(record.sequence + 1);
        self.open_names.insert(record.name.clone(), id);
        let begun = Begun { record: record.clone(), resumed: false };
        let session = Session { record, deadline_us, phase: Phase::Open, seals: BTreeMap::new() };
        assert!(self.sessions.insert(id, session).is_none(), "session ids are never drawn twice");
        begun
    }

    fn insert_committed(&mut self, name: String, record: CommitRecord) {
        let sequence = record.sequence.get();
        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
        self.names.insert(record.session, name.clone());
        self.order.insert(sequence, name.clone());
        self.committed.insert(name, Committed { record, deleting: false });
    }

    /// Takes a session out; its chunks are not touched.
    fn remove(&mut self, id: SessionId) -> Session {
        let session = self.sessions.remove(&id).expect("the caller has seen it");
        self.open_names.remove(&session.record.name);
        self.held_bytes -= session.seals.values().map(|seal| seal.total_bytes).sum::<usize>();
        session
    }

    /// Ends a session without a checkpoint.
    fn end(&mut self, id: SessionId) {
        self.remove(id);
        self.garbage.push_back(id);
    }
}

impl Session {
    fn named(&self) -> (String, SessionId) {
        (self.record.name.clone(), self.record.session)
    }

    fn may_change(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::Committing => {
                Err(Refusal::new(Status::Busy, "the checkpoint is being committed"))
            }
            Phase::Doubt => {
                let text = "a commit of the checkpoint failed half-way; repeat COMMIT";
                Err(Refusal::new(Status::Busy, text))
            }
        }
    }

    fn check_rank(&self, rank: u32) -> Result<(), Refusal> {
        if rank < self.record.world {
            return Ok(());
        }
        let text = format!("rank {rank} is outside a world of {}", self.record.world);
        Err(Refusal::new(Status::Malformed, text).naming(rank.into()))
    }

    /// BEGIN again with the same epoch: the deadline runs anew.
    fn resume(&mut self, asked: SessionRecord, now_us: u64) -> Result<Begun, Refusal> {
        if asked.world != self.record.world {
            let text = format!("the open session waits for {} ranks", self.record.world);
            return Err(Refusal::new(Status::Malformed, text));
        }
        self.record.deadline_ms = asked.deadline_ms;
        self.deadline_us = deadline_us(&self.record, now_us);
        Ok(Begun { record: self.record.clone(), resumed: true })
    }

    fn all_sealed(&self) -> Result<(), Refusal> {
        let sealed = |rank: &u32| self.seals.get(rank).is_some_and(|seal| seal.sealed);
        let world = self.record.world;
        let Some(missing) = (0..world).find(|rank| !sealed(rank)) else { return Ok(()) };
        let count = (0..world).filter(|rank| !sealed(rank)).count();
        let text = format!("rank {missing} has not sealed ({count} of {world} are missing)");
        Err(Refusal::new(Status::Incomplete, text).naming(missing.into()))
    }

    /// One manifest of all ranks', in the order of ranks.
    fn merge(&self) -> Result<Manifest, Refusal> {
        let SessionRecord { session, epoch, world, .. } = self.record;
        let (attachments, tensors) = (Vec::new(), Vec::new());
        let mut merged = Manifest { session, epoch, world, attachments, tensors };
        for seal in self.seals.values() {
            let part = Manifest::decode(&seal.bytes)?;
            merged.attachments.extend(part.attachments);
            merged.tensors.extend(part.tensors);
        }
        let too_large = merged.encoded_bytes() > MANIFEST_BYTES_MAX
            || u32::try_from(merged.chunk_count()).is_err()
            || merged.data_bytes() == u64::MAX;
        if too_large {
            let text = format!("the manifest is larger than {MANIFEST_BYTES_MAX} bytes");
            return Err(Refusal::new(Status::ValueLength, text));
        }
        Ok(merged)
    }
}

impl SessionRecord {
    /// Is this the manifest of `rank` in this session?
    fn check_seal(&self, rank: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let wrong = |text: String| Refusal::new(Status::Malformed, text).naming(rank.into());
        let manifest = Manifest::decode(bytes)
            .map_err(|error| wrong(format!("the manifest of rank {rank}: {error}")))?;
        let same = (manifest.session, manifest.epoch, manifest.world)
            == (self.session, self.epoch, self.world);
        if !same {
            return Err(wrong(format!("the manifest of rank {rank} is of another session")));
        }
        match manifest.ranks().find(|other| *other != rank) {
            Some(other) => Err(wrong(format!("rank {rank} seals what rank {other} holds"))),
            None => Ok(()),
        }
    }
}

impl Seal {
    /// Has this very slice been taken?
    fn has(&self, request: &SealRequest<'_>) -> bool {
        let start = request.offset as usize;
        self.total_bytes == request.total_bytes as usize
            && self.bytes.get(start..start + request.slice.len()) == Some(request.slice)
    }

    fn append(&mut self, request: &SealRequest<'_>) -> Result<(), Refusal> {
        let next = self.total_bytes == request.total_bytes as usize
            && self.bytes.len() == request.offset as usize;
        if !next {
            let text = format!("a slice at {} follows {} bytes", request.offset, self.bytes.len());
            return Err(Refusal::new(Status::Malformed, text).naming(request.rank.into()));
        }
        self.bytes.reserve_exact(self.total_bytes - self.bytes.len());
        self.bytes.extend_from_slice(request.slice);
        Ok(())
    }
}

fn deadline_us(record: &SessionRecord, now_us: u64) -> u64 {
    now_us.saturating_add(record.deadline_ms.saturating_mul(1000))
}

fn no_session() -> Refusal {
    Refusal::new(Status::NoSession, "the session is unknown, has ended, or was fenced")
}

fn no_checkpoint(name: &str) -> Refusal {
    Refusal::new(Status::NoCheckpoint, format!("no checkpoint {name:?}"))
}
