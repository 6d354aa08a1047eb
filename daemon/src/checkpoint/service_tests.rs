//! The service over a store in memory: whole checkpoints, and a crash or an error at every step.

use super::memory::{Fault, Memory, run};
use super::service::{Answer, Call, Clock, Service};
use super::session::Limits;
use super::{Storage, put_again};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{
    Attachment, BeginAnswer, BeginRequest, Chunk, ChunkKey, Dim, Dtype, MANIFEST_PART_BYTES,
    MANIFEST_RANK, Manifest, SealRequest, SessionId, SessionRequest, TensorBox, chunk_states,
    encode_reserve, encode_seal, entries,
};
use forebay_fabric::pdu::{Opcode, crc32c};
use zerocopy::IntoBytes;

const NAME: &str = "tenant/run/1";
const CHUNK: u32 = 1 << 20;
const HOUR_US: u64 = 3_600_000_000;

/// What the service answers; `None`: the machine crashed.
type End = Option<Answer>;

fn open(memory: &Memory, seed: u64) -> Option<Service<Memory>> {
    let rng = fastrand::Rng::with_seed(seed);
    run(Service::open(memory.clone(), Limits::default(), rng, Clock::default()))?.ok()
}

fn call<S: Storage>(service: &Service<S>, opcode: Opcode, key: &str, payload: &[u8]) -> End {
    let clock = Clock { now_us: 0, now_s: 1_700_000_000 };
    let (key, offset, length) = (key.as_bytes(), 0, 0);
    run(service.call(Call { opcode, key, payload, offset, length, clock }))
}

fn begin<S: Storage>(service: &Service<S>, world: u32, epoch: u64) -> Option<BeginAnswer> {
    let payload = BeginRequest::new(world, epoch, 0);
    let answer = call(service, Opcode::CheckpointBegin, NAME, payload.as_bytes())?;
    BeginAnswer::decode(&answer.data).ok()
}

fn of_session<S: Storage>(service: &Service<S>, opcode: Opcode, session: SessionId) -> End {
    call(service, opcode, "", SessionRequest { session }.as_bytes())
}

fn seal<S: Storage>(service: &Service<S>, rank: u32, bytes: &[u8]) -> End {
    let session = Manifest::decode(bytes).unwrap().session;
    let (mut offset, total_bytes) = (0, bytes.len() as u32);
    let mut last = None;
    for slice in bytes.chunks(3 << 20) {
        let request = SealRequest { session, rank, total_bytes, offset, slice };
        last = Some(call(service, Opcode::CheckpointSeal, "", &encode_seal(&request))?);
        offset += slice.len() as u32;
    }
    last
}

/// The bytes of chunk `index` of `rank`.
fn data(rank: u32, index: u32, length: u32) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(u64::from(rank) << 32 | u64::from(index));
    std::iter::repeat_with(|| rng.u8(..)).take(length as usize).collect()
}

/// One rank's rows of a tensor of `world` × (1 MiB + 100 bytes): two chunks; and a scalar of rank 0.
fn manifest(session: SessionId, epoch: u64, world: u32, rank: u32) -> Manifest {
    let bytes = u64::from(CHUNK) + 100;
    let mut tensors = vec![TensorBox {
        name: "w".to_owned(),
        dtype: Dtype::U8,
        rank,
        first_index: 0,
        chunk_bytes: CHUNK,
        dims: vec![Dim::new(world.into(), rank.into(), 1), Dim::whole(bytes)],
        bytes,
        chunks: vec![],
    }];
    if rank == 0 {
        let (name, dims) = ("bias".to_owned(), vec![]);
        tensors.push(TensorBox { name, dims, first_index: 2, bytes: 1, ..tensors[0].clone() });
    }
    for tensor in &mut tensors {
        let chunk = |nth: u64| {
            let length = tensor.chunk_length(nth);
            Chunk::new(length, crc32c(&data(rank, tensor.first_index + nth as u32, length)))
        };
        tensor.chunks = (0..tensor.chunk_count()).map(chunk).collect();
    }
    let attachments = vec![Attachment { rank, bytes: b"header".to_vec() }];
    Manifest { session, epoch, world, attachments, tensors }
}

