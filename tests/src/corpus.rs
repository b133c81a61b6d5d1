//! The acceptance corpus, which lives beside the project and not in it.

use std::path::PathBuf;

/// The corpus' folder: `ISTHMUS_CORPUS`, else `../../shared/corpus` from this crate. When there is none, says loudly
/// that nothing ran, and fails where `CI` is set.
pub fn find() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let folder = std::env::var_os("ISTHMUS_CORPUS").map_or_else(beside, PathBuf::from);
    judge(folder, std::env::var_os("CI").is_some())
}

fn judge(folder: PathBuf, in_ci: bool) -> Option<PathBuf> {
    if folder.is_dir() {
        return Some(folder);
    }
    let text = format!(
        "NOTHING RAN: there is no corpus at {} (set ISTHMUS_CORPUS)",
        folder.display()
    );
    assert!(!in_ci, "{text}");
    // Straight to the terminal: the output of a test that passes is not shown.
    let _unseen = std::io::Write::write_all(&mut std::io::stderr(), format!("\n!!! {text}\n").as_bytes());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_corpus_is_nothing_here() {
        assert_eq!(judge("/nowhere/at/all".into(), false), None);
    }

    #[test]
    #[should_panic(expected = "NOTHING RAN")]
    fn a_missing_corpus_fails_in_ci() {
        judge("/nowhere/at/all".into(), true);
    }
}
