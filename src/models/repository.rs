//! Reads the store's folder: which models and versions are there, and in what state their files are.
//!
//! Invariants: nothing outside the store is read, whatever links it holds; odd names, unreadable folders and files of
//! any content are reported, never a panic; walks and files are bounded. Loads nothing and changes nothing. Texts name
//! files relative to the model's folder.

use super::choice::Choice;
use super::config_pbtxt::{ConfigError, GivenConfig};
use super::lifecycle::Fingerprint;
use super::manifest::{Manifest, ManifestError};
use super::{ModelName, Version};
use crate::hub::Provenance;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

/// Models read from one store.
const MODELS_MAX: usize = 10_000;
/// Files looked at in one version's folder.
const FILES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 8;
/// Largest `config.pbtxt` read, in bytes.
pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// File names listed in an error.
const NAMES_SHOWN: usize = 12;

/// What is wrong with a model's folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{entry} is a link that leads outside the store; put the files themselves into the store")]
    Outside { entry: String },
    #[error("{entry} could not be read: {kind}")]
    Unreadable { entry: String, kind: io::ErrorKind },
    #[error("{entry} holds more than {FILES_MAX} files or is deeper than {DEPTH_MAX} folders")]
    TooMany { entry: String },
    #[error(
        "there is no version: expected a folder named by a number, such as 1/model.onnx, or a file model.onnx; found {found}"
    )]
    NoVersion { found: String },
    #[error("{file}, which {named_by} names, is not in {folder}; found {found}")]
    NoSuchGraph { file: String, named_by: &'static str, folder: String, found: String },
    #[error(
        "there is no model file in {folder}: expected model.onnx, model.ort, onnx/model.onnx, the pair vision_model.onnx and text_model.onnx, or a single .onnx or .ort file; found {found}"
    )]
    NoGraph { folder: String, found: String },
    #[error(
        "there are several model files in {folder}: {found}; name one as model.onnx, or in model.toml as pipeline.file"
    )]
    ManyGraphs { folder: String, found: String },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("config.pbtxt: {0}")]
    Config(#[from] ConfigError),
}

/// One model as its folder is.
#[derive(Debug, Clone)]
pub(super) struct ModelFolder {
    pub(super) manifest: Arc<Manifest>,
    pub(super) config: Option<Arc<GivenConfig>>,
    pub(super) versions: BTreeMap<Version, VersionFolder>,
    /// Whether the graph lies in the model's folder itself.
    pub(super) is_bare: bool,
    pub(super) choice: Option<Choice>,
}

#[derive(Debug, Clone)]
pub(super) struct VersionFolder {
    /// Holds the graph; canonical.
    pub(super) folder: PathBuf,
    /// Holds what all versions share; the same as `folder` for a bare model. Canonical.
    pub(super) model_folder: PathBuf,
    /// No link leads out of this folder; canonical.
    pub(super) bounds: PathBuf,
    pub(super) fingerprint: Fingerprint,
    /// Where the files came from, where they say so.
    pub(super) origin: Option<Arc<Provenance>>,
}

/// A file of a model as it lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Below the folder that was asked for.
    pub path: String,
    pub bytes: u64,
}

/// The store's folder.
pub(super) struct Repository {
    root: PathBuf,
    /// Names already complained of, so that each is logged once. A std mutex: held for an insertion.
    reported: Mutex<BTreeSet<String>>,
}

impl Repository {
    pub(super) fn new(root: PathBuf) -> Repository {
        Repository { root, reported: Mutex::default() }
    }

