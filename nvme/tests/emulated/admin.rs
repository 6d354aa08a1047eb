//! Admin commands: what is returned, and what is refused.

use forebay_nvme::emulated::{
    EmulatedConfig, Fault, Identity, NamespaceConfig, On, RegisterConfig, Rule, Violation,
};
use forebay_nvme::spec::command::{ALL_NAMESPACES, Data, SecureErase, Submission};
use forebay_nvme::spec::event::{AsyncEvent, EventKind};
use forebay_nvme::spec::feature::{self, QueueCount, async_events};
use forebay_nvme::spec::identify::{
    ActiveNamespaces, IdentifyController, IdentifyNamespace, NamespaceIdentifier, descriptors,
};
use forebay_nvme::spec::log::{self, ChangedNamespaces, ErrorLogEntry, FirmwareSlotLog, SmartLog};
use forebay_nvme::spec::opcode::{admin, io};
use forebay_nvme::spec::status::{command, generic};
use zerocopy::FromBytes;

use crate::host::Host;

fn namespaces(namespaces: Vec<NamespaceConfig>) -> EmulatedConfig {
    EmulatedConfig { namespaces, ..EmulatedConfig::default() }
}

#[test]
fn identify_says_what_the_configuration_says() {
    let identity = Identity {
        serial: "S/N 1".to_owned(),
        mdts: 3,
        awupf: 7,
        crdt: [1, 2, 3],
        aerl: 4,
        acl: 5,
        ..Identity::default()
    };
    let mut namespace = NamespaceConfig::new(7, 1000, 9);
    namespace.formats.push((12, 8));
    namespace.boundary = 64;
    namespace.write_granularity = Some(15);
    namespace.nawupf = Some(3);
    let config = namespaces(vec![namespace]);
    let mut host = Host::ready(EmulatedConfig { identity, ..config });
    let (completion, page) = host.ask(Submission::identify_controller);
    assert!(completion.status().ok());
    let controller = IdentifyController::ref_from_bytes(&page[..]).unwrap();
    assert_eq!((controller.serial(), controller.firmware()), ("S/N 1", "1.0"));
    assert_eq!(controller.transfer_bytes_max(4096), Some(32_768));
    assert_eq!((controller.nn.get(), controller.retry_delay_ms(3)), (7, 300));
    assert_eq!((controller.aborts_max(), controller.async_event_requests_max()), (6, 5));
    assert!(controller.volatile_write_cache() && controller.has_verify());
    assert!(controller.has_compare() && !controller.has_doorbell_buffers());
    let (_, page) = host.ask(|data| Submission::identify_namespace(7, data));
    let namespace = IdentifyNamespace::ref_from_bytes(&page[..]).unwrap();
    assert_eq!((namespace.nsze.get(), namespace.lba_format().bytes()), (1000, Some(512)));
    assert_eq!((namespace.lba_formats().len(), namespace.protected()), (2, false));
    assert_eq!(namespace.optimal_boundary_lbas(), Some(64));
    assert_eq!(namespace.write_granularity_lbas(), Some(16));
    assert_eq!(namespace.atomic_lbas_power_fail(controller), 4);
    let (_, page) = host.ask(|data| Submission::identify_descriptors(7, data));
    let found: Vec<_> = descriptors(&page).collect();
    assert!(matches!(found[..], [NamespaceIdentifier::Eui64(_), NamespaceIdentifier::Uuid(_)]));
    host.assert_clean();
}

#[test]
fn namespaces_that_are_not_active_are_all_zero_and_absent_ones_invalid() {
    let list = [2, 5, 9].map(|nsid| NamespaceConfig::new(nsid, 100, 12));
    let mut host = Host::ready(namespaces(list.to_vec()));
    let (_, page) = host.ask(|data| Submission::identify_active_namespaces(2, data));
    let active = ActiveNamespaces::ref_from_bytes(&page[..]).unwrap();
    assert_eq!(active.after(2).collect::<Vec<_>>(), [5, 9]);
    let (completion, page) = host.ask(|data| Submission::identify_namespace(3, data));
    assert!(completion.status().ok() && page.iter().all(|byte| *byte == 0));
    host.assert_clean();
    for nsid in [0, 10, ALL_NAMESPACES] {
        let (completion, _) = host.ask(|data| Submission::identify_namespace(nsid, data));
        assert_eq!(completion.status().full(), generic::INVALID_NAMESPACE, "{nsid}");
        assert!(completion.status().do_not_retry());
    }
    assert_eq!(host.controller.counters().refused, 3);
}

