//! What io_uring devices promise beyond the suite: opening, locking, sharing between threads, and
//! files that change behind our back.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use forebay_nvme::uring::{OpenError, UringDevice, UringQueue};
use forebay_nvme::{
    Arena, BLOCK_BYTES, BlockError, BlockQueue, Completion, DmaBuf, Operation, Pool, Request,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::{TempDir, tempdir_in};

const MIB: u64 = 1 << 20;

fn tmpfs() -> TempDir {
    tempdir_in("/dev/shm").expect("tmpfs")
}

fn pool() -> Pool {
    Arena::on_demand(4 << 20).expect("address space").pool()
}

/// Runs one operation to its end.
fn run(queue: &mut UringQueue, operation: Operation) -> Completion {
    queue.submit(Request { tag: 0, operation }).expect("nothing else is in flight");
    let mut done = Vec::with_capacity(1);
    loop {
        if queue.poll(0, &mut done) == 1 {
            return done.pop().expect("one completion");
        }
        let fd = queue.wait_fd().expect("a ring can be slept on");
        let woken = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(10_000_u16));
        assert_ne!(woken, Ok(0), "never woken");
    }
}

fn write(queue: &mut UringQueue, block: u64, mut buffer: DmaBuf, fill: u8) {
    buffer.fill(fill);
    let blocks = (buffer.len() / BLOCK_BYTES) as u32;
    let completion = run(queue, Operation::Write { block, blocks, buffer, fua: true });
    assert_eq!(completion.result, Ok(()));
}

fn read(queue: &mut UringQueue, block: u64, buffer: DmaBuf) -> Result<DmaBuf, BlockError> {
    let blocks = (buffer.len() / BLOCK_BYTES) as u32;
    let completion = run(queue, Operation::Read { block, blocks, buffer });
    let buffer = completion.buffer.expect("a read gives its buffer back");
    completion.result.map(|()| buffer)
}

#[test]
fn every_reason_not_to_open_has_its_own_error() {
    let folder = tmpfs();
    let at = |name: &str| folder.path().join(name);
    let open = |path: &Path, bytes| UringDevice::open(path, bytes).map(|_| ());
    assert!(matches!(open(&at("absent"), None), Err(OpenError::NotFound { .. })));
    assert!(matches!(open(&at("no/folder"), Some(MIB)), Err(OpenError::NotFound { .. })));
    assert!(matches!(open(folder.path(), None), Err(OpenError::Unsuitable { .. })));
    assert!(matches!(open(Path::new("/dev/null"), None), Err(OpenError::Unsuitable { .. })));
    assert!(matches!(open(Path::new("/proc/self/comm"), None), Err(OpenError::NoDirect { .. })));
    File::create(at("empty")).unwrap();
    assert!(matches!(open(&at("empty"), None), Err(OpenError::TooSmall { bytes: 0, .. })));
    assert!(matches!(open(&at("small"), Some(4095)), Err(OpenError::TooSmall { .. })));
    assert!(matches!(open(&at("huge"), Some(1 << 60)), Err(OpenError::NoSpace { .. })));
    for name in ["absent", "small", "huge"] {
        assert!(!at(name).exists(), "{name} was left behind");
    }
}

#[test]
fn a_new_file_gets_its_size_with_room_behind_it() {
    let folder = tmpfs();
    let path = folder.path().join("device");
    for already_there in [false, true] {
        if already_there {
            File::create(&path).unwrap();
        }
        let device = UringDevice::open(&path, Some(3 * MIB + 5000)).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((device.blocks(), metadata.len()), (769, 3 * MIB + 5000));
        assert!(metadata.blocks() * 512 >= 3 * MIB, "the space is not reserved");
        assert_eq!(metadata.mode() & 0o777 == 0o600, !already_there, "private if we create it");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn an_existing_file_keeps_its_size_and_content() {
    let folder = tmpfs();
    let path = folder.path().join("device");
    std::fs::write(&path, vec![7; 2 * BLOCK_BYTES]).unwrap();
    let device = UringDevice::open(&path, Some(8 * MIB)).unwrap();
    let pool = pool();
    let mut queue = device.queue(&pool, 1).unwrap();
    assert_eq!(queue.geometry().blocks, 2);
    let buffer = read(&mut queue, 1, pool.alloc(BLOCK_BYTES).unwrap()).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 7));
}

