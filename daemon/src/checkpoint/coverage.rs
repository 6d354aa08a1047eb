//! Do the boxes of all ranks tile their tensors? Exactly: no gap, no overlap, one shape, one type.
//!
//! Boxes that lie inside their tensor (the manifest's decoder sees to that), are pairwise disjoint,
//! and have as many elements together as the tensor, tile it; so disjointness is all the work there
//! is. A sweep along the dimension that is cut most often compares only boxes that meet there: that
//! is n·log n for row, column and grid shards. The comparisons are bounded, because boxes come from
//! the network and the reactor waits.

use super::Refusal;
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{NO_RANK, TensorBox};

/// The most pairs of boxes that one check compares.
const COMPARISONS_MAX: u64 = 1 << 24;

/// What is wrong with the boxes of one tensor, or with the chunk numbers of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw<'a> {
    /// Two ranks do not describe the same tensor.
    #[error("tensor {tensor:?}: rank {rank} has another shape or dtype than rank {with}")]
    Disagreement {
        /// Which tensor.
        tensor: &'a str,
        /// The rank to blame.
        rank: u32,
        /// Whom it contradicts.
        with: u32,
    },
    /// Two boxes share an element.
    #[error("tensor {tensor:?}: a box of rank {rank} overlaps one of rank {with}")]
    Overlap {
        /// Which tensor.
        tensor: &'a str,
        /// The one box's rank.
        rank: u32,
        /// The other's.
        with: u32,
    },
    /// Elements that no box holds.
    #[error("tensor {tensor:?}: boxes cover {covered} of {elements} elements")]
    Gap {
        /// Which tensor.
        tensor: &'a str,
        /// Elements in boxes.
        covered: u64,
        /// Elements of the tensor.
        elements: u64,
    },
    /// Two boxes of one rank use the same chunk number.
    #[error("tensor {tensor:?}: rank {rank} uses chunk {index} twice")]
    SharedChunk {
        /// The later tensor.
        tensor: &'a str,
        /// Whose.
        rank: u32,
        /// Which chunk.
        index: u32,
    },
    /// Too many boxes meet each other for the check to end in time.
    #[error("tensor {tensor:?}: cut into too many boxes that meet each other")]
    TooManyBoxes {
        /// Which tensor.
        tensor: &'a str,
    },
}

impl From<Flaw<'_>> for Refusal {
    fn from(flaw: Flaw<'_>) -> Self {
        let (status, rank) = match flaw {
            Flaw::Disagreement { rank, .. } | Flaw::SharedChunk { rank, .. } => {
                (Status::Malformed, u64::from(rank))
            }
            Flaw::Overlap { rank, .. } => (Status::Incomplete, u64::from(rank)),
            Flaw::Gap { .. } => (Status::Incomplete, NO_RANK),
            Flaw::TooManyBoxes { .. } => (Status::Malformed, NO_RANK),
        };
        Self::new(status, flaw.to_string()).naming(rank)
    }
}

/// Checks the boxes of all ranks, which have been decoded: each lies inside its tensor.
///
/// # Errors
/// The first [`Flaw`], in the order of tensor names.
pub fn check(tensors: &[TensorBox]) -> Result<(), Flaw<'_>> {
    check_chunk_numbers(tensors)?;
    let mut boxes: Vec<&TensorBox> = tensors.iter().collect();
    boxes.sort_by(|one, other| (&one.name, one.rank).cmp(&(&other.name, other.rank)));
    let mut comparisons = COMPARISONS_MAX;
    boxes
        .chunk_by_mut(|one, other| one.name == other.name)
        .try_for_each(|tensor| check_tensor(tensor, &mut comparisons))
}