#[test]
fn identify_can_be_short_zero_or_garbage() {
    let mut host = Host::ready(EmulatedConfig::default());
    let rule = |fault| Rule::next(On::Admin(admin::IDENTIFY), fault);
    host.controller.add_rule(rule(Fault::Short(64)));
    let (_, page) = host.ask(Submission::identify_controller);
    assert!(page[..64].iter().any(|byte| *byte != 0xEE));
    assert!(page[64..].iter().all(|byte| *byte == 0xEE));
    host.controller.add_rule(rule(Fault::Zeroes));
    let (_, page) = host.ask(Submission::identify_controller);
    assert!(page.iter().all(|byte| *byte == 0));
    host.controller.add_rule(rule(Fault::Garbage));
    let (completion, page) = host.ask(Submission::identify_controller);
    assert!(completion.status().ok() && page[1024..].iter().any(|byte| *byte != 0));
}

#[test]
fn queue_counts_are_granted_as_configured() {
    let mut host = Host::ready(EmulatedConfig { queues: 3, ..EmulatedConfig::default() });
    let granted = host.admin(Submission::set_queue_count(64, 64));
    let granted = QueueCount(granted.result.get());
    assert_eq!((granted.submission(), granted.completion()), (3, 3));
    host.add_pair(3, 16);
    host.assert_clean();
    let again = host.admin(Submission::set_queue_count(2, 2));
    assert_eq!(again.status().full(), generic::SEQUENCE_ERROR);
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let registers = RegisterConfig { mqes: 63, ..RegisterConfig::default() };
    let mut host =
        Host::ready(EmulatedConfig { queues: 4, registers, ..EmulatedConfig::default() });
    let memory = host.buffer(2, 0);
    let iova = host.iova(memory.as_ptr().addr());
    let cq = |id, entries, iova| Submission::create_completion_queue(id, entries, iova, None);
    let sq = Submission::create_submission_queue;
    for (wrong, full) in [
        (cq(0, 16, iova), command::INVALID_QUEUE_ID),
        (cq(5, 16, iova), command::INVALID_QUEUE_ID),
        (cq(1, 65, iova), command::INVALID_QUEUE_SIZE),
        (cq(1, 16, iova + 64), generic::INVALID_PRP_OFFSET),
        (sq(1, 16, iova, 1), command::INVALID_COMPLETION_QUEUE),
        (sq(1, 16, iova, 0), command::INVALID_COMPLETION_QUEUE),
        (Submission::delete_submission_queue(1), command::INVALID_QUEUE_ID),
        (Submission::delete_completion_queue(0), command::INVALID_QUEUE_ID),
    ] {
        assert_eq!(host.admin(wrong).status().full(), full, "{wrong:?}");
    }
    assert!(host.admin(cq(1, 16, iova)).status().ok());
    assert_eq!(host.admin(cq(1, 16, iova)).status().full(), command::INVALID_QUEUE_ID);
    assert!(host.admin(sq(2, 16, iova + 4096, 1)).status().ok());
    let delete = host.admin(Submission::delete_completion_queue(1));
    assert_eq!(delete.status().full(), command::INVALID_QUEUE_DELETION);
    assert!(host.admin(Submission::delete_submission_queue(2)).status().ok());
    assert!(host.admin(Submission::delete_completion_queue(1)).status().ok());
    assert!(host.admin(cq(1, 16, 0x10)).status().full() == generic::INVALID_PRP_OFFSET);
    assert!(host.controller.violations().contains(&Violation::QueueMemory { queue: 1 }));
}

#[test]
fn deleting_a_queue_ends_what_is_in_flight() {
    let mut host = Host::with_queue(EmulatedConfig::default(), 16);
    host.controller.add_rule(Rule::always(On::Io(io::FLUSH), Fault::Late { us: 900_000 }));
    let cids: Vec<u16> = (0..4).map(|_| host.submit(1, Submission::flush(1))).collect();
    host.controller.step(host.now_us);
    assert!(host.admin(Submission::delete_submission_queue(1)).status().ok());
    host.reap(1);
    for cid in cids {
        let completion = host.try_await(1, cid).expect("it ends before");
        assert_eq!(completion.status().full(), generic::ABORTED_SQ_DELETION);
    }
    assert!(host.admin(Submission::delete_completion_queue(1)).status().ok());
    host.add_pair(1, 8);
    host.assert_clean();
}

