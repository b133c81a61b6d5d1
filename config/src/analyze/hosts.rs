//! Sets of host patterns that know whether they have anything in common with another, however many they are.

use isthmus_core::name::HostPattern;
use std::collections::HashMap;

/// Host patterns with something that each stands for; of two that are equal the first counts.
#[derive(Debug)]
pub(crate) struct HostSet<T> {
    any: Option<T>,
    exact: HashMap<Box<str>, T>,
    /// By `.suffix`.
    wildcards: HashMap<Box<str>, T>,
    /// By `.suffix`: the first name or narrower wildcard that ends so.
    tails: HashMap<Box<str>, T>,
    first: Option<T>,
}

impl<T> Default for HostSet<T> {
    fn default() -> Self {
        Self {
            any: None,
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            tails: HashMap::new(),
            first: None,
        }
    }
}

/// `.b.c` and `.c` of `a.b.c`, and of `.a.b.c`.
fn tails(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.char_indices().filter(|(at, c)| *c == '.' && *at > 0);
    dots.map(|(at, _)| name.get(at..).unwrap_or(""))
}

impl<T: Copy> HostSet<T> {
    /// Adds a pattern.
    pub(crate) fn insert(&mut self, pattern: &HostPattern, value: T) {
        self.first.get_or_insert(value);
        let name = match pattern {
            HostPattern::Any => {
                self.any.get_or_insert(value);
                return;
            }
            HostPattern::Exact(name) => {
                self.exact.entry(name.clone()).or_insert(value);
                name
            }
            HostPattern::Suffix(suffix) => {
                self.wildcards.entry(suffix.clone()).or_insert(value);
                suffix
            }
        };
        for tail in tails(name) {
            if !self.tails.contains_key(tail) {
                self.tails.insert(tail.into(), value);
            }
        }
    }

    /// The value of an equal pattern.
    pub(crate) fn equal(&self, pattern: &HostPattern) -> Option<T> {
        match pattern {
            HostPattern::Any => self.any,
            HostPattern::Exact(name) => self.exact.get(name).copied(),
            HostPattern::Suffix(suffix) => self.wildcards.get(suffix).copied(),
        }
    }

    /// The value of a pattern that has a name in common with this one: an equal one first, then one that is wider, then
    /// one that is narrower.
    pub(crate) fn overlapping(&self, pattern: &HostPattern) -> Option<T> {
        let name = match pattern {
            HostPattern::Any => return self.any.or(self.first),
            HostPattern::Exact(name) | HostPattern::Suffix(name) => name,
        };
        let wider = || tails(name).find_map(|tail| self.wildcards.get(tail).copied());
        let narrower = || match pattern {
            HostPattern::Suffix(suffix) => self.tails.get(suffix).copied(),
            _ => None,
        };
        self.equal(pattern).or_else(wider).or(self.any).or_else(narrower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_those_of_the_patterns_themselves() {
        let names = [
            "*", "a.b.c", "b.c", "*.b.c", "*.c", "*.a.b.c", "x.a.b.c", "d", "*.d", "e.d", ".c",
        ];
        let patterns = names.map(HostPattern::parse);
        for mine in &patterns {
            for other in &patterns {
                let mut set = HostSet::default();
                set.insert(mine, 1);
                assert_eq!(
                    set.overlapping(other).is_some(),
                    mine.overlaps(other),
                    "{mine} and {other}"
                );
                assert_eq!(set.equal(other).is_some(), mine == other, "{mine} and {other}");
            }
        }
    }

    #[test]
    fn an_equal_pattern_comes_before_a_wider_and_that_before_a_narrower_one() {
        let mut set = HostSet::default();
        for (value, name) in ["a.b.c", "*.c", "*.b.c"].into_iter().enumerate() {
            set.insert(&HostPattern::parse(name), value);
        }
        let found = |name: &str| set.overlapping(&HostPattern::parse(name));
        assert_eq!(found("a.b.c"), Some(0));
        assert_eq!(found("x.b.c"), Some(2));
        assert_eq!(found("x.c"), Some(1));
        assert_eq!(found("*.b.c"), Some(2));
        assert_eq!(found("*.a.b.c"), Some(2));
        assert_eq!(found("*"), Some(0));
        assert_eq!(found("d"), None);
    }
}
