//! Which files have passed their trial: `.ortus/tried/<model>/<version>.json` in the store.
//!
//! Invariants: it counts only while the graph's files are what they were, and the library, this program and the options as well; what
//! cannot be read says nothing, and costs a trial. All of it blocks.

use crate::models::repository::read_bounded;
use crate::models::state::OriginalFile;
use crate::models::{ModelName, Version, swap};
use crate::runtime::GraphSource;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The folder in the server's own.
const FOLDER: &str = "tried";

/// Largest file, in bytes: a graph may keep its weights in thousands of files.
const BYTES_MAX: u64 = 4 << 20;

/// Where a store remembers it.
#[derive(Debug, Clone)]
pub(in crate::models) struct PassedPlace {
    models_dir: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Passed {
    /// The library, this program and the options.
    under: String,
    files: Vec<OriginalFile>,
}

impl PassedPlace {
    pub(in crate::models) fn of(models_dir: &Path) -> PassedPlace {
        PassedPlace { models_dir: models_dir.to_owned() }
    }

    fn folder(&self) -> PathBuf {
        self.models_dir.join(".ortus").join(FOLDER)
    }

    fn file(&self, (model, version): (&ModelName, Version)) -> PathBuf {
        self.folder().join(model.as_str()).join(format!("{version}.json"))
    }

    /// Whether these files have passed under these circumstances. Reads them where they were touched since.
    pub(super) fn knows(&self, of: (&ModelName, Version), source: &GraphSource, under: &str) -> bool {
        let Ok(Some(bytes)) = read_bounded(&self.file(of), BYTES_MAX) else { return false };
        let Ok(passed) = serde_json::from_slice::<Passed>(&bytes) else { return false };
        let is_listed = |file: &PathBuf| {
            let path = file.strip_prefix(&source.folder);
            path.is_ok_and(|path| passed.files.iter().any(|known| known.path == path))
        };
        passed.under == under
            && std::iter::once(&source.file).chain(&source.text_tower).all(is_listed)
            && passed.files.iter().all(|file| file.is_same(&source.folder))
    }

    /// Remembers that these files have passed a trial that began at `begun`.
    ///
    /// # Errors
    /// Why it cannot, in words.
    pub(super) fn note(
        &self,
        of: (&ModelName, Version),
        source: &GraphSource,
        external_files: &[String],
        under: String,
        begun: SystemTime,
    ) -> Result<(), String> {
        let disk = |error: io::Error| format!("the store cannot be written: {}", error.kind());
        let mut files: Vec<OriginalFile> = Vec::new();
        for file in std::iter::once(&source.file).chain(&source.text_tower) {
            let beside = file.parent().unwrap_or(&source.folder);
            let outside = external_files.iter().map(|name| beside.join(name)).filter(|path| path.is_file());
            for path in std::iter::once(file.clone()).chain(outside) {
                let path =
                    path.strip_prefix(&source.folder).map_err(|_| "a file lies outside of the version's folder")?;
                if files.iter().all(|known| known.path != path) {
                    files.push(OriginalFile::read(&source.folder, path.to_owned()).map_err(disk)?);
                }
            }
        }
        if files.iter().any(|file| !file.is_older_than(begun)) {
            return Err("the files were changed while they were tried out".to_owned());
        }
        let bytes = serde_json::to_vec(&Passed { under, files }).map_err(io::Error::from).map_err(disk)?;
        let file = self.file(of);
        let new = file.with_extension("new");
        swap::own_folder(&self.models_dir, FOLDER).map_err(disk)?;
        fs::create_dir_all(file.parent().unwrap_or(&self.models_dir)).map_err(disk)?;
        // Not synced: what a power cut takes costs a trial.
        fs::write(&new, bytes).and_then(|()| fs::rename(new, file)).map_err(disk)
    }

    /// Forgets a model, or one of its versions.
    pub(in crate::models) fn forget(&self, model: &ModelName, version: Option<Version>) {
        let folder = self.folder().join(model.as_str());
        match version {
            // Nothing where it never passed.
            Some(version) => _ = fs::remove_file(self.file((model, version))),
            None => entries(&folder).iter().for_each(|entry| _ = fs::remove_file(entry.path())),
        }
        // Only an empty folder goes.
        let _ = fs::remove_dir(folder);
    }