/// RESERVEs and puts what is missing; how many chunks were. `None`: crashed or failed.
fn put_missing(
    service: &Service<Memory>,
    memory: &Memory,
    manifest: &Manifest,
    rank: u32,
) -> Option<u64> {
    let reserve = encode_reserve(manifest.session, rank, 0, &manifest.tensors);
    let answer = call(service, Opcode::CheckpointReserve, "", &reserve)?;
    if answer.status != Status::Ok {
        return None;
    }
    assert_eq!(answer.result, 0);
    let states = chunk_states(&answer.data).unwrap();
    let chunks =
        manifest.tensors.iter().flat_map(|tensor| (tensor.first_index..).zip(&tensor.chunks));
    let mut put = 0;
    for ((index, chunk), state) in chunks.zip(states) {
        if state == chunk {
            continue;
        }
        let bytes = data(rank, index, chunk.length.get());
        memory.0.put(ChunkKey::new(manifest.session, rank, index), &bytes);
        put += 1;
    }
    Some(put)
}

/// The whole of a save by `world` ranks; `None`: crashed. What was acknowledged goes to `acked`.
fn save(service: &Service<Memory>, memory: &Memory, world: u32, acked: &mut Acked) -> End {
    let begun = begin(service, world, 1)?;
    acked.session = Some(begun.session);
    for rank in 0..world {
        let manifest = manifest(begun.session, 1, world, rank);
        put_missing(service, memory, &manifest, rank)?;
        seal(service, rank, &manifest.encode())?;
    }
    let answer = of_session(service, Opcode::CheckpointCommit, begun.session)?;
    acked.committed = answer.status == Status::Ok;
    Some(answer)
}

/// What a client knows.
#[derive(Debug, Default)]
struct Acked {
    session: Option<SessionId>,
    committed: bool,
    deleted: bool,
}

fn listed(service: &Service<Memory>) -> Vec<String> {
    let answer = call(service, Opcode::CheckpointList, "", b"").unwrap();
    assert_eq!((answer.status, answer.result), (Status::Ok, 0));
    entries(&answer.data).map(|entry| entry.unwrap().1.to_owned()).collect()
}

/// The manifest, read in pieces of `length`; every chunk that it names must be there, byte for byte.
fn verify_whole(service: &Service<Memory>, memory: &Memory, length: u32) -> Manifest {
    let mut bytes = Vec::new();
    loop {
        let (key, offset, clock) = (NAME.as_bytes(), bytes.len() as u64, Clock::default());
        let opcode = Opcode::CheckpointManifest;
        let call = Call { opcode, key, payload: b"", offset, length, clock };
        let answer = run(service.call(call)).unwrap();
        assert_eq!(answer.status, Status::Ok);
        bytes.extend(answer.data);
        if bytes.len() as u64 == answer.result {
            break;
        }
    }
    let manifest = Manifest::decode(&bytes).unwrap();
    for tensor in &manifest.tensors {
        for (index, chunk) in (tensor.first_index..).zip(&tensor.chunks) {
            let key = ChunkKey::new(manifest.session, tensor.rank, index);
            let there = run(memory.chunk_retrieve(key)).unwrap().unwrap();
            assert_eq!(there, data(tensor.rank, index, chunk.length.get()));
            assert_eq!(crc32c(&there), chunk.crc.get());
        }
    }
    manifest
}

fn ticked(service: &Service<Memory>, now_us: u64) {
    run(service.tick(Clock { now_us, now_s: 0 })).unwrap();
}

