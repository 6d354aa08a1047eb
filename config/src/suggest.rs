//! "Did you mean": the known word nearest to one that is not known.

/// The one of `known` that `word` is most likely a slip of, if any is near enough: at most one
/// edit for every three letters, and never more than three.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let reach = (word.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|candidate| (edits(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= reach)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (the restricted
/// Damerau-Levenshtein distance), without regard to case.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_find_the_word_and_strangers_find_none() {
        let known = ["cores", "arena", "idle_after_us", "queue_depth"];
        for (word, expected) in [
            ("core", Some("cores")),
            ("areena", Some("arena")),
            ("arnea", Some("arena")),
            ("Cores", Some("cores")),
            ("idle_after_ms", Some("idle_after_us")),
            ("queue-depth", Some("queue_depth")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, &known), expected, "{word}");
        }
    }
}
