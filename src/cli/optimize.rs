//! `ortus optimize`: tries variants of a model of the store, in this process, and prints which is better.
//!
//! Invariants: the store is changed only by `--adopt`; an interrupt ends it without a result and leaves nothing behind.

use super::args::{ObjectiveArg, OptimizeArgs};
use super::bench::snippet;
use super::configuration::pretty;
use super::error::CliError;
use super::lone_model;
use super::predict::read_files;
use super::run::note;
use super::store::offline_config;
use super::table::{Table, size};
use crate::app::{self, Offline};
use crate::config::Config;
use crate::engine::{Gain, InferenceEngine, LoadOverrides, ModelName, Tuned, Version};
use crate::http;
use crate::optimize::{
    Bounds, Figures, Objective, OptimizeError, OptimizeRequest, Optimizer, Origin, Precision, Report, VariantReport,
};
use crate::tasks::Progress;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(super) fn optimize(args: OptimizeArgs) -> Result<String, CliError> {
    let mut config = offline_config(args.store.clone())?;
    let target = lone_model::resolve(&args.model, &mut config)?;
    if args.adopt && target.is_lone_file() {
        return Err(CliError::Bench("a lone file has no next version; take the variant with --output"));
    }
    let Offline { engine, optimizer, runtime, .. } = app::open_store(&config)?;
    optimizer.start();
    let report = runtime.block_on(async {
        engine.load(&target.name, LoadOverrides { config_json: None, files: Vec::new() }).await?;
        let result = run(&args, &config, &engine, &optimizer, &target.name).await;
        // The result counts; what could not be unloaded ends with the process.
        let _ = engine.unload(&target.name).await;
        result
    })?;
    Ok(if args.json { pretty(&http::optimization_json(&report)) } else { as_text(&report) })
}

async fn run(
    args: &OptimizeArgs,
    config: &Config,
    engine: &InferenceEngine,
    optimizer: &Optimizer,
    name: &ModelName,
) -> Result<Report, CliError> {
    let version = args.model_version.map(Version);
    let inputs = match &args.input {
        None => Vec::new(),
        Some(path) => {
            let model = engine.model(name, version).await?;
            let files = read_files(vec![path.clone()], config.http.max_body_bytes)?;
            http::inputs_offline(engine, &model, files).await.map_err(CliError::Predict)?
        }
    };
    let request = OptimizeRequest {
        version,
        precisions: precisions(args),
        tune: args.tune,
        force: false,
        objective: match args.objective {
            ObjectiveArg::Both => Objective::Both,
            ObjectiveArg::Latency => Objective::Latency,
            ObjectiveArg::Throughput => Objective::Throughput,
        },
        bounds: Bounds { max_drift: args.max_drift, min_speed: args.min_speed },
        inputs,
        adopt: args.adopt,
        // The process ends with the report.
        load: false,
        time: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds.into(),
        output: args.output.clone(),
    };
    note(&format!("measuring each variant for about {:.0} s", args.seconds));
    let (progress, cancel) = (Progress::new(), CancellationToken::new());
    let mut work = std::pin::pin!(optimizer.optimise(name, request, &progress, &cancel));
    let result = tokio::select! {
        // A result that is there counts.
        biased;
        result = work.as_mut() => result,
        _ = tokio::signal::ctrl_c() => {
            cancel.cancel();
            work.await.and(Err(OptimizeError::Cancelled))
        }
    };
    result.map_err(|error| if matches!(error, OptimizeError::Cancelled) { CliError::Interrupted } else { error.into() })
}

fn precisions(args: &OptimizeArgs) -> Vec<Precision> {
    let flags = [
        (args.fp16, Precision::Fp16),
        (args.int8, Precision::Int8),
        (args.int8_static, Precision::StaticInt8),
        (args.int4, Precision::Int4),
    ];
    flags.into_iter().filter(|(is_asked, _)| *is_asked).map(|(_, precision)| precision).collect()
}

fn as_text(report: &Report) -> String {
    let mut text =
        format!("{}, version {}, on {}, {} threads", report.model, report.version, report.device, report.threads);
    if !report.variants.is_empty() {
        text.push_str(&variants_text(report));
    }
    text.push_str(&format!("\n\n{}", report.why));
    match report.tuned.as_ref().map(|tuned| &tuned.outcome) {
        Some(Ok(tuned)) => {
            text.push_str(&tuned_text(tuned));
            text.push_str(&format!("\n\nServed best, for its model.toml:\n\n{}", snippet(tuned)));
        }
        Some(Err(problem)) => text.push_str(&format!("\nnot tuned: {problem}")),
        None => {}
    }
    match (&report.adopted, report.best()) {
        (Some(_), _) => text.push_str(&format!(
            "\na server takes it with POST /v1/models/{0}/load and goes back with POST /v1/models/{0}/rollback",
            report.model
        )),
        (None, Some(_)) => text.push_str("\n--adopt makes it the model's next version"),
        (None, None) => {}
    }
    text
}