#[test]
fn three_ranks_commit_one_checkpoint_that_reads_back() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let answer = save(&service, &memory, 3, &mut Acked::default()).unwrap();
    assert_eq!(answer.status, Status::Ok, "{answer:?}");
    assert_eq!(listed(&service), [NAME]);
    let manifest = verify_whole(&service, &memory, 0);
    assert_eq!((manifest.world, manifest.tensors.len()), (3, 4));
    let again = of_session(&service, Opcode::CheckpointCommit, manifest.session).unwrap();
    assert_eq!(again, answer, "a lost answer can be asked for again");
    let exists =
        call(&service, Opcode::CheckpointBegin, NAME, BeginRequest::new(1, 9, 0).as_bytes());
    assert_eq!(exists.unwrap().status, Status::CheckpointExists);
    // It is all that is there, and a restart finds it.
    assert_eq!(memory.0.catalog.borrow().len(), 1);
    let service = open(&memory, 2).unwrap();
    assert_eq!(run(service.sweep()).unwrap(), Ok(0));
    verify_whole(&service, &memory, 77);
}

#[test]
fn a_delete_hides_it_at_once_and_frees_every_chunk() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    save(&service, &memory, 2, &mut Acked::default()).unwrap();
    memory.0.page.set(2);
    assert_eq!(call(&service, Opcode::CheckpointDelete, NAME, b"").unwrap().status, Status::Ok);
    assert_eq!(listed(&service), [""; 0]);
    let gone = call(&service, Opcode::CheckpointManifest, NAME, b"").unwrap();
    assert_eq!(gone.status, Status::NoCheckpoint);
    assert_eq!(service.next_deadline_us(), Some(0));
    ticked(&service, 1);
    assert_eq!(memory.0.chunks.borrow().len(), 0);
    assert_eq!(service.next_deadline_us(), None);
    assert_eq!(
        call(&service, Opcode::CheckpointDelete, NAME, b"").unwrap().status,
        Status::NoCheckpoint
    );
    // The name is free again.
    assert_eq!(save(&service, &memory, 1, &mut Acked::default()).unwrap().status, Status::Ok);
}

#[test]
fn a_restarted_rank_sends_only_what_is_missing_and_what_differs() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 1, 1).unwrap().session;
    let manifest = manifest(session, 1, 1, 0);
    assert_eq!(put_missing(&service, &memory, &manifest, 0), Some(3));
    memory.0.chunks.borrow_mut().remove(&ChunkKey::new(session, 0, 1));
    memory.0.put(ChunkKey::new(session, 0, 0), b"other");
    // Also over a restart of the server: the session is still the same one.
    let service = open(&memory, 2).unwrap();
    let resumed = begin(&service, 1, 1).unwrap();
    assert!(resumed.resumed());
    assert_eq!(resumed.session, session);
    assert_eq!(put_missing(&service, &memory, &manifest, 0), Some(2));
    assert_eq!(put_missing(&service, &memory, &manifest, 0), Some(0));
}

#[test]
fn reserve_describes_in_pieces_when_there_is_much_to_read() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 1, 1).unwrap().session;
    let mut tensor = manifest(session, 1, 1, 0).tensors.remove(1);
    // 1025 chunks of 1 MiB; those from 600 on are there, and one of them is wrong.
    tensor.dims = vec![Dim::whole((1024 << 20) + 1)];
    tensor.bytes = (1024 << 20) + 1;
    tensor.first_index = 0;
    let megabyte: std::rc::Rc<[u8]> = vec![5; 1 << 20].into();
    for index in 600..1024 {
        let key = ChunkKey::new(session, 0, index);
        memory.0.chunks.borrow_mut().insert(key, megabyte.clone());
    }
    let (mut skip, mut states, mut calls) = (0, Vec::new(), 0);
    loop {
        let payload = encode_reserve(session, 0, skip, std::slice::from_ref(&tensor));
        let answer = call(&service, Opcode::CheckpointReserve, "", &payload).unwrap();
        states.extend_from_slice(chunk_states(&answer.data).unwrap());
        (skip, calls) = (answer.result as u32, calls + 1);
        if skip == 0 {
            break;
        }
        assert_eq!(skip as usize, states.len());
    }
    let there = Chunk::new(1 << 20, crc32c(&megabyte));
    let expected: Vec<Chunk> = (0..1025)
        .map(|index| if (600..1024).contains(&index) { there } else { Chunk::default() })
        .collect();
    assert_eq!(states, expected);
    assert_eq!(calls, 2);
}

