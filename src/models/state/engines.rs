//! What TensorRT built of a version's graph, and the times that it took for it, kept for the next load.
//!
//! A folder of its own beside the rest of the state: engines take minutes, and are good for as long as the graph's files, the
//! version of TensorRT and of the runtime, the GPU and what TensorRT is told are what they were. Invariants as for the rest
//! of a state: there are none or all of them, each held to its digest; what does not fit is discarded with a line in the log.
//! Where shapes are learned from runs TensorRT writes engines again while the model serves, so those are held to no digest: one
//! that a power cut left in pieces TensorRT refuses itself, and the load then discards it. Blocks.

use super::disk::{self, ENGINES, OriginalFile, WrittenFile};
use super::{StatePlace, are_of};
use crate::models::repository::read_bounded;
use crate::models::{ModelName, Version, steps, swap};
use crate::runtime::{EngineKey, GraphFacts, GraphSource};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Changes with the meaning of what is written.
const FORMAT: u32 = 1;

/// Largest `engines.json`, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What all engines of a version may take beside four times its graph: kernels for every layer, and times of each that was tried.
const EXTRA_BYTES_MAX: u64 = 1 << 30;

/// Ends the name of an engine.
const ENGINE: &str = "engine";

/// Ends the name of what TensorRT measured: it is used where it fits, by TensorRT's own judgement, and else made again.
const TIMES: &str = "timing";

/// What is said of the engines of a version.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    key: EngineKey,
    originals: Vec<OriginalFile>,
    files: Vec<WrittenFile>,
    built_ms: u64,
    /// Milliseconds since 1970.
    built_at: u64,
}

/// Engines that fit.
#[derive(Debug, Clone)]
pub(in crate::models) struct Engines {
    pub(in crate::models) folder: PathBuf,
    /// How many there are; 0: TensorRT runs none of the graph's nodes.
    pub(in crate::models) count: usize,
    pub(in crate::models) built: Duration,
    pub(in crate::models) built_at: SystemTime,
}

/// A folder for engines in the making; goes with it unless they are kept.
#[derive(Debug)]
pub(in crate::models) struct Begun {
    pub(in crate::models) folder: PathBuf,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Nothing where it has come to its place.
        swap::remove(&self.folder);
    }
}

impl Begun {
    /// Says of the files in the folder what they are good for.
    ///
    /// # Errors
    /// Why they cannot be kept, in words.
    pub(in crate::models) fn seal(
        &self,
        key: &EngineKey,
        source: &GraphSource,
        graphs: &GraphFacts,
        (begun, built): (SystemTime, Duration),
    ) -> Result<(), String> {
        let cannot = |error: io::Error| format!("the engines cannot be kept: {}", error.kind());
        let entries = std::fs::read_dir(&self.folder).map_err(cannot)?;
        let sizes = entries.map(|entry| entry?.metadata()).collect::<io::Result<Vec<_>>>().map_err(cannot)?;
        let bytes = sizes.iter().fold(0, |sum: u64, file| sum.saturating_add(file.len()));
        let most = graphs.size_bytes.saturating_mul(4).saturating_add(EXTRA_BYTES_MAX);
        if bytes > most {
            return Err(format!("the engines take {bytes} bytes, more than the {most} that are kept of this graph"));
        }
        let files = disk::written_files(&self.folder).map_err(cannot)?;
        let sources = std::iter::once(&source.file).chain(&source.text_tower).map(PathBuf::as_path);
        let paths = disk::originals(&source.folder, sources.map(|file| (file, graphs)));
        let paths = paths.ok_or("the graph's data lies outside of the model's folder")?;
        let mut read: Vec<OriginalFile> = Vec::with_capacity(paths.len());
        for path in paths {
            if read.iter().all(|known| known.path != path) && source.folder.join(&path).is_file() {
                read.push(OriginalFile::read(&source.folder, path).map_err(cannot)?);
            }
        }
        if read.iter().any(|file| !file.is_older_than(begun)) {
            return Err("the model's files were changed while the engine was built".to_owned());
        }
        let kept = Kept {
            format: FORMAT,
            key: key.clone(),
            originals: read,
            files,
            built_ms: u64::try_from(built.as_millis()).unwrap_or(u64::MAX),
            built_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        };
        disk::write(&self.folder.join(ENGINES), &kept).map_err(cannot)?;
        steps::reached("engines sealed").map_err(cannot)
    }
}

impl StatePlace {
    /// Whether engines may be built for the next loads.
    pub(in crate::models) fn takes_engines(&self) -> bool {
        self.writes
    }

