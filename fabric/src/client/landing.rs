//! Where the data of an answer lands that was asked for into fragments, and whether it is the right data.
//!
//! A value goes to its fragments in their order; of a batch, each item's data goes to a fragment of its
//! own. Checksums are computed over each piece as it lands, while it is still in the CPU's cache. However
//! the bytes come (behind a response, by a copy out of shared memory, or placed there by the server),
//! this is the only place that knows which belongs where.

use super::operation::Operation;
use crate::crc32c::Digest;
use crate::pdu::{DecodeError, ItemResult, Outcome};
use crate::region::Held;
use std::ops::Range;
use zerocopy::FromBytes;

/// What takes the data of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout<'a> {
    /// One value, over all of them.
    Value(&'a [Held]),
    /// Items of these lengths, each into its own.
    Items(&'a [Held], &'a [ItemResult]),
}

impl<'a> Layout<'a> {
    /// The `number`th fragment, and how many bytes it takes at most.
    fn piece(self, number: usize) -> Option<(&'a Held, usize)> {
        match self {
            Self::Value(held) => held.get(number).map(|one| (one, one.len() as usize)),
            Self::Items(held, results) => {
                let length = results.get(number)?.data_length.get();
                Some((held.get(number)?, length as usize))
            }
        }
    }
}

/// How far the data of one answer has landed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landing {
    bytes: usize,
    left: usize,
    /// Which fragment takes the next byte, and how many it has.
    number: usize,
    at: usize,
    digest: Digest,
    /// Items whose data is not what their results say, a bit each.
    broken: u64,
    /// Items (or with bit 0, the value) that landed where no processor sees them.
    unseen: u64,
}

/// What has landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Landed {
    pub bytes: u32,
    pub broken: u64,
    pub unseen: u64,
}

/// The results of a batch of `items`, at the beginning of `data`.
pub(super) fn results(data: &[u8], items: usize) -> &[ItemResult] {
    <[ItemResult]>::ref_from_prefix_with_elems(data, items).map_or(&[], |(found, _)| found)
}

impl Operation {
    /// What takes the data of an answer; `data` begins with the results of a batch.
    pub(super) fn layout<'a>(&'a self, data: &'a [u8]) -> Layout<'a> {
        match self.items.len() {
            0 => Layout::Value(&self.fragments),
            items => Layout::Items(&self.fragments, results(data, items)),
        }
    }
}

impl Landing {
    /// The data of an answer to `op`, behind the results of a batch in `data`.
    ///
    /// # Errors
    /// The results make no sense, or say more than was asked for.
    pub(super) fn begin(
        op: &Operation,
        outcome: &Outcome,
        data: &[u8],
    ) -> Result<Self, DecodeError> {
        let bytes = outcome.data_length as usize - data.len();
        if !op.items.is_empty() {
            let results = results(data, op.items.len());
            ItemResult::check_all(results, bytes, outcome.data_crc)?;
            let fits = |(result, item): (&ItemResult, &crate::pdu::Item)| {
                result.data_length.get() <= item.data_length.get()
            };
            if results.len() < op.items.len() || !results.iter().zip(&op.items).all(fits) {
                return Err(DecodeError::Length);
            }
        }
        Ok(Self::new(bytes))
    }

    /// So many bytes are to come.
    fn new(bytes: usize) -> Self {
        let digest = Digest::new();
        Self { bytes, left: bytes, number: 0, at: 0, digest, broken: 0, unseen: 0 }
    }

    /// Bytes that have not come.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Where the bytes that have not come go, in order.
    pub(super) fn pieces<'a>(
        &self,
        layout: Layout<'a>,
    ) -> impl Iterator<Item = (&'a Held, Range<usize>)> + use<'a> {
        let (mut number, mut at, mut left) = (self.number, self.at, self.left);
        std::iter::from_fn(move || {
            while left > 0 {
                let (held, length) = layout.piece(number)?;
                let (from, to) = (at, length.min(at + left));
                (number, at) = (number + 1, 0);
                left -= to - from;
                if from < to {
                    return Some((held, from..to));
                }
            }
            None
        })
    }

    /// The next `count` bytes have come, no more than are left: `put` brings each piece of them to its
    /// place, if it is not there yet.
    pub(super) fn advance(
        &mut self,
        layout: Layout<'_>,
        count: usize,
        mut put: impl FnMut(&Held, Range<usize>),
    ) {
        let until = self.left - count;
        while self.left > until {
            let Some((held, length)) = layout.piece(self.number) else {
                unreachable!("an answer is not longer than what it was asked into")
            };
            let range = self.at..length.min(self.at + self.left - until);
            if !range.is_empty() {
                put(held, range.clone());
                self.look_at(layout, held, range.clone());
            }
            (self.at, self.left) = (range.end, self.left - range.len());
            if self.at == length {
                self.end_piece(layout);
            }
        }
    }

    fn look_at(&mut self, layout: Layout<'_>, held: &Held, range: Range<usize>) {
        if held.region().is_visible() {
            held.add_to(&mut self.digest, range);
        } else {
            self.unseen |= self.bit(layout);
        }
    }

    fn bit(&self, layout: Layout<'_>) -> u64 {
        match layout {
            Layout::Value(_) => 1,
            Layout::Items(..) => 1 << self.number,
        }
    }

    fn end_piece(&mut self, layout: Layout<'_>) {
        if let Layout::Items(_, results) = layout
            && self.at > 0
        {
            let digest = std::mem::take(&mut self.digest);
            let bit = self.bit(layout);
            let differs = digest.finalize() != results[self.number].data_crc.get();
            if differs && self.unseen & bit == 0 {
                self.broken |= bit;
            }
        }
        (self.number, self.at) = (self.number + 1, 0);
    }

    /// All of a value has come, and is what the response says.
    pub(super) fn is_intact(&self, outcome: &Outcome) -> bool {
        self.bytes == 0 || self.unseen != 0 || self.digest.finalize() == outcome.data_crc
    }

    pub(super) fn landed(&self) -> Landed {
        Landed { bytes: self.bytes as u32, broken: self.broken, unseen: self.unseen }
    }
}

