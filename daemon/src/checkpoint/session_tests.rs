//! The table of sessions: every state against every event, and what its words promise.

use super::Refusal;
use super::record::{CommitRecord, PARTS_MAX, SessionRecord};
use super::session::{CommitStep, Limits, Table};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{
    Attachment, BeginRequest, CHUNK_BYTES_DEFAULT, Chunk, Dim, Dtype, Manifest, SealRequest,
    SessionId, TensorBox,
};

const NAME: &str = "run/1";
const OLD: SessionId = SessionId([1; 16]);
const NEW: SessionId = SessionId([2; 16]);
const MINUTE_US: u64 = 60_000_000;

fn begin(world: u32, epoch: u64) -> BeginRequest {
    BeginRequest::new(world, epoch, 60_000)
}

/// Rank `rank`'s half of one tensor.
fn half(session: SessionId, epoch: u64, rank: u32) -> Manifest {
    let tensor = TensorBox {
        name: "w".to_owned(),
        dtype: Dtype::U8,
        rank,
        first_index: 0,
        chunk_bytes: CHUNK_BYTES_DEFAULT,
        dims: vec![Dim::new(8, u64::from(rank) * 4, 4)],
        bytes: 4,
        chunks: vec![Chunk::new(4, 0)],
    };
    let attachments = vec![Attachment { rank, bytes: vec![7; 100] }];
    Manifest { session, epoch, world: 2, attachments, tensors: vec![tensor] }
}

fn seal_whole(
    table: &mut Table,
    session: SessionId,
    rank: u32,
    bytes: &[u8],
) -> Result<(), Refusal> {
    let total_bytes = bytes.len() as u32;
    table.seal(&SealRequest { session, rank, total_bytes, offset: 0, slice: bytes })
}

fn seal(table: &mut Table, session: SessionId, epoch: u64, rank: u32) -> Result<(), Refusal> {
    seal_whole(table, session, rank, &half(session, epoch, rank).encode())
}

fn commit_record(session: SessionId, sequence: u64) -> CommitRecord {
    CommitRecord {
        magic: [0; 4],
        version: 0.into(),
        parts: 1.into(),
        session,
        epoch: 5.into(),
        sequence: sequence.into(),
        committed_s: 0.into(),
        data_bytes: 8.into(),
        manifest_bytes: 300.into(),
        world: 2.into(),
        tensors: 2.into(),
        chunks: 2.into(),
        part_crcs: [0.into(); PARTS_MAX],
        crc: 0.into(),
    }
    .sealed()
}

#[derive(Clone, Copy, Debug)]
enum State {
    None,
    Open,
    OneSealed,
    AllSealed,
    Committing,
    Doubt,
    Committed,
    Deleting,
    Deleted,
    Aborted,
    Expired,
    Fenced,
}

/// A table in this state; its session was opened at 0 with epoch 5 and a world of 2.
fn table_in(state: State) -> Table {
    use State::*;
    let mut table = Table::new(Limits::default());
    if matches!(state, None) {
        return table;
    }
    table.begin(0, NAME, &begin(2, 5), OLD).unwrap();
    let sealed = match state {
        None | Open | Aborted | Expired | Fenced => 0,
        OneSealed => 1,
        AllSealed | Committing | Doubt | Committed | Deleting | Deleted => 2,
    };
    (0..sealed).for_each(|rank| seal(&mut table, OLD, 5, rank).unwrap());
    if matches!(state, Committing | Doubt | Committed | Deleting | Deleted) {
        assert!(matches!(table.commit(OLD), Ok(CommitStep::Write { .. })));
    }
    if matches!(state, Committed | Deleting | Deleted) {
        table.committed(OLD, commit_record(OLD, 2));
    }
    match state {
        Doubt => table.commit_failed(OLD, true),
        Deleting => table.delete(NAME).unwrap(),
        Deleted => {
            table.delete(NAME).unwrap();
            table.deleted(NAME);
        }
        Aborted => table.abort(OLD).unwrap(),
        Expired => assert_eq!(table.expire(MINUTE_US).len(), 1),
        Fenced => drop(table.begin(0, NAME, &begin(2, 6), NEW).unwrap()),
        _ => {}
    }
    table
}

