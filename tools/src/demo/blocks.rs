//! KV blocks of real text, as an inference engine makes them: 16 tokens a block, each named by a
//! hash that covers everything before it, so that equal prefixes have equal names.

use bytes::Bytes;
use fastrand::Rng;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::collections::BTreeSet;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: usize = 16;
/// A value is one to four of these, in bytes.
const VALUE_STEP_BYTES: usize = 32 << 10;
/// Text that is always there, should no documents be found.
const FALLBACK: &str = include_str!("../../../LICENSE");

/// One block: its name, from which its value follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) key: [u8; 16],
}

impl Block {
    /// How long its value is: 32 to 128 KiB.
    pub(crate) fn value_bytes(&self) -> usize {
        (1 + usize::from(self.key[0] % 4)) * VALUE_STEP_BYTES
    }

    /// What stands for its keys and values of attention.
    pub(crate) fn value(&self) -> Bytes {
        let mut value = vec![0; self.value_bytes()];
        let seed = u128::from_le_bytes(self.key) as u64;
        Rng::with_seed(seed).fill(&mut value);
        value.into()
    }
}

/// The Markdown documents below `folder`, in the order of their paths; without any, the licence.
pub(crate) fn documents(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    collect(folder, 3, &mut paths);
    paths.sort();
    let mut documents: Vec<String> =
        paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    documents.push(FALLBACK.to_owned());
    documents
}

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.') || name == "target";
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth > 1 && !hidden {
            collect(&path, depth - 1, paths);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
}

/// The blocks of the first `tokens` tokens of `documents`; each document begins a chain of its own.
/// A block that two documents share is there once.
pub(crate) fn chain(documents: &[String], tokens: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut seen = BTreeSet::new();
    for document in documents {
        let pieces = pieces(document);
        let mut parent = [0; 16];
        for block in pieces.chunks_exact(BLOCK_TOKENS) {
            if blocks.len() >= tokens / BLOCK_TOKENS {
                return blocks;
            }
            parent = hash(&parent, block);
            if seen.insert(parent) {
                blocks.push(Block { key: parent });
            }
        }
    }
    blocks
}

/// SipHash-2-4 with 128 bits of the block before and these tokens.
fn hash(parent: &[u8; 16], tokens: &[&str]) -> [u8; 16] {
    let mut hasher = SipHasher24::new();
    hasher.write(parent);
    for token in tokens {
        hasher.write(token.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.finish128().as_bytes()
}

/// Text in pieces of the size that tokenizers make: up to six letters, or one other character;
/// white space separates.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut from, mut letters) = (0, 0);
    for (at, c) in text.char_indices() {
        if c.is_alphabetic() && letters < 6 && letters > 0 {
            letters += 1;
            continue;
        }
        if letters > 0 {
            pieces.push(&text[from..at]);
        }
        (from, letters) = (at, usize::from(c.is_alphabetic()));
        if letters == 0 && !c.is_whitespace() {
            pieces.push(&text[at..at + c.len_utf8()]);
        }
    }
    if letters > 0 {
        pieces.push(&text[from..]);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_falls_into_pieces_and_nothing_but_white_space_is_lost() {
        assert_eq!(
            pieces("Forebay holds it, a1 é!"),
            ["Foreba", "y", "holds", "it", ",", "a", "1", "é", "!"]
        );
        let joined: String = pieces(FALLBACK).concat();
        let bare: String = FALLBACK.split_whitespace().collect();
        assert_eq!(joined, bare);
    }

    #[test]
    fn equal_prefixes_have_equal_names_and_what_differs_differs_from_there_on() {
        let text = |last: &str| {
            let words: Vec<String> = (0..64).map(|number| format!("{}", number % 7)).collect();
            format!("{} {last}", words.join(" "))
        };
        let tail = " x y z w".repeat(4);
        let a = chain(&[text(&tail)], 1000);
        let b = chain(&[text(&tail.replace('y', "q"))], 1000);
        assert_eq!(a.len(), 5);
        assert_eq!(a[..4], b[..4]);
        assert_ne!(a[4], b[4]);
        assert_ne!(a[0], a[1]);
    }

    #[test]
    fn the_fallback_alone_gives_a_few_thousand_tokens_and_shared_blocks_come_once() {
        let once = chain(&[FALLBACK.to_owned()], usize::MAX);
        assert!(once.len() * BLOCK_TOKENS > 2000, "{}", once.len());
        let twice = chain(&[FALLBACK.to_owned(), FALLBACK.to_owned()], usize::MAX);
        assert_eq!(once, twice);
        assert_eq!(chain(&[FALLBACK.to_owned()], 160).len(), 10);
    }

    #[test]
    fn a_value_follows_from_its_key() {
        let blocks = chain(&[FALLBACK.to_owned()], 640);
        for block in &blocks {
            assert_eq!(block.value(), block.value());
            assert!((32 << 10..=128 << 10).contains(&block.value().len()));
        }
        assert_ne!(blocks[0].value()[..32], blocks[1].value()[..32]);
    }
}
