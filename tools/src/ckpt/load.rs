//! `forebay ckpt load`: a checkpoint back into the file that it was, or no file at all.

use super::catalog::Catalog;
use super::safetensors::Header;
use super::transfer::{Timing, Transfer, check};
use super::{Depth, check_name, shown};
use crate::clock;
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use crate::progress::Progress;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use forebay_fabric::checkpoint::{Chunk, ChunkKey, Dim, Manifest, TensorBox};
use forebay_fabric::client::{Connector, Done, NamespaceId, Request, Target};
use forebay_fabric::pdu::{Opcode, crc32c};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zerocopy::IntoBytes;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint
    name: String,
    /// The file to write; it appears when it is whole
    out: PathBuf,
    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    depth: Depth,
}

/// One chunk, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    key: ChunkKey,
    chunk: Chunk,
    offset: u64,
}

/// How the file is put together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    header: Header,
    pieces: Vec<Piece>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let Args { name, out, force, depth } = args;
    check_name(name)?;
    if !force && out.symlink_metadata().is_ok() {
        let what = format!("{} is there already; --force replaces it", shown(out));
        return Err(Failure::new(Code::Refused, what).into());
    }
    let started_ns = clock::now_ns();
    let mut catalog = Catalog::connect(context)?;
    let plan = Plan::of(catalog.manifest(name)?).with_context(|| name.clone())?;
    let progress = context.progress(plan.header.file_bytes, &format!("load {name}"));
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let file = NamedTempFile::with_prefix_in(".forebay-load-", folder)
        .with_context(|| format!("cannot write in {}", shown(folder)))?;
    let mut timing = fetch(&mut catalog, &plan, file.as_file(), depth.depth, &progress)
        .with_context(|| name.clone())?;
    keep(file, out, folder, *force).with_context(|| format!("cannot write {}", shown(out)))?;
    timing.seconds = clock::seconds_between(started_ns, clock::now_ns());
    progress.finish();
    report(name, out, &plan, &timing, context)
}

/// Retrieves every chunk, verifies it, and writes it in its place.
pub(super) fn fetch<C: Connector>(
    catalog: &mut Catalog<C>,
    plan: &Plan,
    file: &File,
    depth: u32,
    progress: &Progress,
) -> anyhow::Result<Timing> {
    file.set_len(plan.header.file_bytes)?;
    file.write_all_at(&plan.header.bytes, 0)?;
    let mut transfer = Transfer::new(&mut catalog.pipeline, progress, depth);
    transfer.skip(plan.header.bytes.len() as u64);
    let mut write = |at: u64, done: &Done| {
        let piece = &plan.pieces[at as usize];
        let what = format!("chunk {}", piece.key.index);
        check(done, &what)?;
        if Chunk::new(done.data.len() as u32, crc32c(&done.data)) != piece.chunk {
            let what = format!("{what} is not what was saved; nothing was written");
            return Err(Failure::new(Code::Integrity, what).into());
        }
        file.write_all_at(&done.data, piece.offset).context("writing the file")
    };
    for (at, piece) in (0..).zip(&plan.pieces) {
        let length = piece.chunk.length.get();
        let request = |_: Bytes| read_request(&piece.key, length);
        transfer.send(at, length.into(), Bytes::new(), request, &mut write)?;
    }
    transfer.finish(&mut write)
}

fn read_request(key: &ChunkKey, length: u32) -> Request<'_> {
    let namespace = NamespaceId::CHECKPOINT;
    let (key, nothing) = (key.as_bytes(), Bytes::new());
    Request::command(Opcode::CheckpointRead, Target::Key, namespace, key, nothing).range(0, length)
}

/// Gives the whole file its name, durably.
fn keep(file: NamedTempFile, out: &Path, folder: &Path, force: bool) -> anyhow::Result<()> {
    file.as_file().sync_all()?;
    let kept = if force { file.persist(out) } else { file.persist_noclobber(out) };
    let kept = kept.map_err(|error| error.error)?;
    // Temporary files are for their owner alone; this one is a file like any other now.
    let mask = current_umask();
    kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666 & !mask))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The mask by which this process makes files.
fn current_umask() -> u32 {
    use nix::sys::stat::{Mode, umask};
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    mask.bits()
}

impl Plan {
    /// How the file of one rank is put together; its header must describe just these tensors.
    pub(super) fn of(manifest: Manifest) -> anyhow::Result<Self> {
        let Manifest { session, world, mut attachments, mut tensors, .. } = manifest;
        let (Some(attachment), 1, true) = (attachments.pop(), world, attachments.is_empty()) else {
            let what = format!(
                "saved by {world} ranks, not from one safetensors file; load cannot write it as one yet"
            );
            return Err(Failure::new(Code::Failure, what).into());
        };
        let data_bytes = tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
        let file_bytes = data_bytes.saturating_add(attachment.bytes.len() as u64);
        let header =
            Header::parse(attachment.bytes, file_bytes).context("the header that was saved")?;
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        ensure!(tensors.len() == header.tensors.len(), "its header describes other tensors");
        let mut pieces = Vec::new();
        for described in &header.tensors {
            let found = tensors.binary_search_by(|tensor| tensor.name.cmp(&described.name));
            let tensor = found.map(|at| &tensors[at]).ok().filter(|tensor| {
                tensor.dtype == described.dtype
                    && tensor.bytes == described.bytes
                    && tensor.dims.iter().eq(&whole(&described.shape))
            });
            let tensor = tensor.with_context(|| {
                format!("its header describes another tensor {:?}", described.name)
            })?;
            pieces.extend(pieces_of(session, tensor, described.offset));
        }
        Ok(Self { header, pieces })
    }
}