    /// The engines of a version, where they fit; others are discarded.
    pub(in crate::models) fn engines(
        &self,
        of: (&ModelName, Version),
        key: &EngineKey,
        source: &GraphSource,
    ) -> Option<Engines> {
        let folder = disk::engines_folder(&self.root, of);
        if !folder.is_dir() {
            return None;
        }
        match check(&folder, key, source) {
            Ok(kept) => {
                let is_engine = |file: &&WrittenFile| has_extension(file, ENGINE);
                Some(Engines {
                    count: kept.files.iter().filter(is_engine).count(),
                    built: Duration::from_millis(kept.built_ms),
                    built_at: UNIX_EPOCH.checked_add(Duration::from_millis(kept.built_at)).unwrap_or(UNIX_EPOCH),
                    folder,
                })
            }
            Err(reason) => {
                self.discard_engines(of, &reason);
                None
            }
        }
    }

    /// Removes engines that are of no use.
    pub(in crate::models) fn discard_engines(&self, of: (&ModelName, Version), reason: &str) {
        let (model, version) = of;
        tracing::info!(%model, %version, reason, "TensorRT engines are discarded");
        if self.writes {
            disk::discard(&self.root, &disk::engines_folder(&self.root, of));
        }
    }

    /// A folder to build engines in.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(in crate::models) fn begin_engines(&self, expected_bytes: u64) -> Result<Begun, String> {
        let cannot = |error: io::Error| format!("the place of the engines cannot be written: {}", error.kind());
        let root = self.made().map_err(cannot)?;
        if crate::hub::check_space(root, expected_bytes, self.reserve_bytes).is_err() {
            return Err("the disk is short of space for an engine".to_owned());
        }
        Ok(Begun { folder: disk::begin(root).map_err(cannot)? })
    }

    /// Makes sealed engines those of a version.
    ///
    /// # Errors
    /// Where the disk cannot take them.
    pub(in crate::models) fn keep_engines(&self, of: (&ModelName, Version), begun: &Begun) -> io::Result<()> {
        disk::bring(&self.root, &begun.folder, &disk::engines_folder(&self.root, of))
    }
}

fn has_extension(file: &WrittenFile, extension: &str) -> bool {
    Path::new(&file.name).extension().is_some_and(|found| found == extension)
}

