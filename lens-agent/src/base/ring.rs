//! A queue that forgets its oldest when it is full.

use std::collections::VecDeque;

/// Keeps the newest `capacity` things.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    capacity: usize,
    items: VecDeque<T>,
}

impl<T> Ring<T> {
    /// Holds at most `capacity` things, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            items: VecDeque::new(),
        }
    }

    /// Adds the newest; returns the oldest when it had to go.
    pub fn push(&mut self, item: T) -> Option<T> {
        let gone = if self.items.len() == self.capacity {
            self.items.pop_front()
        } else {
            None
        };
        self.items.push_back(item);
        gone
    }

    /// Drops from the oldest on while `gone` says so.
    pub fn drop_oldest_while(&mut self, gone: impl Fn(&T) -> bool) {
        while self.items.front().is_some_and(&gone) {
            self.items.pop_front();
        }
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter()
    }

    /// The newest.
    pub fn last(&self) -> Option<&T> {
        self.items.back()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let mut ring = Ring::new(2);
        assert_eq!(ring.push(1), None);
        assert_eq!(ring.push(2), None);
        assert_eq!(ring.push(3), Some(1));
        assert_eq!(ring.iter().copied().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(ring.last(), Some(&3));
    }
}
