//! The safetensors format, as far as it has to be known: where each tensor's bytes lie.
//!
//! A header that parses is sound: tensors lie one behind the other from the first byte of the data
//! to the last, each as long as its shape and type say, and no two have the same name. Files with
//! gaps, overlaps or trailing bytes are refused, since what no tensor holds would be lost.
//! Nothing is allocated by a length in the file before it is compared with the file's own.

use anyhow::{Context as _, bail, ensure};
use forebay_fabric::checkpoint::{DIMS_MAX, Dtype, TENSOR_NAME_BYTES_MAX};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The longest header that is taken, in bytes: it has to fit the checkpoint's manifest.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// The header's length stands before it.
const LENGTH_BYTES: u64 = 8;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Where its bytes begin in the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Everything before the data of a file, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The bytes themselves, with the length in front.
    pub(super) bytes: Vec<u8>,
    /// In the order of their data.
    pub(super) tensors: Vec<Tensor>,
    /// Bytes of the whole file.
    pub(super) file_bytes: u64,
}

impl Header {
    /// Reads and checks the header of `file`, which is `file_bytes` long.
    pub(super) fn read(file: &File, file_bytes: u64) -> anyhow::Result<Self> {
        let mut length = [0; LENGTH_BYTES as usize];
        if file_bytes < LENGTH_BYTES {
            bail!("not a safetensors file: {file_bytes} bytes are too few for a header");
        }
        file.read_exact_at(&mut length, 0)?;
        let mut bytes = vec![0; check_length(u64::from_le_bytes(length), file_bytes)? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Self::parse(bytes, file_bytes)
    }

    /// Checks `bytes`, the beginning of a file of `file_bytes` up to the end of its header.
    pub(super) fn parse(bytes: Vec<u8>, file_bytes: u64) -> anyhow::Result<Self> {
        let (length, json) =
            bytes.split_first_chunk().context("not a safetensors file: there is no header")?;
        ensure!(
            check_length(u64::from_le_bytes(*length), file_bytes)? == bytes.len() as u64,
            "the header is not as long as it says"
        );
        let Entries(entries) = serde_json::from_slice(json)
            .context("not a safetensors file: the header is not the JSON that it should be")?;
        let mut tensors = Vec::new();
        for (name, entry) in entries {
            let wrong = format!("tensor {name:?}");
            tensors.push(entry.check(name, bytes.len() as u64).context(wrong)?);
        }
        check_layout(&mut tensors, bytes.len() as u64, file_bytes)?;
        Ok(Self { bytes, tensors, file_bytes })
    }
}

/// The bytes before the data, if a header of `header_bytes` is possible.
fn check_length(header_bytes: u64, file_bytes: u64) -> anyhow::Result<u64> {
    if header_bytes > file_bytes.saturating_sub(LENGTH_BYTES) {
        bail!(
            "not a safetensors file: its header would be {header_bytes} bytes, the file has {file_bytes}"
        );
    }
    if header_bytes > HEADER_BYTES_MAX {
        bail!(
            "the header has {header_bytes} bytes; {HEADER_BYTES_MAX} are the most a checkpoint keeps"
        );
    }
    Ok(LENGTH_BYTES + header_bytes)
}

/// Puts the tensors in the order of their data, and checks that they cover it exactly.
fn check_layout(tensors: &mut [Tensor], data_start: u64, file_bytes: u64) -> anyhow::Result<()> {
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(twice) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        bail!("tensor {:?} is there twice", twice[0].name);
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut end = data_start;
    for tensor in tensors {
        let Tensor { name, offset, bytes, .. } = tensor;
        if *offset > end {
            bail!("bytes {end} to {offset} of the file belong to no tensor; they would be lost");
        }
        ensure!(*offset == end, "tensor {name:?} overlaps the one before it");
        end += *bytes;
    }
    if end < file_bytes {
        bail!(
            "the last {} bytes of the file belong to no tensor; they would be lost",
            file_bytes - end
        );
    }
    ensure!(end == file_bytes, "the file is cut off: {} bytes are missing", end - file_bytes);
    Ok(())
}

/// One tensor, as the header has it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    fn check(self, name: String, data_start: u64) -> anyhow::Result<Tensor> {
        let Self { dtype, shape, data_offsets: (begin, end) } = self;
        ensure!(
            (1..=TENSOR_NAME_BYTES_MAX).contains(&name.len()),
            "its name is empty or longer than {TENSOR_NAME_BYTES_MAX} bytes"
        );
        ensure!(shape.len() <= DIMS_MAX, "it has more than {DIMS_MAX} dimensions");
        let dtype = Dtype::from_name(&dtype).with_context(|| format!("unknown dtype {dtype:?}"))?;
        let elements = if shape.contains(&0) {
            Some(0)
        } else {
            shape.iter().try_fold(1_u64, |product, extent| product.checked_mul(*extent))
        };
        let bytes = end.checked_sub(begin).context("its data ends before it begins")?;
        ensure!(
            elements.and_then(|elements| dtype.bytes(elements)) == Some(bytes),
            "{bytes} bytes do not hold its shape {shape:?} of {}",
            dtype.name()
        );
        let offset = data_start.checked_add(begin).context("its data lies outside the file")?;
        ensure!(offset.checked_add(bytes).is_some(), "its data lies outside the file");
        Ok(Tensor { name, dtype, shape, offset, bytes })
    }
}

