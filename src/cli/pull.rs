//! `ortus pull`: gets a model into the store, without a server; one that serves the store finds it.

use super::args::PullArgs;
use super::configuration::pretty;
use super::error::CliError;
use super::run::note;
use super::store::offline_config;
use super::table::size;
use crate::app::{self, Offline};
use crate::downloads::{Download, DownloadError, Downloads, Order, Place, State};
use crate::engine::ModelName;
use crate::hub::{ExportOptions, FetchRequest, Precision};
use crate::telemetry::printable;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often the bars move.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a line is printed where nobody sees bars.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn pull(args: PullArgs) -> Result<String, CliError> {
    let named = FetchRequest::parse(&args.source).map_err(DownloadError::from)?;
    let request = FetchRequest {
        revision: args.revision.or(named.revision),
        file: args.file,
        precision: args.precision.as_deref().map(Precision::parse).transpose().map_err(DownloadError::from)?,
        sha256: args.sha256.map(|hash| hash.to_ascii_lowercase()).or(named.sha256),
        export: ExportOptions {
            weights: args.weights,
            input_shape: args.input_shape,
            opset: None,
            architecture: args.architecture,
        },
        ..FetchRequest::new(named.source)
    };
    let Some(name) = args.name.or_else(|| request.source.default_name()) else {
        return Err(CliError::Download("the source gives no name; choose one with --name".to_owned()));
    };
    let name = ModelName::parse(&name).map_err(|rule| CliError::Download(format!("--name {name:?}: {rule}")))?;
    let config = offline_config(args.store)?;
    std::fs::create_dir_all(&config.store.models_dir)
        .map_err(|source| CliError::File { path: config.store.models_dir.clone(), source })?;
    let Offline { engine, downloads, runtime, .. } = app::open_store(&config)?;
    runtime.block_on(async {
        if args.check {
            return listed(&downloads, &request, args.json).await;
        }
        let place = if engine.status(&name).is_ok() { Place::NextVersion } else { Place::NewModel };
        let order = Order { name: name.clone(), place, request, load: false, model_toml: None };
        let id = downloads.order(order).await?.id;
        let ended = tokio::select! {
            ended = watch(&downloads, id) => ended?,
            // What came so far is kept for the next try.
            _ = tokio::signal::ctrl_c() => {
                return Err(CliError::Download("stopped; the same command goes on where this one ended".to_owned()));
            }
        };
        finished(&ended, args.json)
    })
}

async fn listed(downloads: &Downloads, request: &FetchRequest, as_json: bool) -> Result<String, CliError> {
    let listing = downloads.check(request).await?;
    if as_json {
        let files: Vec<_> = listing.files.iter().map(|file| json!({"path": file.path, "bytes": file.bytes})).collect();
        return Ok(pretty(&json!({
            "revision": listing.revision, "license": listing.license, "task": listing.task, "files": files
        })));
    }
    let mut text = String::new();
    for (what, value) in [("revision", &listing.revision), ("license", &listing.license), ("task", &listing.task)] {
        if let Some(value) = value {
            text.push_str(&format!("{what}: {}\n", printable(value)));
        }
    }
    for file in &listing.files {
        text.push_str(&format!("{}  {}\n", file.bytes.map_or_else(|| "?".to_owned(), size), printable(&file.path)));
    }
    let total: Option<u64> = listing.files.iter().map(|file| file.bytes).sum();
    text.push_str(&format!("{} in all", total.map_or_else(|| "an unknown size".to_owned(), size)));
    Ok(text)
}

/// Shows how far it is until it has ended.
async fn watch(downloads: &Downloads, id: Uuid) -> Result<Download, CliError> {
    let mut shown = if std::io::stderr().is_terminal() { Shown::bars() } else { Shown::lines() };
    loop {
        let now = downloads.get(id)?;
        shown.show(&now);
        if now.state.is_final() {
            return Ok(now);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn finished(ended: &Download, as_json: bool) -> Result<String, CliError> {
    match (ended.state, &ended.error, ended.version) {
        (State::Done, _, Some(version)) => {
            let task = ended.report.as_ref().map(|report| report.task.as_str());
            if as_json {
                return Ok(pretty(&json!({
                    "name": ended.name.as_str(), "version": version.to_string(), "revision": ended.revision,
                    "task": task, "bytes": ended.progress.bytes_done, "unchanged": ended.unchanged,
                })));
            }
            if ended.unchanged {
                return Ok(format!("{} is up to date: version {version} is what {} has", ended.name, ended.model_id));
            }
            let task = task.map_or_else(String::new, |task| format!(", {task}"));
            let hint = format!("see what it takes with: ortus inspect {}", ended.name);
            note(&hint);
            Ok(format!("{}, version {version}{task}, {}", ended.name, size(ended.progress.bytes_done)))
        }
        (_, Some((_, error)), _) => Err(CliError::Download(printable(error).into_owned())),
        _ => Err(CliError::Download("cancelled".to_owned())),
    }
}

/// What a person or a log sees of it.
enum Shown {
    Bars { all: MultiProgress, bars: BTreeMap<String, ProgressBar> },
    Lines { state: Option<State>, at: Instant },
}

impl Shown {
    fn bars() -> Shown {
        Shown::Bars { all: MultiProgress::new(), bars: BTreeMap::new() }
    }

    fn lines() -> Shown {
        Shown::Lines { state: None, at: Instant::now() }
    }

    fn show(&mut self, now: &Download) {
        match self {
            Shown::Bars { all, bars } => {
                for file in &now.progress.files {
                    let bar = bars.entry(file.path.clone()).or_insert_with(|| all.add(bar(&file.path)));
                    if let Some(total) = file.bytes_total {
                        bar.set_length(total);
                    }
                    bar.set_position(file.bytes_done);
                    if file.done && !bar.is_finished() {
                        bar.finish();
                    }
                }
                if now.state.is_final() {
                    bars.values().for_each(ProgressBar::abandon);
                }
            }
            Shown::Lines { state, at } => {
                let is_new = *state != Some(now.state);
                if is_new || at.elapsed() >= LINE_INTERVAL {
                    (*state, *at) = (Some(now.state), Instant::now());
                    let progress = &now.progress;
                    let total = progress.bytes_total.map_or_else(String::new, |total| format!(" of {}", size(total)));
                    let bytes = match progress.files.is_empty() {
                        true => String::new(),
                        false => format!(", {}{total}", size(progress.bytes_done)),
                    };
                    let state = format!("{:?}", now.state).to_lowercase();
                    // A reader that has gone away wants no more.
                    let _ = writeln!(std::io::stderr().lock(), "{}: {state}{bytes}", now.name);
                }
            }
        }
    }
}

fn bar(path: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{msg:30!} {bar:30} {bytes:>10} / {total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(printable(path).into_owned());
    bar
}