    /// The names of the models in the store. Blocks.
    ///
    /// # Errors
    /// Where the store's folder cannot be read as a whole.
    pub(super) fn names(&self) -> io::Result<Vec<ModelName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::warn!(error = %error.kind(), "an entry of the store could not be read and is skipped");
                    continue;
                }
            };
            let name = entry.file_name();
            // Hidden folders are not models: `.ortus` is the server's own, `.git` and `.cache` are other programs'.
            if name.as_encoded_bytes().starts_with(b".") || !entry.path().is_dir() {
                continue;
            }
            match name.to_str().map(ModelName::parse) {
                Some(Ok(name)) => names.push(name),
                Some(Err(_)) | None => self.report(&name.to_string_lossy()),
            }
            if names.len() >= MODELS_MAX {
                tracing::error!(max = MODELS_MAX, "the store holds more models than are served; the rest is ignored");
                break;
            }
        }
        names.sort();
        Ok(names)
    }

    fn report(&self, name: &str) {
        if self.is_news(name) {
            let rule = super::NameError;
            tracing::warn!(folder = ?name, %rule, "a folder of the store is skipped because of its name");
        }
    }

    /// Whether this was not complained of before.
    fn is_news(&self, complaint: &str) -> bool {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.len() < MODELS_MAX && reported.insert(complaint.to_owned())
    }

    /// Whether the store has a folder of this name. Blocks for one look.
    pub(super) fn contains(&self, name: &ModelName) -> bool {
        self.root.join(name.as_str()).is_dir()
    }

    /// Reads a model's folder; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// Where the folder cannot be served at all: see [`FolderError`]. What is wrong with one version's graph is found
    /// when that version is loaded.
    pub(super) fn read(&self, name: &ModelName) -> Result<Option<ModelFolder>, FolderError> {
        let folder = self.root.join(name.as_str());
        if !folder.is_dir() {
            return Ok(None);
        }
        let mut model = read_folder(&self.root, &folder)?;
        model.choice = self.choice(name);
        Ok(Some(model))
    }

    /// The version that was chosen to serve. Blocks.
    pub(super) fn choice(&self, name: &ModelName) -> Option<Choice> {
        Choice::read(&self.root, name).unwrap_or_else(|problem| {
            if self.is_news(&format!(".ortus/chosen/{name}: {problem}")) {
                tracing::warn!(model = %name, problem, "the file of the chosen version is no choice and is ignored");
            }
            None
        })
    }

    /// All that stands where a version of the model would, whatever it is. Blocks.
    ///
    /// # Errors
    /// Where the folder is there and cannot be read.
    pub(super) fn numbers(&self, name: &ModelName) -> io::Result<BTreeSet<Version>> {
        let entries = match fs::read_dir(self.root.join(name.as_str())) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
        Ok(names.filter_map(|name| Version::parse(name.to_str()?)).collect())
    }

    /// The files of a version, or of a model with all that it shares, by their paths below its folder; `None` where there is none.
    /// Hidden folders are left out. Blocks.
    ///
    /// # Errors
    /// Where the folder cannot be read to its end.
    pub(super) fn files(
        &self,
        name: &ModelName,
        version: Option<Version>,
    ) -> Result<Option<Vec<StoredFile>>, FolderError> {
        let folder = self.root.join(name.as_str());
        let of_version = version.map(|version| folder.join(version.to_string())).filter(|folder| folder.is_dir());
        let folder = match (of_version, version) {
            (Some(folder), _) => folder,
            (None, None) => folder,
            // A bare model is its first version.
            (None, Some(Version(1))) if self.numbers(name).is_ok_and(|all| all.is_empty()) => folder,
            (None, Some(_)) => return Ok(None),
        };
        if !folder.is_dir() {
            return Ok(None);
        }
        let (bounds, folder) = (canonical(&self.root, "the store")?, canonical(&folder, "the model's folder")?);
        if !folder.starts_with(&bounds) {
            return Err(FolderError::Outside { entry: "the model's folder".into() });
        }
        let walk = Walk::over(&bounds, &folder, DEPTH_MAX)?;
        let stored = |file: PathBuf| {
            let bytes = fs::metadata(folder.join(&file)).ok()?.len();
            Some(StoredFile { path: file.to_str()?.to_owned(), bytes })
        };
        Ok(Some(walk.files.into_iter().filter_map(stored).collect()))
    }

    /// Whether something of this name is in the store, whatever it is. Blocks for one look.
    pub(super) fn is_taken(&self, name: &ModelName) -> bool {
        fs::symlink_metadata(self.root.join(name.as_str())).is_ok()
    }

    /// Whether the model's folder is in the store itself, not only a link to it. Blocks.
    pub(super) fn is_inside(&self, name: &ModelName) -> bool {
        let folder = self.root.join(name.as_str()).canonicalize();
        folder.ok().zip(self.root.canonicalize().ok()).is_some_and(|(folder, root)| folder.starts_with(root))
    }
}

