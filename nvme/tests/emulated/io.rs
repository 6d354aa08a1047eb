//! I/O commands: every way that data can be described, and what is refused.

use std::sync::atomic::Ordering::Release;

use forebay_nvme::arena::DmaWords;
use forebay_nvme::emulated::{
    EmulatedConfig, Identity, NamespaceConfig, RegisterConfig, Times, Violation,
};
use forebay_nvme::hardware::Registers;
use forebay_nvme::spec::command::{ALL_NAMESPACES, Data, DatasetRange, Submission};
use forebay_nvme::spec::registers::completion_doorbell;
use forebay_nvme::spec::status::{generic, media};
use zerocopy::IntoBytes;

use crate::host::Host;

fn host() -> Host {
    Host::with_queue(EmulatedConfig::default(), 64)
}

fn identity(identity: Identity) -> EmulatedConfig {
    EmulatedConfig { identity, ..EmulatedConfig::default() }
}

#[test]
fn data_comes_back_by_one_prp_two_and_a_list() {
    let mut host = host();
    for blocks in [1, 2, 3, 7, 32] {
        assert!(host.write(10, blocks, blocks as u8, false).status().ok());
        host.expect(10, blocks, blocks as u8);
    }
    host.assert_clean();
    assert_eq!(host.controller.counters().bytes_written, 45 * 4096);
}

#[test]
fn a_first_prp_may_begin_inside_a_page() {
    let mut host = Host::with_queue(
        EmulatedConfig {
            namespaces: vec![NamespaceConfig::new(1, 4096, 9)],
            ..EmulatedConfig::default()
        },
        16,
    );
    let source = host.buffer(2, 1);
    let iova = host.iova(source.as_ptr().addr());
    // 8 sectors, half in each page.
    let data = Data::Prp(iova + 2048, iova + 4096);
    assert!(host.run(1, Submission::write(1, 3, 8, data, false)).status().ok());
    let target = host.buffer(1, 0xEE);
    let data = Data::Prp(host.iova(target.as_ptr().addr()) + 512, 0);
    assert!(host.run(1, Submission::read(1, 5, 4, data)).status().ok());
    assert!(target[..512].iter().all(|byte| *byte == 0xEE));
    assert!(target[512..1536].iter().all(|byte| *byte == 1));
    assert!(target[1536..2560].iter().all(|byte| *byte == 2));
    assert!(target[2560..].iter().all(|byte| *byte == 0xEE));
    host.assert_clean();
}

/// The pages of a buffer in reverse order, as a list that begins at `offset` of a page and goes on in another.
fn chained(host: &Host, iova: u64, blocks: usize, offset: usize) -> (Data, [DmaWords; 2]) {
    let lists = [(); 2].map(|()| DmaWords::new(host.pool.alloc(4096).expect("room")));
    let page = |at: usize| iova + (blocks - 1 - at) as u64 * 4096;
    let room = (4096 - offset) / 8 - 1;
    let first = &lists[0].words()[offset / 8..];
    for (at, slot) in first.iter().enumerate() {
        let entry = if at < room { page(1 + at) } else { host.iova(lists[1].address()) };
        slot.store(entry, Release);
    }
    for (at, slot) in (1 + room..blocks).zip(lists[1].words()) {
        slot.store(page(at), Release);
    }
    (Data::Prp(page(0), host.iova(lists[0].address()) + offset as u64), lists)
}

#[test]
fn a_list_may_begin_anywhere_and_go_on_in_another_page() {
    let mut host = host();
    for offset in [4096 - 16, 4096 - 8, 4096 - 80] {
        let blocks = 32;
        let source = host.buffer(blocks, 40);
        let (data, _lists) = chained(&host, host.iova(source.as_ptr().addr()), blocks, offset);
        let status = host.run(1, Submission::write(1, 100, 32, data, false)).status();
        assert!(status.ok(), "offset {offset}: {status}");
        // Written in reverse: the last page of the buffer came first.
        for at in 0..blocks as u64 {
            assert_eq!(host.controller.peek(1, 100 + at)[17], 40 + (31 - at) as u8);
        }
        let target = host.buffer(blocks, 0);
        let (data, _lists) = chained(&host, host.iova(target.as_ptr().addr()), blocks, offset);
        assert!(host.run(1, Submission::read(1, 100, 32, data)).status().ok());
        assert_eq!(target[..], source[..]);
    }
    host.assert_clean();
}

