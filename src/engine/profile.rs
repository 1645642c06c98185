//! Says where the time of a model's runs goes, by operator, beside the requests that it answers.

use super::warmup::{check_size, refused, rows_max};
use super::{EngineError, InferenceEngine, LoadedModel, Profiled};
use std::sync::Arc;

const ITERATIONS_MAX: usize = 1000;
const ITERATIONS: usize = 10;

impl InferenceEngine {
    /// Times the operators over up to `iterations` runs (10 by default) of `batch_size` made-up rows, in a session of its own. What was
    /// found is kept with the model, without the trace.
    ///
    /// # Errors
    /// `InvalidInput` naming the field where the model cannot take that, or refuses what is made up; `InsufficientStorage` where
    /// there is no memory for another copy of the model.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the runs, which are bounded.
    pub async fn profile(
        &self,
        model: &Arc<LoadedModel>,
        iterations: Option<usize>,
        batch_size: Option<usize>,
    ) -> Result<Profiled, EngineError> {
        let iterations = iterations.unwrap_or(ITERATIONS);
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(refused("iterations", format!("must be from 1 to {ITERATIONS_MAX}, got {iterations}")));
        }
        if let Some(rows) = batch_size {
            check_size(&model.inputs, rows, rows_max(model)).map_err(|problem| refused("batch_size", problem))?;
        }
        Ok(self.0.models.profile(model, iterations, batch_size).await?)
    }
}