/// Reads the model in `folder`; no link in it may lead out of `bounds`.
pub(super) fn read_folder(bounds: &Path, folder: &Path) -> Result<ModelFolder, FolderError> {
    let bounds = canonical(bounds, "the store")?;
    let folder = canonical(folder, "the model's folder")?;
    if !folder.starts_with(&bounds) {
        return Err(FolderError::Outside { entry: "the model's folder".into() });
    }
    for file in ["model.toml", "config.pbtxt"] {
        if let Ok(target) = folder.join(file).canonicalize()
            && !target.starts_with(&bounds)
        {
            return Err(FolderError::Outside { entry: file.into() });
        }
    }
    let manifest = Arc::new(Manifest::read(&folder)?);
    let config = read_config(&folder)?.map(Arc::new);
    let mut versions = BTreeMap::new();
    // Files that all versions share, the manifest among them: a change of theirs is a change of each version.
    let shared = Walk::over(&bounds, &folder, 1)?;
    for version in version_folders(&folder)? {
        let path = folder.join(version.to_string());
        let path = canonical(&path, &version.to_string())?;
        if !path.starts_with(&bounds) {
            return Err(FolderError::Outside { entry: version.to_string() });
        }
        let own = Walk::over(&bounds, &path, DEPTH_MAX)?;
        let fingerprint = Fingerprint(shared.hash ^ own.hash.rotate_left(1));
        versions.insert(
            version,
            VersionFolder {
                folder: path,
                model_folder: folder.clone(),
                bounds: bounds.clone(),
                fingerprint,
                origin: None,
            },
        );
    }
    let is_bare = versions.is_empty();
    if is_bare {
        let all = Walk::over(&bounds, &folder, DEPTH_MAX)?;
        let names_graph =
            manifest.pipeline.file.is_some() || config.as_ref().is_some_and(|config| config.graph_file.is_some());
        if !names_graph && all.graphs().next().is_none() {
            return Err(FolderError::NoVersion { found: all.listing() });
        }
        let fingerprint = Fingerprint(all.hash);
        let version = VersionFolder { folder: folder.clone(), model_folder: folder, bounds, fingerprint, origin: None };
        versions.insert(Version(1), version);
    }
    Ok(ModelFolder { manifest, config, versions, is_bare, choice: None })
}

/// The files of a version's graph.
#[derive(Debug, PartialEq)]
pub(super) struct GraphFiles {
    pub(super) file: PathBuf,
    /// The graph for texts, where `file` is that for pictures and the two belong together.
    pub(super) text_tower: Option<PathBuf>,
}

/// The picture's and the text's graph of models that compare the two, as transformers.js names them.
const TOWERS: [[&str; 2]; 2] =
    [["vision_model.onnx", "text_model.onnx"], ["onnx/vision_model.onnx", "onnx/text_model.onnx"]];

/// The graph of a version: what the manifest names, else what the configuration names, else the usual names, else a pair of
/// towers.
pub(super) fn graph_files(
    version: &VersionFolder,
    manifest: &Manifest,
    config: Option<&GivenConfig>,
) -> Result<GraphFiles, FolderError> {
    let folder = &version.folder;
    // Only the last part of the path is told: a version's number or the model's name.
    let shown = || folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let named = manifest.pipeline.file.as_deref().map(|file| (file, "model.toml"));
    let named =
        named.or_else(|| config.and_then(|config| config.graph_file.as_deref()).map(|file| (file, "config.pbtxt")));
    let mut text_tower = None;
    let file = if let Some((file, named_by)) = named {
        let path = in_own_folder(folder.join(file));
        if !super::manifest::is_contained(file) || !path.is_file() {
            let found = Walk::over(folder, folder, DEPTH_MAX).map(|walk| walk.listing()).unwrap_or_default();
            return Err(FolderError::NoSuchGraph { file: file.to_owned(), named_by, folder: shown(), found });
        }
        path
    } else {
        let usual = ["model.onnx", "model.ort", "onnx/model.onnx"].map(|name| in_own_folder(folder.join(name)));
        let usual = usual.into_iter().find(|path| path.is_file());
        let mut pairs = TOWERS.iter().map(|pair| pair.map(|name| folder.join(name)));
        let pair = pairs.find(|pair| usual.is_none() && pair.iter().all(|path| path.is_file()));
        match (usual, pair) {
            (Some(path), _) => path,
            (None, Some([image, text])) => {
                text_tower = Some(text);
                image
            }
            (None, None) => {
                let walk = Walk::over(folder, folder, DEPTH_MAX)?;
                let graphs: Vec<&PathBuf> = walk.graphs().collect();
                match graphs.as_slice() {
                    [only] => folder.join(only),
                    [] => return Err(FolderError::NoGraph { folder: shown(), found: walk.listing() }),
                    _ => return Err(FolderError::ManyGraphs { folder: shown(), found: listing(graphs.into_iter()) }),
                }
            }
        }
    };
    for path in std::iter::once(&file).chain(&text_tower) {
        if !canonical(path, "the model file")?.starts_with(&version.bounds) {
            return Err(FolderError::Outside { entry: "the model file".into() });
        }
    }
    Ok(GraphFiles { file, text_tower })
}

