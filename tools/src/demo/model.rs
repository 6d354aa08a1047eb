//! The file that is saved as a checkpoint, when no real one is at hand; and its comparison.

use crate::exit::{Code, Failure};
use anyhow::Context as _;
use fastrand::Rng;
use serde_json::{Map, json};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// Tensors of a small encoder: name, rows, columns. Six layers of them make about 90 MB of f32.
const EMBEDDING: (&str, u64, u64) = ("embeddings.word_embeddings.weight", 30_522, 384);
const LAYERS: u64 = 6;
const LAYER: [(&str, u64, u64); 8] = [
    ("attention.query.weight", 384, 384),
    ("attention.key.weight", 384, 384),
    ("attention.value.weight", 384, 384),
    ("attention.output.weight", 384, 384),
    ("intermediate.weight", 1536, 384),
    ("intermediate.bias", 1, 1536),
    ("output.weight", 384, 1536),
    ("output.bias", 1, 384),
];

/// Writes a safetensors file of random f32 tensors: the length of the header (u64), the header
/// (JSON), the data.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    let mut tensors = vec![(EMBEDDING.0.to_owned(), EMBEDDING.1, EMBEDDING.2)];
    for layer in 0..LAYERS {
        let name = |name: &str| format!("encoder.layer.{layer}.{name}");
        tensors.extend(LAYER.map(|(tensor, rows, columns)| (name(tensor), rows, columns)));
    }
    let (mut header, mut end) = (Map::new(), 0);
    for (name, rows, columns) in tensors {
        let begin = end;
        end += rows * columns * 4;
        let entry = json!({"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]});
        header.insert(name, entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut rng = Rng::with_seed(2);
    let mut left = end as usize;
    let mut part = vec![0; 1 << 20];
    while left > 0 {
        let length = left.min(part.len());
        rng.fill(&mut part[..length]);
        file.write_all(&part[..length])?;
        left -= length;
    }
    file.flush()
}

/// Compares two files byte for byte; their length if they are the same.
pub(crate) fn compare(original: &Path, loaded: &Path) -> anyhow::Result<u64> {
    let open = |path: &Path| {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok::<_, anyhow::Error>(BufReader::with_capacity(1 << 20, file))
    };
    let (mut a, mut b) = (open(original)?, open(loaded)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let (length, other) = (fill(&mut a, &mut left)?, fill(&mut b, &mut right)?);
        if left[..length] != right[..other] {
            let what = format!("the checkpoint differs from its file in the MiB at byte {at}");
            return Err(Failure::new(Code::Integrity, what).into());
        }
        if length == 0 {
            return Ok(at);
        }
        at += length as u64;
    }
}

/// Reads until `part` is full or the file ends.
fn fill(file: &mut impl Read, part: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < part.len() {
        match file.read(&mut part[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_tensors_are_a_safetensors_file_of_about_90_mb() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        make(&path).unwrap();
        let mut file = File::open(&path).unwrap();
        let total = file.metadata().unwrap().len();
        let mut length = [0; 8];
        file.read_exact(&mut length).unwrap();
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        file.read_exact(&mut header).unwrap();
        let header: Map<String, serde_json::Value> = serde_json::from_slice(&header).unwrap();
        assert_eq!(header.len(), 49);
        let ends = header.values().map(|tensor| tensor["data_offsets"][1].as_u64().unwrap());
        let end = ends.max().unwrap();
        assert_eq!(8 + u64::from_le_bytes(length) + end, total);
        assert!((80_000_000..100_000_000).contains(&end), "{end}");
        assert_eq!(compare(&path, &path).unwrap(), total);
    }

    #[test]
    fn files_that_differ_in_length_or_in_one_byte_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let mut bytes = vec![7; (2 << 20) + 5];
        std::fs::write(&a, &bytes).unwrap();
        std::fs::write(&b, &bytes[..bytes.len() - 1]).unwrap();
        assert!(compare(&a, &b).is_err());
        bytes[2 << 20] = 8;
        std::fs::write(&b, &bytes).unwrap();
        let error = compare(&a, &b).unwrap_err();
        assert_eq!(Code::of(&error), Code::Integrity);
        assert!(error.to_string().contains("2097152"), "{error}");
    }
}