#[test]
fn a_device_is_locked_until_its_last_queue_is_gone() {
    let folder = tmpfs();
    let path = folder.path().join("device");
    let device = UringDevice::open(&path, Some(MIB)).unwrap();
    let refused = || matches!(UringDevice::open(&path, None), Err(OpenError::Locked { .. }));
    assert!(refused());
    let pool = pool();
    let mut queue = device.queue(&pool, 4).unwrap();
    write(&mut queue, 0, pool.alloc(BLOCK_BYTES).unwrap(), 1);
    drop(device);
    assert!(refused());
    drop(queue);
    assert!(!refused());
}

#[test]
fn only_what_can_lose_writes_says_that_it_has_a_cache() {
    for (folder, cached) in
        [(tmpfs(), false), (tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), true)]
    {
        let device = UringDevice::open(&folder.path().join("device"), Some(MIB)).unwrap();
        let queue = device.queue(&pool(), 1).unwrap();
        assert_eq!(queue.geometry().volatile_write_cache, cached);
    }
}

#[test]
fn every_thread_has_a_queue_of_its_own_on_one_device() {
    let folder = tmpfs();
    let device = UringDevice::open(&folder.path().join("device"), Some(MIB)).unwrap();
    let threads: Vec<_> = (1..=4_u8)
        .map(|number| {
            let device = device.clone();
            std::thread::spawn(move || {
                let pool = pool();
                let mut queue = device.queue(&pool, 8).unwrap();
                write(&mut queue, u64::from(number), pool.alloc(BLOCK_BYTES).unwrap(), number);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let pool = pool();
    let mut queue = device.queue(&pool, 8).unwrap();
    for number in 1..=4_u8 {
        let buffer = read(&mut queue, u64::from(number), pool.alloc(BLOCK_BYTES).unwrap()).unwrap();
        assert!(buffer.iter().all(|byte| *byte == number));
    }
}

#[test]
fn a_buffer_of_another_pool_works_unregistered() {
    let folder = tmpfs();
    let device = UringDevice::open(&folder.path().join("device"), Some(MIB)).unwrap();
    let (registered, other) = (pool(), pool());
    let mut queue = device.queue(&registered, 1).unwrap();
    write(&mut queue, 3, other.alloc(2 * BLOCK_BYTES).unwrap(), 9);
    let buffer = read(&mut queue, 4, other.alloc(BLOCK_BYTES).unwrap()).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 9));
}

#[test]
fn a_file_cut_short_fails_reads_and_gives_the_buffer_back() {
    let folder = tmpfs();
    let path = folder.path().join("device");
    let device = UringDevice::open(&path, Some(MIB)).unwrap();
    let pool = pool();
    let mut queue = device.queue(&pool, 1).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4 * BLOCK_BYTES as u64).unwrap();
    // The first half is there: the read comes back short, and what is left finds the end.
    let straddling = read(&mut queue, 2, pool.alloc(4 * BLOCK_BYTES).unwrap());
    assert_eq!(straddling.err(), Some(BlockError::Read));
    let past = read(&mut queue, 100, pool.alloc(BLOCK_BYTES).unwrap());
    assert_eq!(past.err(), Some(BlockError::Read));
    assert!(read(&mut queue, 0, pool.alloc(4 * BLOCK_BYTES).unwrap()).is_ok());
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn a_discard_gives_the_space_back() {
    let folder = tmpfs();
    let path = folder.path().join("device");
    let device = UringDevice::open(&path, Some(MIB)).unwrap();
    let mut queue = device.queue(&pool(), 1).unwrap();
    assert!(queue.geometry().discard, "tmpfs punches holes");
    let used = || path.metadata().unwrap().blocks() * 512;
    assert_eq!(used(), MIB);
    let completion = run(&mut queue, Operation::Discard { block: 64, blocks: 128 });
    assert_eq!((completion.result, used()), (Ok(()), MIB / 2));
}
