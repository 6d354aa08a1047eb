//! What regions promise on every transport: the same calls over byte streams, shared memory and queue
//! pairs.

use forebay_fabric::Status;
use forebay_fabric::client::{
    Came, Client, Connector, Done, NamespaceId, Pipeline, Request, RetrieveIntoItem, StoreFromItem,
};
use forebay_fabric::pdu::crc32c;
use forebay_fabric::region::{Fragment, HugePages, Region, Usage};
use std::os::fd::OwnedFd;

const NS: NamespaceId = NamespaceId(16);
/// What is in a region where nothing landed.
const BLANK: u8 = 0xa5;

/// All that regions promise, over a client whose server is well.
pub(crate) fn conform<C: Connector>(pipeline: Pipeline<C>, seed: u64) {
    let mut client = Client::over(pipeline);
    let mut rng = fastrand::Rng::with_seed(seed);
    values_of_every_size_land_in_fragments(&mut client, &mut rng);
    what_is_not_filled_is_untouched(&mut client, &mut rng);
    each_item_of_a_batch_lands_in_its_fragment(&mut client, &mut rng);
    memory_that_cannot_be_used_is_refused(&mut client);
    a_region_that_is_dropped_in_flight_lives_on(client.pipeline(), &mut rng);
    foreign_memory_is_sent_from_and_landed_in(&mut client, &mut rng);
    regions_and_buffers_mix_on_one_connection(client.pipeline(), &mut rng);
}

pub(crate) fn bytes(rng: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}

pub(crate) fn blank(length: usize) -> Region {
    let region = Region::new(length).unwrap();
    region.write(0, &vec![BLANK; length]).unwrap();
    region
}

pub(crate) fn read(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.bytes()];
    region.read(0, &mut bytes).unwrap();
    bytes
}

/// `length` bytes of a region, cut anywhere into `count` fragments with gaps between them.
fn cut(
    region: &Region,
    length: usize,
    count: usize,
    rng: &mut fastrand::Rng,
) -> (Vec<Fragment>, Vec<usize>) {
    let mut cuts: Vec<_> = (1..count).map(|_| rng.usize(0..=length)).collect();
    cuts.extend([0, length]);
    cuts.sort_unstable();
    let mut at = 0;
    let pieces = cuts.windows(2).map(|pair| {
        at += rng.usize(0..5);
        let begin = at;
        at += pair[1] - pair[0];
        (region.fragment(begin..at), begin..at)
    });
    let (fragments, ranges): (Vec<_>, Vec<_>) = pieces.unzip();
    (fragments, ranges.into_iter().flatten().collect())
}

fn values_of_every_size_land_in_fragments<C: Connector>(
    client: &mut Client<C>,
    rng: &mut fastrand::Rng,
) {
    let sizes = [0, 1, 100, 4096, 5000, 65_536, 65_537, 1 << 20, 4 << 20];
    for (length, count) in sizes.into_iter().flat_map(|size| [1, 2, 7, 128].map(|n| (size, n))) {
        let told = format!("{length} bytes, {count} fragments");
        let value = bytes(rng, length);
        let from = Region::allocate(length + 4096, Usage::Stores, HugePages::No).unwrap();
        let (fragments, places) = cut(&from, length, count, rng);
        let mut laid = bytes(rng, length + 4096);
        places.iter().zip(&value).for_each(|(at, byte)| laid[*at] = *byte);
        from.write(0, &laid).unwrap();
        client.store_from(NS, b"key", &fragments).unwrap();
        assert_eq!(client.retrieve(NS, b"key").unwrap().as_deref(), Some(&*value), "{told}");
        let into = blank(length + 4096);
        let (mut fragments, places) = cut(&into, length, count, rng);
        if rng.bool() {
            // Not in the order of their addresses, either.
            fragments = vec![into.fragment(into.bytes() - length / 2..into.bytes())];
            fragments.push(into.fragment(0..length - length / 2));
        }
        let came = client.retrieve_into(NS, b"key", 0, &fragments).unwrap();
        let all = Came { value_bytes: length as u64, length: length as u32, unchecked_crc: None };
        assert_eq!(came, Some(all), "{told}");
        assert!(from.is_idle() && into.is_idle(), "{told}");
        let found = read(&into);
        if let [back, front] = fragments.as_slice()
            && back.range().start > front.range().start
        {
            let landed = [&found[back.range()], &found[front.range()]].concat();
            assert!(landed == value, "{told}");
            continue;
        }
        let mut expected = vec![BLANK; length + 4096];
        places.iter().zip(&value).for_each(|(at, byte)| expected[*at] = *byte);
        assert!(found == expected, "{told}");
    }
}

