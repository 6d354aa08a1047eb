//! One thing that is wrong, where it is, and what to write instead.

use std::fmt;

/// One mistake in the file. Prints as `file:line: what is wrong; what to write instead`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The file's name, as it was given.
    pub file: String,
    /// The line, from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub instead: String,
}

impl Problem {
    pub(crate) fn of_file(file: &str, what: String, instead: &str) -> Self {
        Self { file: file.to_owned(), line: 0, what, instead: instead.to_owned() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, instead } = self;
        match line {
            0 => write!(f, "{file}: {what}; {instead}"),
            _ => write!(f, "{file}:{line}: {what}; {instead}"),
        }
    }
}

/// Collects problems, and turns byte offsets into lines.
pub(crate) struct Report<'a> {
    file: &'a str,
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, problems: Vec::new() }
    }

    /// Adds what is wrong at byte `offset` of the text.
    pub(crate) fn add(&mut self, offset: usize, what: String, instead: String) {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        self.problems.push(Problem { file: self.file.to_owned(), line, what, instead });
    }

    /// Adds what is missing from the file as a whole.
    pub(crate) fn add_missing(&mut self, what: &str, instead: &str) {
        self.problems.push(Problem::of_file(self.file, what.to_owned(), instead));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// All of them, in the order of the file.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }
}