/// What serves without tuning beside what was chosen, of the same measurement.
fn tuned_text(tuned: &Tuned) -> String {
    let Some(Gain { before, times_as_good }) = tuned.gain() else { return String::new() };
    let mut table = Table::new(["", "INSTANCES", "THREADS", "BATCH", "ROWS/S", "P99 MS", "TIMES AS GOOD"]);
    for (name, one, times) in [("untuned", &before, 1.0), ("tuned", &tuned.chosen, times_as_good)] {
        table.row([
            name.to_owned(),
            one.setup.layout.instances.to_string(),
            one.setup.layout.intra_threads.to_string(),
            one.batch_size.map_or_else(|| "-".to_owned(), |rows| rows.to_string()),
            format!("{:.1}", one.rows_per_second),
            format!("{:.3}", one.p99.as_secs_f64() * 1e3),
            format!("{times:.2}"),
        ]);
    }
    format!("\n\n{}", table.finish())
}

fn variants_text(report: &Report) -> String {
    let mut times = Table::new(["VARIANT", "ROWS", "ORIGINAL MS", "VARIANT MS", "TIMES AS FAST"]);
    let mut sums =
        Table::new(["VARIANT", "SIZE", "DRIFT", "LARGEST DIFFERENCE", "SAME WINNER", "TIMES AS FAST", "VERDICT"]);
    for variant in &report.variants {
        let name = variant.precision.name();
        if let Some(figures) = variant.figures() {
            for time in &figures.times {
                times.row([
                    name.to_owned(),
                    time.rows.to_string(),
                    format!("{:.3}", time.original_ms),
                    format!("{:.3}", time.variant_ms),
                    format!("{:.2}", time.original_ms / time.variant_ms),
                ]);
            }
        }
        sums.row(summary(variant));
    }
    let inputs = inputs_text(report.inputs.origin, report.inputs.count);
    let mut text = format!("; drift measured on {inputs}\n\n{}\n\n{}\n", times.finish(), sums.finish());
    for (variant, figures) in report.variants.iter().filter_map(|variant| Some((variant, variant.figures()?))) {
        text.push_str(&format!("\n{}: {}", variant.precision.name(), replaced(figures)));
    }
    text
}

fn inputs_text(origin: Origin, count: usize) -> String {
    match origin {
        Origin::Given => format!("{count} given inputs"),
        Origin::Recorded => format!("{count} recorded requests"),
        Origin::Samples => format!("{count} samples of the model"),
        Origin::MadeUp => format!("{count} made-up inputs, which say little of real ones (--input gives others)"),
    }
}

fn summary(variant: &VariantReport) -> [String; 7] {
    let none = || "-".to_owned();
    let figures = variant.figures();
    let drift = figures.and_then(|figures| figures.drift);
    [
        variant.precision.name().to_owned(),
        figures.map_or_else(none, |figures| {
            let (before, after) = figures.rewritten.bytes;
            format!("{} ({:.2})", size(after), after as f64 / before.max(1) as f64)
        }),
        drift.map_or_else(none, |drift| format!("{:.2e}", drift.distance())),
        drift.map_or_else(none, |drift| format!("{:.2e}", drift.max_abs)),
        drift.map_or_else(none, |drift| format!("{:.1} %", drift.top1 * 100.0)),
        figures.map_or_else(none, |figures| format!("{:.2}", figures.speed)),
        variant.reason(),
    ]
}

fn replaced(figures: &Figures) -> String {
    let counts = |counts: &BTreeMap<String, usize>, between: &str| {
        counts.iter().map(|(what, number)| format!("{number} {between}{what}")).collect::<Vec<_>>().join(", ")
    };
    let mut text = format!("replaced {}", counts(&figures.rewritten.replaced, ""));
    if !figures.rewritten.left.is_empty() {
        text.push_str(&format!("; left {}", counts(&figures.rewritten.left, "because ")));
    }
    if figures.rewritten.clamped > 0 {
        text.push_str(&format!("; {} weights beyond 16 bits became the nearest number", figures.rewritten.clamped));
    }
    match figures.calibrated_on {
        Some(Origin::MadeUp) => {
            text.push_str("; CALIBRATED ON MADE-UP INPUTS, which real ones may go beyond (--input)")
        }
        Some(origin) => text.push_str(&format!("; calibrated on what the drift is measured on ({})", origin.name())),
        None => {}
    }
    if figures.reduce_range {
        text.push_str("; weights have 7 bits, since this processor has no VNNI");
    }
    text
}