/// The end of an event as one word.
fn word<T>(result: Result<T, Refusal>, ok: impl FnOnce(T) -> &'static str) -> String {
    match result {
        Ok(value) => ok(value).to_owned(),
        Err(Refusal { status, result: super::NO_RANK, .. }) => format!("{status:?}"),
        Err(Refusal { status, result, .. }) => format!("{status:?}({result})"),
    }
}

fn begun(table: &mut Table, world: u32, epoch: u64) -> String {
    let fresh = SessionId([9; 16]);
    word(table.begin(1, NAME, &begin(world, epoch), fresh), |begun| match begun.resumed {
        true => "resumed",
        false if begun.record.session == fresh => "fresh",
        false => "neither",
    })
}

fn event(table: &mut Table, event: &str) -> String {
    match event {
        "begin 4" => begun(table, 2, 4),
        "begin 5" => begun(table, 2, 5),
        "begin 5, world 3" => begun(table, 3, 5),
        "begin 7" => begun(table, 2, 7),
        "reserve" => word(table.reserve(OLD, 1), |()| "ok"),
        "reserve rank 2" => word(table.reserve(OLD, 2), |()| "ok"),
        "seal" => word(seal(table, OLD, 5, 1), |()| "ok"),
        "commit" => word(table.commit(OLD), |step| match step {
            CommitStep::Write { .. } => "write",
            CommitStep::Done(_) => "done",
        }),
        "abort" => word(table.abort(OLD), |()| "ok"),
        "expire" => format!("{} expired", table.expire(MINUTE_US).len()),
        "delete" => word(table.delete(NAME), |()| "ok"),
        "find" => word(table.find(NAME).map(drop), |()| "ok"),
        "list" => format!("{} listed", table.list("run", 0).count()),
        "live" => table.is_live(OLD).to_string(),
        _ => unreachable!("{event}"),
    }
}

/// Every state × every event. A row: the event, then its end in each state.
#[test]
fn every_event_in_every_state_ends_as_the_table_says() {
    use State::*;
    let states = [
        None, Open, OneSealed, AllSealed, Committing, Doubt, Committed, Deleting, Deleted, Aborted,
        Expired, Fenced,
    ];
    let exists = "CheckpointExists";
    let (unknown, absent) = ("NoSession", "NoCheckpoint");
    #[rustfmt::skip]
    let rows: [(&str, [&str; 12]); 14] = [
        // event              None     Open            OneSealed       AllSealed       Committing Doubt   Committed Deleting Deleted Aborted  Expired  Fenced
        ("begin 4",          ["fresh", "NoSession(5)", "NoSession(5)", "NoSession(5)", "Busy",    "Busy", exists,   exists,  "fresh", "fresh", "fresh", "NoSession(6)"]),
        ("begin 5",          ["fresh", "resumed",      "resumed",      "resumed",      "Busy",    "Busy", exists,   exists,  "fresh", "fresh", "fresh", "NoSession(6)"]),
        ("begin 5, world 3", ["fresh", "Malformed",    "Malformed",    "Malformed",    "Busy",    "Busy", exists,   exists,  "fresh", "fresh", "fresh", "NoSession(6)"]),
        ("begin 7",          ["fresh", "fresh",        "fresh",        "fresh",        "Busy",    "Busy", exists,   exists,  "fresh", "fresh", "fresh", "fresh"]),
        ("reserve",          [unknown, "ok",           "ok",           "ok",           "Busy",    "Busy", unknown,  unknown, unknown, unknown, unknown, unknown]),
        ("reserve rank 2",   [unknown, "Malformed(2)", "Malformed(2)", "Malformed(2)", "Busy",    "Busy", unknown,  unknown, unknown, unknown, unknown, unknown]),
        ("seal",             [unknown, "ok",           "ok",           "ok",           "Busy",    "Busy", unknown,  unknown, unknown, unknown, unknown, unknown]),
        ("commit",           [unknown, "Incomplete(0)","Incomplete(1)","write",        "Busy",    "write","done",   "done",  unknown, unknown, unknown, unknown]),
        ("abort",            [unknown, "ok",           "ok",           "ok",           "Busy",    "Busy", unknown,  unknown, unknown, unknown, unknown, unknown]),
        ("expire",           ["0 expired","1 expired", "1 expired",    "1 expired",    "0 expired","0 expired","0 expired","0 expired","0 expired","0 expired","0 expired","1 expired"]),
        ("delete",           [absent,  absent,         absent,         absent,         absent,    absent, "ok",     "Busy",  absent,  absent,  absent,  absent]),
        ("find",             [absent,  absent,         absent,         absent,         absent,    absent, "ok",     absent,  absent,  absent,  absent,  absent]),
        ("list",             ["0 listed","0 listed",   "0 listed",     "0 listed",     "0 listed","0 listed","1 listed","0 listed","0 listed","0 listed","0 listed","0 listed"]),
        ("live",             ["false", "true",         "true",         "true",         "true",    "true", "true",   "true",  "false", "false", "false", "false"]),
    ];
    for (name, ends) in rows {
        for (state, expected) in states.into_iter().zip(ends) {
            let end = event(&mut table_in(state), name);
            assert_eq!(end, expected, "{name} in state {state:?}");
        }
    }
}

