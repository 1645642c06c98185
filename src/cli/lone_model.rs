//! A model that is not in the store: a file or a folder named on the command line.

use super::error::CliError;
use crate::config::Config;
use crate::engine::ModelName;
use std::ffi::OsStr;
use std::path::Path;
use tempfile::TempDir;

/// A model to load, and the folder made for it, which is removed when this is dropped.
pub(super) struct Target {
    pub(super) name: ModelName,
    store: Option<TempDir>,
}

impl Target {
    /// Whether it is a lone file, whose store goes with this value.
    pub(super) fn is_lone_file(&self) -> bool {
        self.store.is_some()
    }
}

/// Files that tell the task of a model, as HuggingFace repositories name them.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "preprocessor_config.json",
    "labels.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// External data comes in a few files; a folder of thousands of files named alike is something else.
const MAX_SIDE_FILES: usize = 256;

/// What `argument` means: a model of the store comes first, then a file or folder, for which `config` is given another
/// store that holds it.
///
/// # Errors
/// Where it is none of these, or the file is not a model file by its name.
pub(super) fn resolve(argument: &str, config: &mut Config) -> Result<Target, CliError> {
    let path = Path::new(argument);
    if let Ok(name) = ModelName::parse(argument)
        && (!path.exists() || config.store.models_dir.join(argument).exists())
    {
        return Ok(Target { name, store: None });
    }
    let Ok(path) = path.canonicalize() else { return Err(CliError::NoModel(argument.to_owned())) };
    if path.is_dir() { folder(&path, config) } else { file(&path, config) }
}

/// A model's folder stays where it is: the folder that holds it is the store.
fn folder(path: &Path, config: &mut Config) -> Result<Target, CliError> {
    let name = path.file_name().and_then(OsStr::to_str).and_then(|name| ModelName::parse(name).ok());
    let (Some(name), Some(store)) = (name, path.parent()) else {
        let problem = "the folder's name cannot be a model's name; rename it to letters, digits, '.', '_' and '-'";
        return Err(CliError::LoneModel { path: path.to_owned(), problem });
    };
    config.store.models_dir = store.to_owned();
    Ok(Target { name, store: None })
}

/// A file is linked or copied into a store of its own: links of the symbolic kind would point out of the model's
/// folder, where nothing is read.
fn file(path: &Path, config: &mut Config) -> Result<Target, CliError> {
    let wrong = |problem| CliError::LoneModel { path: path.to_owned(), problem };
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    let Some(extension) = extension.filter(|extension| extension == "onnx" || extension == "ort") else {
        return Err(wrong("expected a model file (.onnx or .ort) or a model's folder"));
    };
    let (Some(file_name), Some(stem), Some(parent)) =
        (path.file_name().and_then(OsStr::to_str), path.file_stem().and_then(OsStr::to_str), path.parent())
    else {
        return Err(wrong("the file's name is not UTF-8; rename it"));
    };
    let failed = |source| CliError::File { path: path.to_owned(), source };
    let name = name_from(stem).ok_or_else(|| wrong("the file's name cannot be a model's name; rename it"))?;
    let store = tempfile::tempdir().map_err(failed)?;
    let version = store.path().join(name.as_str()).join("1");
    std::fs::create_dir_all(&version).map_err(failed)?;
    // A large graph is linked where the file system allows it; what stands beside it is copied, since hard links are
    // refused as external data.
    let graph = version.join(format!("model.{extension}"));
    if std::fs::hard_link(path, &graph).is_err() {
        place(path, &graph).map_err(failed)?;
    }

    let is_data =
        |name: &str| name != file_name && (name.starts_with(file_name) || name.starts_with(&format!("{stem}.data")));
    let beside = std::fs::read_dir(parent).map_err(failed)?.filter_map(Result::ok);
    let data = beside.filter(|entry| entry.file_name().to_str().is_some_and(is_data)).map(|entry| entry.path());
    for data in data.filter(|path| path.is_file()).take(MAX_SIDE_FILES) {
        let Some(name) = data.file_name() else { continue };
        place(&data, &version.join(name)).map_err(|source| CliError::File { path: data.clone(), source })?;
    }
    // HuggingFace repositories keep graphs in `onnx/` and the other files above it.
    let above = parent.parent().filter(|_| parent.ends_with("onnx"));
    for folder in [Some(parent), above].into_iter().flatten() {
        for side in SIDE_FILES {
            let (from, to) = (folder.join(side), version.join(side));
            if from.is_file() && !to.exists() {
                place(&from, &to).map_err(|source| CliError::File { path: from, source })?;
            }
        }
    }
    config.store.models_dir = store.path().to_owned();
    Ok(Target { name, store: Some(store) })
}

fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    // What looks like a file may be a link; the link itself must not get into the store.
    std::fs::copy(from.canonicalize()?, to).map(|_| ())
}

/// A name like the file's, `model` where nothing of it can be kept.
fn name_from(stem: &str) -> Option<ModelName> {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let text: String = stem.chars().map(allowed).skip_while(|c| !c.is_ascii_alphanumeric()).take(100).collect();
    ModelName::parse(if text.is_empty() { "model" } else { &text }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(models: &Path) -> Config {
        let mut config = Config::default();
        config.store.models_dir = models.to_owned();
        config
    }

    #[test]
    fn a_file_gets_a_store_of_its_own_with_its_data_and_side_files() {
        let folder = tempfile::tempdir().unwrap();
        let onnx = folder.path().join("repo/onnx");
        std::fs::create_dir_all(&onnx).unwrap();
        for file in ["my model.onnx", "my model.onnx_data", "my model.data", "other.onnx", "secret.txt"] {
            std::fs::write(onnx.join(file), file).unwrap();
        }
        std::fs::write(folder.path().join("repo/config.json"), "{}").unwrap();
        let mut config = config(&folder.path().join("models"));
        let target = resolve(onnx.join("my model.onnx").to_str().unwrap(), &mut config).unwrap();
        assert_eq!(target.name.as_str(), "my-model");
        let version = config.store.models_dir.join("my-model/1");
        let mut names: Vec<_> = std::fs::read_dir(&version)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.onnx", "my model.data", "my model.onnx_data"]);
        assert_eq!(std::fs::read_to_string(version.join("model.onnx")).unwrap(), "my model.onnx");
        drop(target);
        assert!(!version.exists());
        assert!(onnx.join("my model.onnx").exists());
    }

    #[test]
    fn a_model_of_the_store_comes_before_a_file_and_a_folder_is_used_in_place() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("models/net")).unwrap();
        let mut in_store = config(&folder.path().join("models"));
        assert_eq!(resolve("net", &mut in_store).unwrap().name.as_str(), "net");
        assert_eq!(in_store.store.models_dir, folder.path().join("models"));
        // A name that is nowhere is left to the store, which says what it knows.
        assert_eq!(resolve("elsewhere", &mut in_store).unwrap().name.as_str(), "elsewhere");
        let mut beside = config(Path::new("/nonexistent"));
        let target = resolve(folder.path().join("models/net").to_str().unwrap(), &mut beside).unwrap();
        assert_eq!(target.name.as_str(), "net");
        assert_eq!(beside.store.models_dir, folder.path().canonicalize().unwrap().join("models"));
    }

    #[test]
    fn what_is_neither_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cat.jpg"), "").unwrap();
        std::fs::create_dir(folder.path().join("a b")).unwrap();
        let check = |argument: &str, part: &str| {
            let error = resolve(argument, &mut config(Path::new("/nonexistent"))).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        };
        check("./none.onnx", "neither a model's name nor a file");
        check(folder.path().join("cat.jpg").to_str().unwrap(), "expected a model file");
        check(folder.path().join("a b").to_str().unwrap(), "rename it");
    }

    #[test]
    fn any_file_name_gives_a_name() {
        for (stem, name) in
            [("model", "model"), ("a b", "a-b"), ("..x", "x"), ("日本", "model"), ("", "model"), ("v1.2", "v1-2")]
        {
            assert_eq!(name_from(stem).unwrap().as_str(), name);
        }
        assert_eq!(name_from(&"x".repeat(300)).unwrap().as_str().len(), 100);
    }
}
