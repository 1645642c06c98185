//! `ortus bench --profile`: where the time of a model's runs goes, by operator, and the trace of it.

use crate::app;
use crate::cli::args::BenchArgs;
use crate::cli::configuration::pretty;
use crate::cli::error::CliError;
use crate::cli::lone_model;
use crate::cli::run::note;
use crate::cli::store::offline_config;
use crate::cli::table::{Table, count};
use crate::engine::{LoadOverrides, Profiled, Version};
use serde_json::{Value, json};
use std::time::Duration;

/// Runs that are timed.
const ITERATIONS: usize = 50;

pub(super) fn profile(args: BenchArgs) -> Result<String, CliError> {
    super::check_plot(args.trace.as_deref())?;
    let mut config = offline_config(args.store.clone())?;
    config.models.instances = Some(1);
    let target = lone_model::resolve(&args.model, &mut config)?;
    let app::Loopback { engine, runtime, .. } = app::open_loopback(&config)?;
    let batch = args.batch.and_then(|rows| usize::try_from(rows).ok());
    let profiled = runtime.block_on(async {
        engine.load(&target.name, LoadOverrides { config_json: None, files: Vec::new() }).await?;
        let model = engine.model(&target.name, args.model_version.map(Version)).await?;
        note("timing the operators, for half a minute at most");
        let profiled = engine.profile(&model, Some(ITERATIONS), batch).await?;
        let _ = engine.unload(&target.name).await;
        Ok::<_, CliError>(profiled)
    });
    runtime.shutdown_background();
    let profiled = profiled?;
    if let Some(path) = args.trace {
        std::fs::write(&path, profiled.trace()).map_err(|source| CliError::File { path, source })?;
    }
    Ok(if args.json { pretty(&as_json(&profiled)) } else { as_text(&profiled) })
}

fn of_run(profiled: &Profiled, time: Duration) -> f64 {
    time.as_secs_f64() * 1e3 / (profiled.profile.runs.max(1) as f64)
}

fn total(profiled: &Profiled) -> Duration {
    profiled.profile.operators.iter().map(|operator| operator.time).sum()
}

fn share(profiled: &Profiled, time: Duration) -> f64 {
    time.as_secs_f64() / total(profiled).as_secs_f64().max(f64::MIN_POSITIVE)
}

fn as_text(profiled: &Profiled) -> String {
    let profile = &profiled.profile;
    let mut table = Table::new(["OPERATOR", "PROVIDER", "NODES", "CALLS", "MS A RUN", "SHARE"]);
    for operator in &profile.operators {
        table.row([
            operator.operator.clone(),
            operator.provider.clone(),
            count(operator.nodes as u64),
            count(operator.calls),
            format!("{:.3}", of_run(profiled, operator.time)),
            format!("{:.1} %", 100.0 * share(profiled, operator.time)),
        ]);
    }
    format!(
        "{}\n\n{} runs on {}, {:.3} ms each, {:.3} ms of it in operators",
        table.finish(),
        profile.runs,
        profiled.device,
        of_run(profiled, profile.time),
        of_run(profiled, total(profiled)),
    )
}

fn as_json(profiled: &Profiled) -> Value {
    let profile = &profiled.profile;
    let operators = profile.operators.iter().map(|operator| {
        json!({
            "operator": operator.operator, "provider": operator.provider, "nodes": operator.nodes,
            "calls": operator.calls, "time_ms": of_run(profiled, operator.time), "share": share(profiled, operator.time),
        })
    });
    json!({
        "device": profiled.device,
        "iterations": profile.runs,
        "batch_size": profiled.batch_size,
        "run_ms": of_run(profiled, profile.time),
        "operators": operators.collect::<Vec<_>>(),
    })
}
