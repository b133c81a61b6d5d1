//! Files of resources: which there are, and what they say.
//!
//! A [`Reader`] remembers what it has read. A file that the file system says is the same (device, inode, size, times) is
//! not read again, and one that says the same is the same text as before, so that whoever holds on to texts holds one, and
//! whoever looks for changes compares two pointers.

use crate::Source;
use isthmus_core::snapshot::content_hash;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How old a change must be before a file is taken to be as its times say: within one tick of a file system's clock it may
/// change twice. Some keep whole seconds, and one that is on another machine may have another clock.
const SETTLED: Duration = Duration::from_secs(3);

/// What tells cheaply that a file is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(data: &std::fs::Metadata) -> Self {
        Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }

    /// Whether the file has not changed for a while.
    fn is_settled(&self, now: SystemTime) -> bool {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = since.saturating_sub(SETTLED).as_secs();
        let latest = self.modified.0.max(self.changed.0);
        u64::try_from(latest).is_ok_and(|latest| latest < limit)
    }
}

/// A file that was read.
#[derive(Debug)]
struct Known {
    /// As it was before it was read; None when it had just changed.
    stamp: Option<Stamp>,
    text: Arc<str>,
    round: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reader {
    known: HashMap<PathBuf, Known>,
    round: u64,
}

impl Reader {
    /// Reads files, and directories with all that is below them, whose names end in `.yaml`, `.yml` or `.json`, in the
    /// order of their names. `now` is the time of the wall. Beside it a hash of what the file system says of them, which
    /// [`stamps`] gives, too. Files that look as they did are read again only without `trust`: some file systems tell changes
    /// late. An error names its path.
    pub fn read(
        &mut self,
        paths: &[PathBuf],
        now: SystemTime,
        trust: bool,
    ) -> io::Result<(Vec<Source>, u64)> {
        let files = list(paths)?;
        let hash = content_hash(&files);
        self.round += 1;
        let mut sources = Vec::with_capacity(files.len());
        for (path, stamp) in files {
            sources.push(Source {
                name: path.display().to_string(),
                text: self.text(path, stamp, now, trust)?,
            });
        }
        self.known.retain(|_, known| known.round == self.round);
        Ok((sources, hash))
    }

    fn text(&mut self, path: PathBuf, stamp: Stamp, now: SystemTime, trust: bool) -> io::Result<Arc<str>> {
        let known = self.known.get_mut(&path);
        if let Some(known) = known
            && trust
            && known.stamp == Some(stamp)
        {
            known.round = self.round;
            return Ok(Arc::clone(&known.text));
        }
        let bytes = std::fs::read(&path).map_err(|error| with_path(&path, &error))?;
        let text = text_of(bytes);
        let same = self.known.get(&path).filter(|known| *known.text == *text);
        let text = same.map_or_else(|| text.into(), |known| Arc::clone(&known.text));
        let known = Known {
            stamp: stamp.is_settled(now).then_some(stamp),
            text: Arc::clone(&text),
            round: self.round,
        };
        self.known.insert(path, known);
        Ok(text)
    }
}

/// A hash of what the file system says of files; what cannot be looked at is another one.
pub fn stamps(paths: &[PathBuf]) -> u64 {
    list(paths).map_or(0, |files| content_hash(&files))
}

/// What [`Reader::read`] reads, once.
pub fn read_paths(paths: &[PathBuf]) -> io::Result<Vec<Source>> {
    let (sources, _) = Reader::default().read(paths, SystemTime::UNIX_EPOCH, true)?;
    Ok(sources)
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The files of paths, in the order of their names.
fn list(paths: &[PathBuf]) -> io::Result<Vec<(PathBuf, Stamp)>> {
    let mut files = Vec::new();
    for path in paths {
        collect(path.clone(), true, &mut files)?;
    }
    Ok(files)
}

/// `given` is true for what the operator named, which is read whatever its name.
fn collect(path: PathBuf, given: bool, files: &mut Vec<(PathBuf, Stamp)>) -> io::Result<()> {
    let is_named = path
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
    let data = match std::fs::metadata(&path) {
        Ok(data) => data,
        // A link that leads nowhere, or a file of an editor that has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !given => return Ok(()),
        Err(error) => return Err(with_path(&path, &error)),
    };
    if !data.is_dir() {
        // To read a pipe or a device may never end.
        if given || (is_named && data.is_file()) {
            files.push((path, Stamp::of(&data)));
        }
        return Ok(());
    }
    let entries: io::Result<Vec<_>> = std::fs::read_dir(&path)
        .map_err(|error| with_path(&path, &error))?
        .collect();
    let mut entries = entries.map_err(|error| with_path(&path, &error))?;
    entries.sort_by_cached_key(std::fs::DirEntry::file_name);
    for entry in entries {
        // Kubernetes mounts keep their versions in `..data` and its like, beside links to the current files.
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // A link to a directory could lead back here.
        let is_linked_directory =
            || entry.file_type().is_ok_and(|kind| kind.is_symlink()) && entry.path().is_dir();
        if !hidden && !is_linked_directory() {
            collect(entry.path(), false, files)?;
        }
    }
    Ok(())
}

/// Why a run has no resource, after what was read for it.
pub fn no_resource(sources: &[Source]) -> String {
    match sources {
        [] => "no resource was found: of a directory, files that end in .yaml, .yml or .json are read"
            .to_owned(),
        [one] => format!(
            "no resource was found: {} holds none that a gateway executes",
            one.name
        ),
        [one, ..] => format!(
            "no resource was found: none of the {} files that were read holds one that a gateway executes ({} is the first)",
            sources.len(),
            one.name
        ),
    }
}

/// Stands in a text for bytes that are no UTF-8.
pub(crate) const NOT_UTF8: char = '\u{1}';

/// Reads one file of text; an error names it, and where it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = std::fs::read(path).map_err(|error| with_path(path, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..at).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let text = format!("byte {at}, in line {line}, is not UTF-8: save the file as UTF-8");
        with_path(path, &io::Error::new(io::ErrorKind::InvalidData, text))
    })
}

