//! The files of a version's saved state: `<root>/<model>/<version>/` with the written graph, `state.json` and `report.json`,
//! and `<root>/<model>/<version>.engines/` with what TensorRT built of it and `engines.json`.
//!
//! Invariants: a state is put together beside its place and comes there by one rename, so that whenever the process ends
//! there is none or the whole; every file of the written graph is held to its digest before it is used, so what a power cut
//! left of one is found; what is not in its place begins with a dot, which no model's name does. All of it blocks.

use super::quantized::Quantization;
use crate::models::repository::read_bounded;
use crate::models::swap::{remove as remove_folder, sync_folder};
use crate::models::{ModelName, Version, steps};
use crate::runtime::{FormKey, GraphFacts, OptimizationLevel, WrittenGraph};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Changes with the meaning of what is written.
pub(super) const FORMAT: u32 = 1;

/// Largest `state.json`, in bytes: a graph's metadata may hold whole vocabularies.
const STATE_BYTES_MAX: u64 = 16 << 20;

pub(super) const STATE: &str = "state.json";
const REPORT: &str = "report.json";
/// Says what engines in the same folder are good for.
pub(super) const ENGINES: &str = "engines.json";

/// Ends the name of a folder of engines, after the version's number.
const OF_ENGINES: &str = ".engines";

/// Where a version's engines are.
pub(super) fn engines_folder(root: &Path, (model, version): (&ModelName, Version)) -> PathBuf {
    root.join(model.as_str()).join(format!("{version}{OF_ENGINES}"))
}

/// The version of a state or of engines, by their folder's name.
fn version_of(folder: &OsStr) -> Option<Version> {
    let name = folder.to_str()?;
    Version::parse(name.strip_suffix(OF_ENGINES).unwrap_or(name))
}

/// What is kept of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) format: u32,
    /// The version of this program.
    pub(super) ortus: String,
    pub(super) form: FormKey,
    pub(super) level: OptimizationLevel,
    /// The level of the written graph, where tuning chose another.
    #[serde(default)]
    pub(super) graph_level: Option<OptimizationLevel>,
    /// The graph's file, what it keeps outside of it, and the same of a second graph.
    pub(super) originals: Vec<OriginalFile>,
    /// Empty where only measurements are kept.
    pub(super) graphs: Vec<WrittenGraph>,
    /// The files of the written graph.
    pub(super) written: Vec<WrittenFile>,
    /// Reading, optimising and building one session, writing not counted.
    pub(super) cold_load_ms: f64,
    /// Checking and loading what was written.
    pub(super) warm_load_ms: Option<f64>,
    /// Why the graph is not written, where it is not.
    pub(super) not_written: Option<String>,
    /// What came of trying the graph with products of eight bits, where that was asked for; where it serves, it is what is written.
    pub(super) quantization: Option<Quantization>,
    /// What was measured at a load, by its name.
    pub(super) measured: std::collections::BTreeMap<String, Kept>,
}

/// A measurement, and what it is good for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// The settings and the machine.
    pub(super) under: String,
    pub(super) found: serde_json::Value,
}

/// A file of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::models) struct OriginalFile {
    /// Relative to the version's folder.
    pub(in crate::models) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) inode: u64,
    /// Nanoseconds since 1970: of its content, and of its content or its name.
    modified_ns: i128,
    changed_ns: i128,
    pub(super) blake3: String,
}

/// A file of the written graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) blake3: String,
}

fn stamps(metadata: &fs::Metadata) -> (i128, i128) {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    (nanoseconds(metadata.mtime(), metadata.mtime_nsec()), nanoseconds(metadata.ctime(), metadata.ctime_nsec()))
}

impl OriginalFile {
    /// Reads and hashes `path` of `folder`.
    pub(in crate::models) fn read(folder: &Path, path: PathBuf) -> io::Result<OriginalFile> {
        let file = folder.join(&path);
        let before = fs::metadata(&file)?;
        let (bytes, blake3) = digest(&file)?;
        let (modified_ns, changed_ns) = stamps(&before);
        Ok(OriginalFile { path, bytes, inode: before.ino(), modified_ns, changed_ns, blake3 })
    }