/// The entries of the header but `__metadata__`; a name that comes twice is kept twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header around `json`, of a file with `data_bytes` of data.
    fn parse(json: &str, data_bytes: u64) -> Result<Header, String> {
        let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
        let file_bytes = bytes.len() as u64 + data_bytes;
        Header::parse(bytes, file_bytes).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_sound_header_tells_where_each_tensor_lies() {
        let json = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "none":{"dtype":"I64","shape":[0,7],"data_offsets":[4,4]}}   "#;
        let header = parse(json, 12 + 4).unwrap();
        let start = 8 + json.len() as u64;
        let found: Vec<_> = header
            .tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.offset - start, tensor.bytes))
            .collect();
        assert_eq!(found, [("a", 0, 4), ("none", 4, 0), ("b", 4, 12)]);
        assert_eq!(header.tensors[2].shape, [2, 3]);
        assert_eq!(header.file_bytes, start + 16);
        assert_eq!(parse("{}", 0).unwrap().tensors, []);
    }

    #[test]
    fn what_would_not_come_back_byte_for_byte_is_refused() {
        let one = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(parse(one, 6).unwrap_err().contains("belong to no tensor"), "a gap");
        let one = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        assert!(parse(one, 6).unwrap_err().contains("last 2 bytes"), "trailing bytes");
        assert!(parse(one, 3).unwrap_err().contains("1 bytes are missing"), "cut off");
        let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
            "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(parse(two, 6).unwrap_err().contains("overlaps"));
        let twice = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
            "a":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}"#;
        assert!(parse(twice, 6).unwrap_err().contains("twice"));
    }

    #[test]
    fn hostile_headers_are_refused_with_a_reason() {
        let entry = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let huge = u64::MAX.to_string();
        let deep = "[".repeat(100_000);
        for (json, why) in [
            (entry("U9", "[4]", "[0,4]"), "unknown dtype"),
            (entry("U8", "[5]", "[0,4]"), "do not hold"),
            (entry("F4", "[3]", "[0,1]"), "do not hold"),
            (entry("U8", &format!("[{huge},{huge}]"), "[0,4]"), "do not hold"),
            (entry("U8", "[4]", "[4,0]"), "ends before it begins"),
            (entry("U8", &format!("[{huge}]"), &format!("[0,{huge}]")), "outside the file"),
            (entry("U8", "[4]", &format!("[{},{huge}]", u64::MAX - 4)), "outside the file"),
            (entry("U8", "[-4]", "[0,4]"), "JSON"),
            (entry("U8", &format!("{:?}", [1; 17]), "[0,1]"), "dimensions"),
            ("[]".to_owned(), "JSON"),
            ("{".to_owned(), "JSON"),
            (deep, "JSON"),
            (r#"{"a":1}"#.to_owned(), "JSON"),
            (String::new(), "JSON"),
        ] {
            let error = parse(&json, 4).unwrap_err();
            assert!(error.contains(why), "{json:.60}: {error}");
        }
    }

    #[test]
    fn a_header_length_is_believed_only_within_the_file() {
        let file = tempfile::tempfile().unwrap();
        for (length, content, why) in [
            (0, 0, "too few"),
            (u64::MAX, 100, "would be"),
            (u64::MAX - 8, 100, "would be"),
            (101, 100, "would be"),
            (1 << 25, 1 << 26, "are the most"),
            (100, 100, "JSON"),
        ] {
            let file_bytes = if content == 0 { 7 } else { 8 + content };
            file.set_len(0).unwrap();
            file.set_len(file_bytes).unwrap();
            file.write_all_at(&u64::to_le_bytes(length)[..file_bytes.min(8) as usize], 0).unwrap();
            let error = format!("{:#}", Header::read(&file, file_bytes).unwrap_err());
            assert!(error.contains(why), "{length} in {content}: {error}");
        }
    }
}