/// No two boxes of a rank may share a chunk: both would be freed, verified and counted as one.
fn check_chunk_numbers(tensors: &[TensorBox]) -> Result<(), Flaw<'_>> {
    let mut boxes: Vec<&TensorBox> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    boxes.sort_by_key(|tensor| (tensor.rank, tensor.first_index));
    for pair in boxes.windows(2) {
        let end = u64::from(pair[0].first_index) + pair[0].chunk_count();
        let (rank, index) = (pair[1].rank, pair[1].first_index);
        if pair[0].rank == rank && end > u64::from(index) {
            return Err(Flaw::SharedChunk { tensor: &pair[1].name, rank, index });
        }
    }
    Ok(())
}

/// All boxes of one tensor.
fn check_tensor<'a>(boxes: &mut [&'a TensorBox], comparisons: &mut u64) -> Result<(), Flaw<'a>> {
    let Some(first) = boxes.first().copied() else { return Ok(()) };
    for other in boxes.iter().skip(1) {
        if !same_tensor(first, other) {
            let (rank, with) = (other.rank, first.rank);
            return Err(Flaw::Disagreement { tensor: &other.name, rank, with });
        }
    }
    check_disjoint(boxes, comparisons)?;
    let elements = first.global_elements().unwrap_or(u64::MAX);
    let covered: u64 = boxes.iter().map(|tensor| tensor.elements().unwrap_or(0)).sum();
    if covered == elements {
        Ok(())
    } else {
        Err(Flaw::Gap { tensor: &first.name, covered, elements })
    }
}

fn same_tensor(one: &TensorBox, other: &TensorBox) -> bool {
    one.dtype == other.dtype
        && one.dims.len() == other.dims.len()
        && one.dims.iter().zip(&other.dims).all(|(a, b)| a.global == b.global)
}

/// Sweeps along the dimension that is cut most often; a box is compared with those that reach it.
fn check_disjoint<'a>(boxes: &mut [&'a TensorBox], comparisons: &mut u64) -> Result<(), Flaw<'a>> {
    let axis = most_cut_axis(boxes);
    let span = |tensor: &TensorBox| match tensor.dims.get(axis) {
        Some(dim) => (dim.offset.get(), dim.end()),
        None => (0, 1), // a scalar: every box of it is all of it
    };
    boxes.sort_by_key(|tensor| span(tensor));
    let mut reaching: Vec<&'a TensorBox> = Vec::new();
    for tensor in boxes.iter().copied().filter(|tensor| tensor.elements() != Some(0)) {
        reaching.retain(|earlier| span(earlier).1 > span(tensor).0);
        *comparisons = comparisons
            .checked_sub(reaching.len() as u64)
            .ok_or(Flaw::TooManyBoxes { tensor: &tensor.name })?;
        if let Some(other) = reaching.iter().find(|other| meet(tensor, other)) {
            let (rank, with) = (tensor.rank.max(other.rank), tensor.rank.min(other.rank));
            return Err(Flaw::Overlap { tensor: &tensor.name, rank, with });
        }
        reaching.push(tensor);
    }
    Ok(())
}

/// Do two boxes of one tensor share an element? Neither is empty.
fn meet(one: &TensorBox, other: &TensorBox) -> bool {
    one.dims
        .iter()
        .zip(&other.dims)
        .all(|(a, b)| a.offset.get() < b.end() && b.offset.get() < a.end())
}

