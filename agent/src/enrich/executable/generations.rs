//! A map of bounded size that forgets what was not asked for longest, roughly.
//!
//! Two halves: what is new or asked for goes into the young one; when that is full it becomes the old one, and what the
//! old one still held is forgotten. So at least the last `capacity / 2` keys that were used are kept, at one look-up
//! each, without a list to keep in order.

use std::{collections::HashMap, hash::Hash, mem};

#[derive(Debug)]
pub(crate) struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Copy + Eq + Hash, V> Generations<K, V> {
    /// At most `capacity` entries, and at least two.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }

    /// What is known of `key`, which counts as using it.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.insert(*key, value);
        }
        self.young.get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// All entries, those that would be forgotten first before the others.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.old.iter().chain(&self.young)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_size_is_bounded() {
        let mut map = Generations::new(4);
        for key in 0..1_000 {
            map.insert(key, key);
            assert_eq!(map.get_mut(&0), Some(&mut 0), "asked for again and again");
            assert!(map.len() <= 4);
        }
        assert_eq!(map.get_mut(&1), None);
        assert_eq!(map.get_mut(&999), Some(&mut 999));
        map.remove(&999);
        assert_eq!(map.get_mut(&999), None);
        assert_eq!(map.iter().filter(|(key, _)| **key == 0).count(), 1);
    }

    #[test]
    fn an_entry_is_in_one_half_only() {
        let mut map = Generations::new(4);
        for (key, value) in [(1, 1), (2, 1), (3, 1), (1, 2)] {
            map.insert(key, value);
        }
        assert_eq!(map.get_mut(&1), Some(&mut 2));
        assert_eq!(map.iter().filter(|(key, _)| **key == 1).count(), 1);
    }
}