/// A graph with external data may be a folder of the graph's name, with `model.onnx` in it, as Triton has it.
fn in_own_folder(path: PathBuf) -> PathBuf {
    if path.is_dir() { path.join("model.onnx") } else { path }
}

/// `file` in the version's folder, else in the model's; canonical and inside the bounds.
pub(super) fn companion(version: &VersionFolder, file: &str) -> Option<PathBuf> {
    companion_in(&version.folder, &version.model_folder, &version.bounds, file)
}

/// The same where the folders are known, all of them canonical; no link leads out of `bounds`.
pub(super) fn companion_in(folder: &Path, model_folder: &Path, bounds: &Path, file: &str) -> Option<PathBuf> {
    if !super::manifest::is_contained(file) {
        return None;
    }
    [folder, model_folder].into_iter().find_map(|folder| {
        let path = folder.join(file).canonicalize().ok()?;
        (path.is_file() && path.starts_with(bounds)).then_some(path)
    })
}

/// The bytes of a file; `None` where there are more than `max`.
///
/// # Errors
/// Where it cannot be read or is not a plain file: a named pipe would never end.
pub(super) fn read_bounded(file: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    // Looked at before it is opened: opening a named pipe waits for a writer.
    if !fs::metadata(file)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max).then_some(bytes))
}

fn read_config(folder: &Path) -> Result<Option<GivenConfig>, FolderError> {
    match read_bounded(&folder.join("config.pbtxt"), CONFIG_BYTES_MAX) {
        Ok(Some(bytes)) => {
            let text =
                String::from_utf8(bytes).map_err(|_| ConfigError::Syntax("the file is not UTF-8 text".into()))?;
            Ok(Some(GivenConfig::parse_text(&text)?))
        }
        Ok(None) => Err(ConfigError::Syntax(format!("the file is larger than {CONFIG_BYTES_MAX} bytes")).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FolderError::Unreadable { entry: "config.pbtxt".into(), kind: error.kind() }),
    }
}

fn version_folders(folder: &Path) -> Result<BTreeSet<Version>, FolderError> {
    let entries = fs::read_dir(folder)
        .map_err(|error| FolderError::Unreadable { entry: "the model's folder".into(), kind: error.kind() })?;
    let versions = entries
        .take(FILES_MAX)
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str().and_then(Version::parse).map(|version| (version, entry.path())))
        .filter(|(_, path)| path.is_dir())
        .map(|(version, _)| version)
        .collect();
    Ok(versions)
}

fn canonical(path: &Path, entry: &str) -> Result<PathBuf, FolderError> {
    path.canonicalize().map_err(|error| FolderError::Unreadable { entry: entry.to_owned(), kind: error.kind() })
}

/// The files below a folder, links followed but never out of the bounds, hidden folders left out.
struct Walk {
    /// Relative to the folder, in order.
    files: BTreeSet<PathBuf>,
    /// Entries of any kind: links may make a few folders look like many.
    seen: usize,
    hash: u64,
}

impl Walk {
    /// `depth` 1 looks at the folder's own files only.
    fn over(bounds: &Path, folder: &Path, depth: usize) -> Result<Walk, FolderError> {
        let mut walk = Walk { files: BTreeSet::new(), seen: 0, hash: 0 };
        let mut pending = vec![(PathBuf::new(), depth)];
        while let Some((below, depth)) = pending.pop() {
            let shown =
                || if below.as_os_str().is_empty() { "the folder".to_owned() } else { below.display().to_string() };
            let entries = fs::read_dir(folder.join(&below))
                .map_err(|error| FolderError::Unreadable { entry: shown(), kind: error.kind() })?;
            for entry in entries {
                let entry = entry.map_err(|error| FolderError::Unreadable { entry: shown(), kind: error.kind() })?;
                walk.visit(bounds, folder, &below.join(entry.file_name()), &entry, depth, &mut pending)?;
            }
        }
        Ok(walk)
    }

