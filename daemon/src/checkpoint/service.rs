//! The checkpoint commands over a [`Storage`]: the order of I/O that makes the table's words true.
//!
//! COMMIT, in this order: every chunk is there with its length → the manifest's parts are durable →
//! the one record. A crash before the record leaves an open session; after it, a checkpoint. DELETE
//! removes the record, and [`Service::tick`] then frees the chunks; so it does for sessions that
//! were aborted, fenced or ran out of time. What a crash leaves between the two, [`Service::sweep`]
//! finds: chunks of a session that is neither open nor committed.
//!
//! No borrow of the table lives across an await, so commands may interleave at any of them.

use super::record::{COMMIT_PREFIX, CommitRecord, PARTS_MAX, SESSION_PREFIX, SessionRecord};
use super::session::{CommitStep, Limits, Table};
use super::storage::{KEYS_MAX, ListCursor, Storage};
use super::{Refusal, session};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{
    BeginAnswer, BeginRequest, CHUNK_BYTES, Chunk, ChunkKey, MANIFEST_BYTES_MAX,
    MANIFEST_PART_BYTES, Manifest, ReserveRequest, SealRequest, SessionId, SessionRequest,
    TensorBox, begin_flags, check_name, check_prefix,
};
use forebay_fabric::pdu::{DecodeError, Opcode, VALUE_BYTES_MAX, crc32c};
use std::cell::{Cell, RefCell};
use zerocopy::IntoBytes;

/// RESERVE reads what it finds, to tell its checksum; so many bytes, then it answers.
const VERIFY_BYTES_MAX: u64 = 256 << 20;
/// More chunks than any manifest can list.
const CHUNKS_MAX: u64 = (MANIFEST_BYTES_MAX / size_of::<Chunk>()) as u64;
/// How long a free that failed waits, in microseconds.
const RETRY_US: u64 = 1_000_000;

/// What time it is, by the reactor's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Monotonic microseconds.
    pub now_us: u64,
    /// Unix seconds.
    pub now_s: u64,
}

/// One checkpoint command, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Any of the checkpoint opcodes but PUT and READ.
    pub opcode: Opcode,
    /// The key field.
    pub key: &'a [u8],
    /// The data.
    pub payload: &'a [u8],
    /// The command's offset: LIST's cursor, where MANIFEST begins.
    pub offset: u64,
    /// The most bytes of answer to LIST and MANIFEST; 0: as many as one answer holds.
    pub length: u32,
    /// When.
    pub clock: Clock,
}

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// By opcode, see `PROTOCOL.md`.
    pub result: u64,
    /// The answer, or after an error words for people.
    pub data: Vec<u8>,
}

impl Answer {
    fn ok(result: u64, data: Vec<u8>) -> Self {
        Self { status: Status::Ok, result, data }
    }
}

/// A commit that failed, and whether its record may be on media.
struct CommitFailure {
    refusal: Refusal,
    doubt: bool,
}

impl<T: Into<Refusal>> From<T> for CommitFailure {
    fn from(refusal: T) -> Self {
        Self { refusal: refusal.into(), doubt: false }
    }
}

/// The checkpoint store of a pool; lives in the catalog's reactor.
#[derive(Debug)]
pub struct Service<S> {
    storage: S,
    table: RefCell<Table>,
    rng: RefCell<fastrand::Rng>,
    ticking: Cell<bool>,
    retry_at_us: Cell<u64>,
}

impl<S: Storage> Service<S> {
    /// Loads the catalog. `rng` draws session ids: seed it so that no two starts are the same.
    ///
    /// # Errors
    /// What the storage says; `Corrupt` for a record that cannot be read: without it, the chunks
    /// that it names would be taken for garbage.
    pub async fn open(
        storage: S,
        limits: Limits,
        rng: fastrand::Rng,
        clock: Clock,
    ) -> Result<Self, Status> {
        let mut table = Table::new(limits);
        for (key, value) in storage.catalog_load(COMMIT_PREFIX).await? {
            let (name, record) =
                CommitRecord::decode(&key, &value).map_err(|error| unreadable(&key, error))?;
            table.restore_committed(name, record);
        }
        for (key, value) in storage.catalog_load(SESSION_PREFIX).await? {
            let record = SessionRecord::decode(&value).map_err(|error| unreadable(&key, error))?;
            table.restore_session(record, clock.now_us);
        }
        let (table, rng) = (RefCell::new(table), RefCell::new(rng));
        Ok(Self { storage, table, rng, ticking: Cell::new(false), retry_at_us: Cell::new(0) })
    }

