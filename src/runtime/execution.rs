//! What runs where: the execution providers that were asked for, those that came, and why others did not.
//!
//! Names are ONNX Runtime's. Texts are safe to show to a client.

use std::collections::BTreeMap;

pub const CPU: &str = "CPUExecutionProvider";
pub const CUDA: &str = "CUDAExecutionProvider";
pub const TENSORRT: &str = "TensorrtExecutionProvider";

/// What became of the providers that a session was to have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Execution {
    /// The providers that the settings ask for, the preferred one first; the CPU runs what the others cannot.
    pub asked: Vec<String>,
    /// Those of the session, the preferred one first.
    pub registered: Vec<String>,
    /// Nodes of the optimised graph, by the provider that runs them; empty where that is not known.
    pub nodes: BTreeMap<String, u64>,
    /// Those asked for that the session does not have.
    pub missing: Vec<MissingProvider>,
    /// Whether something better than what runs was expected to work: a device that was named, or one that this build of ONNX
    /// Runtime is for.
    pub is_fallback: bool,
}

/// A provider that a session does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingProvider {
    pub provider: String,
    /// What is missing, and what to do.
    pub reason: String,
}

impl Execution {
    /// What is missing, in one line: `CUDAExecutionProvider: …`.
    pub fn problem(&self) -> String {
        let problems: Vec<String> =
            self.missing.iter().map(|missing| format!("{}: {}", missing.provider, missing.reason)).collect();
        problems.join("; ")
    }
}

/// Whether a provider can be used in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderStatus {
    pub name: &'static str,
    /// Why it cannot be used; `None` where it can.
    pub reason: Option<String>,
}