    fn visit(
        &mut self,
        bounds: &Path,
        folder: &Path,
        relative: &Path,
        entry: &fs::DirEntry,
        depth: usize,
        pending: &mut Vec<(PathBuf, usize)>,
    ) -> Result<(), FolderError> {
        self.seen += 1;
        if self.seen > FILES_MAX {
            return Err(FolderError::TooMany { entry: "the folder".into() });
        }
        let path = folder.join(relative);
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            match path.canonicalize() {
                Ok(target) if !target.starts_with(bounds) => {
                    return Err(FolderError::Outside { entry: relative.display().to_string() });
                }
                Ok(_) => {}
                // A link to nothing, or a circle: it cannot be read, so it is not there.
                Err(_) => return Ok(()),
            }
        }
        // A file that vanishes under the walk is as good as not there; the next look finds the change.
        let Ok(metadata) = fs::metadata(&path) else { return Ok(()) };
        if metadata.is_dir() {
            if depth > 1 && !hidden {
                pending.push((relative.to_owned(), depth - 1));
            } else if depth == 1 && relative.components().count() >= DEPTH_MAX {
                return Err(FolderError::TooMany { entry: relative.display().to_string() });
            }
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (relative, metadata.len(), modified).hash(&mut hasher);
        // A sum does not depend on the order in which the system lists a folder.
        self.hash = self.hash.wrapping_add(hasher.finish());
        self.files.insert(relative.to_owned());
        Ok(())
    }

    fn graphs(&self) -> impl Iterator<Item = &PathBuf> {
        self.files
            .iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "onnx" || extension == "ort"))
    }

    fn listing(&self) -> String {
        listing(self.files.iter())
    }
}

