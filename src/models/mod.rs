//! Which models exist, in which version and state, and the loading and unloading of them (`ModelManager`).
//!
//! Knows the store's layout (`repository`, `manifest`, `config_pbtxt`, `config_settings`, `reshape`), decides what is loaded
//! (`lifecycle`, pure) and does it (`loader`, `manager`), takes versions in and out (`install`, `versions`, on disk `swap`
//! and `choice`), on as many threads as suit the model (`layout`, `tune`, `search`, `measure`), within the memory there is
//! (`memory`, `eviction`, `admission`; of runs `activation`), files first in a process of their own (`trial`), and what a load found
//! out for the next one (`state`), among it the engines that are built while a model serves (`engines`). Knows no protocol.

mod activation;
mod admission;
mod awaited;
mod choice;
mod config_pbtxt;
mod config_settings;
mod engines;
mod error;
mod eviction;
mod install;
mod layout;
mod lifecycle;
mod loader;
mod made_up;
mod manager;
mod manifest;
mod measure;
mod memory;
mod name;
mod overrides;
mod profile;
mod registry;
mod repository;
mod reshape;
mod retune;
mod search;
mod settings;
mod state;
mod status;
mod steps;
mod swap;
mod trial;
mod tune;
mod versions;
mod warmup;

#[cfg(test)]
mod tests;

pub use activation::{Activation, MeasuredBy, RunMemory};
pub use admission::{DiskSpace, MemoryTotals};
pub use config_pbtxt::ConfigError;
pub use engines::{EngineBuild, EngineState, EngineStatus};
pub use error::{LoadError, ModelError};
pub use install::{Claim, Staged, Tried};
pub use layout::{Layout, Setup};
pub use made_up::InputHints;
pub use manager::ModelManager;
pub use manifest::{Manifest, ManifestError, VersionPolicy, WarmupSample};
pub use memory::ModelMemory;
pub use name::{ModelName, NameError, Version};
pub use overrides::{StoreError, StoreLock};
pub use profile::Profiled;
pub use repository::{FolderError, StoredFile};
pub use retune::TuneRequest;
pub use settings::{ModelOverrides, ModelSettings, Objective, SetBy, StoreSettings, TuningSettings};
pub use state::{Optimization, OptimizationState, Quantization};
pub use status::{KeptProfile, LoadOverrides, LoadedModel, ModelState, ModelStatus, VersionStatus};
pub use trial::{ChildError, TrialLoad, answer_trial};
pub use tune::{Gain, Measured, Tuned};
pub use versions::Deleted;

/// Reads a model configuration (`config.pbtxt`), for the fuzzer alone.
#[cfg(fuzzing)]
pub fn fuzz_config_pbtxt(text: &str) {
    let _ = config_pbtxt::GivenConfig::parse_text(text);
}
