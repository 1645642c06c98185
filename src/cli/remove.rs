//! `ortus rm`: removes a model or one version of it from the store; a server on the same store notices.

use super::args::RmArgs;
use super::error::CliError;
use super::store::{offline_config, with_engine};
use crate::engine::{ModelName, Version};

pub(super) fn remove(args: RmArgs) -> Result<String, CliError> {
    let Ok(name) = ModelName::parse(&args.model) else { return Err(CliError::NoModel(args.model)) };
    let config = offline_config(args.store)?;
    let version = args.model_version.map(Version);
    with_engine(&config, None, async |engine| Ok(engine.delete(&name, version).await?))?;
    Ok(match version {
        Some(version) => format!("version {version} of {name} is removed"),
        None => format!("{name} is removed"),
    })
}