#[test]
fn a_manifest_of_several_parts_is_kept_whole() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 1, 1).unwrap().session;
    let mut manifest = manifest(session, 1, 1, 0);
    manifest.attachments[0].bytes = data(9, 9, 2 * MANIFEST_PART_BYTES as u32);
    put_missing(&service, &memory, &manifest, 0);
    assert_eq!(seal(&service, 0, &manifest.encode()).unwrap().status, Status::Ok);
    let answer = of_session(&service, Opcode::CheckpointCommit, session).unwrap();
    assert_eq!(
        answer,
        Answer { status: Status::Ok, result: manifest.encode().len() as u64, data: vec![] }
    );
    let parts = memory.0.chunks.borrow().keys().filter(|k| k.rank.get() == MANIFEST_RANK).count();
    assert_eq!(parts, 3);
    assert_eq!(verify_whole(&service, &memory, 0), manifest);
    assert_eq!(verify_whole(&service, &memory, 3 << 20), manifest);
    // A part that is not what was written is not given out.
    memory.0.put(ChunkKey::manifest_part(session, 0), &data(1, 1, MANIFEST_PART_BYTES as u32));
    let corrupt = call(&service, Opcode::CheckpointManifest, NAME, b"").unwrap();
    assert_eq!(corrupt.status, Status::Corrupt);
}

#[test]
fn commit_names_the_rank_whose_chunk_is_missing_or_of_another_length() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 2, 1).unwrap().session;
    for rank in 0..2 {
        let manifest = manifest(session, 1, 2, rank);
        put_missing(&service, &memory, &manifest, rank);
        seal(&service, rank, &manifest.encode());
    }
    let whole = memory.0.chunks.borrow_mut().remove(&ChunkKey::new(session, 1, 1)).unwrap();
    let text = |answer: &Answer| String::from_utf8(answer.data.clone()).unwrap();
    let missing = of_session(&service, Opcode::CheckpointCommit, session).unwrap();
    assert_eq!((missing.status, missing.result), (Status::Incomplete, 1));
    assert_eq!(text(&missing), "chunk 1 of rank 1 was not put");
    memory.0.put(ChunkKey::new(session, 1, 1), b"short");
    let short = of_session(&service, Opcode::CheckpointCommit, session).unwrap();
    assert_eq!((short.status, short.result), (Status::Incomplete, 1));
    assert_eq!(text(&short), "chunk 1 of rank 1 has 5 bytes, sealed were 100");
    memory.0.put(ChunkKey::new(session, 1, 1), &whole);
    assert_eq!(of_session(&service, Opcode::CheckpointCommit, session).unwrap().status, Status::Ok);
}

#[test]
fn a_fenced_session_cannot_go_on_and_its_chunks_are_freed() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let old = begin(&service, 1, 1).unwrap().session;
    let zombie = manifest(old, 1, 1, 0);
    put_missing(&service, &memory, &zombie, 0);
    let new = begin(&service, 1, 2).unwrap();
    assert!(!new.resumed() && new.session != old);
    for opcode in [Opcode::CheckpointCommit, Opcode::CheckpointAbort] {
        assert_eq!(of_session(&service, opcode, old).unwrap().status, Status::NoSession);
    }
    assert_eq!(seal(&service, 0, &zombie.encode()).unwrap().status, Status::NoSession);
    let reserve = encode_reserve(old, 0, 0, &zombie.tensors);
    let reserve = call(&service, Opcode::CheckpointReserve, "", &reserve).unwrap();
    assert_eq!(reserve.status, Status::NoSession);
    ticked(&service, 1);
    assert_eq!(memory.0.chunks.borrow().len(), 0);
    // The fence holds over a restart.
    let service = open(&memory, 2).unwrap();
    let payload = BeginRequest::new(1, 1, 0);
    let refused = call(&service, Opcode::CheckpointBegin, NAME, payload.as_bytes()).unwrap();
    assert_eq!((refused.status, refused.result), (Status::NoSession, 2));
    assert_eq!(begin(&service, 1, 2).unwrap().session, new.session);
}