fn what_is_not_filled_is_untouched<C: Connector>(client: &mut Client<C>, rng: &mut fastrand::Rng) {
    for length in [10, 5_000, 200_000] {
        let value = bytes(rng, length);
        client.store(NS, b"short", value.clone()).unwrap();
        let into = blank(2 * length);
        let fragments = [into.fragment(0..length / 3), into.fragment(length / 3 + 1..2 * length)];
        let came = client.retrieve_into(NS, b"short", 3, &fragments).unwrap().unwrap();
        assert_eq!((came.value_bytes, came.length), (length as u64, length as u32 - 3));
        let found = read(&into);
        let (front, back) = value[3..].split_at(length / 3);
        assert!(found[..length / 3] == *front && found[length / 3] == BLANK);
        assert!(found[length / 3 + 1..].starts_with(back));
        assert!(found[length - 2..].iter().all(|byte| *byte == BLANK));
        let few = [into.fragment(0..4)];
        let came = client.retrieve_into(NS, b"short", 0, &few).unwrap().unwrap();
        assert_eq!((came.value_bytes, came.length), (length as u64, 4));
        assert!(read(&into)[..5] == [&value[..4], &[found[4]]].concat());
    }
    let into = blank(100);
    assert_eq!(client.retrieve_into(NS, b"none", 0, &[into.whole()]).unwrap(), None);
    assert!(read(&into) == [BLANK; 100] && into.is_idle());
}

fn each_item_of_a_batch_lands_in_its_fragment<C: Connector>(
    client: &mut Client<C>,
    rng: &mut fastrand::Rng,
) {
    let values: Vec<(Vec<u8>, Vec<u8>)> = (0..128u16)
        .map(|number| {
            let length = if number % 16 == 0 { 0 } else { rng.usize(0..30_000) };
            (number.to_be_bytes().to_vec(), bytes(rng, length))
        })
        .collect();
    let from = Region::new(128 * 30_000).unwrap();
    let place = |region: &Region, number: usize, length: usize| {
        region.fragment(number * 30_000..number * 30_000 + length)
    };
    let items: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(number, (key, value))| {
            from.write(number * 30_000, value).unwrap();
            StoreFromItem { key, fragment: place(&from, number, value.len()) }
        })
        .collect();
    let ended = client.store_batch_from(NS, &items).unwrap();
    assert!(ended.iter().all(|status| *status == Status::Ok), "{ended:?}");
    // Some items are longer than what there is, and some are not there at all.
    let into = blank(128 * 30_000);
    let keys: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(number, (key, _))| if number % 10 == 3 { b"none".to_vec() } else { key.clone() })
        .collect();
    let items: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| {
            let more = if number % 3 == 0 { 30_000 } else { values[number].1.len() };
            RetrieveIntoItem { key, offset: 0, fragment: place(&into, number, more) }
        })
        .collect();
    let ended = client.retrieve_batch_into(NS, &items).unwrap();
    assert!(into.is_idle());
    let found = read(&into);
    for (number, ended) in ended.into_iter().enumerate() {
        let value: &[u8] = if number % 10 == 3 {
            assert_eq!(ended, Err(Status::NotFound));
            &[]
        } else {
            let length = values[number].1.len();
            let came =
                Came { value_bytes: length as u64, length: length as u32, unchecked_crc: None };
            assert_eq!(ended, Ok(came));
            &values[number].1
        };
        let place = &found[number * 30_000..(number + 1) * 30_000];
        assert!(place.starts_with(value), "item {number}");
        assert!(place[value.len()..].iter().all(|byte| *byte == BLANK), "item {number}");
    }
}

fn status<C: Connector>(client: &mut Client<C>, request: Request<'_>) -> Status {
    client.pipeline().call(request).unwrap().status
}