/// The text of a file. Bytes that are no UTF-8 become a character that no document may have, so that they are reported
/// at their place and spoil their own document only.
fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let chunks = error.as_bytes().utf8_chunks();
        let chunk = |chunk: std::str::Utf8Chunk<'_>| {
            let mark = (!chunk.invalid().is_empty()).then_some(NOT_UTF8);
            chunk.valid().chars().chain(mark).collect::<String>()
        };
        chunks.map(chunk).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, compile};

    #[test]
    fn what_may_have_no_end_is_passed_over_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), "a: b").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("b.yaml")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("c.yaml")).unwrap();
        let read = read_paths(&[folder.path().to_owned()]).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(&*read[0].text, "a: b");
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error_of_their_document() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), b"a: 1\n---\nb: \"\xff\"\n").unwrap();
        let sources = read_paths(&[folder.path().to_owned()]).unwrap();
        let compiled = compile(&sources, &Options::default());
        let places: Vec<_> = compiled
            .diagnostics
            .iter()
            .map(|found| (found.line, found.code))
            .collect();
        assert_eq!(places.last(), Some(&(3, "syntax")), "{:?}", compiled.diagnostics);
        let told = compiled.diagnostics.last().unwrap();
        assert_eq!(told.column, 5, "{told:?}");
        assert!(told.message.contains("not UTF-8"), "{told:?}");
        let error = read_text(&folder.path().join("a.yaml")).unwrap_err().to_string();
        assert!(
            error.contains("a.yaml: byte 13, in line 3, is not UTF-8"),
            "{error}"
        );
    }

    #[test]
    fn directories_are_read_in_order_and_errors_name_their_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for name in ["c.yaml", "b/z.json", "a.yml", "a.txt", ".hidden.yaml"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let sources = read_paths(&[folder.path().to_owned()]).unwrap();
        let texts: Vec<&str> = sources.iter().map(|source| &*source.text).collect();
        assert_eq!(texts, ["a.yml", "b/z.json", "c.yaml"]);
        let missing = folder.path().join("missing.yaml");
        let error = read_paths(std::slice::from_ref(&missing)).unwrap_err();
        assert!(error.to_string().contains("missing.yaml"), "{error}");
    }

    /// When every file has long been as it is.
    fn later() -> SystemTime {
        SystemTime::now() + 2 * SETTLED
    }

    #[test]
    fn what_did_not_change_is_the_same_text_and_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        let paths = [folder.path().to_owned()];
        let mut reader = Reader::default();
        let mut read = || {
            let (sources, hash) = reader.read(&paths, later(), true).unwrap();
            assert_eq!(hash, stamps(&paths));
            let texts: Vec<Arc<str>> = sources.into_iter().map(|source| source.text).collect();
            (texts, hash)
        };
        let (first, before) = read();
        // Written anew in the same words, and in others.
        std::fs::write(folder.path().join("new"), "a").unwrap();
        std::fs::rename(folder.path().join("new"), &a).unwrap();
        std::fs::write(folder.path().join("new"), "c").unwrap();
        std::fs::rename(folder.path().join("new"), &b).unwrap();
        let (second, after) = read();
        assert!(Arc::ptr_eq(&first[0], &second[0]));
        assert_eq!((&*first[1], &*second[1]), ("b", "c"));
        assert_ne!(before, after);
        std::fs::remove_file(&a).unwrap();
        let (third, _) = read();
        assert!(third.len() == 1 && Arc::ptr_eq(&third[0], &second[1]));
        assert_eq!(reader.known.len(), 1);
        // Nothing is read: the stamp says that it is the same.
        let known = reader.known.get_mut(&b).unwrap();
        known.text = "remembered".into();
        let (sources, _) = reader.read(&paths, later(), true).unwrap();
        assert_eq!(&*sources[0].text, "remembered");
    }

    #[test]
    fn a_file_that_has_just_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, "a").unwrap();
        let paths = [path.clone()];
        let mut reader = Reader::default();
        reader.read(&paths, SystemTime::now(), true).unwrap();
        reader.known.get_mut(&path).unwrap().text = "remembered".into();
        let (sources, _) = reader.read(&paths, SystemTime::now(), true).unwrap();
        assert_eq!(&*sources[0].text, "a");
    }
}