#[test]
fn a_session_that_runs_out_of_time_frees_its_chunks() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 1, 1).unwrap().session;
    put_missing(&service, &memory, &manifest(session, 1, 1, 0), 0);
    assert_eq!(service.next_deadline_us(), Some(HOUR_US));
    ticked(&service, HOUR_US - 1);
    assert_eq!(memory.0.chunks.borrow().len(), 3);
    ticked(&service, HOUR_US);
    assert_eq!((memory.0.chunks.borrow().len(), memory.0.catalog.borrow().len()), (0, 0));
    let late = of_session(&service, Opcode::CheckpointCommit, session).unwrap();
    assert_eq!(late.status, Status::NoSession);
}

#[test]
fn a_sweep_frees_what_no_session_names_and_nothing_else() {
    let memory = Memory::default();
    memory.0.page.set(3);
    let service = open(&memory, 1).unwrap();
    save(&service, &memory, 1, &mut Acked::default()).unwrap();
    let other = BeginRequest::new(1, 0, 0);
    let other = call(&service, Opcode::CheckpointBegin, "run/2", other.as_bytes()).unwrap();
    let other = BeginAnswer::decode(&other.data).unwrap().session;
    put_missing(&service, &memory, &manifest(other, 0, 1, 0), 0);
    for index in 0..100 {
        memory.0.put(ChunkKey::new(SessionId([8; 16]), 0, index), b"orphan");
    }
    let before = memory.0.chunks.borrow().len();
    assert_eq!(run(service.sweep()).unwrap(), Ok(100));
    assert_eq!(memory.0.chunks.borrow().len(), before - 100);
    assert_eq!(run(service.sweep()).unwrap(), Ok(0));
    verify_whole(&service, &memory, 0);
}

#[test]
fn a_list_goes_on_where_it_stopped_in_the_order_of_commits() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let names = ["b/1", "a/2", "c/3", "b/4"];
    for name in names {
        let begun =
            call(&service, Opcode::CheckpointBegin, name, BeginRequest::new(1, 0, 0).as_bytes());
        let session = BeginAnswer::decode(&begun.unwrap().data).unwrap().session;
        let manifest = manifest(session, 0, 1, 0);
        put_missing(&service, &memory, &manifest, 0);
        seal(&service, 0, &manifest.encode());
        assert_eq!(
            of_session(&service, Opcode::CheckpointCommit, session).unwrap().status,
            Status::Ok
        );
    }
    let list = |service: &Service<Memory>, prefix: &str, length| {
        let (mut seen, mut offset) = (Vec::new(), 0);
        loop {
            let (key, clock) = (prefix.as_bytes(), Clock::default());
            let opcode = Opcode::CheckpointList;
            let call = Call { opcode, key, payload: b"", offset, length, clock };
            let answer = run(service.call(call)).unwrap();
            assert_eq!(answer.status, Status::Ok);
            seen.extend(entries(&answer.data).map(|entry| entry.unwrap().1.to_owned()));
            offset = answer.result;
            if offset == 0 {
                return seen;
            }
        }
    };
    assert_eq!(list(&service, "", 0), names);
    assert_eq!(list(&service, "", 70), names);
    assert_eq!(list(&service, "b/", 140), ["b/1", "b/4"]);
    let service = open(&memory, 2).unwrap();
    assert_eq!(list(&service, "", 100), names);
}

