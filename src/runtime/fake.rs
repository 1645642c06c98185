//! A runtime without a graph, for tests of the rooms above: it gives back its inputs, waits, fails or panics on demand.
//!
//! Knows one model: inputs and outputs as told, and a closure for the run.

use super::{Execution, GraphFacts, GraphSource, Input, Interrupt, Runtime, RuntimeError, Session, SessionSettings};
use crate::tensor::{Spec, Value};
use std::sync::Arc;

type Run = dyn Fn(&[Input], &[usize], &Interrupt) -> Result<Vec<Value>, RuntimeError> + Send + Sync;

/// A runtime whose every session has these inputs and outputs and runs this closure.
#[derive(Clone)]
pub struct FakeRuntime {
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    run: Arc<Run>,
    execution: Execution,
}

impl FakeRuntime {
    pub fn new(
        inputs: Vec<Spec>,
        outputs: Vec<Spec>,
        run: impl Fn(&[Input], &[usize], &Interrupt) -> Result<Vec<Value>, RuntimeError> + Send + Sync + 'static,
    ) -> FakeRuntime {
        FakeRuntime { inputs, outputs, run: Arc::new(run), execution: Execution::default() }
    }

    /// Its sessions say so of what runs where.
    pub fn on(self, execution: Execution) -> FakeRuntime {
        FakeRuntime { execution, ..self }
    }
}

impl Runtime for FakeRuntime {
    fn load(&self, _source: &GraphSource, _settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        Ok(Box::new(FakeSession {
            runtime: self.clone(),
            facts: GraphFacts {
                format: "fake",
                device: "cpu".into(),
                execution: self.execution.clone(),
                ..GraphFacts::default()
            },
        }))
    }

    fn version(&self) -> &str {
        "fake 0"
    }
}

struct FakeSession {
    runtime: FakeRuntime,
    facts: GraphFacts,
}

impl Session for FakeSession {
    fn inputs(&self) -> &[Spec] {
        &self.runtime.inputs
    }

    fn outputs(&self) -> &[Spec] {
        &self.runtime.outputs
    }

    fn facts(&self) -> &GraphFacts {
        &self.facts
    }

    fn run(&mut self, inputs: &[Input], outputs: &[usize], interrupt: &Interrupt) -> Result<Vec<Value>, RuntimeError> {
        (self.runtime.run)(inputs, outputs, interrupt)
    }
}
