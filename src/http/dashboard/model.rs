//! The page of one model.

use super::api::Refusal;
use super::frame::{Frame, Visitor, page};
use super::history::Counts;
use super::jobs::JobRow;
use super::live::Parts;
use super::models::{last_used, layout};
use super::overview::{Full, stage_seconds};
use super::snippets::{Snippet, snippets};
use super::system::{pretty, title};
use super::traffic::charts;
use super::values::{Look, integer, leaves, list, number, plain, state, text, text_or_dash};
use super::{chart, format};
use crate::engine::ModelName;
use crate::http::ShownSetting;
use crate::http::extract::ModelPath;
use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::time::Duration;

const RECENT: Duration = Duration::from_secs(10);
/// What of the API's answer is shown in its own place; the rest is shown as it is.
const SHOWN: [&str; 26] = [
    "name",
    "versions",
    "default_version",
    "chosen_version",
    "state",
    "loaded",
    "task",
    "device",
    "precision",
    "providers",
    "config",
    "config_set_by",
    "batching",
    "execution",
    "optimization",
    "tuned",
    "metadata",
    "memory_usage",
    "total_parameters",
    "trainable_parameters",
    "source",
    "last_error",
    "id",
    "object",
    "created",
    "owned_by",
];

#[derive(Template)]
#[template(path = "model.html", blocks = ["state", "charts", "times", "memory"])]
pub(super) struct Model {
    frame: Frame,
    name: String,
    state: Look,
    reason: Option<String>,
    version: String,
    task: String,
    device: String,
    layout: String,
    engine: Option<Engine>,
    memory: String,
    rate: String,
    queued: String,
    in_flight: String,
    used: String,
    charts: Vec<String>,
    is_loaded: bool,
    actions: Vec<(&'static str, &'static str)>,
    stages: Vec<StageRow>,
    split: String,
    batches: Vec<Full>,
    errors: Vec<(String, String)>,
    caches: String,
    window: String,
    tensors: Vec<(&'static str, String, String, String)>,
    facts: Vec<(&'static str, String)>,
    versions: Vec<VersionRow>,
    files: Vec<(String, String, String)>,
    files_size: String,
    /// Key, value, what sets it.
    settings: Vec<(String, String, String)>,
    memory_facts: Vec<(&'static str, String)>,
    runs: Vec<(&'static str, String)>,
    saved: Vec<(&'static str, String)>,
    tuned: Vec<TunedRow>,
    optimisations: Vec<JobRow>,
    reports: Vec<(String, String)>,
    snippets: Vec<Snippet>,
}

/// TensorRT's engine, where there is something to say of it.
struct Engine {
    look: Look,
    time: String,
    reason: Option<String>,
}

/// A candidate that tuning measured.
struct TunedRow {
    is_chosen: bool,
    cells: [String; 7],
}

struct StageRow {
    stage: &'static str,
    cells: [String; 7],
}

struct VersionRow {
    version: String,
    state: Look,
    reason: Option<String>,
    is_default: bool,
}

pub(super) async fn show(visitor: Visitor, path: ModelPath) -> Response {
    match build(&visitor, &path.name).await {
        Ok(model) => page(&model),
        Err(refusal) => visitor.refused(&refusal).into_response(),
    }
}

pub(super) async fn build(visitor: &Visitor, name: &ModelName) -> Result<Model, Refusal> {
    let dashboard = &visitor.dashboard;
    let model = dashboard.api.get(&format!("/v1/models/{name}")).await?;
    // One without a version has none.
    let stats = dashboard.api.get(&format!("/v1/models/{name}/stats")).await.unwrap_or(Value::Null);
    let version = text(&model, "/default_version");
    let of_version = version.as_ref().map(|version| format!("?version={version}")).unwrap_or_default();
    // A folder that cannot be read has none; why it cannot is said as the model's own problem.
    let files = dashboard.api.get(&format!("/v1/models/{name}/files{of_version}")).await.unwrap_or(Value::Null);
    let jobs = dashboard.api.get(&format!("/v1/jobs?kind=optimize&model={name}&limit=10")).await?;
    let name = name.to_string();
    let (rate, counts) = dashboard.history(|history| {
        let rate = history.rate(RECENT, |sample| sample.of(Some(&name)).map_or(0, Counts::ended));
        (rate, history.last().and_then(|sample| sample.of(Some(&name)).cloned()).unwrap_or_default())
    });
    let is_loaded = model.get("loaded").and_then(Value::as_bool) == Some(true);
    let here = format!("/ui/models/{name}");
    Ok(Model {
        frame: visitor.frame(name.clone(), "/ui/models", here).live(),
        state: state(&text_or_dash(&model, "/state")),
        reason: text(&model, "/last_error"),
        used: last_used(visitor, &name, version.as_deref()),
        charts: charts(visitor, Some(&name)),
        version: version.unwrap_or_else(|| "–".to_owned()),
        task: text_or_dash(&model, "/task"),
        device: text_or_dash(&model, "/device"),
        layout: layout(&model).unwrap_or_default(),
        engine: engine(&model),
        memory: if is_loaded { format::bytes(counts.memory_bytes) } else { "–".to_owned() },
        rate: format::rate(rate),
        queued: format::count(counts.queued),
        in_flight: format::count(counts.in_flight),
        is_loaded,
        actions: actions(is_loaded, list(&model, "/versions").len()),
        stages: stages(&stats),
        split: chart::parts(&stage_seconds(&stats), "Share of each stage"),
        batches: batches(&stats),
        errors: counted(&stats, "/error_counts"),
        caches: caches(&stats),
        window: format::age(Duration::from_secs_f64(number(&stats, "/window_s").unwrap_or(0.0).max(0.0))),
        tensors: tensors(&model),
        facts: facts(&model),
        versions: list(&model, "/versions").iter().map(|version| VersionRow::of(version, &model)).collect(),
        files: stored(&files),
        files_size: format::bytes(integer(&files, "/bytes_total")),
        settings: settings(&model, &dashboard.state.settings.shown),
        memory_facts: memory_facts(&model),
        optimisations: list(&jobs, "/jobs").iter().map(JobRow::of).collect(),
        runs: runs(&model),
        saved: saved(&model),
        tuned: tuned(&model),
        reports: reports(&model),
        snippets: snippets(&dashboard.state, &name, text(&model, "/task").as_deref(), &model),
        name,
    })
}

impl Model {
    pub(super) fn parts(&self) -> Parts {
        let blocks = [
            ("state", self.as_state().render()),
            ("charts", self.as_charts().render()),
            ("times", self.as_times().render()),
            ("memory", self.as_memory().render()),
        ];
        blocks.into_iter().filter_map(|(name, html)| Some((name, html.ok()?))).collect()
    }
}

/// The forms that suit the state.
fn actions(is_loaded: bool, versions: usize) -> Vec<(&'static str, &'static str)> {
    let mut actions = vec![("load", if is_loaded { "Load again" } else { "Load" })];
    if is_loaded {
        actions.extend([("unload", "Unload"), ("warmup", "Warm up"), ("cleanup", "Free caches")]);
    }
    if versions > 1 {
        actions.push(("rollback", "Roll back"));
    }
    actions
}

fn stages(stats: &Value) -> Vec<StageRow> {
    let stages = [
        ("Whole request", "predict_time"),
        ("Queue", "queue_time"),
        ("Prepare", "preprocess_time"),
        ("Run", "forward_time"),
        ("Finish", "postprocess_time"),
    ];
    let row = |(stage, key): (&'static str, &str)| {
        let time = |of: &str| format::seconds(number(stats, &format!("/{key}/{of}")));
        let count = format::count(integer(stats, &format!("/{key}/count")));
        StageRow {
            stage,
            cells: [count, time("mean"), time("min"), time("p50"), time("p95"), time("p99"), time("max")],
        }
    };
    stages.into_iter().map(row).collect()
}

/// What there is to say of TensorRT's engine; nothing where it is not asked for.
fn engine(model: &Value) -> Option<Engine> {
    let word = text(model, "/execution/engine/state")?;
    let reason = text(model, "/execution/engine/reason");
    let is_told = word != "none" || reason.is_some();
    is_told.then(|| Engine {
        look: if word == "none" { Look { word: "none", ..state(&word) } } else { state(&word) },
        time: number(model, "/execution/engine/seconds").map_or_else(String::new, |time| format::seconds(Some(time))),
        reason,
    })
}

/// Runs by their rows.
fn batches(stats: &Value) -> Vec<Full> {
    let histogram = stats.pointer("/batch_size/histogram").and_then(Value::as_object);
    let mut sizes: Vec<(u64, u64)> = histogram
        .into_iter()
        .flatten()
        .filter_map(|(rows, count)| Some((rows.parse().ok()?, count.as_u64()?)))
        .collect();
    sizes.sort_unstable();
    let all: u64 = sizes.iter().map(|(_, count)| count).sum();
    let row = |(rows, count): (u64, u64)| {
        let value = format::count(count);
        let share = count as f64 / all.max(1) as f64;
        Full { what: rows.to_string(), gauge: chart::progress(share, &format!("{rows} rows: {value} runs")), value }
    };
    sizes.into_iter().map(row).collect()
}

fn counted(stats: &Value, pointer: &str) -> Vec<(String, String)> {
    let counts = stats.pointer(pointer).and_then(Value::as_object);
    counts.into_iter().flatten().filter_map(|(code, count)| Some((code.clone(), plain(count)?))).collect()
}

fn caches(stats: &Value) -> String {
    let one = |key: &str| {
        let of = |what: &str| integer(stats, &format!("/cache/{key}/{what}"));
        let (hits, misses) = (of("hits"), of("misses"));
        (hits + misses > 0).then(|| {
            let (hits, misses) = (format::count(hits), format::count(misses));
            format!("{key}: {hits} hits, {misses} misses, {} in {} entries", format::bytes(of("bytes")), of("entries"))
        })
    };
    let both: Vec<String> = ["response", "preprocess"].into_iter().filter_map(one).collect();
    if both.is_empty() { "Not asked.".to_owned() } else { both.join("; ") }
}

fn tensors(model: &Value) -> Vec<(&'static str, String, String, String)> {
    let side = |side: &'static str, pointer: &str| {
        list(model, pointer)
            .iter()
            .map(|tensor| {
                let shape = text(tensor, "/shape").map_or_else(|| "any".to_owned(), |shape| format!("[{shape}]"));
                (side, text_or_dash(tensor, "/name"), text_or_dash(tensor, "/dtype"), shape.replace("-1", "any"))
            })
            .collect::<Vec<_>>()
    };
    [side("in", "/metadata/inputs"), side("out", "/metadata/outputs")].concat()
}

fn facts(model: &Value) -> Vec<(&'static str, String)> {
    let source = match (text(model, "/source/type"), text(model, "/source/model_id")) {
        (Some(kind), Some(id)) => Some(format!("{kind}: {id}")),
        (kind, _) => kind,
    };
    let all = [
        ("Description", text(model, "/metadata/description")),
        ("Author", text(model, "/metadata/author")),
        ("Licence", text(model, "/metadata/license")),
        ("Tags", text(model, "/metadata/tags")),
        ("Source", source),
        ("Revision", text(model, "/source/revision")),
        ("Precision", text(model, "/precision")),
        ("Providers", text(model, "/providers")),
        ("Format", text(model, "/metadata/model_type")),
        ("Opset", text(model, "/metadata/opset")),
        ("Made by", text(model, "/metadata/producer")),
        ("Requests share runs", text(model, "/batching/joining")),
        ("because", text(model, "/batching/evidence")),
    ];
    all.into_iter().filter_map(|(what, value)| Some((what, value.filter(|value| !value.is_empty())?))).collect()
}

impl VersionRow {
    fn of(version: &Value, model: &Value) -> VersionRow {
        let number = text_or_dash(version, "/version");
        VersionRow {
            is_default: text(model, "/default_version").as_ref() == Some(&number),
            state: state(&text_or_dash(version, "/state")),
            reason: text(version, "/reason"),
            version: number,
        }
    }
}

/// Path, size and checksum of the files of `…/files`.
pub(super) fn stored(files: &Value) -> Vec<(String, String, String)> {
    let row = |file: &Value| {
        (text_or_dash(file, "/path"), format::bytes(integer(file, "/bytes")), text_or_dash(file, "/sha256"))
    };
    list(files, "/files").iter().map(row).collect()
}

/// The settings in force and what sets each: a file of the model, else the server's configuration as long as the value is that one,
/// else the load itself.
fn settings(model: &Value, shown: &[ShownSetting]) -> Vec<(String, String, String)> {
    let mut settings = Vec::new();
    if let Some(config) = model.get("config").filter(|config| !config.is_null()) {
        leaves(config, "", &mut settings);
    }
    let own = model.get("config_set_by").and_then(Value::as_object);
    let origin = |key: &str, value: &str| {
        if let Some(by) = own.and_then(|own| own.get(key)).and_then(Value::as_str) {
            return by.to_owned();
        }
        let server = shown.iter().find(|setting| setting.key == key);
        // Texts are shown in quotes there, and what is not set in words.
        let is_same = |setting: &&ShownSetting| {
            setting.value.trim_matches('"') == value || (value == "–" && setting.value.starts_with('('))
        };
        server.filter(is_same).map_or_else(|| "chosen at load".to_owned(), |setting| setting.origin.clone())
    };
    settings
        .into_iter()
        .map(|(key, value)| (origin(&key, &value), key, value))
        .map(|(by, key, value)| (key, value, by))
        .collect()
}

/// What `…/memory` says.
fn memory_facts(model: &Value) -> Facts {
    let of = |key: &str| format!("/memory_usage/{key}");
    let mebibytes = |key: &str| number(model, &of(key)).map(|size| format::bytes((size * 1_048_576.0).round() as u64));
    let bytes = |key: &str| model.pointer(&of(key)).and_then(Value::as_u64).map(format::bytes);
    let count = |key: &str| model.pointer(&of(key)).and_then(Value::as_u64).map(format::count);
    known([
        ("In memory", mebibytes("cpu_memory_mb")),
        ("On the GPU", mebibytes("gpu_allocated_mb")),
        ("Reserved on the GPU", mebibytes("gpu_reserved_mb")),
        ("Most on the GPU", mebibytes("gpu_max_allocated_mb")),
        ("Size of the model", mebibytes("model_size_mb")),
        ("Parameters", count("total_params")),
        ("Of them trainable", count("trainable_params")),
        ("A run takes for each row", bytes("activation/bytes_per_row")),
        ("and whatever its rows", bytes("activation/fixed_bytes")),
        ("Runs may take", bytes("activation/budget_bytes")),
        ("Most rows that fit that", count("activation/optimal_batch_size")),
        ("Rows were lowered from", count("activation/lowered_from")),
    ])
}

type Facts = Vec<(&'static str, String)>;

fn known(all: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Facts {
    all.into_iter().filter_map(|(what, value)| Some((what, value.filter(|value| !value.is_empty())?))).collect()
}

fn yes(model: &Value, pointer: &str, word: &str) -> Option<String> {
    (model.pointer(pointer).and_then(Value::as_bool) == Some(true)).then(|| word.to_owned())
}

/// Where its nodes run, and why they run nowhere else.
fn runs(model: &Value) -> Facts {
    let nodes = model.pointer("/execution/nodes").and_then(Value::as_object).into_iter().flatten();
    let nodes = nodes.filter_map(|(provider, count)| Some(format!("{}: {provider}", plain(count)?)));
    let mut facts = known([
        ("Asked for", text(model, "/execution/asked")),
        ("Registered", text(model, "/execution/registered")),
        ("Nodes", Some(nodes.collect::<Vec<_>>().join(", "))),
        ("Not where it should", yes(model, "/execution/is_fallback", "it runs on another device than was asked for")),
        ("Most rows that fit", text(model, "/execution/max_rows")),
        (
            "Memory",
            yes(model, "/execution/on_reserve", "the last run was made on the CPU: the device had no memory for it"),
        ),
    ]);
    for missing in list(model, "/execution/missing") {
        facts
            .push(("Missing", format!("{}: {}", text_or_dash(missing, "/provider"), text_or_dash(missing, "/reason"))));
    }
    facts
}

/// What earlier loads left for the next, and what tuning and smaller numbers brought.
fn saved(model: &Value) -> Facts {
    let of = |key: &str| format!("/optimization/{key}");
    let ms = |key: &str| number(model, &of(key)).map(|time| format::seconds(Some(time / 1e3)));
    let nodes = text(model, &of("nodes_before")).zip(text(model, &of("nodes_after")));
    let gain = number(model, "/tuned/times_as_good").map(|gain| format!("{gain:.2} times as good"));
    let tried = |key: &str| {
        let reason = text(model, &of(&format!("{key}/reason")))?;
        let serves = model.pointer(&of(&format!("{key}/adopted"))).and_then(Value::as_bool) == Some(true);
        Some(format!("{}: {reason}", if serves { "serves" } else { "does not serve" }))
    };
    known([
        ("Saved state", text(model, &of("state"))),
        ("because", text(model, &of("reason"))),
        ("Load without it", ms("cold_load_ms")),
        ("Load with it", ms("warm_load_ms")),
        ("Nodes", nodes.map(|(before, after)| format!("{before} → {after}"))),
        ("Size", model.pointer(&of("saved_bytes")).and_then(Value::as_u64).map(format::bytes)),
        ("Measured before", text(model, &of("reused_measurements"))),
        ("Tuned", gain),
        ("Products of bytes", tried("quantization")),
        ("16 bits", tried("fp16")),
    ])
}

/// The candidates in the order in which they were measured.
fn tuned(model: &Value) -> Vec<TunedRow> {
    let chosen = model.pointer("/tuned/chosen");
    let row = |candidate: &Value| {
        let is = |pointer: &str| candidate.pointer(pointer).and_then(Value::as_bool) == Some(true);
        let ms = |pointer: &str| format::seconds(number(candidate, pointer).map(|time| time / 1e3));
        let memory = match (is("/memory_arena"), is("/memory_pattern")) {
            (true, true) => "arena, pattern",
            (true, false) => "arena",
            (false, _) => "none kept",
        };
        TunedRow {
            is_chosen: chosen == Some(candidate),
            cells: [
                format!("{} × {}", integer(candidate, "/instances"), integer(candidate, "/intra_threads")),
                text_or_dash(candidate, "/batch_size"),
                text_or_dash(candidate, "/optimization_level"),
                memory.to_owned(),
                number(candidate, "/rows_per_second").map_or_else(|| "–".to_owned(), |rows| format!("{rows:.1}")),
                ms("/run_ms"),
                ms("/p99_ms"),
            ],
        }
    };
    list(model, "/tuned/measurements").iter().map(row).collect()
}

/// What the API says of the model besides.
fn reports(model: &Value) -> Vec<(String, String)> {
    let fields = model.as_object().into_iter().flatten();
    let others = fields.filter(|(key, value)| !SHOWN.contains(&key.as_str()) && !value.is_null());
    others.map(|(key, value)| (title(key), pretty(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_setting_says_what_sets_it() {
        let model = json!({
            "config": {"device": {"device_type": "auto"}, "batch": {"max_batch_size": 8, "instances": 2, "max_queue": 256, "batch_size": null}},
            "config_set_by": {"batch.max_batch_size": "model.toml"},
        });
        let shown = |key: &str, value: &str, origin: &str| ShownSetting {
            key: key.into(),
            value: value.into(),
            origin: origin.into(),
        };
        let server = [
            shown("device.device_type", "\"auto\"", "default"),
            shown("batch.max_queue", "256", "ortus.toml, line 3"),
            shown("batch.instances", "(chosen for the machine)", "default"),
            shown("batch.max_batch_size", "8", "default"),
            shown("batch.batch_size", "(chosen for the machine)", "default"),
        ];
        let all = settings(&model, &server);
        let by = |key: &str| all.iter().find(|row| row.0 == key).map(|row| row.2.as_str());
        assert_eq!(by("device.device_type"), Some("default"));
        assert_eq!(by("batch.max_queue"), Some("ortus.toml, line 3"));
        assert_eq!(by("batch.instances"), Some("chosen at load"));
        assert_eq!(by("batch.max_batch_size"), Some("model.toml"));
        assert_eq!(by("batch.batch_size"), Some("default"));
        assert!(settings(&json!({"config": null}), &server).is_empty());
    }

    #[test]
    fn memory_is_what_the_api_says_and_no_more() {
        let told = memory_facts(
            &json!({"memory_usage": {"cpu_memory_mb": 118.2, "gpu_reserved_mb": null, "total_params": 25557032,
                                                        "activation": {"bytes_per_row": 4194304}}}),
        );
        let expected =
            [("In memory", "118 MiB"), ("Parameters", "25,557,032"), ("A run takes for each row", "4.0 MiB")];
        assert_eq!(told, expected.map(|(what, value)| (what, value.to_owned())));
    }

    #[test]
    fn what_is_known_of_a_run_is_told_and_nothing_else() {
        let model = json!({
            "execution": {
                "asked": ["CUDAExecutionProvider", "CPUExecutionProvider"], "registered": ["CPUExecutionProvider"],
                "nodes": {"CPUExecutionProvider": 16}, "is_fallback": true, "max_rows": null, "on_reserve": false,
                "missing": [{"provider": "CUDAExecutionProvider", "reason": "no driver"}],
            },
            "optimization": {"state": "used", "cold_load_ms": 496.1, "warm_load_ms": 3.0, "nodes_before": 18, "nodes_after": 12,
                             "fp16": {"adopted": false, "reason": "0.77 times as fast"}},
            "tuned": {"times_as_good": 1.2, "measurements": [{"instances": 1}, {"instances": 2}], "chosen": {"instances": 2}},
        });
        let told = runs(&model);
        let find = |facts: &Facts, what: &str| facts.iter().find(|fact| fact.0 == what).map(|fact| fact.1.clone());
        assert_eq!(find(&told, "Nodes").as_deref(), Some("16: CPUExecutionProvider"));
        assert_eq!(find(&told, "Missing").as_deref(), Some("CUDAExecutionProvider: no driver"));
        assert!(find(&told, "Not where it should").is_some() && find(&told, "Memory").is_none());
        let kept = saved(&model);
        assert_eq!(find(&kept, "Nodes").as_deref(), Some("18 → 12"));
        assert_eq!(find(&kept, "16 bits").as_deref(), Some("does not serve: 0.77 times as fast"));
        assert_eq!(find(&kept, "Tuned").as_deref(), Some("1.20 times as good"));
        assert_eq!(tuned(&model).iter().map(|row| row.is_chosen).collect::<Vec<_>>(), [false, true]);
        assert!(runs(&json!({})).is_empty() && saved(&json!({"optimization": null})).is_empty());
    }
}
