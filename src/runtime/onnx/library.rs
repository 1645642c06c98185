//! Finds and opens ONNX Runtime's shared library, once for the process.

use super::{graph, memory, provider, session, tensorrt, written};
use crate::runtime::pair::Pair;
use crate::runtime::{
    DeviceSettings, EngineKey, FormKey, GraphSource, ProviderStatus, Runtime, RuntimeError, Session, SessionSettings,
    WrittenGraph,
};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Older libraries read files outside the model's folder and crash on hostile graphs.
const OLDEST_MINOR: u32 = 28;

const FILE: &str = "libonnxruntime.so.1";

/// Says what to run, in one line.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LibraryError {
    #[error(
        "ONNX Runtime's library ({FILE}) was not found; run `make run` once, which installs it in lib/, or set \
         ORT_DYLIB_PATH to the file"
    )]
    NotFound,
    #[error("ORT_DYLIB_PATH names {path}, which is not a file; correct it or unset it")]
    NoSuchFile { path: String },
    #[error(
        "ONNX Runtime at {path} is version 1.{minor}, but 1.{OLDEST_MINOR} or newer is needed; run `make run` once, \
         which installs it in lib/, or set ORT_DYLIB_PATH to a newer one"
    )]
    TooOld { path: String, minor: u32 },
    #[error("ONNX Runtime's library at {path} could not be opened: {problem}")]
    Broken { path: String, problem: String },
}

/// The library to open: `ORT_DYLIB_PATH`, else beside the executable, else in the system's places.
///
/// # Errors
/// [`LibraryError::NotFound`], or [`LibraryError::NoSuchFile`] where the variable names nothing.
pub fn find_library() -> Result<PathBuf, LibraryError> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        // The crate looks relative paths up beside the executable; people mean the current folder.
        return match std::path::absolute(&path) {
            Ok(absolute) if absolute.is_file() => Ok(absolute),
            _ => Err(LibraryError::NoSuchFile { path: path.display().to_string() }),
        };
    }
    candidates().into_iter().find(|path| path.is_file()).ok_or(LibraryError::NotFound)
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(executable) = std::env::current_exe().and_then(|path| path.canonicalize())
        && let Some(folder) = executable.parent()
    {
        folders.push(folder.to_owned());
        folders.push(folder.join("lib"));
        folders.push(folder.join("../lib"));
        // target/release/ortus and target/debug/deps/test: the project's own lib/.
        folders.push(folder.join("../../lib"));
        folders.push(folder.join("../../../lib"));
    }
    folders.extend(
        ["/usr/local/lib", "/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
            .map(PathBuf::from),
    );
    folders.into_iter().map(|folder| folder.join(FILE)).collect()
}

/// ONNX Runtime, opened. One for the process: the library allows one environment and none after it.
#[derive(Clone)]
pub struct OnnxRuntime {
    environment: ort::environment::Environment,
    version: String,
}

static OPENED: OnceLock<Result<OnnxRuntime, LibraryError>> = OnceLock::new();

impl OnnxRuntime {
    /// Opens the library that [`find_library`] gives; later calls give the same one.
    ///
    /// # Errors
    /// See [`LibraryError`].
    pub fn open() -> Result<OnnxRuntime, LibraryError> {
        OPENED.get_or_init(|| open(&find_library()?)).clone()
    }

    fn open_session(
        &self,
        source: &GraphSource,
        settings: &SessionSettings,
        is_profiled: bool,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        let image = session::load(&self.environment, source, settings, is_profiled)?;
        let Some(file) = &source.text_tower else { return Ok(image) };
        let source = GraphSource { file: file.clone(), text_tower: None, ..source.clone() };
        let text = session::load(&self.environment, &source, settings, is_profiled)?;
        Ok(Box::new(Pair::new(image, text)?))
    }

    pub(super) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }
}

fn open(path: &Path) -> Result<OnnxRuntime, LibraryError> {
    let shown = path.display().to_string();
    let broken = |problem: String| LibraryError::Broken { path: shown.clone(), problem };
    if let Some(minor) = ort::util::probe(path)
        && minor < OLDEST_MINOR
    {
        return Err(LibraryError::TooOld { path: shown, minor });
    }
    let builder = ort::init_from(path).map_err(|error| broken(error.to_string()))?;
    let environment =
        builder.with_name("ortus").with_telemetry(false).build().map_err(|error| broken(error.to_string()))?;
    let minor = ort::util::probe(path).map_or_else(|| "?".to_owned(), |minor| minor.to_string());
    let full = version_from_build_info(ort::info());
    Ok(OnnxRuntime { environment, version: format!("onnxruntime {}", full.unwrap_or_else(|| format!("1.{minor}"))) })
}

/// `ORT Build Info: git-branch=rel-1.32.0, …`: the release in the text, where there is one.
fn version_from_build_info(info: &str) -> Option<String> {
    let (_, rest) = info.split_once("rel-")?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    if version.is_empty() { None } else { Some(version) }
}

impl Runtime for OnnxRuntime {
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        self.open_session(source, settings, false)
    }

    fn load_profiled(
        &self,
        source: &GraphSource,
        settings: &SessionSettings,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        self.open_session(source, settings, true)
    }

    fn size_bytes(&self, source: &GraphSource) -> Result<u64, RuntimeError> {
        let size = graph::read(source)?.facts.size_bytes;
        let Some(file) = &source.text_tower else { return Ok(size) };
        let source = GraphSource { file: file.clone(), text_tower: None, ..source.clone() };
        Ok(size.saturating_add(graph::read(&source)?.facts.size_bytes))
    }

    fn providers(&self) -> Vec<ProviderStatus> {
        provider::statuses(&self.environment)
    }

    fn form_key(&self, device: &DeviceSettings) -> Option<FormKey> {
        written::form_key(&self.version, device)
    }

    fn engine_key(&self, source: &GraphSource, settings: &SessionSettings) -> Option<EngineKey> {
        tensorrt::engine_key(&self.environment, &self.version, source, settings)
    }

    fn load_writing(
        &self,
        source: &GraphSource,
        settings: &SessionSettings,
        folder: &Path,
    ) -> Result<(Box<dyn Session>, Vec<WrittenGraph>), RuntimeError> {
        written::load_writing(&self.environment, source, settings, folder)
    }

    fn load_written(
        &self,
        folder: &Path,
        graphs: &[WrittenGraph],
        settings: &SessionSettings,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        written::load_written(&self.environment, folder, graphs, settings)
    }

    fn give_back(&self) {
        memory::give_back();
    }

    fn version(&self) -> &str {
        &self.version
    }
}
