use super::*;
use crate::spec::registers::Version;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A controller as bytes, each at the offset that the specification gives.
fn controller(bytes: &[(usize, &[u8])]) -> IdentifyController {
    let mut page = [0; IDENTIFY_BYTES];
    for (at, bytes) in bytes {
        page[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    IdentifyController::read_from_bytes(&page).unwrap()
}

fn namespace(bytes: &[(usize, &[u8])]) -> IdentifyNamespace {
    let mut page = IdentifyNamespace::new_zeroed();
    for (at, bytes) in bytes {
        page.as_mut_bytes()[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    page
}

#[test]
fn text_is_printable_whatever_the_drive_says() {
    assert_eq!(ascii(b"  S4EVNX0R123456 \0\0\0"), "S4EVNX0R123456");
    assert_eq!(ascii(b"\x1b[2Jevil"), "");
    assert_eq!(ascii(b"good\x1b[2J"), "good");
    assert_eq!(ascii(b"a b  "), "a b");
    assert_eq!(ascii(&[0xff; 20]), "");
    assert_eq!(ascii(b""), "");
}

#[test]
fn a_controller_is_its_golden_bytes() {
    let drive = controller(&[
        (0, &[0x36, 0x1b, 0xf4, 0x1a]),
        (4, b"SERIAL-1            "),
        (24, b"Forebay Emulated Drive                  "),
        (64, b"1.0     "),
        (73, &[0x00, 0x54, 0x52]),
        (77, &[7, 0x11, 0x22]),
        (80, &[0, 0, 2, 0]),
        (88, &[0x40, 0x42, 0x0f, 0]),
        (92, &[0, 0x03, 0, 0]),
        (111, &[1]),
        (128, &[1, 0, 10, 0, 0x2c, 1]),
        (256, &[0x0e, 0x01, 3, 7, 0x0e, 5, 62, 4]),
        (266, &[0x57, 0x01, 0x61, 0x01]),
        (280, &[0, 0, 0, 0, 0, 1]),
        (512, &[0x66, 0x44, 0, 1, 0x20, 0, 0, 0, 0xfd, 0x01]),
        (524, &[0x05, 0x07, 0xff, 0, 7, 0]),
        (536, &[1, 0, 0, 0]),
        (768, b"nqn.2014.08.org.nvmexpress:uuid:1"),
        (2048, &[0xc4, 0x09, 0, 0]),
        (2080, &[0xe8, 0x03, 0, 3, 100]),
    ]);
    assert_eq!((drive.vid.get(), drive.ssvid.get(), drive.oui()), (0x1b36, 0x1af4, 0x52_5400));
    assert_eq!((drive.serial(), drive.firmware()), ("SERIAL-1", "1.0"));
    assert_eq!(drive.model(), "Forebay Emulated Drive");
    assert_eq!(drive.subsystem_name(), "nqn.2014.08.org.nvmexpress:uuid:1");
    assert_eq!(drive.transfer_bytes_max(4096), Some(512 << 10));
    assert_eq!((drive.cntlid.get(), drive.version()), (0x2211, Version::new(2, 0, 0)));
    assert_eq!(drive.shutdown_us(), Some(1_000_000));
    assert_eq!(drive.oaes.get(), 0x300);
    assert!(drive.drives_io());
    assert_eq!([0, 1, 2, 3, 4].map(|at| drive.retry_delay_ms(at)), [0, 100, 1000, 30_000, 0]);
    assert_eq!((drive.aborts_max(), drive.async_event_requests_max()), (4, 8));
    assert_eq!((drive.firmware_slots(), drive.error_log_entries()), (7, 63));
    assert!(drive.has_log_offset() && drive.has_smart_per_namespace());
    assert_eq!((drive.warning_celsius(), drive.critical_celsius()), (Some(70), Some(80)));
    assert_eq!(drive.tnvmcap.get(), 1 << 40);
    assert_eq!((drive.sq_entry_bytes(), drive.cq_entry_bytes()), (64, 16));
    assert_eq!((drive.maxcmd.get(), drive.nn.get()), (256, 32));
    assert!(drive.volatile_write_cache() && drive.flushes_all_namespaces());
    assert!(drive.formats_all_namespaces() && !drive.erases_all_namespaces());
    assert!(drive.has_cryptographic_erase());
    assert_eq!(drive.atomic_lbas_power_fail(), 8);
    assert_eq!(drive.sgl_support(), SglSupport::Any);
    assert_eq!(drive.power_states().len(), 5);
    assert_eq!(drive.power_states()[0].power_max_mw(), Some(25_000));
    assert_eq!(drive.power_states()[1].power_max_mw(), Some(100));
    assert!(drive.power_states()[0].operational() && !drive.power_states()[1].operational());
    assert_eq!(drive.power_states()[1].enlat.get(), 100);
}

#[test]
fn what_a_controller_can_do_is_read_at_its_bits() {
    type Has = fn(&IdentifyController) -> bool;
    let admin: [(u16, Has); 4] = [
        (1 << 1, IdentifyController::has_format),
        (1 << 2, IdentifyController::has_firmware_update),
        (1 << 3, IdentifyController::has_namespace_management),
        (1 << 8, IdentifyController::has_doorbell_buffers),
    ];
    for (bit, has) in admin {
        assert!(has(&controller(&[(256, &bit.to_le_bytes())])));
        assert!(!has(&controller(&[(256, &(!bit).to_le_bytes())])));
    }
    let nvm: [(u16, Has); 8] = [
        (1 << 0, IdentifyController::has_compare),
        (1 << 1, IdentifyController::has_write_uncorrectable),
        (1 << 2, IdentifyController::has_dataset_management),
        (1 << 3, IdentifyController::has_write_zeroes),
        (1 << 5, IdentifyController::has_reservations),
        (1 << 6, IdentifyController::has_timestamp),
        (1 << 7, IdentifyController::has_verify),
        (1 << 8, IdentifyController::has_copy),
    ];
    for (bit, has) in nvm {
        assert!(has(&controller(&[(520, &bit.to_le_bytes())])));
        assert!(!has(&controller(&[(520, &(!bit).to_le_bytes())])));
    }
}

#[test]
fn a_controller_that_says_nothing_promises_nothing() {
    let silent = controller(&[]);
    assert_eq!((silent.serial(), silent.subsystem_name()), ("", ""));
    assert_eq!((silent.transfer_bytes_max(4096), silent.shutdown_us()), (None, None));
    assert_eq!((silent.warning_celsius(), silent.critical_celsius()), (None, None));
    assert!(silent.drives_io() && !silent.volatile_write_cache());
    assert_eq!((silent.sgl_support(), silent.atomic_lbas_power_fail()), (SglSupport::None, 1));
    assert_eq!(silent.power_states()[0].power_max_mw(), None);
}

#[test]
fn an_absurd_mdts_is_no_limit() {
    assert_eq!(controller(&[(77, &[52])]).transfer_bytes_max(2048), Some(1 << 63));
    assert_eq!(controller(&[(77, &[52])]).transfer_bytes_max(4096), None);
    assert_eq!(controller(&[(77, &[255])]).transfer_bytes_max(4096), None);
}

#[test]
fn a_namespace_is_its_golden_bytes() {
    let space = namespace(&[
        (0, &[0, 0, 0, 0x10]),
        (8, &[0, 0, 0, 0x08]),
        (16, &[0, 0, 0, 0x04]),
        (24, &[0x17, 2, 0x01, 0, 0, 0, 1, 0, 0x9e, 0x09]),
        (36, &[15, 0]),
        (44, &[31, 0, 0, 1]),
        (64, &[7, 0, 3, 0, 15, 0, 1, 0, 63, 0]),
        (99, &[1]),
        (104, &[0xaa; 16]),
        (120, &[0xbb; 8]),
        (128, &[0, 0, 9, 2, 0, 0, 12, 0, 8, 0, 12, 1]),
    ]);
    assert_eq!((space.nsze.get(), space.ncap.get(), space.nuse.get()), (1 << 28, 1 << 27, 1 << 26));
    assert_eq!((space.lba_format_index(), space.lba_format().bytes()), (1, Some(4096)));
    assert_eq!(space.bytes(), Some(1 << 40));
    assert_eq!(space.lba_formats().len(), 3);
    assert_eq!(space.lba_formats()[0].bytes(), Some(512));
    assert_eq!(space.lba_formats()[2].metadata_bytes(), 8);
    assert_eq!(space.lba_formats()[0].relative_performance(), 2);
    assert!(!space.protected() && !space.extended_lbas());
    assert!(
        space.thin() && space.reports_deallocated() && space.shared() && space.write_protected()
    );
    assert!(space.deallocated_reads_zeroes() && space.write_zeroes_deallocates());
    assert_eq!(space.format_percent_left(), Some(30));
    assert_eq!(space.atomic_lbas_power_fail(&controller(&[])), 16);
    assert_eq!(space.atomic_boundary_power_fail_lbas(), Some(32));
    assert_eq!(space.optimal_boundary_lbas(), Some(256));
    assert_eq!((space.write_granularity_lbas(), space.write_alignment_lbas()), (Some(8), Some(4)));
    assert_eq!(space.deallocate_granularity_lbas(), Some(16));
    assert_eq!(space.deallocate_alignment_lbas(), Some(2));
    assert_eq!(space.optimal_write_lbas(), Some(64));
    assert_eq!((space.nguid, space.eui64), ([0xaa; 16], [0xbb; 8]));
}

#[test]
fn fields_that_a_namespace_does_not_have_are_not_read() {
    let space =
        namespace(&[(36, &[15, 0]), (44, &[31, 0]), (64, &[7, 0, 3, 0, 15, 0, 1, 0, 63, 0])]);
    assert_eq!(space.atomic_lbas_power_fail(&controller(&[(528, &[3])])), 4);
    assert_eq!(space.atomic_boundary_power_fail_lbas(), None);
    assert_eq!((space.write_granularity_lbas(), space.optimal_write_lbas()), (None, None));
    assert_eq!((space.optimal_boundary_lbas(), space.format_percent_left()), (None, None));
    let no_value = namespace(&[(24, &[2])]);
    assert_eq!(no_value.atomic_lbas_power_fail(&controller(&[(528, &[3])])), 4);
}

#[test]
fn the_upper_bits_of_the_format_count_past_16_formats() {
    let with = |nlbaf: u8, flbas: u8| namespace(&[(25, &[nlbaf, flbas])]).lba_format_index();
    assert_eq!(with(15, 0x6f), 15);
    assert_eq!(with(16, 0x20), 16);
    assert_eq!(with(63, 0x7f), 63);
    assert_eq!(namespace(&[(25, &[255, 0])]).lba_formats().len(), 64);
}

#[test]
fn protection_and_metadata_are_seen() {
    assert!(namespace(&[(29, &[1])]).protected());
    assert!(!namespace(&[(29, &[8])]).protected());
    let format = [8, 0, 12, 0];
    assert!(namespace(&[(26, &[0x10]), (128, &format)]).extended_lbas());
    assert!(!namespace(&[(26, &[0x00]), (128, &format)]).extended_lbas());
    assert!(!namespace(&[(26, &[0x10])]).extended_lbas());
}

#[test]
fn a_block_size_that_cannot_be_is_none() {
    assert_eq!(LbaFormat::new(8, 0).bytes(), None);
    assert_eq!(LbaFormat::new(9, 0).bytes(), Some(512));
    assert_eq!(LbaFormat::new(31, 0).bytes(), Some(1 << 31));
    assert_eq!(LbaFormat::new(32, 0).bytes(), None);
    assert_eq!(LbaFormat::new(255, 0).bytes(), None);
    let huge = namespace(&[(0, &[0xff; 8]), (128, &[0, 0, 9, 0])]);
    assert_eq!(huge.bytes(), None);
}

#[test]
fn the_active_list_ends_at_zero_or_where_it_does_not_ascend() {
    let list = |nsids: &[u32]| {
        let mut page = ActiveNamespaces::new_zeroed();
        for (slot, nsid) in page.nsids.iter_mut().zip(nsids) {
            slot.set(*nsid);
        }
        page
    };
    assert!(list(&[1, 2, 7]).iter().eq([1, 2, 7]));
    assert!(list(&[1, 2, 0, 7]).iter().eq([1, 2]));
    assert!(list(&[1, 5, 5, 7]).iter().eq([1, 5]));
    assert!(list(&[3, 4]).after(2).eq([3, 4]));
    assert_eq!(list(&[1, 2]).after(2).count(), 0);
    assert!(!list(&[1]).full());
    let full: Vec<u32> = (1..=1024).collect();
    assert!(list(&full).full() && list(&full).iter().count() == 1024);
}

#[test]
fn descriptors_are_their_golden_bytes() {
    let mut page = vec![1, 8, 0, 0];
    page.extend([0x11; 8]);
    page.extend([2, 16, 0, 0]);
    page.extend([0x22; 16]);
    page.extend([3, 16, 0, 0]);
    page.extend([0x33; 16]);
    page.extend([4, 1, 0, 0, 0, 3, 2, 0, 0, 9, 9, 9, 1, 0, 0, 7, 0, 0, 0, 0, 1, 8]);
    let found: Vec<_> = descriptors(&page).collect();
    assert_eq!(
        found,
        [
            NamespaceIdentifier::Eui64([0x11; 8]),
            NamespaceIdentifier::Nguid([0x22; 16]),
            NamespaceIdentifier::Uuid([0x33; 16]),
            NamespaceIdentifier::CommandSet(0),
            NamespaceIdentifier::Other { kind: 3, bytes: &[9, 9] },
            NamespaceIdentifier::Other { kind: 9, bytes: &[7] },
        ]
    );
}

#[test]
fn a_descriptor_that_does_not_fit_ends_the_list() {
    assert_eq!(descriptors(&[1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7]).count(), 0);
    assert_eq!(descriptors(&[1, 8, 0]).count(), 0);
    assert_eq!(descriptors(&[]).count(), 0);
}

#[test]
fn the_nvm_limits_are_their_golden_bytes() {
    let mut page = [0; IDENTIFY_BYTES];
    page[..16].copy_from_slice(&[5, 6, 7, 255, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let limits = IdentifyControllerNvm::read_from_bytes(&page).unwrap();
    assert_eq!((limits.vsl, limits.wzsl, limits.wusl, limits.dmrl), (5, 6, 7, 255));
    assert_eq!((limits.dmrsl.get(), limits.dmsl.get()), (1 << 16, 1 << 32));
    assert_eq!(limits.write_zeroes_bytes_max(4096), Some(256 << 10));
    assert_eq!(limits.verify_bytes_max(4096), Some(128 << 10));
}

/// Calls everything that a controller can be asked.
fn ask_controller(drive: &IdentifyController) {
    let texts = [drive.serial(), drive.model(), drive.firmware(), drive.subsystem_name()];
    assert!(texts.iter().all(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte))));
    assert!(drive.transfer_bytes_max(1 << 27).is_none_or(|bytes| bytes >= 1 << 28));
    assert!((0..=255).all(|index| drive.retry_delay_ms(index) <= 6_553_500));
    assert!(drive.power_states().iter().all(|state| state.power_max_mw() <= Some(655_350)));
    assert!(!drive.power_states().is_empty() && drive.firmware_slots() < 8);
    assert!(drive.sq_entry_bytes() <= 1 << 15 && drive.cq_entry_bytes() <= 1 << 15);
    assert!(drive.aborts_max() >= 1 && drive.async_event_requests_max() >= 1);
    assert!(drive.warning_celsius() >= None && drive.critical_celsius() >= None);
    assert!(!drive.version().to_string().is_empty() && drive.error_log_entries() >= 1);
    assert!(matches!(drive.sgl_support(), SglSupport::Other) == (drive.sgls.get() & 3 == 3));
}

/// Calls everything that a namespace can be asked.
fn ask_namespace(space: &IdentifyNamespace, drive: &IdentifyController) {
    assert!(space.lba_format_index() < 64 && !space.lba_formats().is_empty());
    assert!(space.lba_format().bytes().is_none_or(u32::is_power_of_two));
    assert!(space.bytes().is_none_or(|bytes| bytes >= space.nsze.get()));
    assert!(space.atomic_lbas_power_fail(drive) >= 1);
    let sizes = [
        space.atomic_boundary_power_fail_lbas(),
        space.optimal_boundary_lbas(),
        space.write_granularity_lbas(),
        space.write_alignment_lbas(),
        space.optimal_write_lbas(),
        space.deallocate_granularity_lbas(),
        space.deallocate_alignment_lbas(),
    ];
    assert!(sizes.into_iter().flatten().all(|lbas| lbas != 0 && lbas <= 65536));
    assert!(space.format_percent_left().is_none_or(|percent| percent < 128));
    assert!(!space.extended_lbas() || space.lba_format().metadata_bytes() != 0);
}

#[test]
fn any_bytes_are_identify_data() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut page = [0; IDENTIFY_BYTES];
    for round in 0..5_000 {
        rng.fill(&mut page);
        if round % 2 == 0 {
            // Sparse bytes reach the paths behind zeroes and small numbers.
            page.iter_mut().for_each(|byte| *byte = if *byte < 200 { 0 } else { *byte & 0x1f });
        }
        let drive = IdentifyController::ref_from_bytes(&page).unwrap();
        ask_controller(drive);
        ask_namespace(IdentifyNamespace::ref_from_bytes(&page).unwrap(), drive);
        let limits = IdentifyControllerNvm::ref_from_bytes(&page).unwrap();
        assert!(limits.verify_bytes_max(4096) != Some(0));
        let active = ActiveNamespaces::ref_from_bytes(&page).unwrap();
        let after = rng.u32(..);
        assert!(active.after(after).all(|nsid| nsid > after));
        assert!(descriptors(&page[rng.usize(..=IDENTIFY_BYTES)..]).count() <= IDENTIFY_BYTES / 5);
    }
}