#[test]
fn features_keep_what_was_set_until_the_reset() {
    let mut host = Host::ready(EmulatedConfig::default());
    let get = |host: &mut Host, id| host.admin(Submission::get_feature(id, 0)).result.get();
    assert_eq!(get(&mut host, feature::VOLATILE_WRITE_CACHE), 1);
    assert!(host.admin(Submission::set_feature(feature::VOLATILE_WRITE_CACHE, 0, 0)).status().ok());
    assert!(host.admin(Submission::set_async_events(0x11f)).status().ok());
    assert_eq!(get(&mut host, feature::VOLATILE_WRITE_CACHE), 0);
    assert_eq!(get(&mut host, feature::ASYNC_EVENTS), 0x11f);
    assert_eq!(get(&mut host, feature::TEMPERATURE_THRESHOLD), 343);
    host.assert_clean();
    assert!(!host.admin(Submission::get_feature(0x7f, 0)).status().ok());
    host.disable();
    host.enable();
    assert_eq!(get(&mut host, feature::VOLATILE_WRITE_CACHE), 1);
    assert_eq!(get(&mut host, feature::ASYNC_EVENTS), 0);
}

#[test]
fn log_pages_tell_of_health_and_errors() {
    let mut host = Host::with_queue(EmulatedConfig::default(), 16);
    assert!(host.write(0, 4, 1, true).status().ok());
    host.expect(0, 4, 1);
    let failed = host.read(1 << 40, 1).0;
    assert_eq!(failed.status().full(), generic::LBA_OUT_OF_RANGE);
    host.controller.set_smart(|smart| smart.percentage_used = 40);
    let (_, page) =
        host.ask(|data| Submission::get_log_page(log::SMART, ALL_NAMESPACES, 512, data));
    let smart = SmartLog::ref_from_bytes(&page[..512]).unwrap();
    assert_eq!((smart.percentage_used, smart.celsius()), (40, Some(37)));
    assert_eq!((smart.host_reads.get(), smart.host_writes.get()), (2, 1));
    assert_eq!((smart.bytes_written(), smart.error_log_entries.get()), (512_000, 1));
    let (_, page) = host.ask(|data| Submission::get_log_page(log::ERROR, 0, 128, data));
    let entry = ErrorLogEntry::ref_from_bytes(&page[..64]).unwrap();
    assert_eq!((entry.status().full(), entry.lba.get()), (generic::LBA_OUT_OF_RANGE, 1 << 40));
    assert!(!ErrorLogEntry::ref_from_bytes(&page[64..128]).unwrap().used());
    let (_, page) = host.ask(|data| Submission::get_log_page(log::FIRMWARE_SLOT, 0, 512, data));
    let slots = FirmwareSlotLog::ref_from_bytes(&page[..512]).unwrap();
    assert_eq!((slots.active_slot(), slots.revision(1)), (1, "1.0"));
    let (completion, _) = host.ask(|data| Submission::get_log_page(0x42, 0, 512, data));
    assert_eq!(completion.status().full(), command::INVALID_LOG_PAGE);
}

#[test]
fn events_come_once_until_their_log_page_is_read() {
    let mut host = Host::ready(EmulatedConfig::default());
    let warn = |host: &Host, bits| host.controller.set_critical_warning(bits);
    warn(&host, 1);
    warn(&host, 0);
    let first = host.submit(0, Submission::async_event_request());
    assert!(host.try_await(0, first).is_none(), "nobody asked for these events");
    let mask = async_events::ALL_SMART | async_events::NAMESPACE_CHANGED;
    assert!(host.admin(Submission::set_async_events(mask)).status().ok());
    warn(&host, 4);
    let event = host.try_await(0, first).expect("the event").result.get();
    let event = AsyncEvent::from_result(event);
    assert_eq!((event.kind, event.log_page), (EventKind::Health, log::SMART));
    let second = host.submit(0, Submission::async_event_request());
    warn(&host, 6);
    assert!(host.try_await(0, second).is_none(), "the log page has not been read");
    let keep = |data| Submission::get_log_page(log::SMART, 0, 512, data).with_retained_event();
    assert_eq!(host.ask(keep).1[0], 6);
    warn(&host, 0);
    warn(&host, 4);
    assert!(host.try_await(0, second).is_none(), "it was read with RAE");
    host.ask(|data| Submission::get_log_page(log::SMART, 0, 512, data));
    host.controller.change_namespace(1, |namespace| namespace.lbas /= 2);
    let event = host.try_await(0, second).expect("another kind").result.get();
    assert_eq!(AsyncEvent::from_result(event).kind, EventKind::Notice);
    let page = host.ask(|data| Submission::get_log_page(log::CHANGED_NAMESPACES, 0, 4096, data)).1;
    assert!(ChangedNamespaces::ref_from_bytes(&page[..]).unwrap().iter().eq([1]));
    host.assert_clean();
}

