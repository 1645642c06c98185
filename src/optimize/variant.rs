//! Makes a variant: the rewritten graph with what lies beside the original, in a folder of its own.

use super::{OptimizeError, Precision};
use crate::engine::LoadedModel;
use crate::hub::{HubError, PROVENANCE, WorkFolder};
use crate::rewrite::{
    Fp16Options, Int4Options, QuantizeOptions, Ranges, RewriteError, Rewriting, Rewritten, StaticOptions,
    observable_file, rewrite_file,
};
use crate::tasks::Tasks;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of work that is removed when the last reference to it goes.
#[derive(Clone)]
pub(super) struct Scratch(Arc<Held>);

struct Held {
    work: Option<WorkFolder>,
    root: PathBuf,
    tasks: Tasks,
}

impl Scratch {
    /// A new folder below `root`, which is made where it is not there.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub(super) async fn new(root: &Path, tasks: &Tasks) -> Result<Scratch, OptimizeError> {
        let root = root.to_owned();
        let below = root.clone();
        // Another process that ends its work may take the folder above away in that moment.
        let fresh = move || WorkFolder::fresh(&below).or_else(|_| WorkFolder::fresh(&below));
        let made = tasks.spawn_blocking(fresh).await;
        let work = made.map_err(internal)?.map_err(|error| match error {
            HubError::NoSpace(_) => OptimizeError::DiskFull,
            error => OptimizeError::Disk(error.to_string()),
        })?;
        Ok(Scratch(Arc::new(Held { work: Some(work), root, tasks: tasks.clone() })))
    }

    /// Where one variant is put together.
    pub(super) fn folder(&self, precision: Precision) -> PathBuf {
        // The work is there until it is dropped.
        self.0.work.as_ref().map(|work| work.parts().join(precision.name())).unwrap_or_default()
    }

    /// Where the graph lies that gives what is to be calibrated.
    pub(super) fn observed(&self) -> PathBuf {
        self.folder(Precision::StaticInt8).with_extension("observed")
    }

    /// Removes the folder and waits for it, where nobody else holds it.
    pub(super) async fn remove(self) {
        if let Ok(mut held) = Arc::try_unwrap(self.0)
            && let Some(work) = held.work.take()
        {
            let root = held.root.clone();
            let removed = held.tasks.spawn_blocking(move || remove(work, &root)).await;
            if removed.is_err() {
                tracing::warn!("the folder of an optimisation could not be removed");
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let root = self.root.clone();
            drop(self.tasks.spawn_blocking(move || remove(work, &root)));
        }
    }
}

fn remove(work: WorkFolder, root: &Path) {
    work.remove();
    // Gone with the last one in it.
    let _ = std::fs::remove_dir(root);
}

pub(super) fn internal(error: tokio::task::JoinError) -> OptimizeError {
    OptimizeError::Internal { detail: format!("work of an optimisation ended abnormally: {error}") }
}

/// Why one variant was not made, while others may be.
#[derive(Debug)]
pub(super) enum NotMade {
    /// The graph, or what it is rewritten with, does not allow it.
    Refused(String),
    Disk(std::io::Error),
}

impl From<RewriteError> for NotMade {
    fn from(error: RewriteError) -> NotMade {
        match error {
            RewriteError::Io(error) => NotMade::Disk(error),
            error @ RewriteError::Graph(_) => NotMade::Refused(error.to_string()),
        }
    }
}

/// Writes a graph into `folder` that also gives what static quantisation has to know. Gives its path and the names of those
/// outputs. Blocks.
pub(super) fn make_observable(model: &LoadedModel, folder: &Path) -> Result<(PathBuf, Vec<String>), NotMade> {
    std::fs::create_dir_all(folder).map_err(NotMade::Disk)?;
    let graph = folder.join("model.onnx");
    let names = observable_file(&model.source.file, &graph)?;
    Ok((graph, names))
}

/// How the original becomes the variant. `ranges` are what was calibrated, for the one that needs it.
fn rewriting(precision: Precision, ranges: Option<Ranges>) -> Rewriting {
    match precision {
        Precision::Fp16 => Rewriting::Fp16(Fp16Options::default()),
        Precision::Int8 => Rewriting::Int8(QuantizeOptions::here()),
        Precision::StaticInt8 => Rewriting::StaticInt8(StaticOptions::here(ranges.unwrap_or_default())),
        Precision::Int4 => Rewriting::Int4(Int4Options::default()),
    }
}

/// Writes the variant into `folder`, with what lies beside the original. Gives the path of its graph. Blocks.
pub(super) fn make(
    model: &LoadedModel,
    folder: &Path,
    precision: Precision,
    ranges: Option<Ranges>,
) -> Result<(PathBuf, Rewritten), NotMade> {
    let (from, source) = (&model.source.folder, &model.source.file);
    let graph = folder.join(source.strip_prefix(from).unwrap_or(Path::new("model.onnx")));
    std::fs::create_dir_all(graph.parent().unwrap_or(folder)).map_err(NotMade::Disk)?;
    let rewritten = rewrite_file(source, &graph, &rewriting(precision, ranges))?;
    let beside = source.parent().unwrap_or(from);
    let mut left_out = vec![source.clone()];
    left_out.extend(rewritten.data_files.iter().map(|name| beside.join(name)));
    // Nothing that is copied may take the place of what was made.
    left_out.push(source.with_added_extension("data"));
    copy(from, folder, &left_out).map_err(NotMade::Disk)?;
    Ok((graph, rewritten))
}

/// Leaves a variant in a folder of the user's, which must not be there yet. Blocks.
pub(super) fn leave(variant: &Path, output: &Path) -> std::io::Result<()> {
    if output.exists() {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    // What tells where the original came from says nothing of the variant.
    copy(variant, output, &[variant.join(PROVENANCE)])
}

/// Copies a folder but for links and `left_out`.
fn copy(from: &Path, to: &Path, left_out: &[PathBuf]) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            // A bare model's folder may be a whole store's.
            if entry.file_name() != ".ortus" {
                copy(&path, &to.join(entry.file_name()), left_out)?;
            }
        } else if kind.is_file() && !left_out.contains(&path) {
            std::fs::copy(path, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