#[test]
fn a_list_that_ends_with_its_page_has_no_pointer() {
    let mut host = host();
    let source = host.buffer(4, 9);
    let iova = host.iova(source.as_ptr().addr());
    let list = DmaWords::new(host.pool.alloc(4096).expect("room"));
    for page in 0..3 {
        list.words()[509 + page].store(iova + (page as u64 + 1) * 4096, Release);
    }
    let data = Data::Prp(iova, host.iova(list.address()) + 509 * 8);
    assert!(host.run(1, Submission::write(1, 0, 4, data, false)).status().ok());
    host.expect(0, 4, 9);
    host.assert_clean();
}

#[test]
fn misaligned_prps_are_refused() {
    let mut host = host();
    let buffer = host.buffer(4, 0);
    let iova = host.iova(buffer.as_ptr().addr());
    let cases = [
        (Data::Prp(iova + 2, 0), 1, iova + 2),
        (Data::Prp(iova, iova + 4096 + 64), 2, iova + 4096 + 64),
        (Data::Prp(iova, iova + 4), 3, iova + 4),
    ];
    for (data, lbas, address) in cases {
        let status = host.run(1, Submission::read(1, 0, lbas, data)).status();
        assert_eq!(status.full(), generic::INVALID_PRP_OFFSET);
        assert_eq!(
            host.controller.violations().last(),
            Some(&Violation::MisalignedPrp { address })
        );
    }
    // Entries of the list that points to itself for ever.
    let list = DmaWords::new(host.pool.alloc(4096).expect("room"));
    let loops = host.iova(list.address()) + 511 * 8;
    list.words()[511].store(loops, Release);
    let status = host.run(1, Submission::read(1, 0, 4, Data::Prp(iova, loops))).status();
    assert_eq!(status.full(), generic::INVALID_PRP_OFFSET);
}

#[test]
fn an_address_outside_of_the_mapping_is_blocked_and_remembered() {
    let mut host = host();
    let nowhere = host.mapping.iova() + host.mapping.span().bytes() as u64;
    let status = host.run(1, Submission::read(1, 0, 1, Data::Prp(nowhere, 0))).status();
    assert_eq!(status.full(), generic::DATA_TRANSFER_ERROR);
    let faults = host.controller.iommu_faults();
    assert_eq!((faults.len(), faults[0].iova, faults[0].write), (1, nowhere, true));
    assert_eq!(host.controller.counters().iommu_faults, 1);
}

#[test]
fn sgl_data_blocks_work_where_they_are_offered() {
    let mut host = Host::with_queue(identity(Identity { sgls: 1, ..Identity::default() }), 16);
    let source = host.buffer(8, 3);
    let address = host.iova(source.as_ptr().addr());
    let data = Data::Sgl { address, bytes: 8 * 4096 };
    assert!(host.run(1, Submission::write(1, 7, 8, data, false)).status().ok());
    host.expect(7, 8, 3);
    let short = Data::Sgl { address, bytes: 4096 };
    let status = host.run(1, Submission::write(1, 7, 8, short, false)).status();
    assert_eq!(status.full(), generic::INVALID_DATA_SGL_LENGTH);
    host.assert_clean();
    let mut host = self::host();
    let buffer = host.buffer(1, 0);
    let data = Data::Sgl { address: host.iova(buffer.as_ptr().addr()), bytes: 4096 };
    let status = host.run(1, Submission::read(1, 0, 1, data)).status();
    assert_eq!(status.full(), generic::INVALID_FIELD);
}

#[test]
fn limits_are_enforced() {
    let mut host = Host::with_queue(identity(Identity { mdts: 2, ..Identity::default() }), 16);
    let end = 65_536;
    assert!(host.write(end - 4, 4, 1, false).status().ok());
    assert_eq!(host.write(0, 5, 1, false).status().full(), generic::INVALID_FIELD, "MDTS");
    for (lba, blocks) in [(end, 1), (end - 3, 4), (u64::MAX, 1)] {
        let status = host.read(lba, blocks).0.status();
        assert_eq!(status.full(), generic::LBA_OUT_OF_RANGE, "{lba}+{blocks}");
        assert!(status.do_not_retry());
    }
    let status = host.run(1, Submission::flush(2)).status();
    assert_eq!(status.full(), generic::INVALID_NAMESPACE);
    let mut fused = Submission::flush(1);
    fused.flags = 1;
    assert_eq!(host.run(1, fused).status().full(), generic::INVALID_FIELD);
    assert_eq!(host.controller.counters().refused, 6);
    // The limit is counted in the smallest pages, and 0 is none.
    let registers = RegisterConfig { page_min: 1, ..RegisterConfig::default() };
    drop(Host::new(EmulatedConfig { registers, ..EmulatedConfig::default() }));
    let mut host = Host::with_queue(identity(Identity { mdts: 0, ..Identity::default() }), 16);
    assert!(host.write(0, 512, 1, false).status().ok());
    host.expect(0, 512, 1);
}