#[test]
fn event_requests_are_limited_and_can_be_aborted() {
    let identity = Identity { aerl: 1, ..Identity::default() };
    let mut host = Host::ready(EmulatedConfig { identity, ..EmulatedConfig::default() });
    let first = host.submit(0, Submission::async_event_request());
    let second = host.submit(0, Submission::async_event_request());
    host.pass(1000);
    let third = host.admin(Submission::async_event_request());
    assert_eq!(third.status().full(), command::ASYNC_EVENT_LIMIT_EXCEEDED);
    assert_eq!(host.admin(Submission::abort(0, first)).result.get(), 0);
    let first = host.try_await(0, first).expect("it was aborted");
    assert_eq!(first.status().full(), generic::ABORT_REQUESTED);
    assert_eq!(host.admin(Submission::abort(0, 77)).result.get(), 1, "there is none");
    assert!(host.try_await(0, second).is_none());
}

#[test]
fn an_abort_ends_a_late_command_and_leaves_others_alone() {
    let mut host = Host::with_queue(EmulatedConfig::default(), 16);
    host.controller.add_rule(Rule::next(On::Io(io::FLUSH), Fault::Late { us: 60_000_000 }));
    let late = host.submit(1, Submission::flush(1));
    assert!(host.run(1, Submission::flush(1)).status().ok());
    assert_eq!(host.admin(Submission::abort(1, late)).result.get(), 0);
    let completion = host.try_await(1, late).expect("it was aborted");
    assert_eq!(completion.status().full(), generic::ABORT_REQUESTED);
    assert_eq!(host.admin(Submission::abort(1, late)).result.get(), 1);
    host.controller.add_rule(Rule::next(On::Io(io::FLUSH), Fault::Lost { abortable: false }));
    let lost = host.submit(1, Submission::flush(1));
    host.controller.step(host.now_us);
    assert_eq!(host.admin(Submission::abort(1, lost)).result.get(), 1, "nothing ends it");
    host.assert_clean();
}

#[test]
fn aborts_are_limited() {
    let identity = Identity { acl: 0, ..Identity::default() };
    let mut host = Host::ready(EmulatedConfig { identity, ..EmulatedConfig::default() });
    let cids = [1, 2, 3].map(|cid| host.push(0, Submission::abort(9, cid)));
    host.ring(0, 0);
    let statuses = cids.map(|cid| host.try_await(0, cid).expect("an answer").status());
    let over = statuses.iter().filter(|it| it.full() == command::ABORT_LIMIT_EXCEEDED).count();
    assert_eq!(over, 2);
}

#[test]
fn a_format_changes_the_logical_blocks_and_blanks_the_media() {
    let mut namespace = NamespaceConfig::new(1, 4096, 12);
    namespace.formats.push((9, 0));
    let mut host = Host::with_queue(namespaces(vec![namespace]), 16);
    assert!(host.write(5, 1, 9, true).status().ok());
    let wrong = host.admin(Submission::format_nvm(1, 2, SecureErase::None));
    assert_eq!(wrong.status().full(), command::INVALID_FORMAT);
    assert!(host.admin(Submission::format_nvm(1, 1, SecureErase::None)).status().ok());
    let (_, page) = host.ask(|data| Submission::identify_namespace(1, data));
    let namespace = IdentifyNamespace::ref_from_bytes(&page[..]).unwrap();
    assert_eq!((namespace.nsze.get(), namespace.lba_format().bytes()), (32_768, Some(512)));
    assert!(host.controller.peek(1, 5).iter().all(|byte| *byte == 0));
}

#[test]
fn commands_that_were_never_offered_are_refused() {
    let mut host = Host::ready(EmulatedConfig::default());
    for opcode in [admin::DBBUF_CONFIG, admin::SANITIZE, 0xff] {
        let status = host.admin(Submission::new(opcode, 0)).status();
        assert_eq!(status.full(), generic::INVALID_OPCODE);
    }
    let page = host.buffer(1, 0);
    let address = host.iova(page.as_ptr().addr());
    let sgl = Submission::identify_controller(Data::Sgl { address, bytes: 4096 });
    assert_eq!(host.admin(sgl).status().full(), generic::INVALID_FIELD);
    assert_eq!(host.controller.counters().refused, 3);
}
