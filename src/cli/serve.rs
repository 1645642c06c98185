//! `ortus serve`.

use super::args::ServeArgs;
use super::error::CliError;
use super::key::has_keys;
use super::store::load_config;
use crate::config::Flags;
use crate::telemetry::start_logging;

/// Returns when the server has been asked to stop and has drained.
pub(super) fn serve(args: ServeArgs) -> Result<(), CliError> {
    let ServeArgs { store, listen, grpc, pull, insecure, tls_cert, tls_key, log_level } = args;
    let flags = Flags { listen, grpc, models_dir: store.models, pull, log_level, tls_cert, tls_key };
    let config = load_config(store.config, flags)?;
    let has_keys = has_keys(&config)?;
    config.check_exposure(has_keys, insecure)?;
    start_logging(&config.log)?;
    if !has_keys && !config.auth.require {
        for (key, address) in config.public_addresses() {
            tracing::warn!(key, %address, "other machines can reach {address} and nothing asks them for a key");
        }
    }
    Ok(crate::app::serve(config)?)
}