#[test]
fn namespaces_that_the_driver_must_refuse_take_no_io() {
    for (shift, metadata, protection) in [(12, 8, 0), (12, 0, 1), (8, 0, 0), (40, 0, 0)] {
        let mut namespace = NamespaceConfig::new(1, 1000, shift);
        namespace.formats[0].1 = metadata;
        namespace.protection = protection;
        let config = EmulatedConfig { namespaces: vec![namespace], ..EmulatedConfig::default() };
        let mut host = Host::with_queue(config, 16);
        assert!(!host.read(0, 1).0.status().ok());
    }
}

#[test]
fn compare_verify_and_write_zeroes_do_what_they_say() {
    let mut host = host();
    assert!(host.write(4, 2, 5, false).status().ok());
    let same = host.buffer(2, 5);
    let (data, _) = host.prps(&same, 2);
    assert!(host.run(1, Submission::compare(1, 4, 2, data)).status().ok());
    let status = host.run(1, Submission::compare(1, 3, 2, data)).status();
    assert_eq!(status.full(), media::COMPARE_FAILURE);
    assert!(host.run(1, Submission::verify(1, 0, 65_536)).status().ok());
    assert!(host.run(1, Submission::write_zeroes(1, 5, 65_531, true)).status().ok());
    host.expect(4, 1, 5);
    assert!(host.controller.peek(1, 5).iter().all(|byte| *byte == 0));
    host.assert_clean();
}

#[test]
fn deallocated_blocks_read_as_before_or_as_zeroes() {
    let mut host = host();
    for lba in 0..64 {
        assert!(host.write(lba, 1, 0x55, true).status().ok());
    }
    let mut ranges = host.pool.alloc(4096).expect("room");
    for (slot, lba) in ranges.chunks_exact_mut(16).zip([8, 32]) {
        slot.copy_from_slice(DatasetRange::new(lba, 16).as_bytes());
    }
    let data = Data::Prp(host.iova(ranges.as_ptr().addr()), 0);
    assert!(host.run(1, Submission::dataset_management(1, 2, data)).status().ok());
    let first: Vec<u8> = (0..64).map(|lba| host.controller.peek(1, lba)[0]).collect();
    let discarded = |lba: usize| (8..24).contains(&lba) || (32..48).contains(&lba);
    assert!((0..64).all(|lba| first[lba] == 0x55 || discarded(lba) && first[lba] == 0));
    assert!(first.contains(&0));
    ranges[..16].copy_from_slice(DatasetRange::new(65_530, 16).as_bytes());
    let status = host.run(1, Submission::dataset_management(1, 1, data)).status();
    assert_eq!(status.full(), generic::LBA_OUT_OF_RANGE);
}

#[test]
fn sectors_of_512_bytes_keep_their_neighbours() {
    let config = EmulatedConfig {
        namespaces: vec![NamespaceConfig::new(3, 1000, 9)],
        ..EmulatedConfig::default()
    };
    let mut host = Host::with_queue(config, 16);
    for sector in 0..24_u64 {
        let buffer = host.buffer(1, sector as u8 + 1);
        let data = Data::Prp(host.iova(buffer.as_ptr().addr()), 0);
        assert!(host.run(1, Submission::write(3, sector, 1, data, false)).status().ok());
    }
    let buffer = host.buffer(3, 0);
    let (data, _list) = host.prps(&buffer, 3);
    assert!(host.run(1, Submission::read(3, 0, 24, data)).status().ok());
    let sectors: Vec<u8> = buffer.chunks(512).take(24).map(|sector| sector[511]).collect();
    assert_eq!(sectors, (1..=24).collect::<Vec<u8>>());
    // Zeroes of a part of a block.
    assert!(host.run(1, Submission::write_zeroes(3, 3, 10, false)).status().ok());
    assert_eq!(host.controller.peek(3, 0)[3 * 512 - 1], 3);
    assert_eq!(host.controller.peek(3, 0)[3 * 512], 0);
    assert_eq!(
        (host.controller.peek(3, 1)[5 * 512 - 1], host.controller.peek(3, 1)[5 * 512]),
        (0, 14)
    );
    host.assert_clean();
}

