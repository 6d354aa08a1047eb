//! `forebay ckpt save`: a safetensors file, in chunks, as one checkpoint.

use super::catalog::{Catalog, Refused};
use super::safetensors::{Header, Tensor};
use super::transfer::{Timing, Transfer, check};
use super::{Depth, check_name, shown};
use crate::clock;
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use crate::progress::Progress;
use anyhow::{Context as _, bail};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{
    Attachment, BeginAnswer, CHUNK_ALIGN_BYTES, CHUNK_BYTES_DEFAULT, Chunk, ChunkKey, Dim,
    Manifest, SessionId, TensorBox,
};
use forebay_fabric::client::{Connector, Done, NamespaceId, Request, Target};
use forebay_fabric::pdu::{Opcode, crc32c};
use serde_json::json;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use zerocopy::IntoBytes;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The safetensors file
    file: std::path::PathBuf,
    /// The checkpoint: run/step or tenant/run/step
    name: String,
    /// The epoch of the job: a higher one shuts out everything that a lower one still does.
    /// Without it, an interrupted save is taken up whatever its epoch
    #[arg(long)]
    epoch: Option<u64>,
    #[command(flatten)]
    depth: Depth,
}

/// The file that is saved, and what tells whether it changed meanwhile.
pub(super) struct Source {
    file: File,
    stamp: Stamp,
    header: Header,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Source {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", shown(path)))?;
        let metadata = file.metadata().with_context(|| shown(path))?;
        if !metadata.is_file() {
            bail!("{} is not a file", shown(path));
        }
        let header = Header::read(&file, metadata.len()).with_context(|| shown(path))?;
        Ok(Self { file, stamp: Stamp::of(&metadata), header })
    }

    fn has_changed(&self) -> anyhow::Result<bool> {
        Ok(Stamp::of(&self.file.metadata()?) != self.stamp)
    }
}

/// What became of an upload.
enum Upload {
    /// Every chunk is there; these are the boxes with their checksums.
    Whole(Vec<TensorBox>, Timing),
    /// The open session holds other bytes: it was begun with another file.
    Differs,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let Args { file, name, epoch, depth } = args;
    check_name(name)?;
    let source = Source::open(file)?;
    let mut catalog = Catalog::connect(context)?;
    let started_ns = clock::now_ns();
    let progress = context.progress(source.header.file_bytes, &format!("save {name}"));
    let (manifest, mut timing) = save(&mut catalog, &source, name, *epoch, depth.depth, &progress)?;
    timing.seconds = clock::seconds_between(started_ns, clock::now_ns());
    progress.finish();
    report(name, &source.header, &manifest, &timing, context)
}

/// Saves `source` as checkpoint `name`; what was committed, and what it took.
pub(super) fn save<C: Connector>(
    catalog: &mut Catalog<C>,
    source: &Source,
    name: &str,
    epoch: Option<u64>,
    depth: u32,
    progress: &Progress,
) -> anyhow::Result<(Manifest, Timing)> {
    let mut begun = catalog.begin(name, epoch)?;
    let (tensors, timing) = loop {
        match upload(catalog, source, &begun, depth, progress) {
            Ok(Upload::Whole(tensors, timing)) => break (tensors, timing),
            Ok(Upload::Differs) if epoch.is_none() => {
                // What is there is of no use: shut it out, and begin at the beginning.
                begun = catalog.begin(name, Some(begun.epoch.get() + 1))?;
                progress.set(0);
            }
            Ok(Upload::Differs) => return Err(other_file(name, begun.epoch.get())),
            Err(error) => return Err(error.context(resume_hint(name))),
        }
    };
    if source.has_changed()? {
        catalog.abort(begun.session)?;
        bail!("the file changed while it was saved; nothing was kept");
    }
    let manifest = Manifest {
        session: begun.session,
        epoch: begun.epoch.get(),
        world: 1,
        attachments: vec![Attachment { rank: 0, bytes: source.header.bytes.clone() }],
        tensors,
    };
    finish(catalog, &manifest).map_err(|error| error.context(resume_hint(name)))?;
    Ok((manifest, timing))
}