fn listing<'a>(files: impl Iterator<Item = &'a PathBuf>) -> String {
    let mut names: Vec<String> = files.take(NAMES_SHOWN + 1).map(|file| file.display().to_string()).collect();
    if names.is_empty() {
        return "no files".into();
    }
    if names.len() > NAMES_SHOWN {
        names.truncate(NAMES_SHOWN);
        names.push("…".into());
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    /// A store with these files, each a path and its content.
    fn store(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    /// The graph of each version of the model `m`, relative to its folder, or the error's text.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        let root = store(files);
        let repository = Repository::new(root.path().to_owned());
        let base = root.path().canonicalize().unwrap().join("m");
        let got = match repository.read(&name("m")) {
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string(),
            Ok(Some(model)) => {
                let graphs = model.versions.iter().map(|(version, folder)| {
                    match graph_files(folder, &model.manifest, model.config.as_deref()) {
                        Ok(GraphFiles { file, text_tower }) => {
                            let files = std::iter::once(&file).chain(&text_tower);
                            let shown = files.map(|path| path.strip_prefix(&base).unwrap().display().to_string());
                            format!("{version}:{}", shown.collect::<Vec<_>>().join("+"))
                        }
                        Err(error) => format!("{version}:{error}"),
                    }
                });
                graphs.collect::<Vec<_>>().join(" ")
            }
        };
        if expected.ends_with('…') {
            assert!(got.starts_with(expected.trim_end_matches('…')), "{got}");
        } else {
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn folders_of_triton_and_of_a_hub_are_models_as_they_stand() {
        check(&[("m/model.onnx", "")], "1:model.onnx");
        check(&[("m/model.ort", ""), ("m/x.onnx", "")], "1:model.ort");
        check(&[("m/onnx/model.onnx", ""), ("m/onnx/model_int8.onnx", ""), ("m/config.json", "")], "1:onnx/model.onnx");
        check(&[("m/only.onnx", ""), ("m/labels.txt", "")], "1:only.onnx");
        check(
            &[("m/1/model.onnx", ""), ("m/10/model.onnx", ""), ("m/01/model.onnx", "")],
            "1:1/model.onnx 10:10/model.onnx",
        );
        check(&[("m/3/net.onnx", ""), ("m/model.onnx", "")], "3:3/net.onnx");
        check(
            &[("m/model.toml", "[pipeline]\nfile = \"onnx/a.onnx\""), ("m/onnx/a.onnx", ""), ("m/model.onnx", "")],
            "1:onnx/a.onnx",
        );
        check(
            &[("m/config.pbtxt", "default_model_filename: \"net.onnx\""), ("m/2/net.onnx", ""), ("m/2/model.onnx", "")],
            "2:2/net.onnx",
        );
        check(&[("m/1/model.onnx/model.onnx", ""), ("m/1/model.onnx/weights", "")], "1:1/model.onnx/model.onnx");
        check(&[("m/1/model.onnx/model.onnx", ""), ("m/1/model.onnx/other.onnx", "")], "1:1/model.onnx/model.onnx");
        check(
            &[("m/config.pbtxt", "default_model_filename: \"net.onnx\""), ("m/2/net.onnx/model.onnx", "")],
            "2:2/net.onnx/model.onnx",
        );
        check(&[("x/model.onnx", "")], "none");
    }

    #[test]
    fn a_graph_for_pictures_and_one_for_texts_are_a_pair_where_there_is_no_other() {
        let pair = [("m/vision_model.onnx", ""), ("m/text_model.onnx", ""), ("m/text_model_int8.onnx", "")];
        check(&pair, "1:vision_model.onnx+text_model.onnx");
        check(
            &[("m/2/onnx/text_model.onnx", ""), ("m/2/onnx/vision_model.onnx", "")],
            "2:2/onnx/vision_model.onnx+2/onnx/text_model.onnx",
        );
        check(&[pair.as_slice(), &[("m/onnx/model.onnx", "")]].concat(), "1:onnx/model.onnx");
        check(
            &[pair.as_slice(), &[("m/model.toml", "[pipeline]\nfile = \"text_model.onnx\"")]].concat(),
            "1:text_model.onnx",
        );
        check(&pair[..1], "1:vision_model.onnx");
        check(&pair[1..2], "1:text_model.onnx");
        check(
            &[pair[0], ("m/onnx/text_model.onnx", "")],
            "1:there are several model files in m: onnx/text_model.onnx…",
        );
    }

    #[test]
    fn what_is_missing_is_said_with_what_is_there() {
        check(&[("m/README.md", "")], "there is no version…");
        check(
            &[("m/1/weights.bin", "")],
            "1:there is no model file in 1: expected model.onnx, model.ort, onnx/model.onnx, the pair vision_model.onnx and text_model.onnx, or a single .onnx or .ort file; found weights.bin",
        );
        check(&[("m/a.onnx", ""), ("m/b.onnx", "")], "1:there are several model files in m: a.onnx, b.onnx…");
        check(
            &[("m/model.toml", "[pipeline]\nfile = \"a.onnx\""), ("m/model.onnx", "")],
            "1:a.onnx, which model.toml names, is not in m; found model.onnx, model.toml",
        );
        check(
            &[("m/1/model.onnx/weights", "")],
            "1:there is no model file in 1: expected model.onnx, model.ort, onnx/model.onnx, the pair vision_model.onnx and text_model.onnx, or a single .onnx or .ort file; found model.onnx/weights",
        );
        check(
            &[("m/config.pbtxt", "default_model_filename: \"../../x\""), ("m/1/model.onnx", "")],
            "config.pbtxt: default_model_filename…",
        );
        check(&[("m/model.toml", "x = 1"), ("m/model.onnx", "")], "model.toml, line 1: unknown key 'x'…");
        check(&[("m/config.pbtxt", "nonsense {"), ("m/1/model.onnx", "")], "config.pbtxt: …");
    }

    #[test]
    fn odd_names_are_skipped_and_nothing_panics() {
        let root = store(&[
            ("good/model.onnx", ""),
            (".hidden/model.onnx", ""),
            (".ortus/x", ""),
            ("-bad/model.onnx", ""),
            ("file", ""),
        ]);
        fs::create_dir(root.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"))).unwrap();
        fs::write(root.path().join("good").join(std::ffi::OsStr::from_bytes(b"\xff.onnx")), "").unwrap();
        symlink("nowhere", root.path().join("good/dangling")).unwrap();
        symlink(".", root.path().join("good/circle")).unwrap();
        symlink("self", root.path().join("good/self")).unwrap();
        let repository = Repository::new(root.path().to_owned());
        assert_eq!(repository.names().unwrap(), [name("good")]);
        // The circle is a folder deeper than any limit: refused, not walked for ever.
        assert!(matches!(repository.read(&name("good")), Err(FolderError::TooMany { .. })));
        fs::remove_file(root.path().join("good/circle")).unwrap();
        assert!(repository.read(&name("good")).unwrap().is_some());
        assert!(Repository::new(root.path().join("absent")).names().is_err());
    }

    /// F02.
    #[test]
    fn the_files_of_a_version_are_those_below_its_folder() {
        let store = store(&[
            ("m/model.toml", "x"),
            ("m/2/model.onnx", "four"),
            ("m/2/.cache/x", "hidden"),
            ("m/2/onnx/data", ""),
            ("bare/model.onnx", "1"),
        ]);
        let repository = Repository::new(store.path().to_owned());
        let files = |model: &str, version: Option<u64>| {
            let files = repository.files(&name(model), version.map(Version)).unwrap();
            files.map(|files| files.into_iter().map(|file| (file.path, file.bytes)).collect::<Vec<_>>())
        };
        let owned =
            |files: &[(&str, u64)]| Some(files.iter().map(|(path, bytes)| ((*path).to_owned(), *bytes)).collect());
        assert_eq!(files("m", Some(2)), owned(&[("model.onnx", 4), ("onnx/data", 0)]));
        assert_eq!(files("m", None), owned(&[("2/model.onnx", 4), ("2/onnx/data", 0), ("model.toml", 1)]));
        assert_eq!(files("bare", Some(1)), owned(&[("model.onnx", 1)]));
        assert_eq!([files("m", Some(1)), files("bare", Some(2)), files("none", None)], [None, None, None]);
        std::os::unix::fs::symlink("/", store.path().join("out")).unwrap();
        assert!(repository.files(&name("out"), None).is_err());
    }

    #[test]
    fn no_link_leads_out_of_the_store() {
        let outside = store(&[("1/model.onnx", ""), ("model.toml", ""), ("secret", "x")]);
        let target = |file: &str| outside.path().join(file);
        for (link, to) in [
            ("m", ""),
            ("m/1", "1"),
            ("m/1/model.onnx", "1/model.onnx"),
            ("m/1/data", "secret"),
            ("m/model.toml", "model.toml"),
            ("m/config.pbtxt", "secret"),
            ("m/labels.txt", "secret"),
        ] {
            let root = store(&[]);
            let path = root.path().join(link);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target(to), path).unwrap();
            let result = Repository::new(root.path().to_owned()).read(&name("m"));
            assert!(matches!(result, Err(FolderError::Outside { .. })), "{link}: {result:?}");
        }
        // A link that stays inside the store is as good as the file.
        let root = store(&[("blobs/a", "")]);
        fs::create_dir_all(root.path().join("m/1")).unwrap();
        symlink("../../blobs/a", root.path().join("m/1/data")).unwrap();
        assert!(Repository::new(root.path().to_owned()).read(&name("m")).unwrap().is_some());
    }

    #[test]
    fn the_fingerprint_tells_any_change_of_the_files() {
        let root = store(&[("m/1/model.onnx", "a"), ("m/2/model.onnx", "a"), ("m/labels.txt", "x")]);
        let repository = Repository::new(root.path().to_owned());
        let prints = || -> Vec<Fingerprint> {
            let model = repository.read(&name("m")).unwrap().unwrap();
            model.versions.values().map(|version| version.fingerprint).collect()
        };
        let first = prints();
        assert_eq!(first, prints());
        fs::write(root.path().join("m/2/model.onnx"), "ab").unwrap();
        let second = prints();
        assert!(first[0] == second[0] && first[1] != second[1]);
        fs::write(root.path().join("m/model.toml"), "").unwrap();
        let third = prints();
        assert!(second[0] != third[0] && second[1] != third[1]);
    }

    #[test]
    fn a_companion_comes_from_the_version_and_else_from_the_model() {
        let root = store(&[("m/1/model.onnx", ""), ("m/labels.txt", ""), ("m/1/own.txt", ""), ("other", "")]);
        let model = Repository::new(root.path().to_owned()).read(&name("m")).unwrap().unwrap();
        let version = &model.versions[&Version(1)];
        assert!(companion(version, "labels.txt").is_some());
        assert!(companion(version, "own.txt").is_some());
        for bad in ["../other", "absent", "", "/etc/passwd"] {
            assert_eq!(companion(version, bad), None, "{bad}");
        }
    }
}