fn whole(shape: &[u64]) -> Vec<Dim> {
    shape.iter().map(|extent| Dim::whole(*extent)).collect()
}

fn pieces_of(
    session: forebay_fabric::checkpoint::SessionId,
    tensor: &TensorBox,
    offset: u64,
) -> impl Iterator<Item = Piece> {
    (0..).zip(&tensor.chunks).map(move |(nth, chunk)| Piece {
        key: ChunkKey::new(session, tensor.rank, tensor.first_index + nth),
        chunk: *chunk,
        offset: offset + u64::from(nth) * u64::from(tensor.chunk_bytes),
    })
}

fn report(
    name: &str,
    out: &Path,
    plan: &Plan,
    timing: &Timing,
    context: &Context,
) -> anyhow::Result<()> {
    let mut value = json!({
        "name": name,
        "file": shown(out),
        "bytes": plan.header.file_bytes,
        "tensors": plan.header.tensors.len(),
        "chunks": plan.pieces.len(),
    });
    timing.add_to(&mut value);
    context.emit(&value, || {
        format!(
            "loaded {name}: {} in {} tensors, every chunk verified, {:.2} s ({})",
            output::bytes(plan.header.file_bytes),
            plan.header.tensors.len(),
            timing.seconds,
            output::rate(timing.bytes, timing.seconds),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_fabric::checkpoint::{Attachment, Dtype, SessionId};

    /// A checkpoint of two tensors, as `save` makes it, and its header.
    fn manifest() -> Manifest {
        let json = br#"{"b":{"dtype":"U8","shape":[5242880],"data_offsets":[4,5242884]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let header = [&(json.len() as u64).to_le_bytes()[..], json].concat();
        let a = TensorBox {
            name: "a".to_owned(),
            dtype: Dtype::F32,
            rank: 0,
            first_index: 0,
            chunk_bytes: 4 << 20,
            dims: vec![Dim::whole(1)],
            bytes: 4,
            chunks: vec![Chunk::new(4, 1)],
        };
        let b = TensorBox {
            name: "b".to_owned(),
            dtype: Dtype::U8,
            first_index: 1,
            dims: vec![Dim::whole(5 << 20)],
            bytes: 5 << 20,
            chunks: vec![Chunk::new(4 << 20, 2), Chunk::new(1 << 20, 3)],
            ..a.clone()
        };
        Manifest {
            session: SessionId([1; 16]),
            epoch: 0,
            world: 1,
            attachments: vec![Attachment { rank: 0, bytes: header }],
            tensors: vec![b, a],
        }
    }

    #[test]
    fn chunks_go_where_the_header_says_their_tensor_lies() {
        let plan = Plan::of(manifest()).unwrap();
        let start = plan.header.bytes.len() as u64;
        let places: Vec<_> =
            plan.pieces.iter().map(|piece| (piece.key.index.get(), piece.offset - start)).collect();
        assert_eq!(places, [(0, 0), (1, 4), (2, 4 + (4 << 20))]);
        assert_eq!(plan.header.file_bytes, start + 4 + (5 << 20));
    }

    #[test]
    fn a_header_that_is_not_of_these_tensors_is_refused() {
        let change = |change: fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            format!("{:#}", Plan::of(manifest).unwrap_err())
        };
        assert!(change(|m| m.world = 2).contains("2 ranks"));
        assert!(change(|m| m.attachments.clear()).contains("not from one safetensors file"));
        assert!(change(|m| m.tensors[1].name = "c".to_owned()).contains(r#"another tensor "a""#));
        assert!(change(|m| m.tensors[1].dtype = Dtype::I32).contains(r#"another tensor "a""#));
        assert!(change(|m| m.tensors[1].dims = vec![]).contains(r#"another tensor "a""#));
        assert!(change(|m| drop(m.tensors.pop())).contains("missing"));
        assert!(change(|m| m.attachments[0].bytes[9] ^= 1).contains("header"));
    }

    #[test]
    fn a_file_appears_whole_and_replaces_only_when_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let written = |content: &[u8], force| {
            let file = NamedTempFile::new_in(folder.path()).unwrap();
            file.as_file().write_all_at(content, 0).unwrap();
            keep(file, &out, folder.path(), force)
        };
        written(b"one", false).unwrap();
        assert!(written(b"two", false).is_err());
        assert_eq!(std::fs::read(&out).unwrap(), b"one");
        written(b"three", true).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