/// Puts every chunk that the session does not have.
fn upload<C: Connector>(
    catalog: &mut Catalog<C>,
    source: &Source,
    begun: &BeginAnswer,
    depth: u32,
    progress: &Progress,
) -> anyhow::Result<Upload> {
    let mut boxes = boxes(&source.header.tensors, begun.chunk_bytes_max.get())?;
    let states = catalog.reserve(begun.session, &boxes)?;
    let mut states = states.iter();
    let mut transfer = Transfer::new(&mut catalog.pipeline, progress, depth);
    let mut differs = false;
    let mut put = |index: u64, done: &Done| match done.status {
        // A chunk never changes: another save of this name has put its own.
        Status::CheckpointExists => {
            differs = true;
            Ok(())
        }
        _ => check(done, &format!("chunk {index}")),
    };
    transfer.skip(source.header.bytes.len() as u64);
    for (tensor, at) in boxes.iter_mut().zip(&source.header.tensors) {
        for nth in 0..tensor.chunk_count() {
            let (length, index) = (tensor.chunk_length(nth), tensor.first_index + nth as u32);
            let mut buffer = transfer.buffer(length as usize);
            let offset = at.offset + nth * u64::from(tensor.chunk_bytes);
            source.file.read_exact_at(&mut buffer, offset).context("reading the file")?;
            let chunk = Chunk::new(length, crc32c(&buffer));
            tensor.chunks.push(chunk);
            match states.next() {
                Some(state) if *state == chunk => transfer.skip(length.into()),
                Some(state) if state.length.get() != 0 => {
                    transfer.finish(&mut put)?;
                    return Ok(Upload::Differs);
                }
                _ => {
                    let key = ChunkKey::new(begun.session, 0, index);
                    let request = |data| put_request(&key, data);
                    transfer.send(
                        index.into(),
                        length.into(),
                        buffer.freeze(),
                        request,
                        &mut put,
                    )?;
                }
            }
        }
    }
    let timing = transfer.finish(&mut put)?;
    Ok(if differs { Upload::Differs } else { Upload::Whole(boxes, timing) })
}

fn put_request(key: &ChunkKey, data: bytes::Bytes) -> Request<'_> {
    let namespace = NamespaceId::CHECKPOINT;
    Request::command(Opcode::CheckpointPut, Target::Key, namespace, key.as_bytes(), data)
}

/// The file's tensors as boxes, still without chunks: each is all of its tensor.
fn boxes(tensors: &[Tensor], chunk_bytes_max: u32) -> anyhow::Result<Vec<TensorBox>> {
    let chunk_bytes =
        CHUNK_BYTES_DEFAULT.min(chunk_bytes_max) / CHUNK_ALIGN_BYTES * CHUNK_ALIGN_BYTES;
    let mut next_index = 0_u64;
    let mut boxes = Vec::with_capacity(tensors.len());
    for Tensor { name, dtype, shape, bytes, .. } in tensors {
        let tensor = TensorBox {
            name: name.clone(),
            dtype: *dtype,
            rank: 0,
            first_index: u32::try_from(next_index).context("the file has too many chunks")?,
            chunk_bytes,
            dims: shape.iter().map(|extent| Dim::whole(*extent)).collect(),
            bytes: *bytes,
            chunks: Vec::new(),
        };
        tensor.check(false).with_context(|| format!("tensor {name:?}"))?;
        next_index += tensor.chunk_count();
        boxes.push(tensor);
    }
    Ok(boxes)
}

fn finish<C: Connector>(catalog: &mut Catalog<C>, manifest: &Manifest) -> anyhow::Result<()> {
    let session: SessionId = manifest.session;
    let sealed: Result<(), Refused> = catalog.seal(session, &manifest.encode());
    sealed.and_then(|()| catalog.commit(session))?;
    Ok(())
}

fn other_file(name: &str, epoch: u64) -> anyhow::Error {
    let what = format!(
        "an unfinished save of {name} under epoch {epoch} holds other bytes; \
         save with --epoch {} to shut it out",
        epoch + 1
    );
    Failure::new(Code::Refused, what).into()
}

fn resume_hint(name: &str) -> String {
    format!("{name} was not saved; save it again, and only what is missing is sent")
}

fn report(
    name: &str,
    header: &Header,
    manifest: &Manifest,
    timing: &Timing,
    context: &Context,
) -> anyhow::Result<()> {
    let mut value = json!({
        "name": name,
        "bytes": header.file_bytes,
        "tensors": manifest.tensors.len(),
        "chunks": manifest.chunk_count(),
        "epoch": manifest.epoch,
        "session": manifest.session.to_string(),
        "sent_chunks": timing.chunks,
        "sent_bytes": timing.bytes,
    });
    timing.add_to(&mut value);
    context.emit(&value, || {
        let there = manifest.chunk_count() - timing.chunks;
        let resumed = match there {
            0 => String::new(),
            there => format!("; {there} chunks were there already"),
        };
        format!(
            "saved {name}: {} in {} tensors, {} chunks, {:.2} s ({}){resumed}",
            output::bytes(header.file_bytes),
            manifest.tensors.len(),
            manifest.chunk_count(),
            timing.seconds,
            output::rate(timing.bytes, timing.seconds),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_fabric::checkpoint::Dtype;

    #[test]
    fn boxes_number_their_chunks_one_behind_the_other() {
        let tensor = |name: &str, bytes: u64| Tensor {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape: vec![bytes],
            offset: 0,
            bytes,
        };
        let tensors =
            [tensor("a", 9 << 20), tensor("none", 0), tensor("b", 1), tensor("c", 8 << 20)];
        let boxes = boxes(&tensors, 4 << 20).unwrap();
        let numbers: Vec<_> =
            boxes.iter().map(|tensor| (tensor.first_index, tensor.chunk_count())).collect();
        assert_eq!(numbers, [(0, 3), (3, 0), (3, 1), (4, 2)]);
        assert_eq!(boxes[0].chunk_length(2), 1 << 20);
    }
}