#[test]
fn hostile_payloads_end_in_a_status_and_words() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 1, 1).unwrap().session;
    let mut huge = manifest(session, 1, 1, 0).tensors.remove(0);
    huge.dims = vec![Dim::whole(1 << 50)];
    huge.bytes = 1 << 50;
    let huge = encode_reserve(session, 0, u32::MAX, &[huge]);
    let sound = BeginRequest::new(1, 0, 0);
    let cases: [(Opcode, &str, &[u8], Status); 9] = [
        (Opcode::CheckpointBegin, "no-slash", sound.as_bytes(), Status::Malformed),
        (Opcode::CheckpointBegin, NAME, b"short", Status::Malformed),
        (Opcode::CheckpointReserve, "", &huge, Status::Malformed),
        (Opcode::CheckpointSeal, "", b"", Status::Malformed),
        (Opcode::CheckpointCommit, "", &[0; 16], Status::NoSession),
        (Opcode::CheckpointAbort, "", &[0; 15], Status::Malformed),
        (Opcode::CheckpointManifest, "a/b", b"", Status::NoCheckpoint),
        (Opcode::CheckpointDelete, "\u{1}/b", b"", Status::Malformed),
        (Opcode::Store, "a/b", b"", Status::Unsupported),
    ];
    for (opcode, key, payload, status) in cases {
        let answer = call(&service, opcode, key, payload).unwrap();
        assert_eq!(answer.status, status, "{opcode:?}");
        assert!(!answer.data.is_empty(), "{opcode:?} has no words");
    }
}

#[test]
fn a_chunk_that_is_there_never_changes() {
    let there = Chunk::new(4, 0xabcd);
    assert_eq!(put_again(None, there), Ok(true));
    assert_eq!(put_again(Some(there), there), Ok(false));
    assert_eq!(put_again(Some(there), Chunk::new(4, 0xabce)), Err(Status::CheckpointExists));
}

/// Saves (and deletes, and ticks) with one fault at `step`; then restarts and checks what must hold.
/// `false`: the fault's step was never reached.
fn fault_at(step: u64, fault: Fault, world: u32, delete: bool) -> bool {
    let memory = Memory::default();
    let mut acked = Acked::default();
    memory.0.fault.set(Some((step, fault)));
    let mut life = || -> Option<()> {
        let service = open(&memory, step)?;
        run(service.sweep())?.ok()?;
        save(&service, &memory, world, &mut acked)?;
        if delete {
            acked.deleted =
                call(&service, Opcode::CheckpointDelete, NAME, b"")?.status == Status::Ok;
            run(service.tick(Clock { now_us: 1, now_s: 0 }))?;
        }
        Some(())
    };
    let lived = life();
    let reached = memory.0.steps.get() > step;
    memory.0.restart();
    let why = format!(
        "{fault:?} at step {step}, world {world}, delete {delete}: {acked:?}, lived {lived:?}"
    );
    check_after_restart(&memory, &acked, world, delete, &why);
    reached
}

fn check_after_restart(memory: &Memory, acked: &Acked, world: u32, delete: bool, why: &str) {
    let service = open(memory, 1_000_000).unwrap();
    let listed = listed(&service);
    if acked.committed && !delete {
        assert_eq!(listed, [NAME], "an acknowledged checkpoint is gone: {why}");
    }
    if acked.deleted {
        assert_eq!(listed, [""; 0], "a deleted checkpoint is back: {why}");
    }
    run(service.sweep()).unwrap().unwrap();
    ticked(&service, 1);
    if listed == [NAME] {
        // Visible means whole, and nothing else is left.
        let manifest = verify_whole(&service, memory, 0);
        assert_eq!(manifest.world, world, "{why}");
        let parts = manifest.encode().len().div_ceil(MANIFEST_PART_BYTES) as u64;
        let chunks = memory.0.chunks.borrow().len() as u64;
        assert_eq!(chunks, manifest.chunk_count() + parts, "chunks leaked: {why}");
        return;
    }
    // Not visible: the job goes on under the epoch it had, in the session it knows.
    let never_began =
        !memory.0.catalog.borrow().keys().any(|key| key.starts_with(b"ckpt-session/"));
    if let (Some(known), false) = (acked.session, acked.committed || never_began) {
        let resumed = begin(&service, world, 1).unwrap();
        assert_eq!(resumed.session, known, "an acknowledged session is lost: {why}");
    }
    let again = save(&service, memory, world, &mut Acked::default()).unwrap();
    assert_eq!(again.status, Status::Ok, "{why}: {again:?}");
    verify_whole(&service, memory, 0);
    assert_eq!(call(&service, Opcode::CheckpointDelete, NAME, b"").unwrap().status, Status::Ok);
    ticked(&service, 1);
    assert_eq!(memory.0.chunks.borrow().len(), 0, "chunks leaked: {why}");
    assert_eq!(memory.0.catalog.borrow().len(), 0, "records leaked: {why}");
}

