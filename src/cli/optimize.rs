//! `ortus optimize`: makes a variant of a model, runs it and the original by turns, and says which is better.
//!
//! Invariants: both run with the settings that the model is served with, on the same inputs, in the same rounds; the store is
//! changed only by `--adopt`, through an install like any other; what was made for the comparison is removed at the end, but not after an interrupt.

use super::args::OptimizeArgs;
use super::bench::{Inputs, inputs};
use super::configuration::pretty;
use super::error::CliError;
use super::lone_model;
use super::run::note;
use super::store::offline_config;
use super::table::{Table, size};
use crate::app::{self, Offline};
use crate::config::Config;
use crate::downloads::{Download, Downloads, Order, Place, State};
use crate::engine::{BareSession, EngineError, InferenceEngine, LoadOverrides, LoadedModel, ModelName, Version};
use crate::hub::{FetchRequest, Source};
use crate::rewrite::{Drift, QuantizeOptions, Rewriting, Rewritten, drift, rewrite_file};
use crate::telemetry::printable;
use crate::tensor::Value;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A variant has to be faster by more than two runs of the same differ.
const WIN_MIN: f64 = 1.05;

pub(super) fn optimize(args: OptimizeArgs) -> Result<String, CliError> {
    let mut config = offline_config(args.store.clone())?;
    let target = lone_model::resolve(&args.model, &mut config)?;
    if let Some(output) = args.output.as_ref().filter(|output| output.exists()) {
        return Err(CliError::File { path: output.clone(), source: std::io::ErrorKind::AlreadyExists.into() });
    }
    if args.adopt && target.is_lone_file() {
        return Err(CliError::Bench("a lone file has no next version; take the variant with --output"));
    }
    let Offline { engine, downloads, runtime } = app::open_store(&config)?;
    runtime.block_on(async {
        engine.load(&target.name, LoadOverrides { config_json: None, files: Vec::new() }).await?;
        let result = compare(&args, &config, &engine, &downloads, &target.name).await;
        // The result counts; what could not be unloaded ends with the process.
        let _ = engine.unload(&target.name).await;
        result
    })
}

async fn compare(
    args: &OptimizeArgs,
    config: &Config,
    engine: &InferenceEngine,
    downloads: &Downloads,
    name: &ModelName,
) -> Result<String, CliError> {
    let model = engine.model(name, args.model_version.map(Version)).await?;
    if model.source.text_tower.is_some() {
        return Err(CliError::Bench("the model is a pair of graphs; optimise each file by itself"));
    }
    let folder = tempfile::tempdir().map_err(|source| CliError::File { path: std::env::temp_dir(), source })?;
    let variant = folder.path().join("variant");
    let options = QuantizeOptions::here();
    let (graph, rewritten) = make(&model, &variant, options)?;
    let inputs = inputs(args.input.clone(), None, config, engine, &model).await?;
    let mut sessions = [engine.bare_session(&model).await?, engine.bare_variant(&model, graph).await?];
    let seconds = args.seconds * f64::from(args.rounds) * 2.0 * inputs.bare.len() as f64;
    note(&format!("measuring for about {seconds:.0} s"));
    // Nothing else goes on in this process.
    let measured = measure(&mut sessions, &inputs, Duration::from_secs_f64(args.seconds), args.rounds.into())?;
    let mut report = Report { model: &model, options, rewritten, measured, max_drift: args.max_drift, adopted: None };
    if let Some(output) = &args.output {
        copy(&variant, output, &[]).map_err(|source| CliError::File { path: output.clone(), source })?;
    }
    if args.adopt && report.wins() {
        report.adopted = Some(adopt(downloads, name, &variant).await?);
    }
    Ok(if args.json { pretty(&report.as_json()) } else { report.as_text() })
}