#[test]
fn several_namespaces_are_separate() {
    let namespaces = [1, 3].map(|nsid| NamespaceConfig::new(nsid, 100, 12)).to_vec();
    let mut host = Host::with_queue(EmulatedConfig { namespaces, ..EmulatedConfig::default() }, 16);
    let buffer = host.buffer(1, 8);
    let data = Data::Prp(host.iova(buffer.as_ptr().addr()), 0);
    assert!(host.run(1, Submission::write(3, 1, 1, data, false)).status().ok());
    assert_eq!((host.controller.peek(1, 1)[0], host.controller.peek(3, 1)[0]), (0, 8));
    assert!(host.run(1, Submission::flush(ALL_NAMESPACES)).status().ok());
    host.controller.crash(5);
    assert_eq!(host.controller.peek(3, 1)[0], 8);
}

#[test]
fn a_full_completion_queue_waits_for_the_host() {
    let times = Times::none();
    let mut host = Host::ready(EmulatedConfig { times, ..EmulatedConfig::default() });
    // Two submission queues of 8 entries complete to a completion queue of 8.
    host.add_pair(1, 8);
    host.add_submission_queue(2, 8, 1);
    for queue in [1, 2] {
        for number in 0..7 {
            host.push_as(queue, Submission::flush(1).with_cid(queue * 100 + number));
        }
        host.ring(queue, 0);
    }
    host.controller.step(host.now_us);
    assert!(host.controller.counters().completion_queue_full > 0);
    host.reap(1);
    assert_eq!(host.pairs[&1].log.len(), 7, "as many as there is room for");
    host.controller.step(host.now_us);
    host.reap(1);
    let queues: Vec<u16> = host.pairs[&1].log.iter().map(|entry| entry.sq_id.get()).collect();
    assert_eq!(queues.iter().filter(|queue| **queue == 2).count(), 7);
    assert_eq!(queues.len(), 14);
    host.assert_clean();
}

#[test]
fn taking_more_completions_than_were_posted_is_a_violation() {
    let mut host = host();
    host.run(1, Submission::flush(1));
    host.registers.write32(completion_doorbell(1, 4), 9);
    host.controller.step(host.now_us);
    assert_eq!(host.controller.violations(), [Violation::CompletionOverrun { queue: 1 }]);
}

#[test]
fn an_identifier_in_flight_is_taken() {
    let mut host = host();
    host.push_as(1, Submission::flush(1).with_cid(5));
    host.push_as(1, Submission::flush(1).with_cid(5));
    host.ring(1, 0);
    host.pass(10_000);
    assert_eq!(host.controller.violations(), [Violation::CidInUse { queue: 1, cid: 5 }]);
}

#[test]
fn shadow_doorbells_spare_the_registers() {
    for doorbell_stride in [0, 2] {
        let registers = RegisterConfig { doorbell_stride, ..RegisterConfig::default() };
        let identity = Identity { oacs: 1 << 8, ..Identity::default() };
        let config = EmulatedConfig { registers, identity, ..EmulatedConfig::default() };
        let mut host = Host::ready(config);
        host.use_shadows();
        host.add_pair(1, 32);
        let mut rings = 0;
        for round in 0..400_u64 {
            let old = host.pairs[&1].tail;
            let cids = [(); 4].map(|()| host.push(1, Submission::verify(1, round, 1)));
            rings += u32::from(host.ring(1, old));
            for cid in cids {
                let completion = host.try_await(1, cid).expect("a completion");
                assert!(completion.status().ok(), "round {round}");
            }
        }
        assert!((50..400).contains(&rings), "{rings} rings of 400");
        host.assert_clean();
    }
}

#[test]
fn a_thousand_random_commands_keep_every_block() {
    let mut host = host();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut model = [0_u8; 64];
    for _ in 0..1000 {
        let blocks = rng.usize(1..9);
        let lba = rng.usize(..64 - blocks);
        if rng.bool() {
            let fill = rng.u8(..);
            assert!(host.write(lba as u64, blocks, fill, rng.bool()).status().ok());
            (0..blocks).for_each(|at| model[lba + at] = fill.wrapping_add(at as u8));
        } else {
            let (completion, buffer) = host.read(lba as u64, blocks);
            assert!(completion.status().ok());
            let found: Vec<u8> = buffer.chunks(4096).take(blocks).map(|block| block[9]).collect();
            assert_eq!(found, model[lba..lba + blocks]);
        }
    }
    host.assert_clean();
    assert_eq!(host.pool.free_bytes(), host.pool.total_bytes() - 2 * 4096 - 2 * 4096);
}
