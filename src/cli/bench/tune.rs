//! `ortus bench --tune`: what a load with `[performance] tune` measures, as a table and as lines for `model.toml`.
//!
//! Knows no measuring: the model is loaded as the server would load it, and what that load measured is printed.

use crate::cli::args::BenchArgs;
use crate::cli::configuration::pretty;
use crate::cli::error::CliError;
use crate::cli::run::note;
use crate::cli::store::{offline_config, with_engine};
use crate::cli::{lone_model, table::Table};
use crate::engine::{LoadedModel, Measured, Objective, Tuned, Version};
use serde_json::{Value as Json, json};
use std::time::Duration;

pub(super) fn tune(args: BenchArgs) -> Result<String, CliError> {
    let mut config = offline_config(args.store)?;
    let target = lone_model::resolve(&args.model, &mut config)?;
    let tuning = &mut config.models.tuning;
    // What is asked for here counts, whatever the model's own file says of it.
    (tuning.tune, tuning.insists) = (true, true);
    if let Some(objective) = args.objective {
        tuning.objective = objective.into();
    }
    tuning.target_p99 = args.target_p99_ms.map(Duration::from_millis);
    note("measuring for up to 30 s, and loading the model for each candidate in between");
    with_engine(&config, Some(&target.name), async |engine| {
        let model = engine.model(&target.name, args.model_version.map(Version)).await?;
        let Some(tuned) = &model.tuned else {
            return Err(CliError::Bench("the model cannot be measured: no input could be made up that runs"));
        };
        Ok(if args.json { pretty(&as_json(&model, tuned)) } else { as_text(&model, tuned) })
    })
}

fn as_text(model: &LoadedModel, tuned: &Tuned) -> String {
    let mut table =
        Table::new(["INSTANCES", "THREADS", "BATCH", "LEVEL", "ARENA", "PATTERN", "ROWS/S", "RUN MS", "P99 MS", ""]);
    for one in &tuned.measured {
        table.row([
            one.setup.layout.instances.to_string(),
            one.setup.layout.intra_threads.to_string(),
            one.batch_size.map_or_else(|| "-".to_owned(), |rows| rows.to_string()),
            level(one),
            yes_no(one.setup.memory.arena),
            yes_no(one.setup.memory.pattern),
            format!("{:.1}", one.rows_per_second),
            format!("{:.3}", millis(one.run)),
            format!("{:.3}", millis(one.p99)),
            if *one == tuned.chosen { "chosen".to_owned() } else { String::new() },
        ]);
    }
    let wanted = match tuned.objective {
        Objective::Throughput => "the highest throughput",
        Objective::Latency => "the least latency",
    };
    let found = match (tuned.target_p99, tuned.target_reached) {
        (None, _) => wanted.to_owned(),
        (Some(target), true) => format!("{wanted} with a p99 of at most {} ms", millis(target)),
        (Some(target), false) => {
            format!("nothing reaches a p99 of {} ms; this has the least latency", millis(target))
        }
    };
    let seconds = format!("; measured in {:.1} s", tuned.took.as_secs_f64());
    let tokens = tuned.row_tokens.map_or_else(String::new, |tokens| format!("; rows of {tokens} tokens"));
    format!(
        "{} version {} on {}: {found}{tokens}{seconds}\n\n{}\n\nFor its model.toml:\n\n{}",
        model.name,
        model.version,
        model.facts.device,
        table.finish(),
        snippet(tuned)
    )
}

fn as_json(model: &LoadedModel, tuned: &Tuned) -> Json {
    let one = |measured: &Measured| {
        json!({
            "instances": measured.setup.layout.instances,
            "intra_threads": measured.setup.layout.intra_threads,
            "batch_size": measured.batch_size,
            "optimization_level": measured.setup.optimization_level,
            "memory_arena": measured.setup.memory.arena,
            "memory_pattern": measured.setup.memory.pattern,
            "rows_per_second": measured.rows_per_second,
            "run_ms": millis(measured.run),
            "p99_ms": millis(measured.p99),
        })
    };
    json!({
        "model": model.name.as_str(),
        "version": model.version.to_string(),
        "device": model.facts.device,
        "measurements": tuned.measured.iter().map(one).collect::<Vec<_>>(),
        "chosen": one(&tuned.chosen),
        "objective": tuned.objective,
        "seconds": tuned.took.as_secs_f64(),
        "target_p99_ms": tuned.target_p99.map(millis),
        "target_reached": tuned.target_reached,
        "tokens_per_row": tuned.row_tokens,
        "max_batch_size": tuned.max_batch_size,
        "max_batch_tokens": tuned.max_batch_tokens,
        "model_toml": snippet(tuned),
    })
}

/// What makes a model load like this without measuring.
pub(in crate::cli) fn snippet(tuned: &Tuned) -> String {
    let setup = tuned.chosen.setup;
    let (instances, intra_threads) = (setup.layout.instances, setup.layout.intra_threads);
    let bounds = [("max_batch_size", tuned.max_batch_size), ("max_batch_tokens", tuned.max_batch_tokens)];
    let bounds: String = bounds.iter().filter_map(|(key, most)| Some(format!("{key} = {}\n", (*most)?))).collect();
    format!(
        "[batch]\ninstances = {instances}\nintra_threads = {intra_threads}\n{bounds}\n[optimization]\n\
         optimization_level = \"{}\"\nmemory_arena = {}\nmemory_pattern = {}\n",
        level(&tuned.chosen),
        setup.memory.arena,
        setup.memory.pattern
    )
}

fn level(measured: &Measured) -> String {
    match json!(measured.setup.optimization_level) {
        Json::String(level) => level,
        _ => String::new(),
    }
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
