//! Builds the engines of one version: a session with TensorRT, and runs of every size that its profile has. Blocks for minutes.
//!
//! TensorRT cannot be stopped while it builds; a build that nobody waits for ends by itself, and what it made goes.

use crate::models::config_pbtxt::GivenConfig;
use crate::models::made_up::{self, InputHints, Size};
use crate::models::repository::VersionFolder;
use crate::models::state::{Begun, StatePlace};
use crate::models::{Manifest, ModelName, Version, warmup};
use crate::pipelines::Pipeline;
use crate::runtime::{EngineKey, GraphSource, Interrupt, Runtime, RuntimeError, Session, SessionSettings, TENSORRT};
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// What is to be built.
pub(in crate::models) struct Order {
    pub(in crate::models) name: ModelName,
    pub(in crate::models) version: Version,
    pub(in crate::models) key: EngineKey,
    pub(in crate::models) place: StatePlace,
    /// With the shapes that clients see.
    pub(in crate::models) runtime: Arc<dyn Runtime>,
    pub(in crate::models) source: GraphSource,
    /// As a session with TensorRT has them; where its engines are is not said yet.
    pub(in crate::models) settings: SessionSettings,
    /// Bytes of the graph and its data.
    pub(in crate::models) size_bytes: u64,
    pub(in crate::models) trials: Trials,
}

/// What the session runs before its engines count as built.
pub(in crate::models) struct Trials {
    pub(in crate::models) folder: VersionFolder,
    pub(in crate::models) manifest: Arc<Manifest>,
    pub(in crate::models) config: Option<Arc<GivenConfig>>,
    pub(in crate::models) pipeline: Option<Arc<dyn Pipeline>>,
    pub(in crate::models) hints: InputHints,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("name", &self.name).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Builds the engines into a folder that is sealed and not yet in its place.
///
/// # Errors
/// Why there are none, in words that are safe to show.
pub(super) fn build(order: &Order, interrupt: &Interrupt) -> Result<Begun, String> {
    let begun = order.place.begin_engines(order.size_bytes)?;
    let (started, begun_at) = (Instant::now(), SystemTime::now());
    let mut settings = order.settings.clone();
    settings.device.tensorrt.engines = Some(begun.folder.clone());
    let session = order.runtime.load(&order.source, &settings).map_err(|error| error.to_string())?;
    let execution = &session.facts().execution;
    if execution.registered.iter().all(|provider| provider != TENSORRT) {
        return Err(execution.problem());
    }
    let facts = session.facts().clone();
    let mut sessions = vec![session];
    run_all(order, &mut sessions, interrupt)?;
    if interrupt.is_fired() {
        return Err("it was stopped".to_owned());
    }
    // Some of what it writes it writes at its end.
    drop(sessions);
    begun.seal(&order.key, &order.source, &facts, (begun_at, started.elapsed()))?;
    Ok(begun)
}

/// Runs the model's samples, and made-up input of one row, of as many as runs mostly have, and of the most.
fn run_all(order: &Order, sessions: &mut [Box<dyn Session>], interrupt: &Interrupt) -> Result<(), String> {
    let Trials { folder, manifest, config, pipeline, hints } = &order.trials;
    for sample in config.iter().flat_map(|config| &config.warmup) {
        warmup::configured(sessions, sample, folder, interrupt).map_err(|error| error.to_string())?;
    }
    warmup::samples(sessions, pipeline.as_deref(), manifest, folder, interrupt).map_err(|error| error.to_string())?;
    let Some(session) = sessions.first_mut() else { return Ok(()) };
    let all: Vec<usize> = (0..session.outputs().len()).collect();
    let mut sizes = vec![None];
    if let Some((usual, most)) = order.settings.device.tensorrt.rows {
        sizes.extend([Some(1), Some(usual), Some(most)]);
    }
    sizes.dedup();
    for rows in sizes {
        let size = Size { rows, ..Size::default() };
        let Some(inputs) = made_up::inputs(session.inputs(), &size, 1, hints) else { continue };
        match session.run(&inputs, &all, interrupt) {
            Ok(_) => {}
            // Neither says anything of the input, which the graph may rightly refuse.
            Err(error @ (RuntimeError::OutOfMemory(_) | RuntimeError::Device(_))) => return Err(error.to_string()),
            Err(error) => tracing::debug!(model = %order.name, ?rows, %error, "a run of a new engine was refused"),
        }
    }
    Ok(())
}
