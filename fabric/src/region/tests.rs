use super::*;
use crate::checksum::Digest;
use std::io::IoSliceMut;

#[derive(Debug)]
struct Closed;

impl From<RegionError> for Closed {
    fn from(_: RegionError) -> Self {
        Self
    }
}

/// Registers a region with a device that counts.
fn register(registry: &Rc<Registry<Rc<()>>>, region: &Region, made: &Rc<()>) -> Result<(), Closed> {
    registry.with(region, || Ok(Rc::clone(made)), |_| ())
}

#[test]
fn bytes_are_copied_in_and_out_and_nothing_else_is_touched() {
    let region = Region::new(10_000).unwrap();
    region.write(9_000, &[7; 1_000]).unwrap();
    let mut found = [1; 1_001];
    region.read(8_999, &mut found).unwrap();
    assert_eq!((found[0], &found[1..]), (0, &[7; 1_000][..]));
    for (offset, count) in [(9_001, 1_000), (10_001, 0), (usize::MAX, 2)] {
        assert!(matches!(region.read(offset, &mut vec![0; count]), Err(RegionError::Outside(_))));
        assert!(matches!(region.write(offset, &vec![0; count]), Err(RegionError::Outside(_))));
    }
    assert!(matches!(Region::new(0), Err(RegionError::Bytes)));
    assert!(matches!(Region::new(usize::MAX), Err(RegionError::Bytes)));
}

#[test]
fn a_view_is_to_be_had_only_while_nothing_holds_the_region() {
    let region = Region::new(100).unwrap();
    let held = Held::new(&region.fragment(10..20));
    assert!(!region.is_idle());
    assert!(matches!(region.view(0..10), Err(RegionError::InUse)));
    let again = held.clone();
    drop(held);
    assert!(!region.is_idle());
    drop(again);
    assert!(region.is_idle());
    let (one, two) = (region.view(0..50).unwrap(), region.view(20..100).unwrap());
    assert!(matches!(region.view_mut(0..1), Err(RegionError::Viewed)));
    assert!(matches!(region.write(0, b"no"), Err(RegionError::Viewed)));
    region.read(0, &mut [0; 4]).unwrap();
    drop((one, two));
    let mut only = region.view_mut(0..4).unwrap();
    only.copy_from_slice(b"here");
    assert!(matches!(region.view(0..1), Err(RegionError::Viewed)));
    assert!(matches!(region.read(0, &mut [0; 4]), Err(RegionError::Viewed)));
    drop(only);
    assert_eq!(&*region.view(0..4).unwrap(), b"here");
}

#[test]
fn a_device_forgets_a_region_with_its_last_handle_and_before_a_view() {
    let (registry, made) = (Rc::new(Registry::default()), Rc::new(()));
    let region = Region::new(100).unwrap();
    register(&registry, &region, &made).unwrap();
    register(&registry, &region, &made).unwrap();
    assert_eq!((registry.len(), Rc::strong_count(&made)), (1, 2), "registered once");
    let view = region.view(0..1).unwrap();
    assert_eq!(Rc::strong_count(&made), 1, "a device that may write forgets it first");
    register(&registry, &region, &made).unwrap_err();
    drop(view);
    register(&registry, &region, &made).unwrap();
    let held = Held::new(&region.whole());
    drop(region);
    assert_eq!(Rc::strong_count(&made), 2, "an operation has it still");
    drop(held);
    assert_eq!(Rc::strong_count(&made), 1);
    let stores = Region::allocate(100, Usage::Stores, HugePages::No).unwrap();
    register(&registry, &stores, &made).unwrap();
    drop(stores.view(0..1).unwrap());
    assert_eq!(Rc::strong_count(&made), 2, "a device that only reads it may go on");
    drop(registry);
    assert_eq!(Rc::strong_count(&made), 1, "it goes with its device");
}

