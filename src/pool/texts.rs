//! A cache keyed by the texts of statements. It is limited in number and in size; the least
//! recently used text is dropped first.

use lru::LruCache;
use std::num::NonZeroUsize;

/// Limit for all texts together. For a prepared statement, the server uses about ten times as much
/// memory.
const MOST_BYTES: usize = 1 << 20;
/// Limit for one text. Longer ones, such as those with values in them, seldom occur twice.
const LONGEST: usize = 1 << 16;

pub(super) struct Texts<V> {
    kept: LruCache<Box<str>, V>,
    bytes: usize,
}

impl<V> Texts<V> {
    pub fn new(most: NonZeroUsize) -> Texts<V> {
        // Grows as it is filled; one made with a capacity would allocate all of it at once.
        let mut kept = LruCache::unbounded();
        kept.resize(most);
        Texts { kept, bytes: 0 }
    }

    pub fn get(&mut self, text: &str) -> Option<&V> {
        self.kept.get(text)
    }

    /// Returns all of them, the most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.kept.iter().map(|(text, value)| (&**text, value))
    }

    pub fn put(&mut self, text: &str, value: V) {
        if text.len() > LONGEST {
            return;
        }
        self.bytes += text.len();
        if let Some((gone, _)) = self.kept.push(text.into(), value) {
            self.bytes -= gone.len();
        }
        while self.bytes > MOST_BYTES
            && let Some((gone, _)) = self.kept.pop_lru()
        {
            self.bytes -= gone.len();
        }
    }

    pub fn forget(&mut self, text: &str) {
        if let Some((gone, _)) = self.kept.pop_entry(text) {
            self.bytes -= gone.len();
        }
    }

    pub fn forget_all(&mut self) {
        self.kept.clear();
        self.bytes = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_by_number_and_by_size() {
        let mut texts = Texts::new(NonZeroUsize::new(100).unwrap());
        for n in 0..200 {
            texts.put(&format!("SELECT {n}"), n);
        }
        assert_eq!(
            (
                texts.kept.len(),
                texts.get("SELECT 99").copied(),
                texts.get("SELECT 100").copied()
            ),
            (100, None, Some(100))
        );
        for n in 0..200 {
            texts.put(&format!("SELECT {n:060000}"), n);
            texts.put(&format!("SELECT {n:060000}"), n);
        }
        assert!(texts.bytes <= MOST_BYTES && texts.kept.len() > 10);
        let bytes = texts.kept.iter().map(|(text, _)| text.len()).sum::<usize>();
        assert_eq!(texts.bytes, bytes);
        texts.put(&"x".repeat(LONGEST + 1), 0);
        assert!(texts.get(&"x".repeat(LONGEST + 1)).is_none());
        texts.forget(&format!("SELECT {:060000}", 199));
        texts.forget_all();
        assert!(texts.is_empty() && texts.bytes == 0);
    }
}
