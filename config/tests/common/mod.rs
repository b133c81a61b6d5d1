//! What tests of this folder share.

use std::path::{Path, PathBuf};

/// The acceptance corpus. Without it a test says so loudly, and fails where CI is set.
pub(crate) fn corpus() -> Option<PathBuf> {
    let given = std::env::var_os("ISTHMUS_CORPUS").map(PathBuf::from);
    let path = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"));
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("NOT RUN: there is no corpus at {}", path.display());
    assert!(std::env::var_os("CI").is_none(), "the corpus must be there in CI");
    None
}
