//! `ortus bench`: a closed loop of requests in this process and over HTTP, beside a bare session loop, by turns.
//!
//! With `--tune` the measurements of a load in their place (`tune`).
//!
//! `inputs` makes what is sent, `measure` runs the rounds, `report` and `plot` show the result. Invariants: what is compared was
//! measured in the same rounds on the same inputs with the same settings; an interrupt ends it without a result and leaves
//! nothing behind.

mod inputs;
mod measure;
mod plot;
mod profile;
mod report;
mod tune;

use super::args::BenchArgs;
use super::configuration::pretty;
use super::error::CliError;
use super::lone_model;
use super::predict::read_files;
use super::run::note;
use super::store::offline_config;
use crate::app::{self, Loopback};
use crate::config::Config;
use crate::engine::{InferenceEngine, LoadOverrides, LoadedModel, Version};
use crate::http;
pub(super) use inputs::Inputs;
use measure::{Measurement, Plan};
use report::Report;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
pub(super) use tune::snippet;

pub(super) fn bench(args: BenchArgs) -> Result<String, CliError> {
    if args.tune {
        return tune::tune(args);
    }
    if args.profile {
        return profile::profile(args);
    }
    check_plot(args.plot.as_deref())?;
    let mut config = offline_config(args.store.clone())?;
    let target = lone_model::resolve(&args.model, &mut config)?;
    let Loopback { engine, runtime, tasks, address } = app::open_loopback(&config)?;
    let report = runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let work = async {
            engine.load(&target.name, LoadOverrides { config_json: None, files: Vec::new() }).await?;
            let model = engine.model(&target.name, args.model_version.map(Version)).await?;
            let inputs = inputs(args.input.clone(), args.batch, &config, &engine, &model).await?;
            let plan = Plan::new(&args);
            note(&format!("measuring for about {:.0} s", plan.seconds(&inputs)));
            let timeout = config.http.request_timeout;
            let measurement =
                Measurement { engine: &engine, model: &model, tasks: &tasks, address, timeout, stop: &stop };
            let results = measurement.run(&plan, &inputs).await?;
            Ok(Report::new(&model, &inputs, &plan, &results))
        };
        let mut work = std::pin::pin!(work);
        let result = tokio::select! {
            // A result that is there counts.
            biased;
            result = work.as_mut() => result,
            _ = tokio::signal::ctrl_c() => {
                stop.store(true, Ordering::Relaxed);
                // Workers finish what they have begun; whoever asks twice does not want to wait for it.
                tokio::select! {
                    biased;
                    _ = tokio::signal::ctrl_c() => {}
                    _ = work.as_mut() => {}
                }
                Err(CliError::Interrupted)
            }
        };
        if result.is_ok() {
            // The result counts; what could not be unloaded ends with the process.
            let _ = engine.unload(&target.name).await;
        }
        result
    });
    // Clients that still wait for an answer must not hold the exit.
    runtime.shutdown_background();
    let report = report?;
    if let Some(path) = args.plot {
        std::fs::write(&path, plot::svg(&report)).map_err(|source| CliError::File { path, source })?;
    }
    Ok(if args.json { pretty(&report.as_json()) } else { report.as_text() })
}

/// Minutes of measuring are not to end in a file that cannot be written.
fn check_plot(path: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() && !path.is_dir() => Ok(()),
        Ok(_) => Err(CliError::File { path: path.to_owned(), source: std::io::ErrorKind::IsADirectory.into() }),
        Err(source) => Err(CliError::File { path: folder.to_owned(), source }),
    }
}

/// What is run: the tensors of a file, or made-up ones in requests of `batch` rows.
pub(super) async fn inputs(
    input: Option<PathBuf>,
    batch: Option<u32>,
    config: &Config,
    engine: &InferenceEngine,
    model: &Arc<LoadedModel>,
) -> Result<Inputs, CliError> {
    let Some(path) = input else { return Inputs::made_up(model, batch) };
    let mut files = read_files(vec![path], config.http.max_body_bytes)?;
    let Some((path, bytes)) = files.pop() else { return Err(CliError::NoInput) };
    let values = http::tensors_offline(model, path, bytes).await.map_err(CliError::Predict)?;
    // The engine's check names what is wrong with the file's tensors.
    measure::infer(engine, model, values.clone(), config.http.request_timeout).await?;
    Inputs::given(model, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_that_cannot_be_written_is_refused_before_anything_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_plot(None).is_ok());
        assert!(check_plot(Some(Path::new("plot.svg"))).is_ok());
        assert!(check_plot(Some(&folder.path().join("plot.svg"))).is_ok());
        assert!(check_plot(Some(folder.path())).is_err());
        assert!(check_plot(Some(&folder.path().join("none/plot.svg"))).is_err());
    }
}