    /// Forgets what is gone from the store.
    pub(in crate::models) fn clean(&self, is_there: impl Fn(&ModelName, Option<Version>) -> bool) {
        for entry in entries(&self.folder()) {
            let Some(model) = entry.file_name().to_str().and_then(|name| ModelName::parse(name).ok()) else { continue };
            if !is_there(&model, None) {
                self.forget(&model, None);
                continue;
            }
            for file in entries(&entry.path()) {
                let version = file.file_name().to_str().and_then(|name| Version::parse(name.strip_suffix(".json")?));
                if version.is_none_or(|version| !is_there(&model, Some(version))) {
                    let _ = fs::remove_file(file.path());
                }
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

    const UNDER: &str = "library 1";

    fn store() -> (tempfile::TempDir, PassedPlace, GraphSource, ModelName) {
        let store = tempfile::tempdir().unwrap();
        let folder = store.path().join("m/1");
        fs::create_dir_all(folder.join("data")).unwrap();
        fs::write(folder.join("model.onnx"), "graph").unwrap();
        fs::write(folder.join("data/weights"), "weights").unwrap();
        let file = folder.join("model.onnx");
        let source = GraphSource { file, text_tower: None, folder, max_file_bytes: 1 << 20 };
        let place = PassedPlace::of(store.path());
        (store, place, source, ModelName::parse("m").unwrap())
    }

    fn later() -> SystemTime {
        SystemTime::now() + std::time::Duration::from_secs(10)
    }

    #[test]
    fn files_that_passed_are_known_until_one_of_them_changes() {
        for changed in ["model.onnx", "data/weights"] {
            let (_store, place, source, model) = store();
            let of = (&model, Version(1));
            assert!(!place.knows(of, &source, UNDER));
            place.note(of, &source, &["data/weights".to_owned()], UNDER.to_owned(), later()).unwrap();
            assert!(place.knows(of, &source, UNDER));
            // Copied, as with a store that was moved: the content is the same.
            let file = source.folder.join(changed);
            fs::copy(&file, source.folder.join("copy")).unwrap();
            fs::rename(source.folder.join("copy"), &file).unwrap();
            assert!(place.knows(of, &source, UNDER));
            fs::write(&file, "other").unwrap();
            assert!(!place.knows(of, &source, UNDER), "{changed}");
        }
    }

    #[test]
    fn another_library_graph_or_version_has_not_passed() {
        let (_store, place, source, model) = store();
        place.note((&model, Version(1)), &source, &[], UNDER.to_owned(), later()).unwrap();
        assert!(!place.knows((&model, Version(1)), &source, "library 2"));
        assert!(!place.knows((&model, Version(2)), &source, UNDER));
        let other = GraphSource { file: source.folder.join("data/weights"), ..source.clone() };
        assert!(!place.knows((&model, Version(1)), &other, UNDER));
        // Changed while the trial ran.
        let error = place.note((&model, Version(1)), &source, &[], UNDER.to_owned(), SystemTime::UNIX_EPOCH);
        assert!(error.unwrap_err().contains("changed"));
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let (_store, place, source, model) = store();
        let of = (&model, Version(1));
        place.note(of, &source, &[], UNDER.to_owned(), later()).unwrap();
        let whole = fs::read_to_string(place.file(of)).unwrap();
        for text in ["", "{}", "[1]", whole.get(..whole.len() - 1).unwrap()] {
            fs::write(place.file(of), text).unwrap();
            assert!(!place.knows(of, &source, UNDER), "{text}");
        }
        fs::write(place.file(of), whole).unwrap();
        assert!(place.knows(of, &source, UNDER));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let (_store, place, source, model) = store();
        let gone = ModelName::parse("gone").unwrap();
        for (model, version) in [(&model, 1), (&model, 2), (&gone, 1)] {
            place.note((model, Version(version)), &source, &[], UNDER.to_owned(), later()).unwrap();
        }
        place.clean(|model, version| model.as_str() == "m" && version.is_none_or(|version| version.0 == 1));
        assert!(place.knows((&model, Version(1)), &source, UNDER));
        assert!(!place.file((&model, Version(2))).exists() && !place.folder().join("gone").exists());
        place.forget(&model, Some(Version(1)));
        assert_eq!(entries(&place.folder()).len(), 0);
    }
}
