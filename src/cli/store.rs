//! What the commands on a store share: the configuration and the engine without doors.

use super::args::StoreArgs;
use super::error::CliError;
use crate::app::{self, Offline};
use crate::config::{self, Config, ConfigFile, Flags, Origin, Sources};
use crate::engine::{InferenceEngine, LoadOverrides, ModelName};
use crate::telemetry::start_logging;
use std::path::PathBuf;

/// The file that is read where none is named.
const DEFAULT_FILE: &str = "ortus.toml";

pub(super) fn load_config(file: Option<PathBuf>, flags: Flags) -> Result<Config, CliError> {
    let file = file.map_or_else(|| ConfigFile::Optional(PathBuf::from(DEFAULT_FILE)), ConfigFile::Named);
    let environment = config::environment()?.into_iter();
    Ok(Config::load(Sources { file, environment, flags })?)
}

/// The configuration for a command that runs without a server.
pub(super) fn offline_config(args: StoreArgs) -> Result<Config, CliError> {
    let config = load_config(args.config, Flags { models_dir: args.models, ..Flags::default() })?;
    // Records would stand beside the command's own error; whoever asked for a level wants them.
    if config.origins.get("telemetry.log_level").is_some_and(|origin| *origin != Origin::Default) {
        start_logging(&config.log)?;
    }
    Ok(config)
}

/// Runs `work` on the engine of a store. Where `model` is named, it is loaded before and unloaded after, so that no
/// session outlives the command.
pub(super) fn with_engine<T>(
    config: &Config,
    model: Option<&ModelName>,
    work: impl AsyncFnOnce(&InferenceEngine) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let Offline { engine, runtime, .. } = app::open_store(config)?;
    runtime.block_on(async {
        let Some(model) = model else { return work(&engine).await };
        engine.load(model, LoadOverrides { config_json: None, files: Vec::new() }).await?;
        let result = work(&engine).await;
        // The result counts; what could not be unloaded ends with the process.
        let _ = engine.unload(model).await;
        result
    })
}