#[test]
fn a_fault_at_any_step_leaves_all_or_nothing() {
    let faults = [Fault::CrashBefore, Fault::CrashAfter, Fault::ErrorBefore, Fault::ErrorAfter];
    for fault in faults {
        for (world, delete) in [(1, false), (1, true), (2, false), (2, true)] {
            let steps = (0..).take_while(|step| fault_at(*step, fault, world, delete)).count();
            assert!(steps >= if delete { 20 } else { 11 }, "only {steps} steps were reached");
        }
    }
}

/// The record's write and its undoing both fail: it may be on media, and the session must neither
/// be given up nor fenced until that is settled.
#[test]
fn a_commit_in_doubt_is_settled_before_anything_else_happens_to_its_name() {
    for fault in [Fault::ErrorBefore, Fault::ErrorAfter] {
        let memory = Memory::default();
        let service = open(&memory, 1).unwrap();
        let session = begin(&service, 1, 1).unwrap().session;
        let manifest = manifest(session, 1, 1, 0);
        put_missing(&service, &memory, &manifest, 0);
        seal(&service, 0, &manifest.encode());
        // COMMIT takes two steps before its record: lengths, one part. From there on all fails.
        let record_step = memory.0.steps.get() + 2;
        memory.0.fault.set(Some((record_step, fault)));
        memory.0.lasting.set(true);
        let failed = of_session(&service, Opcode::CheckpointCommit, session).unwrap();
        assert_eq!(failed.status, Status::Device);
        let busy = of_session(&service, Opcode::CheckpointAbort, session).unwrap();
        assert_eq!(busy.status, Status::Busy);
        assert!(begin(&service, 1, 2).is_none(), "a session in doubt was fenced");
        ticked(&service, HOUR_US);
        assert_eq!(memory.0.chunks.borrow().len(), 4, "a session in doubt lost its chunks");
        assert_eq!(service.next_deadline_us(), Some(HOUR_US + 1_000_000));
        memory.0.restart();
        let again = of_session(&service, Opcode::CheckpointCommit, session).unwrap();
        assert_eq!(again.status, Status::Ok);
        verify_whole(&service, &memory, 0);
    }
}

#[test]
fn the_tick_settles_a_doubt_and_the_session_can_be_given_up() {
    let memory = Memory::default();
    let service = open(&memory, 1).unwrap();
    let session = begin(&service, 1, 1).unwrap().session;
    let manifest = manifest(session, 1, 1, 0);
    put_missing(&service, &memory, &manifest, 0);
    seal(&service, 0, &manifest.encode());
    memory.0.fault.set(Some((memory.0.steps.get() + 2, Fault::ErrorBefore)));
    memory.0.lasting.set(true);
    of_session(&service, Opcode::CheckpointCommit, session).unwrap();
    memory.0.restart();
    ticked(&service, 1);
    assert_eq!(of_session(&service, Opcode::CheckpointAbort, session).unwrap().status, Status::Ok);
    ticked(&service, 2);
    assert_eq!((memory.0.chunks.borrow().len(), memory.0.catalog.borrow().len()), (0, 0));
}

#[test]
fn a_record_that_cannot_be_read_keeps_the_store_closed() {
    for key in [&b"ckpt/run/1"[..], b"ckpt-session/00"] {
        let memory = Memory::default();
        memory.0.catalog.borrow_mut().insert(key.to_vec(), b"of another version".to_vec());
        let rng = fastrand::Rng::with_seed(1);
        let opened = Service::open(memory.clone(), Limits::default(), rng, Clock::default());
        assert_eq!(run(opened).unwrap().err(), Some(Status::Corrupt));
    }
}