/// Writes the variant into `folder`, with what lies beside the original. Gives the path of its graph.
fn make(model: &LoadedModel, folder: &Path, options: QuantizeOptions) -> Result<(PathBuf, Rewritten), CliError> {
    let failed = |source: std::io::Error| CliError::File { path: folder.to_owned(), source };
    let (from, source) = (&model.source.folder, &model.source.file);
    let graph = folder.join(source.strip_prefix(from).unwrap_or(Path::new("model.onnx")));
    std::fs::create_dir_all(graph.parent().unwrap_or(folder)).map_err(failed)?;
    let rewritten = rewrite_file(source, &graph, &Rewriting::Int8(options))?;
    // What tells where the original came from says nothing of the variant.
    let mut left_out = vec![source.clone(), from.join(crate::hub::PROVENANCE)];
    let beside = source.parent().unwrap_or(from);
    left_out.extend(rewritten.data_files.iter().map(|name| beside.join(name)));
    // Nothing that is copied may take the place of what was made.
    left_out.push(source.with_added_extension("data"));
    copy(from, folder, &left_out).map_err(failed)?;
    Ok((graph, rewritten))
}

/// Copies a folder but for links and `left_out`.
fn copy(from: &Path, to: &Path, left_out: &[PathBuf]) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            copy(&path, &to.join(entry.file_name()), left_out)?;
        } else if kind.is_file() && !left_out.contains(&path) {
            std::fs::copy(path, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What came of the two, by the rows of a run.
struct Measured {
    /// Rows, and milliseconds of a run: of the original and of the variant.
    times: Vec<(usize, f64, f64)>,
    drift: Option<Drift>,
}

fn measure(
    [original, variant]: &mut [BareSession; 2],
    inputs: &Inputs,
    duration: Duration,
    rounds: usize,
) -> Result<Measured, CliError> {
    let (mut times, mut outputs) = (Vec::new(), (Vec::new(), Vec::new()));
    for (rows, values) in &inputs.bare {
        // Some graphs declare a free dimension and refuse more than one row.
        let answer: Result<(Vec<Value>, Vec<Value>), EngineError> =
            original.outputs(values).and_then(|first| Ok((first, variant.outputs(values)?)));
        match answer {
            Ok((first, second)) => {
                outputs.0.push(first);
                outputs.1.push(second);
            }
            Err(error) if *rows == inputs.rows => return Err(error.into()),
            Err(_) => continue,
        }
        let mut samples = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            samples.0.push(one_round(original, values, duration)?);
            samples.1.push(one_round(variant, values, duration)?);
        }
        times.push((*rows, median(samples.0), median(samples.1)));
    }
    Ok(Measured { times, drift: drift(&outputs.0, &outputs.1) })
}

/// Milliseconds of a run, on the average.
fn one_round(session: &mut BareSession, values: &[(usize, Value)], duration: Duration) -> Result<f64, EngineError> {
    let (started, mut runs) = (Instant::now(), 0u32);
    while runs == 0 || started.elapsed() < duration {
        session.run(values)?;
        runs += 1;
    }
    Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(runs))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Makes the variant the model's next version, as any other install.
async fn adopt(downloads: &Downloads, name: &ModelName, variant: &Path) -> Result<Version, CliError> {
    let request = FetchRequest::new(Source::Local { path: variant.to_owned() });
    let order = Order { name: name.clone(), place: Place::NextVersion, request, load: false, model_toml: None };
    let id = downloads.order(order).await?.id;
    let Download { state, error, version, .. } = downloads.ended(id).await?;
    match (state, version, error) {
        (State::Done, Some(version), _) => Ok(version),
        (_, _, Some((_, error))) => Err(CliError::Download(printable(&error).into_owned())),
        _ => Err(CliError::Download("the variant could not be installed".to_owned())),
    }
}

struct Report<'a> {
    model: &'a LoadedModel,
    options: QuantizeOptions,
    rewritten: Rewritten,
    measured: Measured,
    max_drift: f64,
    adopted: Option<Version>,
}