#[test]
fn no_slice_is_made_of_what_a_device_may_write_to() {
    let region = Region::new(10_000).unwrap();
    let held = Held::new(&region.fragment(100..9_000));
    assert!(Slices::shared().get(&held, 0..10).is_some());
    let (registry, made) = (Rc::new(Registry::default()), Rc::new(()));
    register(&registry, &region, &made).unwrap();
    assert!(Slices::shared().get(&held, 0..10).is_none());
    assert!(Slices::mutable().get_mut(&held, 0..10).is_none());
    // Its bytes are copied, and the checksum is that of the same ones.
    let mut next = 0u8;
    held.fill_pieces(50..8_900, |piece| {
        piece.iter_mut().for_each(|byte| {
            next = next.wrapping_mul(31).wrapping_add(1);
            *byte = next;
        });
    });
    let mut read = Vec::new();
    held.read_pieces(50..8_900, |piece| read.extend_from_slice(piece));
    let mut digest = Digest::new();
    held.add_to(&mut digest, 50..8_900);
    assert_eq!(digest.finalize(), crate::pdu::crc32c(&read));
    drop(registry);
    let slices = Slices::shared();
    let slice = slices.get(&held, 50..8_900).expect("nobody writes to it any more");
    assert!(*slice == read[..]);
}

#[test]
fn slices_of_one_call_never_overlap_and_keep_everybody_else_out() {
    let region = Region::new(100).unwrap();
    let held = |range| Held::new(&region.fragment(range));
    let (one, two, over) = (held(0..10), held(10..30), held(5..15));
    let slices = Slices::mutable();
    let mut first: IoSliceMut<'_> = slices.get_mut(&one, 0..10).unwrap();
    let mut second = slices.get_mut(&two, 5..20).unwrap();
    assert!(slices.get_mut(&over, 0..1).is_none(), "it lies before the last one");
    assert!(Slices::mutable().get_mut(&over, 0..1).is_none(), "another call has its slices out");
    assert!(Slices::shared().get(&over, 0..1).is_none());
    assert!(matches!(region.read(0, &mut [0]), Err(RegionError::Viewed)));
    first.fill(1);
    second.fill(2);
    drop(slices);
    let mut found = [0; 30];
    region.read(0, &mut found).unwrap();
    assert_eq!(found[..10], [1; 10]);
    assert_eq!((found[14], found[15], found[29]), (0, 2, 2));
}

#[test]
fn foreign_memory_goes_back_to_its_owner_with_the_last_handle() {
    let mut memory = Box::new([5u8; 64]);
    let (start, owner) = (memory.as_mut_ptr(), Rc::new(()));
    // SAFETY: the bytes are those of a box that lives until the end of this function, and nobody touches
    // them as long as there is a region.
    let region = unsafe { Region::foreign(start, 64, Usage::Stores, Rc::clone(&owner)) }.unwrap();
    let held = Held::new(&region.whole());
    assert!(matches!(region.write(0, b"no"), Err(RegionError::ReadOnly)));
    drop(region);
    assert_eq!(Rc::strong_count(&owner), 2);
    drop(held);
    assert_eq!(Rc::strong_count(&owner), 1);
    // SAFETY: a null pointer is refused, whatever it is said to be.
    let null = unsafe { Region::foreign(std::ptr::null_mut(), 64, Usage::Both, ()) };
    assert!(matches!(null, Err(RegionError::Null)));
}

#[test]
fn a_dma_buf_is_checked_for_its_length_and_has_no_bytes_here() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let clone = || OwnedFd::from(file.try_clone().unwrap());
    let region = Region::dma_buf(clone(), 4096, 4096, Usage::Both).unwrap();
    assert!(!region.is_visible());
    assert!(matches!(region.read(0, &mut [0]), Err(RegionError::Invisible)));
    assert!(matches!(region.view(0..1), Err(RegionError::Invisible)));
    let long = Region::dma_buf(clone(), 4096, 4097, Usage::Both);
    assert!(matches!(long, Err(RegionError::DmaBuf { .. })));
    let (pipe, _other) = io::pipe().unwrap();
    let pipe = Region::dma_buf(pipe.into(), 0, 1, Usage::Both);
    assert!(matches!(pipe, Err(RegionError::DmaBuf { .. })));
}