/// `count` bytes of `held`, one behind the other, from the `skip`th on.
pub(super) fn pieces(
    held: &[Held],
    mut skip: usize,
    mut count: usize,
) -> impl Iterator<Item = (&Held, Range<usize>)> {
    held.iter().filter_map(move |one| {
        let from = skip.min(one.len() as usize);
        let length = count.min(one.len() as usize - from);
        skip -= from;
        count -= length;
        (length > 0).then_some((one, from..from + length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;
    use crate::pdu::crc32c;
    use crate::region::Region;

    fn held(region: &Region, lengths: &[usize]) -> Vec<Held> {
        let mut at = 0;
        let fragments = lengths.iter().map(|length| {
            at += length;
            Held::new(&region.fragment(at - length..at))
        });
        fragments.collect()
    }

    fn outcome(data: &[u8]) -> Outcome {
        let data_crc = crc32c(data);
        let (status, data_length, result) = (Status::Ok, data.len() as u32, 0);
        Outcome { cid: 0, flags: 0, status, credit_limit: 1, data_length, result, data_crc }
    }

    /// Lands `data` in steps of `step`.
    fn land(landing: &mut Landing, layout: Layout<'_>, data: &[u8], step: usize) {
        for chunk in data.chunks(step) {
            let mut at = 0;
            landing.advance(layout, chunk.len(), |held, range| {
                held.put(range.start, &chunk[at..at + range.len()]);
                at += range.len();
            });
            assert_eq!(at, chunk.len());
        }
    }

    #[test]
    fn a_value_fills_its_fragments_in_their_order_however_it_comes() {
        let data: Vec<u8> = (1..=50).collect();
        for step in 1..=50 {
            let region = Region::new(100).unwrap();
            let fragments = held(&region, &[0, 7, 0, 20, 1, 40, 0]);
            let layout = Layout::Value(&fragments);
            let mut landing = Landing::new(50);
            land(&mut landing, layout, &data, step);
            assert!(landing.left() == 0 && landing.is_intact(&outcome(&data)));
            assert!(!landing.is_intact(&outcome(&data[1..])));
            assert_eq!(landing.landed(), Landed { bytes: 50, broken: 0, unseen: 0 });
            let mut found = [1; 100];
            region.read(0, &mut found).unwrap();
            assert!(found[..50] == data && found[50..] == [0; 50], "{step}");
        }
    }

    #[test]
    fn each_item_lands_in_its_own_fragment_and_is_checked_on_its_own() {
        let region = Region::new(400).unwrap();
        let fragments = held(&region, &[100, 100, 100, 100]);
        let data: [&[u8]; 4] = [b"short", b"", b"broken", b"last"];
        let result = |data: &[u8]| {
            let crc = crc32c(data) ^ u32::from(data == b"broken");
            ItemResult::new(Status::Ok, data.len() as u32, 0, crc)
        };
        let results = data.map(result);
        let joined = data.concat();
        for step in 1..=joined.len() {
            let layout = Layout::Items(&fragments, &results);
            let mut landing = Landing::new(joined.len());
            let places: Vec<_> = landing.pieces(layout).map(|(_, range)| range).collect();
            assert_eq!(places, [0..5, 0..6, 0..4]);
            land(&mut landing, layout, &joined, step);
            assert_eq!(landing.landed(), Landed { bytes: 15, broken: 0b100, unseen: 0 });
            for (number, item) in data.into_iter().enumerate() {
                let mut found = [1; 100];
                region.read(number * 100, &mut found).unwrap();
                assert!(found.starts_with(item) && found[item.len()..].iter().all(|b| *b == 0));
            }
        }
    }

    #[test]
    fn pieces_are_those_between_the_first_and_the_last_byte() {
        let region = Region::new(10).unwrap();
        let fragments = held(&region, &[3, 0, 6, 1]);
        let found = |skip, count| {
            let places = pieces(&fragments, skip, count);
            places.map(|(held, range)| (held.range().start, range)).collect::<Vec<_>>()
        };
        assert_eq!(found(0, 10), [(0, 0..3), (3, 0..6), (9, 0..1)]);
        assert_eq!(found(2, 3), [(0, 2..3), (3, 0..2)]);
        assert_eq!(found(3, 6), [(3, 0..6)]);
        assert_eq!(found(10, 0), []);
    }
}