fn memory_that_cannot_be_used_is_refused<C: Connector>(client: &mut Client<C>) {
    let region = Region::new(1000).unwrap();
    let whole = [region.whole()];
    let view = region.view(0..10).unwrap();
    assert_eq!(status(client, Request::store_from(NS, b"key", &whole)), Status::Memory);
    assert_eq!(status(client, Request::retrieve_into(NS, b"key", 0, &whole)), Status::Memory);
    let items = [RetrieveIntoItem { key: b"key", offset: 0, fragment: region.whole() }];
    assert_eq!(status(client, Request::retrieve_batch_into(NS, &items)), Status::Memory);
    drop(view);
    for usage in [Usage::Stores, Usage::Retrieves] {
        let region = Region::allocate(1000, usage, HugePages::No).unwrap();
        let whole = [region.whole()];
        let stored = status(client, Request::store_from(NS, b"key", &whole));
        let retrieved = status(client, Request::retrieve_into(NS, b"key", 0, &whole));
        let refused = (stored == Status::Memory, retrieved == Status::Memory);
        assert_eq!(refused, (!usage.stores(), !usage.retrieves()), "{usage:?}");
    }
    let many: Vec<_> = (0..257).map(|at| region.fragment(at..at + 1)).collect();
    assert_eq!(status(client, Request::store_from(NS, b"key", &many)), Status::Malformed);
    assert_eq!(status(client, Request::store_from(NS, b"key", &many[1..])), Status::Ok);
    let large = Region::new((4 << 20) + 1).unwrap();
    let whole = [large.whole()];
    assert_eq!(status(client, Request::store_from(NS, b"key", &whole)), Status::ValueLength);
    // What stands for a dma-buf here is one as far as this side can tell.
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let device = Region::dma_buf(OwnedFd::from(file), 0, 8192, Usage::Both).unwrap();
    let whole = [device.whole()];
    assert_eq!(status(client, Request::store_from(NS, b"key", &whole)), Status::Memory);
    let known = Request::store_from(NS, b"key", &whole).with_data_crc(1);
    assert_eq!(status(client, known), Status::Memory);
    assert_eq!(status(client, Request::retrieve_into(NS, b"key", 0, &whole)), Status::Memory);
    let error = client.register(&device).unwrap_err().to_string();
    assert!(error.contains("dma-buf"), "{error}");
    assert!(region.is_idle() && device.is_idle() && large.is_idle());
    client.register(&region).unwrap();
    assert_eq!(client.retrieve(NS, b"key").unwrap(), Some(vec![0; 256]));
}

fn finish<C: Connector>(pipeline: &mut Pipeline<C>) -> Vec<Done> {
    let mut done = Vec::new();
    while pipeline.in_flight() > 0 {
        pipeline.poll(&mut done, 1_000_000).unwrap();
    }
    done
}

fn a_region_that_is_dropped_in_flight_lives_on<C: Connector>(
    pipeline: &mut Pipeline<C>,
    rng: &mut fastrand::Rng,
) {
    let value = bytes(rng, 300_000);
    let from = Region::new(300_000).unwrap();
    from.write(0, &value).unwrap();
    let into = blank(300_000);
    pipeline.submit(Request::store_from(NS, b"gone", &[from.whole()])).unwrap();
    drop(from);
    assert_eq!(finish(pipeline)[0].status, Status::Ok);
    pipeline.submit(Request::retrieve_into(NS, b"gone", 0, &[into.whole()])).unwrap();
    drop(into);
    let done = finish(pipeline).remove(0);
    assert_eq!((done.status, done.length), (Status::Ok, 300_000));
    let done = pipeline.call(Request::retrieve(NS, b"gone", 0, u32::MAX)).unwrap();
    assert!(done.data == value);
}

#[expect(unsafe_code, reason = "a test of memory that is not the region's own")]
fn foreign_memory_is_sent_from_and_landed_in<C: Connector>(
    client: &mut Client<C>,
    rng: &mut fastrand::Rng,
) {
    let mut memory = bytes(rng, 100_000);
    let value = memory.clone();
    let start = memory.as_mut_ptr();
    // SAFETY: the vector is neither moved nor touched as long as there is a region over it.
    let region = unsafe { Region::foreign(start, 50_000, Usage::Stores, ()) }.unwrap();
    client.store_from(NS, b"foreign", &[region.whole()]).unwrap();
    drop(region);
    // SAFETY: as above; these are the bytes behind the first ones.
    let region = unsafe { Region::foreign(start.add(50_000), 50_000, Usage::Both, ()) }.unwrap();
    let came = client.retrieve_into(NS, b"foreign", 0, &[region.fragment(10..50_000)]).unwrap();
    assert_eq!(came.unwrap().length, 49_990);
    drop(region);
    assert!(memory[50_010..] == value[..49_990] && memory[..50_010] == value[..50_010]);
}

fn regions_and_buffers_mix_on_one_connection<C: Connector>(
    pipeline: &mut Pipeline<C>,
    rng: &mut fastrand::Rng,
) {
    let value = bytes(rng, 150_000);
    let store = Request::store(NS, b"mixed", value.clone().into()).with_data_crc(crc32c(&value));
    assert_eq!(pipeline.call(store).unwrap().status, Status::Ok);
    let into = blank(16 * 150_000);
    let fragments: Vec<_> =
        (0..16).map(|n| [into.fragment(n * 150_000..(n + 1) * 150_000)]).collect();
    for (tag, fragments) in (0..).zip(&fragments) {
        let into_region = Request::retrieve_into(NS, b"mixed", 0, fragments);
        pipeline.submit(into_region.with_tag(tag)).unwrap();
        let most = rng.u32(0..200_000);
        pipeline.submit(Request::retrieve(NS, b"mixed", 0, most).with_tag(100 + tag)).unwrap();
    }
    for done in finish(pipeline) {
        assert_eq!(done.status, Status::Ok);
        assert!(value.starts_with(&done.data) && (done.tag >= 100 || done.data.is_empty()));
    }
    assert!(read(&into).chunks(150_000).all(|chunk| chunk == value));
}