    /// Carries out one command. Let it end even if nobody waits for the answer any more.
    pub async fn call(&self, call: Call<'_>) -> Answer {
        match self.dispatch(&call).await {
            Ok(answer) => answer,
            Err(Refusal { status, result, text }) => {
                let level = match status {
                    Status::Incomplete | Status::Corrupt | Status::Device => log::Level::Warn,
                    _ => log::Level::Debug,
                };
                log::log!(level, "{:?}: {status}: {text}", call.opcode);
                Answer { status, result, data: text.into_bytes() }
            }
        }
    }

    async fn dispatch(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        match call.opcode {
            Opcode::CheckpointBegin => self.begin(call).await,
            Opcode::CheckpointReserve => self.reserve(call).await,
            Opcode::CheckpointSeal => self.seal(call),
            Opcode::CheckpointCommit => self.commit(call).await,
            Opcode::CheckpointAbort => self.abort(call).await,
            Opcode::CheckpointList => self.list(call),
            Opcode::CheckpointManifest => self.manifest(call).await,
            Opcode::CheckpointDelete => self.delete(call).await,
            _ => Err(Status::Unsupported.into()),
        }
    }

    /// When [`Service::tick`] has something to do.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        if self.ticking.get() {
            return None;
        }
        let table = self.table.borrow();
        let chores = table.has_chores().then(|| self.retry_at_us.get());
        table.next_deadline_us().into_iter().chain(chores).min()
    }

    /// Ends sessions that ran out of time, frees the chunks of those that have ended, and settles
    /// commits that are in doubt. Let it end; a second one meanwhile does nothing.
    pub async fn tick(&self, clock: Clock) {
        if self.ticking.replace(true) {
            return;
        }
        let expired = self.table.borrow_mut().expire(clock.now_us);
        for (name, id) in expired {
            log::warn!("checkpoint {name:?}: session {id} ran out of time");
        }
        let done = self.settle_doubts().await && self.free_garbage().await;
        if !done {
            self.retry_at_us.set(clock.now_us.saturating_add(RETRY_US));
        }
        self.ticking.set(false);
    }

    /// `false`: a record could not be deleted.
    async fn settle_doubts(&self) -> bool {
        loop {
            let doubt = self.table.borrow_mut().next_doubt();
            let Some((name, id)) = doubt else { return true };
            let result = self.storage.catalog_delete(&CommitRecord::key(&name)).await;
            self.table.borrow_mut().commit_failed(id, result.is_err());
            if let Err(status) = result {
                log::warn!("checkpoint {name:?}: a commit stays in doubt: {status}");
                return false;
            }
        }
    }

    /// `false`: chunks could not be freed.
    async fn free_garbage(&self) -> bool {
        loop {
            let garbage = self.table.borrow_mut().next_garbage();
            let Some(id) = garbage else { return true };
            if let Err(status) = self.free(id).await {
                log::warn!("checkpoint session {id}: cannot free its chunks yet: {status}");
                self.table.borrow_mut().free_failed(id);
                return false;
            }
        }
    }

    /// Frees the chunks of sessions that are neither open nor committed; how many.
    ///
    /// # Errors
    /// What the storage says; what was not freed is found by the next sweep.
    pub async fn sweep(&self) -> Result<u64, Status> {
        let freed = self.delete_listed(&[], |table, key| !table.is_live(key.session)).await?;
        if freed > 0 {
            log::info!("checkpoint: freed {freed} chunks that no checkpoint names");
        }
        Ok(freed)
    }

    async fn free(&self, id: SessionId) -> Result<(), Status> {
        self.storage.catalog_delete(&SessionRecord::key(id)).await?;
        let freed = self.delete_listed(&id.0, |_, _| true).await?;
        log::debug!("checkpoint session {id}: freed {freed} chunks");
        Ok(())
    }

    async fn delete_listed(
        &self,
        prefix: &[u8],
        garbage: impl Fn(&Table, &ChunkKey) -> bool,
    ) -> Result<u64, Status> {
        let mut from = Some(ListCursor::default());
        let mut deleted = 0;
        while let Some(cursor) = from {
            let (mut keys, next) = self.storage.chunk_list(prefix, cursor).await?;
            keys.retain(|key| garbage(&self.table.borrow(), key));
            for batch in keys.chunks(KEYS_MAX) {
                self.storage.chunk_delete(batch).await?;
                deleted += batch.len() as u64;
            }
            from = next;
        }
        Ok(deleted)
    }

    async fn begin(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let name = check_name(call.key)?;
        let request = BeginRequest::decode(call.payload)?;
        let fresh = SessionId(self.rng.borrow_mut().u128(..).to_le_bytes());
        let begun = self.table.borrow_mut().begin(call.clock.now_us, name, &request, fresh)?;
        let session::Begun { record, resumed } = &begun;
        let key = SessionRecord::key(record.session);
        if let Err(status) = self.storage.catalog_store(&key, &record.encode()).await {
            self.table.borrow_mut().begin_failed(&begun);
            return Err(status.into());
        }
        let answer = BeginAnswer {
            session: record.session,
            epoch: record.epoch.into(),
            world: record.world.into(),
            chunk_bytes_max: (*CHUNK_BYTES.end()).into(),
            flags: if *resumed { begin_flags::RESUMED } else { 0 }.into(),
            reserved: 0.into(),
        };
        Ok(Answer::ok(0, answer.as_bytes().to_vec()))
    }

    /// Tells what is there of the chunks after the first `skip`, until the answer or the budget of
    /// reads is full.
    async fn reserve(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let request = ReserveRequest::decode(call.payload)?;
        self.table.borrow().reserve(request.session, request.rank)?;
        if request.boxes.iter().map(TensorBox::chunk_count).sum::<u64>() > CHUNKS_MAX {
            return Err(DecodeError::Field("boxes (more chunks than a manifest lists)").into());
        }
        let skip = u64::from(request.skip);
        let mut keys = chunk_keys(request.session, &request.boxes).skip(request.skip as usize);
        let (mut states, mut read_bytes) = (Vec::new(), 0);
        loop {
            let batch: Vec<ChunkKey> = keys.by_ref().map(|(key, _)| key).take(KEYS_MAX).collect();
            if batch.is_empty() {
                return Ok(Answer::ok(0, IntoBytes::as_bytes(states.as_slice()).to_vec()));
            }
            read_bytes += self.describe(&batch, &mut states).await?;
            let full = size_of_val(states.as_slice()) + KEYS_MAX * size_of::<Chunk>();
            if read_bytes >= VERIFY_BYTES_MAX || full > VALUE_BYTES_MAX {
                let next = if keys.next().is_some() { skip + states.len() as u64 } else { 0 };
                return Ok(Answer::ok(next, IntoBytes::as_bytes(states.as_slice()).to_vec()));
            }
        }
    }

    /// Appends what is there of `batch`; how many bytes had to be read for it.
    async fn describe(&self, batch: &[ChunkKey], states: &mut Vec<Chunk>) -> Result<u64, Status> {
        let lengths = self.storage.chunk_lengths(batch).await?;
        let there = |(key, length): (&ChunkKey, &Option<u32>)| length.map(|_| *key);
        let present: Vec<ChunkKey> = batch.iter().zip(&lengths).filter_map(there).collect();
        let mut read = match present.is_empty() {
            true => Vec::new(),
            false => self.storage.chunk_states(&present).await?,
        }
        .into_iter();
        for length in &lengths {
            let state = length.and_then(|_| read.next().flatten());
            states.push(state.unwrap_or_default());
        }
        Ok(lengths.iter().flatten().map(|length| u64::from(*length)).sum())
    }

    fn seal(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        self.table.borrow_mut().seal(&SealRequest::decode(call.payload)?)?;
        Ok(Answer::ok(0, Vec::new()))
    }

    async fn commit(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let SessionRequest { session: id } = SessionRequest::decode(call.payload)?;
        let step = self.table.borrow_mut().commit(id)?;
        let (name, manifest, sequence) = match step {
            CommitStep::Done(manifest_bytes) => return Ok(Answer::ok(manifest_bytes, Vec::new())),
            CommitStep::Write { name, manifest, sequence } => (name, manifest, sequence),
        };
        match self.write_commit(&name, &manifest, sequence, call.clock.now_s).await {
            Ok(record) => {
                self.table.borrow_mut().committed(id, record);
                log::info!("checkpoint {name:?}: committed, {} bytes", record.data_bytes);
                self.forget_session(id).await;
                Ok(Answer::ok(record.manifest_bytes.get(), Vec::new()))
            }
            Err(CommitFailure { refusal, doubt }) => {
                self.table.borrow_mut().commit_failed(id, doubt);
                Err(refusal)
            }
        }
    }

    /// The steps of a commit, each durable before the next.
    async fn write_commit(
        &self,
        name: &str,
        manifest: &Manifest,
        sequence: u64,
        now_s: u64,
    ) -> Result<CommitRecord, CommitFailure> {
        self.verify_chunks(manifest).await?;
        let encoded = manifest.encode();
        let mut part_crcs = [0.into(); PARTS_MAX];
        for ((index, part), crc) in
            (0..).zip(encoded.chunks(MANIFEST_PART_BYTES)).zip(&mut part_crcs)
        {
            let key = ChunkKey::manifest_part(manifest.session, index);
            self.storage.chunk_store(key, part).await?;
            *crc = crc32c(part).into();
        }
        let record = commit_record(manifest, encoded.len(), part_crcs, sequence, now_s);
        let key = CommitRecord::key(name);
        if let Err(status) = self.storage.catalog_store(&key, record.as_bytes()).await {
            // The record may have reached the media. The session may go on only if it is gone.
            let doubt = self.storage.catalog_delete(&key).await.is_err();
            return Err(CommitFailure { refusal: status.into(), doubt });
        }
        Ok(record)
    }

    async fn verify_chunks(&self, manifest: &Manifest) -> Result<(), Refusal> {
        let mut chunks = chunk_keys(manifest.session, &manifest.tensors);
        loop {
            let batch: Vec<(ChunkKey, u32)> = chunks.by_ref().take(KEYS_MAX).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let keys: Vec<ChunkKey> = batch.iter().map(|(key, _)| *key).collect();
            let lengths = self.storage.chunk_lengths(&keys).await?;
            for ((key, sealed), length) in batch.iter().zip(lengths) {
                if length != Some(*sealed) {
                    return Err(missing_chunk(key, *sealed, length));
                }
            }
        }
    }

    /// The session's record has no use once its checkpoint is committed; one that stays is dropped
    /// at the next start.
    async fn forget_session(&self, id: SessionId) {
        if let Err(status) = self.storage.catalog_delete(&SessionRecord::key(id)).await {
            log::warn!("checkpoint session {id}: its record stays for now: {status}");
        }
    }

    /// The session has ended for good when its record is gone; the chunks are freed by the tick.
    async fn abort(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let SessionRequest { session } = SessionRequest::decode(call.payload)?;
        self.table.borrow_mut().abort(session)?;
        self.storage.catalog_delete(&SessionRecord::key(session)).await?;
        Ok(Answer::ok(0, Vec::new()))
    }

    fn list(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let prefix = check_prefix(call.key)?;
        let limit_bytes = answer_bytes(call.length);
        let table = self.table.borrow();
        let (mut data, mut last) = (Vec::new(), 0);
        for (name, record) in table.list(prefix, call.offset) {
            let entry = record.entry(name);
            if data.len() + entry.as_bytes().len() + name.len() > limit_bytes {
                return match last {
                    0 => Err(Status::Range.into()),
                    last => Ok(Answer::ok(last, data)),
                };
            }
            data.extend_from_slice(entry.as_bytes());
            data.extend_from_slice(name.as_bytes());
            last = record.sequence.get();
        }
        Ok(Answer::ok(0, data))
    }

    async fn manifest(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let name = check_name(call.key)?;
        let record = *self.table.borrow().find(name)?;
        let whole_bytes = record.manifest_bytes.get();
        if call.offset >= whole_bytes {
            return Err(Status::Range.into());
        }
        let index = (call.offset / MANIFEST_PART_BYTES as u64) as usize;
        let part = self.manifest_part(&record, index).await?;
        let start = (call.offset % MANIFEST_PART_BYTES as u64) as usize;
        let rest = part.get(start..).ok_or(Status::Corrupt)?;
        let data = &rest[..rest.len().min(answer_bytes(call.length))];
        Ok(Answer::ok(whole_bytes, data.to_vec()))
    }

    async fn manifest_part(&self, record: &CommitRecord, index: usize) -> Result<Vec<u8>, Status> {
        let key = ChunkKey::manifest_part(record.session, index as u32);
        match self.storage.chunk_retrieve(key).await {
            Ok(part) if crc32c(&part) == record.part_crcs[index].get() => Ok(part),
            Ok(_) => Err(Status::Corrupt),
            // Deleted in the meantime.
            Err(Status::NotFound) => Err(Status::NoCheckpoint),
            Err(status) => Err(status),
        }
    }

    async fn delete(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let name = check_name(call.key)?;
        self.table.borrow_mut().delete(name)?;
        let result = self.storage.catalog_delete(&CommitRecord::key(name)).await;
        let mut table = self.table.borrow_mut();
        match result {
            Ok(()) => table.deleted(name),
            Err(_) => table.delete_failed(name),
        }
        result?;
        log::info!("checkpoint {name:?}: deleted");
        Ok(Answer::ok(0, Vec::new()))
    }
}