#[test]
fn what_ends_without_a_checkpoint_is_garbage_once() {
    for state in [State::Aborted, State::Expired, State::Fenced, State::Deleted] {
        let mut table = table_in(state);
        assert!(table.has_chores());
        assert_eq!(table.next_garbage(), Some(OLD), "{state:?}");
        assert_eq!(table.next_garbage(), None);
        table.free_failed(OLD);
        assert_eq!(table.next_garbage(), Some(OLD));
    }
    let mut table = table_in(State::Committed);
    assert_eq!(table.next_garbage(), None);
}

#[test]
fn a_resumed_session_has_its_full_time_again() {
    let mut table = table_in(State::Open);
    assert_eq!(table.next_deadline_us(), Some(MINUTE_US));
    table.begin(MINUTE_US - 1, NAME, &begin(2, 5), NEW).unwrap();
    assert_eq!(table.expire(MINUTE_US), vec![]);
    assert_eq!(table.expire(2 * MINUTE_US), vec![(NAME.to_owned(), OLD)]);
}

#[test]
fn deadlines_have_a_default_and_a_bound() {
    let mut table = Table::new(Limits::default());
    let none = BeginRequest::new(1, 0, 0);
    let long = BeginRequest::new(1, 0, u64::MAX);
    let default_ms = Limits::default().deadline_default_ms;
    assert_eq!(table.begin(0, "a/1", &none, OLD).unwrap().record.deadline_ms, default_ms);
    let max_ms = Limits::default().deadline_max_ms;
    assert_eq!(table.begin(0, "a/2", &long, NEW).unwrap().record.deadline_ms, max_ms);
}

#[test]
fn slices_may_repeat_but_not_skip() {
    let mut table = table_in(State::Open);
    let bytes = half(OLD, 5, 0).encode();
    let total_bytes = bytes.len() as u32;
    let mut slice = |range: std::ops::Range<usize>| {
        let (offset, slice) = (range.start as u32, &bytes[range]);
        table.seal(&SealRequest { session: OLD, rank: 0, total_bytes, offset, slice })
    };
    assert_eq!(slice(50..60).unwrap_err().status, Status::Malformed);
    slice(0..50).unwrap();
    slice(0..50).unwrap();
    assert_eq!(slice(60..70).unwrap_err().status, Status::Malformed);
    slice(50..bytes.len()).unwrap();
    slice(50..bytes.len()).unwrap();
    slice(0..50).unwrap();
    seal(&mut table, OLD, 5, 1).unwrap();
    assert!(matches!(table.commit(OLD), Ok(CommitStep::Write { .. })));
}

#[test]
fn a_rank_may_seal_again_with_another_manifest_until_the_commit() {
    let mut table = table_in(State::AllSealed);
    let other = Manifest { attachments: vec![], ..half(OLD, 5, 0) };
    seal_whole(&mut table, OLD, 0, &other.encode()).unwrap();
    let Ok(CommitStep::Write { manifest, .. }) = table.commit(OLD) else { panic!("not whole") };
    assert_eq!(manifest.attachments, half(OLD, 5, 1).attachments);
}