fn most_cut_axis(boxes: &[&TensorBox]) -> usize {
    let cuts = |axis: usize| {
        let mut offsets: Vec<u64> =
            boxes.iter().map(|tensor| tensor.dims[axis].offset.get()).collect();
        offsets.sort_unstable();
        offsets.dedup();
        offsets.len()
    };
    let dims = boxes.first().map_or(0, |tensor| tensor.dims.len());
    (0..dims).max_by_key(|axis| cuts(*axis)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_fabric::checkpoint::{CHUNK_BYTES_DEFAULT, Dim, Dtype};
    use proptest::prelude::*;

    /// A box of bytes, as a decoder would let it pass.
    fn tensor(name: &str, rank: u32, dims: &[(u64, u64, u64)]) -> TensorBox {
        TensorBox {
            name: name.to_owned(),
            dtype: Dtype::U8,
            rank,
            first_index: 0,
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            dims: dims.iter().map(|dim| Dim::new(dim.0, dim.1, dim.2)).collect(),
            bytes: dims.iter().map(|dim| dim.2).product(),
            chunks: Vec::new(),
        }
    }

    /// Numbers the chunks of each rank one behind the other.
    fn numbered(mut tensors: Vec<TensorBox>) -> Vec<TensorBox> {
        let mut next = std::collections::BTreeMap::new();
        for tensor in &mut tensors {
            let index = next.entry(tensor.rank).or_insert(0_u32);
            tensor.first_index = *index;
            *index += tensor.chunk_count() as u32;
        }
        tensors
    }

    #[test]
    fn grids_rows_and_pinwheels_tile() {
        let row = |rank: u32| tensor("w", rank, &[(8, u64::from(rank) * 2, 2), (3, 0, 3)]);
        assert_eq!(check(&numbered((0..4).map(row).collect())), Ok(()));
        // Five boxes that no straight cut separates.
        let wheel = [
            [(3, 0, 1), (3, 0, 2)],
            [(3, 0, 2), (3, 2, 1)],
            [(3, 2, 1), (3, 1, 2)],
            [(3, 1, 2), (3, 0, 1)],
            [(3, 1, 1), (3, 1, 1)],
        ];
        let wheel = (0..).zip(&wheel).map(|(rank, dims)| tensor("w", rank, dims)).collect();
        assert_eq!(check(&numbered(wheel)), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[tensor("scalar", 0, &[])]), Ok(()));
        assert_eq!(check(&[tensor("empty", 0, &[(0, 0, 0), (5, 0, 5)])]), Ok(()));
    }

    #[test]
    fn a_flaw_names_its_tensor_and_its_rank() {
        let gap = [tensor("w", 0, &[(4, 0, 1)]), tensor("w", 2, &[(4, 2, 2)])];
        assert_eq!(check(&gap), Err(Flaw::Gap { tensor: "w", covered: 3, elements: 4 }));
        let overlap = [tensor("w", 0, &[(4, 0, 3)]), tensor("w", 2, &[(4, 2, 2)])];
        assert_eq!(check(&overlap), Err(Flaw::Overlap { tensor: "w", rank: 2, with: 0 }));
        let scalars = [tensor("s", 0, &[]), tensor("s", 1, &[])];
        assert_eq!(check(&scalars), Err(Flaw::Overlap { tensor: "s", rank: 1, with: 0 }));
        let shapes = [tensor("w", 0, &[(4, 0, 2)]), tensor("w", 1, &[(5, 2, 2)])];
        let flaw = Flaw::Disagreement { tensor: "w", rank: 1, with: 0 };
        assert_eq!(check(&shapes), Err(flaw));
        let other = TensorBox { dtype: Dtype::I8, ..tensor("w", 1, &[(4, 2, 2)]) };
        assert_eq!(check(&[tensor("w", 0, &[(4, 0, 2)]), other]), Err(flaw));
        let twice = [tensor("a", 3, &[(4, 0, 4)]), tensor("b", 3, &[(4, 0, 4)])];
        let flaw = Flaw::SharedChunk { tensor: "b", rank: 3, index: 0 };
        assert_eq!(check(&twice), Err(flaw));
        assert_eq!(Refusal::from(flaw).result, 3);
    }

    /// Columns beside rows: whichever way the sweep goes, half of the boxes reach all others.
    #[test]
    fn a_check_that_would_take_too_long_is_given_up() {
        let comb = |side: u64| {
            let column = |at| tensor("w", at as u32, &[(2 * side, at, 1), (side, 0, side)]);
            let row =
                |at| tensor("w", (side + at) as u32, &[(2 * side, side, side), (side, at, 1)]);
            (0..side).map(column).chain((0..side).map(row)).collect::<Vec<_>>()
        };
        assert_eq!(check(&comb(500)), Ok(()));
        assert_eq!(check(&comb(6000)), Err(Flaw::TooManyBoxes { tensor: "w" }));
    }

    /// The oracle: paint every element.
    fn painted(shape: &[u64], boxes: &[Vec<(u64, u64)>]) -> (bool, bool) {
        let elements: u64 = shape.iter().product();
        let mut painted = vec![0_u32; elements as usize];
        for (place, count) in painted.iter_mut().enumerate() {
            let mut rest = place as u64;
            let at: Vec<u64> = shape
                .iter()
                .rev()
                .map(|extent| {
                    let coordinate = rest % extent;
                    rest /= extent;
                    coordinate
                })
                .collect();
            let inside = |dims: &&Vec<(u64, u64)>| {
                dims.iter()
                    .zip(at.iter().rev())
                    .all(|(dim, at)| (dim.0..dim.0 + dim.1).contains(at))
            };
            *count = boxes.iter().filter(inside).count() as u32;
        }
        (painted.iter().any(|count| *count > 1), painted.contains(&0))
    }

    fn build(shape: &[u64], boxes: &[Vec<(u64, u64)>]) -> Vec<TensorBox> {
        let boxes = (0..).zip(boxes).map(|(rank, dims)| {
            let dims: Vec<_> = shape.iter().zip(dims).map(|(g, dim)| (*g, dim.0, dim.1)).collect();
            tensor("w", rank, &dims)
        });
        numbered(boxes.collect())
    }

    /// Any boxes inside any small shape.
    fn any_boxes() -> impl Strategy<Value = (Vec<u64>, Vec<Vec<(u64, u64)>>)> {
        prop::collection::vec(1_u64..5, 0..4).prop_flat_map(|shape| {
            let dims: Vec<_> = shape
                .iter()
                .map(|global| {
                    let global = *global;
                    (0..=global).prop_flat_map(move |offset| (Just(offset), 0..=global - offset))
                })
                .collect();
            (Just(shape), prop::collection::vec(dims, 1..6))
        })
    }

    /// Boxes that tile, made by cutting, so that the good case is as frequent as the bad.
    fn cut_boxes() -> impl Strategy<Value = (Vec<u64>, Vec<Vec<(u64, u64)>>)> {
        let cuts = prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 0..12);
        (prop::collection::vec(1_u64..6, 1..4), cuts).prop_map(|(shape, cuts)| {
            let mut boxes = vec![shape.iter().map(|extent| (0, *extent)).collect::<Vec<_>>()];
            for (which, axis, place) in cuts {
                let cut = which as usize % boxes.len();
                let axis = axis as usize % shape.len();
                let (offset, extent) = boxes[cut][axis];
                let left = u64::from(place) % (extent + 1);
                let mut right = boxes[cut].clone();
                boxes[cut][axis] = (offset, left);
                right[axis] = (offset + left, extent - left);
                boxes.push(right);
            }
            (shape, boxes)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_check_agrees_with_painting_every_element((shape, boxes) in any_boxes()) {
            let (overlap, gap) = painted(&shape, &boxes);
            let tensors = build(&shape, &boxes);
            match check(&tensors) {
                Ok(()) => prop_assert!(!overlap && !gap),
                Err(Flaw::Overlap { .. }) => prop_assert!(overlap),
                Err(Flaw::Gap { .. }) => prop_assert!(gap && !overlap),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        #[test]
        fn what_was_cut_tiles_and_without_one_box_it_does_not(
            (shape, mut boxes) in cut_boxes(),
            lost in any::<u32>(),
        ) {
            let whole = build(&shape, &boxes);
            prop_assert_eq!(check(&whole), Ok(()));
            let lost = boxes.swap_remove(lost as usize % boxes.len());
            let empty = lost.iter().any(|dim| dim.1 == 0);
            prop_assert_eq!(check(&build(&shape, &boxes)).is_ok(), empty || boxes.is_empty());
        }
    }
}
