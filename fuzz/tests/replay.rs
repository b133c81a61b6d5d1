//! Every input that is kept is tried by every build: the beginnings in `corpora/`, the crashes that were mended in
//! `regressions/`, and noise made of both.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_core::random::Random;
use isthmus_fuzz::DOORS;
use std::path::Path;

fn inputs(folder: &str, door: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(door);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn what_is_kept_is_survived_by_every_door() {
    for (name, door) in DOORS {
        door(&[]);
        let corpus = inputs("corpora", name);
        assert!(!corpus.is_empty(), "{name} has a corpus");
        for input in corpus.iter().chain(&inputs("regressions", name)) {
            door(input);
        }
    }
}

/// For the coverage report: what a fuzzer has kept for the doors whose name begins so, beside what the tree has.
#[test]
fn what_a_fuzzer_has_learned_is_known() {
    let Some(folder) = std::env::var_os("ISTHMUS_FUZZ_CORPUS") else {
        return;
    };
    let start = std::env::var("ISTHMUS_FUZZ_TARGET").unwrap();
    let doors: Vec<_> = DOORS
        .iter()
        .filter(|(name, _)| name.starts_with(&start))
        .collect();
    assert!(!doors.is_empty(), "no door begins with {start}");
    for (name, door) in doors {
        let learned = std::fs::read_dir(Path::new(&folder).join(name));
        for entry in learned.into_iter().flatten() {
            door(&std::fs::read(entry.unwrap().path()).unwrap());
        }
        for input in inputs("corpora", name) {
            door(&input);
        }
    }
}

#[test]
fn noise_made_of_what_is_kept_is_survived() {
    let mut random = Random::from_seed(20_260);
    for (name, door) in DOORS {
        let corpus = inputs("corpora", name);
        for _ in 0..500 {
            let mut input = corpus[random.below(corpus.len() as u64) as usize].clone();
            for _ in 0..=random.below(8) {
                let at = random.below(input.len() as u64 + 1) as usize;
                match random.below(4) {
                    0 => input.truncate(at),
                    1 => input.insert(at, random.next_u64() as u8),
                    2 if at < input.len() => input[at] = random.next_u64() as u8,
                    _ => {
                        let other = &corpus[random.below(corpus.len() as u64) as usize];
                        input.extend_from_slice(other);
                    }
                }
            }
            door(&input);
        }
    }
}