    /// Whether it was last touched before `time`.
    pub(in crate::models) fn is_older_than(&self, time: std::time::SystemTime) -> bool {
        let time = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i128::try_from(time.as_nanos()).is_ok_and(|time| self.changed_ns < time)
    }

    /// Whether nobody has touched it since it was read: then its content is what it was.
    pub(super) fn is_untouched(&self, folder: &Path) -> bool {
        fs::metadata(folder.join(&self.path)).is_ok_and(|now| {
            (now.len(), now.ino(), stamps(&now)) == (self.bytes, self.inode, (self.modified_ns, self.changed_ns))
        })
    }

    /// Whether its content is what it was; reads it where it was touched.
    pub(in crate::models) fn is_same(&self, folder: &Path) -> bool {
        let file = folder.join(&self.path);
        let has_size = fs::metadata(&file).is_ok_and(|now| now.len() == self.bytes);
        has_size && (self.is_untouched(folder) || digest(&file).is_ok_and(|(_, blake3)| blake3 == self.blake3))
    }
}

impl WrittenFile {
    /// # Errors
    /// Says that the file is not what was written.
    pub(super) fn check(&self, folder: &Path) -> Result<(), String> {
        let file = folder.join(&self.name);
        let is_file = fs::symlink_metadata(&file).is_ok_and(|found| found.is_file() && found.len() == self.bytes);
        match is_file && digest(&file).is_ok_and(|(_, blake3)| blake3 == self.blake3) {
            true => Ok(()),
            false => Err(format!("{} is not what was written", self.name)),
        }
    }
}

/// The files of the graphs at `sources`, with what they keep outside, relative to `folder`; `None` where one lies elsewhere.
pub(super) fn originals<'a>(
    folder: &Path,
    sources: impl Iterator<Item = (&'a Path, &'a GraphFacts)>,
) -> Option<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for (file, facts) in sources {
        let beside = file.parent()?;
        let all = std::iter::once(file.to_owned()).chain(facts.external_files.iter().map(|name| beside.join(name)));
        for path in all {
            paths.push(path.strip_prefix(folder).ok()?.to_owned());
        }
    }
    Some(paths)
}

/// A file's bytes and BLAKE3.
fn digest(file: &Path) -> io::Result<(u64, String)> {
    // Looked at before it is opened: opening a named pipe waits for a writer.
    if !fs::metadata(file)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (mut file, mut hasher, mut buffer) = (File::open(file)?, blake3::Hasher::new(), vec![0; 256 << 10]);
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
        hasher.update(part);
        bytes += part.len() as u64;
    }
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}

/// All files of a folder, with their digests.
pub(super) fn written_files(folder: &Path) -> io::Result<Vec<WrittenFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (bytes, blake3) = digest(&entry.path())?;
        files.push(WrittenFile { name: entry.file_name().to_string_lossy().into_owned(), bytes, blake3 });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// The state in `folder`; `None` where there is none.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(folder: &Path) -> Result<Option<State>, String> {
    let broken = |problem: String| Err(format!("{STATE} cannot be read: {problem}"));
    match read_bounded(&folder.join(STATE), STATE_BYTES_MAX) {
        Ok(Some(bytes)) => match serde_json::from_slice::<State>(&bytes) {
            Ok(state) => Ok(Some(state)),
            Err(error) => broken(error.to_string()),
        },
        Ok(None) => broken(format!("it is larger than {STATE_BYTES_MAX} bytes")),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_dir() => Ok(None),
        Err(error) => broken(error.kind().to_string()),
    }
}

/// An empty folder beside the states of `root`, to put one together in.
pub(super) fn begin(root: &Path) -> io::Result<PathBuf> {
    let folder = root.join(format!(".{}", uuid::Uuid::new_v4().simple()));
    fs::create_dir(&folder)?;
    steps::reached("folder of a state made")?;
    Ok(folder)
}

pub(super) fn write(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value)?;
    if bytes.len() as u64 > STATE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut file = File::create(file)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

/// Makes what lies in `begun` the state of a version.
///
/// # Errors
/// Where the disk cannot take it; there is no state then.
pub(super) fn put(
    root: &Path,
    (model, version): (&ModelName, Version),
    begun: &Path,
    state: &State,
    report: &serde_json::Value,
) -> io::Result<PathBuf> {
    write(&begun.join(REPORT), report)?;
    steps::reached("report of a state written")?;
    write(&begun.join(STATE), state)?;
    steps::reached("state written")?;
    let place = root.join(model.as_str()).join(version.to_string());
    bring(root, begun, &place)?;
    Ok(place)
}