/// The key and the length of every chunk of `boxes`, in order.
fn chunk_keys(session: SessionId, boxes: &[TensorBox]) -> impl Iterator<Item = (ChunkKey, u32)> {
    boxes.iter().flat_map(move |tensor| {
        (0..tensor.chunk_count()).map(move |nth| {
            let index = tensor.first_index + nth as u32;
            (ChunkKey::new(session, tensor.rank, index), tensor.chunk_length(nth))
        })
    })
}

fn commit_record(
    manifest: &Manifest,
    encoded_bytes: usize,
    part_crcs: [zerocopy::little_endian::U32; PARTS_MAX],
    sequence: u64,
    now_s: u64,
) -> CommitRecord {
    CommitRecord {
        magic: [0; 4],
        version: 0.into(),
        parts: (encoded_bytes.div_ceil(MANIFEST_PART_BYTES) as u16).into(),
        session: manifest.session,
        epoch: manifest.epoch.into(),
        sequence: sequence.into(),
        committed_s: now_s.into(),
        data_bytes: manifest.data_bytes().into(),
        manifest_bytes: (encoded_bytes as u64).into(),
        world: manifest.world.into(),
        tensors: (manifest.tensors.len() as u32).into(),
        chunks: (manifest.chunk_count() as u32).into(),
        part_crcs,
        crc: 0.into(),
    }
    .sealed()
}

fn missing_chunk(key: &ChunkKey, sealed: u32, found: Option<u32>) -> Refusal {
    let (rank, index) = (key.rank.get(), key.index.get());
    let text = match found {
        None => format!("chunk {index} of rank {rank} was not put"),
        Some(found) => {
            format!("chunk {index} of rank {rank} has {found} bytes, sealed were {sealed}")
        }
    };
    Refusal::new(Status::Incomplete, text).naming(rank.into())
}

/// What one answer may hold, of what was asked for.
fn answer_bytes(asked: u32) -> usize {
    if asked == 0 { VALUE_BYTES_MAX } else { VALUE_BYTES_MAX.min(asked as usize) }
}

fn unreadable(key: &[u8], error: DecodeError) -> Status {
    let key = String::from_utf8_lossy(key);
    log::error!("checkpoint catalog: the record {key:?} cannot be read: {error}");
    Status::Corrupt
}
