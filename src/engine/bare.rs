//! A session without queue, checks or doors: what a bare loop over ONNX Runtime does, for measurements beside the engine.

use super::{EngineError, InferenceEngine, LoadedModel};
use crate::batching::BatchError;
use crate::runtime::{Input, Interrupt, Session};
use std::path::PathBuf;

/// One more loaded copy of a model, for one thread. It serves nobody.
pub struct BareSession {
    session: Box<dyn Session>,
    outputs: Vec<usize>,
}

impl InferenceEngine {
    /// Loads a copy of `model` with the settings of its instances.
    ///
    /// # Errors
    /// Where the graph cannot be loaded once more.
    pub async fn bare_session(&self, model: &LoadedModel) -> Result<BareSession, EngineError> {
        self.bare(model, None).await
    }

    /// Loads the graph `file` with the settings of `model`'s instances: another form of the same graph.
    ///
    /// # Errors
    /// Where it cannot be loaded.
    pub async fn bare_variant(&self, model: &LoadedModel, file: PathBuf) -> Result<BareSession, EngineError> {
        self.bare(model, Some(file)).await
    }

    async fn bare(&self, model: &LoadedModel, file: Option<PathBuf>) -> Result<BareSession, EngineError> {
        let session = self.0.models.bare_session(model, file).await?;
        let outputs = (0..session.outputs().len()).collect();
        Ok(BareSession { session, outputs })
    }
}

impl BareSession {
    /// For those who run it beside others.
    pub fn session(&mut self) -> &mut dyn Session {
        self.session.as_mut()
    }

    /// Runs the graph once and drops its outputs. Blocks.
    ///
    /// # Errors
    /// Where the graph fails on these inputs.
    pub fn run(&mut self, inputs: &[Input]) -> Result<(), EngineError> {
        let outputs = self.session.run(inputs, &self.outputs, &Interrupt::new()).map_err(BatchError::Runtime)?;
        std::hint::black_box(outputs);
        Ok(())
    }
}
