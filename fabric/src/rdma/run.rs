//! A queue whose beginning is a slice.

/// What is taken in the order in which it was put in, as slices. Its storage is used again.
#[derive(Debug)]
pub(super) struct Run<T> {
    pub all: Vec<T>,
    taken: usize,
    /// When so many have been taken, what is left moves to the front.
    slack: usize,
}

impl<T> Run<T> {
    pub(super) fn new(slack: usize) -> Self {
        Self { all: Vec::new(), taken: 0, slack }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len() - self.taken
    }

    /// The next `count`.
    pub(super) fn take(&mut self, count: usize) -> &[T] {
        self.taken += count;
        &self.all[self.taken - count..self.taken]
    }

    pub(super) fn compact(&mut self) {
        if self.taken == self.all.len() {
            self.clear();
        } else if self.taken > self.slack {
            self.all.drain(..self.taken);
            self.taken = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.taken = 0;
    }
}