/// # Errors
/// What does not agree.
fn check(folder: &Path, key: &EngineKey, source: &GraphSource) -> Result<Kept, String> {
    let broken = |problem: String| format!("{ENGINES} cannot be read: {problem}");
    let bytes = read_bounded(&folder.join(ENGINES), BYTES_MAX).map_err(|error| broken(error.kind().to_string()))?;
    let bytes = bytes.ok_or_else(|| broken(format!("it is larger than {BYTES_MAX} bytes")))?;
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
    if kept.format != FORMAT {
        return Err("it was made by another version of this program".to_owned());
    }
    if let Some(difference) = kept.key.difference(key) {
        return Err(difference);
    }
    if !are_of(&kept.originals, source) {
        return Err("they are of another graph".to_owned());
    }
    if let Some(changed) = kept.originals.iter().find(|file| !file.is_same(&source.folder)) {
        return Err(format!("{} has changed", changed.path.display()));
    }
    let is_held = |file: &&WrittenFile| !kept.key.learns_shapes && !has_extension(file, TIMES);
    kept.files.iter().filter(is_held).try_for_each(|file| file.check(folder))?;
    let is_there = |file: &WrittenFile| std::fs::symlink_metadata(folder.join(&file.name)).is_ok_and(|it| it.is_file());
    match kept.files.iter().find(|file| has_extension(file, ENGINE) && !is_there(file)) {
        Some(gone) => Err(format!("{} is gone", gone.name)),
        None => Ok(kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn key(tensorrt: &str, learns_shapes: bool) -> EngineKey {
        EngineKey {
            tensorrt: tensorrt.into(),
            runtime: "r".into(),
            gpu: "g".into(),
            options: "o".into(),
            learns_shapes,
        }
    }

    struct Store {
        root: tempfile::TempDir,
        place: StatePlace,
        source: GraphSource,
        model: ModelName,
    }

    impl Store {
        fn new() -> Store {
            let root = tempfile::tempdir().unwrap();
            let place =
                StatePlace { root: root.path().join("optimized"), models_dir: None, reserve_bytes: 0, writes: true };
            let folder = root.path().join("m/1");
            fs::create_dir_all(&folder).unwrap();
            for file in ["model.onnx", "weights.bin"] {
                fs::write(folder.join(file), file).unwrap();
            }
            let source =
                GraphSource { file: folder.join("model.onnx"), text_tower: None, folder, max_file_bytes: 1 << 20 };
            Store { root, place, source, model: ModelName::parse("m").unwrap() }
        }

        fn of(&self) -> (&ModelName, Version) {
            (&self.model, Version(1))
        }

        fn build(&self, key: &EngineKey, size_bytes: u64) -> Result<(), String> {
            let begun = self.place.begin_engines(0)?;
            fs::write(begun.folder.join("a.engine"), b"engine").unwrap();
            fs::write(begun.folder.join("a.timing"), b"times").unwrap();
            let facts = GraphFacts { size_bytes, external_files: vec!["weights.bin".into()], ..GraphFacts::default() };
            let begun_at = SystemTime::now() + Duration::from_secs(60);
            begun.seal(key, &self.source, &facts, (begun_at, Duration::from_secs(90)))?;
            self.place.keep_engines(self.of(), &begun).map_err(|error| error.to_string())
        }

        fn found(&self, key: &EngineKey) -> Option<Engines> {
            self.place.engines(self.of(), key, &self.source)
        }

        fn folder(&self) -> PathBuf {
            self.root.path().join("optimized/m/1.engines")
        }
    }

    #[test]
    fn engines_are_found_again_and_counted() {
        let store = Store::new();
        assert!(store.found(&key("10", false)).is_none());
        store.build(&key("10", false), 1000).unwrap();
        let found = store.found(&key("10", false)).unwrap();
        assert_eq!((found.count, found.built, found.folder), (1, Duration::from_secs(90), store.folder()));
        assert!(found.built_at.elapsed().is_ok_and(|age| age < Duration::from_secs(60)));
        // What TensorRT measured may come, change and go.
        fs::write(store.folder().join("a.timing"), b"other times").unwrap();
        assert!(store.found(&key("10", false)).is_some());
        fs::remove_file(store.folder().join("a.timing")).unwrap();
        assert!(store.found(&key("10", false)).is_some());
        // Nothing is left of the making.
        let names: Vec<_> = fs::read_dir(store.root.path().join("optimized")).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        store.place.forget(&store.model, Some(Version(1)));
        assert!(!store.folder().exists() && store.found(&key("10", false)).is_none());
    }

    #[test]
    fn whatever_has_changed_discards_them() {
        let store = Store::new();
        let discards = |change: &dyn Fn(), now: &EngineKey| {
            store.build(&key("10", false), 1000).unwrap();
            change();
            assert!(store.found(now).is_none());
            assert!(!store.folder().exists());
        };
        let same = key("10", false);
        discards(&|| (), &key("11", false));
        discards(&|| (), &EngineKey { gpu: "other".into(), ..same.clone() });
        discards(&|| (), &EngineKey { options: "trt_fp16_enable=1".into(), ..same.clone() });
        discards(&|| fs::write(store.folder().join("a.engine"), b"cut").unwrap(), &same);
        discards(&|| fs::remove_file(store.folder().join("a.engine")).unwrap(), &same);
        discards(&|| fs::write(store.folder().join(ENGINES), b"{}").unwrap(), &same);
        discards(&|| fs::write(store.source.folder.join("weights.bin"), b"retrained").unwrap(), &same);
        discards(&|| fs::write(&store.source.file, b"another").unwrap(), &same);
    }

    #[test]
    fn engines_that_learn_may_be_written_again() {
        let store = Store::new();
        store.build(&key("10", true), 1000).unwrap();
        fs::write(store.folder().join("a.engine"), b"for longer texts").unwrap();
        assert!(store.found(&key("10", true)).is_some());
        fs::remove_file(store.folder().join("a.engine")).unwrap();
        assert!(store.found(&key("10", true)).is_none());
    }

    #[test]
    fn what_is_too_large_or_of_changed_files_is_not_kept() {
        let store = Store::new();
        let begun = store.place.begin_engines(0).unwrap();
        let large = fs::File::create(begun.folder.join("a.engine")).unwrap();
        // Sparse: it takes no space.
        large.set_len(EXTRA_BYTES_MAX + 1).unwrap();
        let facts = GraphFacts::default();
        let later = SystemTime::now() + Duration::from_secs(60);
        let problem = begun.seal(&key("10", false), &store.source, &facts, (later, Duration::ZERO)).unwrap_err();
        assert!(problem.contains("more than"), "{problem}");
        large.set_len(1).unwrap();
        let before = SystemTime::now() - Duration::from_secs(60);
        let problem = begun.seal(&key("10", false), &store.source, &facts, (before, Duration::ZERO)).unwrap_err();
        assert!(problem.contains("changed while"), "{problem}");
        let folder = begun.folder.clone();
        drop(begun);
        assert!(!folder.exists());
        assert!(store.place.begin_engines(u64::MAX).unwrap_err().contains("short of space"));
    }
}