#[test]
fn the_manifest_of_another_session_epoch_world_or_rank_is_refused_and_not_kept() {
    let good = half(OLD, 5, 0);
    let wrong = [
        Manifest { session: NEW, ..good.clone() },
        Manifest { epoch: 4, ..good.clone() },
        Manifest { world: 3, ..good.clone() },
        half(OLD, 5, 1),
    ];
    for wrong in wrong {
        let mut table = table_in(State::Open);
        let refusal = seal_whole(&mut table, OLD, 0, &wrong.encode()).unwrap_err();
        assert_eq!((refusal.status, refusal.result), (Status::Malformed, 0), "{}", refusal.text);
        seal(&mut table, OLD, 5, 1).unwrap();
        assert_eq!(table.commit(OLD).unwrap_err().result, 0);
    }
    let mut damaged = good.encode();
    damaged[100] ^= 1;
    let refusal = seal_whole(&mut table_in(State::Open), OLD, 0, &damaged).unwrap_err();
    assert_eq!(refusal.status, Status::Malformed);
}

#[test]
fn overlapping_ranks_are_named_in_result_and_text() {
    let mut table = table_in(State::OneSealed);
    let mut greedy = half(OLD, 5, 1);
    greedy.tensors[0].dims = vec![Dim::new(8, 3, 4)];
    seal_whole(&mut table, OLD, 1, &greedy.encode()).unwrap();
    let refusal = table.commit(OLD).unwrap_err();
    assert_eq!((refusal.status, refusal.result), (Status::Incomplete, 1));
    assert_eq!(refusal.text, r#"tensor "w": a box of rank 1 overlaps one of rank 0"#);
    seal(&mut table, OLD, 5, 1).unwrap();
    assert!(matches!(table.commit(OLD), Ok(CommitStep::Write { .. })));
}

#[test]
fn held_manifests_are_bounded_and_given_back() {
    let bytes = half(OLD, 5, 0).encode().len();
    let limits = Limits { held_bytes_max: bytes, sessions_max: 2, ..Limits::default() };
    let mut table = Table::new(limits);
    table.begin(0, "a/1", &begin(2, 5), OLD).unwrap();
    table.begin(0, "a/2", &begin(2, 5), NEW).unwrap();
    let third = table.begin(0, "a/3", &begin(2, 5), SessionId([3; 16])).unwrap_err();
    assert_eq!(third.status, Status::Busy);
    seal(&mut table, OLD, 5, 0).unwrap();
    seal(&mut table, OLD, 5, 0).unwrap();
    assert_eq!(seal(&mut table, NEW, 5, 0).unwrap_err().status, Status::Busy);
    table.abort(OLD).unwrap();
    seal(&mut table, NEW, 5, 0).unwrap();
}

#[test]
fn a_restart_keeps_the_highest_epoch_and_the_latest_of_it() {
    let record = |id: u8, epoch, sequence| SessionRecord {
        name: NAME.to_owned(),
        session: SessionId([id; 16]),
        epoch,
        sequence,
        deadline_ms: 60_000,
        world: 2,
    };
    let records = [record(1, 5, 8), record(2, 6, 3), record(3, 6, 4), record(4, 5, 9)];
    // In any order of the catalog.
    for rotation in 0..records.len() {
        let mut table = Table::new(Limits::default());
        for at in 0..records.len() {
            table.restore_session(records[(at + rotation) % records.len()].clone(), 0);
        }
        assert_eq!(begun(&mut table, 2, 6), "resumed");
        let live = |id: u8| table.is_live(SessionId([id; 16]));
        assert_eq!([1, 2, 3, 4].map(live), [false, false, true, false]);
        let later = table.begin(0, "run/2", &begin(1, 0), OLD).unwrap().record.sequence;
        assert!(later > 9, "sequence numbers never come twice");
    }
    let mut table = Table::new(Limits::default());
    table.restore_committed(NAME, commit_record(OLD, 4));
    table.restore_session(record(1, 5, 1), 0);
    table.restore_session(record(2, 6, 2), 0);
    assert_eq!(table.find(NAME).unwrap().session, OLD);
    assert_eq!(table.next_garbage(), Some(NEW));
    assert_eq!(begun(&mut table, 2, 9), "CheckpointExists");
}

#[test]
fn a_doubt_is_settled_once_and_then_the_session_is_open_again() {
    let mut table = table_in(State::Doubt);
    assert!(table.has_chores());
    assert_eq!(table.next_doubt(), Some((NAME.to_owned(), OLD)));
    assert_eq!(table.next_doubt(), None);
    assert_eq!(table.commit(OLD).unwrap_err().status, Status::Busy);
    table.commit_failed(OLD, false);
    assert!(!table.has_chores());
    table.abort(OLD).unwrap();
}