impl Report<'_> {
    /// How many times faster, over all sizes of a run.
    fn speed(&self) -> f64 {
        let ratios = self.measured.times.iter().map(|(_, original, variant)| (original / variant).ln());
        (ratios.sum::<f64>() / self.measured.times.len().max(1) as f64).exp()
    }

    fn drift(&self) -> Option<f64> {
        self.measured.drift.map(|drift| 1.0 - drift.cosine)
    }

    fn wins(&self) -> bool {
        self.speed() > WIN_MIN && self.drift().is_some_and(|drift| drift <= self.max_drift)
    }

    fn verdict(&self) -> String {
        let (speed, drift) = (self.speed(), self.drift());
        let next = match self.adopted {
            Some(version) => format!("adopted as version {version}"),
            None => "not adopted; --adopt makes it the next version".to_owned(),
        };
        match drift {
            None => "its outputs cannot be compared with the original's: not better".to_owned(),
            Some(drift) if drift > self.max_drift => {
                format!("drifts by {drift:.2e}, more than --max-drift {}: not better", self.max_drift)
            }
            Some(_) if speed <= WIN_MIN => format!("{speed:.2} times as fast: not better"),
            Some(_) => format!("{speed:.2} times as fast within the drift: {next}"),
        }
    }

    fn as_text(&self) -> String {
        let mut table = Table::new(["ROWS", "ORIGINAL MS", "INT8 MS", "TIMES AS FAST"]);
        for (rows, original, variant) in &self.measured.times {
            let cells = [original, variant].map(|ms| format!("{ms:.3}"));
            let [original_ms, variant_ms] = cells;
            table.row([rows.to_string(), original_ms, variant_ms, format!("{:.2}", original / variant)]);
        }
        let counts = |counts: &std::collections::BTreeMap<String, usize>| {
            counts.iter().map(|(what, number)| format!("{number} {what}")).collect::<Vec<_>>().join(", ")
        };
        let (before, after) = self.rewritten.bytes;
        let mut text = format!(
            "{}, version {}, on {}, {} threads\n\n{}\n\nsize: {} and {}, {:.2} of it\nreplaced: {}\n",
            self.model.name,
            self.model.version,
            self.model.facts.device,
            self.model.intra_threads,
            table.finish(),
            size(before),
            size(after),
            after as f64 / before.max(1) as f64,
            counts(&self.rewritten.replaced),
        );
        if !self.rewritten.left.is_empty() {
            let left = self.rewritten.left.iter().map(|(why, number)| format!("{number} because {why}"));
            text.push_str(&format!("left: {}\n", left.collect::<Vec<_>>().join(", ")));
        }
        if self.options.reduce_range {
            text.push_str("weights have 7 bits, since this processor has no VNNI\n");
        }
        if let Some(Drift { max_abs, cosine, top1 }) = self.measured.drift {
            text.push_str(&format!(
                "drift: cosine {cosine:.6}, largest difference {max_abs:.3e}, same winner in {:.1} %\n",
                top1 * 100.0
            ));
        }
        text.push_str(&self.verdict());
        text
    }

    fn as_json(&self) -> Json {
        let (before, after) = self.rewritten.bytes;
        let times = self.measured.times.iter().map(|(rows, original, variant)| {
            json!({"rows": rows, "original_ms": original, "variant_ms": variant, "speed": original / variant})
        });
        json!({
            "model": self.model.name.as_str(),
            "version": self.model.version.to_string(),
            "device": self.model.facts.device,
            "threads": self.model.intra_threads,
            "variant": "int8",
            "reduce_range": self.options.reduce_range,
            "times": times.collect::<Vec<_>>(),
            "speed": self.speed(),
            "bytes": {"original": before, "variant": after},
            "replaced": self.rewritten.replaced,
            "left": self.rewritten.left,
            "drift": self.measured.drift.map(|Drift { max_abs, cosine, top1 }| json!({
                "max_abs": max_abs, "cosine": cosine, "top1": top1, "max": self.max_drift,
            })),
            "wins": self.wins(),
            "adopted_version": self.adopted.map(|version| version.to_string()),
        })
    }
}