/// Lets what was put together in `begun` take `place`, which lies in a folder of `root`; what was there goes.
pub(super) fn bring(root: &Path, begun: &Path, place: &Path) -> io::Result<()> {
    sync_folder(begun)?;
    let beside = place.parent().unwrap_or(root);
    fs::create_dir_all(beside)?;
    discard(root, place);
    steps::reached("old state gone")?;
    if fs::symlink_metadata(place).is_ok() {
        // A rename would take the place of an empty folder without a word.
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(begun, place)?;
    steps::reached("state in its place")?;
    sync_folder(beside)
}

/// Replaces what is said in a state whose files stay.
pub(super) fn update(folder: &Path, state: &State, report: &serde_json::Value) -> io::Result<()> {
    for (name, result) in [
        (REPORT, write(&folder.join(".report"), report).map(|()| ".report")),
        (STATE, write(&folder.join(".state"), state).map(|()| ".state")),
    ] {
        fs::rename(folder.join(result?), folder.join(name))?;
        steps::reached("state renewed")?;
    }
    sync_folder(folder)
}

/// Whether a folder is a state, whatever became of it. The root may be a folder that somebody has named, with other things in
/// it: nothing else is ever removed from it.
fn is_state(folder: &Path) -> bool {
    [STATE, REPORT, ENGINES].iter().any(|file| folder.join(file).is_file())
}

/// Whether it is named as what [`begin`] makes.
fn is_begun(name: &OsStr) -> bool {
    let hex = name.to_str().and_then(|name| name.strip_prefix('.'));
    hex.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes a state; it is gone in one step.
pub(super) fn discard(root: &Path, place: &Path) {
    if !is_state(place) {
        return;
    }
    let away = root.join(format!(".{}", uuid::Uuid::new_v4().simple()));
    match fs::rename(place, &away) {
        Ok(()) => remove_folder(&away),
        Err(error) => tracing::warn!(error = %error.kind(), "a saved state could not be removed"),
    }
}

/// Removes the states of a model, or of one version.
pub(super) fn forget(root: &Path, model: &ModelName, version: Option<Version>) {
    let folder = root.join(model.as_str());
    match version {
        Some(version) => {
            discard(root, &folder.join(version.to_string()));
            discard(root, &engines_folder(root, (model, version)));
        }
        None => entries(&folder).iter().for_each(|version| discard(root, &version.path())),
    }
    // Only an empty folder goes.
    let _ = fs::remove_dir(folder);
}

/// Removes what was cut off, and the states of what is gone.
pub(super) fn clean(root: &Path, is_there: impl Fn(&ModelName, Option<Version>) -> bool) {
    for entry in entries(root) {
        if is_begun(&entry.file_name()) {
            remove_folder(&entry.path());
            continue;
        }
        let Some(model) = entry.file_name().to_str().and_then(|name| ModelName::parse(name).ok()) else { continue };
        if !is_there(&model, None) {
            forget(root, &model, None);
            continue;
        }
        for version in entries(&entry.path()) {
            let number = version_of(&version.file_name());
            if number.is_some_and(|number| !is_there(&model, Some(number))) {
                discard(root, &version.path());
            }
        }
    }
}

fn entries(folder: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            format: FORMAT,
            ortus: "1".into(),
            form: FormKey { runtime: "r".into(), cpu: "c".into(), device: "d".into() },
            level: OptimizationLevel::Basic,
            graph_level: None,
            originals: vec![],
            graphs: vec![],
            written: vec![],
            cold_load_ms: 12.5,
            warm_load_ms: Some(1.5),
            not_written: None,
            quantization: None,
            measured: Default::default(),
        }
    }

    #[test]
    fn a_state_comes_and_goes_whole() {
        let root = tempfile::tempdir().unwrap();
        let (model, version) = (ModelName::parse("m").unwrap(), Version(3));
        let put = |bytes: &[u8]| {
            let begun = begin(root.path()).unwrap();
            fs::write(begun.join("graph.bin"), bytes).unwrap();
            let state = State { written: written_files(&begun).unwrap(), ..state() };
            put(root.path(), (&model, version), &begun, &state, &serde_json::json!({"a": 1})).unwrap()
        };
        let place = put(b"one");
        let found = read(&place).unwrap().unwrap();
        assert_eq!((found.written.len(), found.cold_load_ms, &found.written[0].name[..]), (1, 12.5, "graph.bin"));
        assert_eq!(found.written[0].check(&place), Ok(()));
        // Another takes its place.
        assert_eq!(put(b"two"), place);
        assert!(found.written[0].check(&place).unwrap_err().contains("graph.bin"));
        let renewed = State { warm_load_ms: None, ..read(&place).unwrap().unwrap() };
        update(&place, &renewed, &serde_json::json!({"a": 2})).unwrap();
        assert_eq!(read(&place).unwrap().unwrap(), renewed);
        assert!(fs::read_to_string(place.join("report.json")).unwrap().contains('2'));
        // Its folder goes with the last of them.
        forget(root.path(), &model, Some(version));
        assert_eq!(read(&place), Ok(None));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        // What is no state keeps its place.
        fs::create_dir_all(&place).unwrap();
        let begun = begin(root.path()).unwrap();
        assert!(super::put(root.path(), (&model, version), &begun, &state(), &serde_json::json!({})).is_err());
        forget(root.path(), &model, None);
        assert!(place.is_dir());
    }

    #[test]
    fn what_cannot_be_read_is_no_state() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("1");
        assert_eq!(read(&place), Ok(None));
        fs::create_dir(&place).unwrap();
        assert!(read(&place).is_err());
        for text in ["", "{}", "[1]", "{\"format\": 1, \"more\": 2}"] {
            fs::write(place.join(STATE), text).unwrap();
            assert!(read(&place).unwrap_err().starts_with("state.json cannot be read"), "{text}");
        }
        let whole = serde_json::to_string(&state()).unwrap();
        fs::write(place.join(STATE), &whole).unwrap();
        assert_eq!(read(&place), Ok(Some(state())));
        fs::write(place.join(STATE), whole.get(..whole.len() - 1).unwrap()).unwrap();
        assert!(read(&place).is_err());
    }

    #[test]
    fn a_file_is_the_same_by_its_stamps_or_its_content() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), b"12").unwrap();
        let file = OriginalFile::read(folder.path(), "a".into()).unwrap();
        assert!(file.is_untouched(folder.path()) && file.is_same(folder.path()));
        // As a copy of the store has it.
        fs::write(folder.path().join("b"), b"12").unwrap();
        fs::rename(folder.path().join("b"), folder.path().join("a")).unwrap();
        assert!(!file.is_untouched(folder.path()) && file.is_same(folder.path()));
        fs::write(folder.path().join("a"), b"13").unwrap();
        assert!(!file.is_same(folder.path()));
        fs::remove_file(folder.path().join("a")).unwrap();
        assert!(!file.is_same(folder.path()));
    }

    #[test]
    fn what_is_left_of_models_that_are_gone_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            fs::create_dir_all(root.path().join(path)).unwrap();
            fs::write(root.path().join(path).join(STATE), "{}").unwrap();
        };
        let begun = begin(root.path()).unwrap();
        for path in ["here/1", "here/2", "gone/1", ".config", "photos/2024/x"] {
            make(path);
        }
        for version in ["here/1", "here/2", "gone/1"] {
            let folder = root.path().join(format!("{version}.engines"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(ENGINES), "{}").unwrap();
        }
        fs::create_dir_all(root.path().join("here/3")).unwrap();
        clean(root.path(), |model, version| model.as_str() == "here" && version.is_none_or(|version| version.0 == 2));
        let mut left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".config", "here", "photos"]);
        assert!(root.path().join("here/2").is_dir() && !root.path().join("here/1").exists() && !begun.exists());
        assert!(root.path().join("here/2.engines").is_dir() && !root.path().join("here/1.engines").exists());
        forget(root.path(), &ModelName::parse("here").unwrap(), Some(Version(2)));
        assert!(!root.path().join("here/2.engines").exists());
        assert!(root.path().join("here/3").is_dir() && root.path().join("photos/2024/x").is_dir());
    }
}
