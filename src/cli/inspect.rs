//! `ortus inspect`: loads one model and prints what it is.

use super::args::InspectArgs;
use super::configuration::pretty;
use super::error::CliError;
use super::lone_model;
use super::store::{offline_config, with_engine};
use super::table::{Table, count, size};
use crate::engine::{EngineState, Joining, LoadedModel, Objective, Optimization, RunMemory, Tuned, Version};
use crate::telemetry::{rfc3339, rfc3339_of};
use crate::tensor::{Dim, Spec};
use serde_json::{Value, json};
use std::time::SystemTime;

pub(super) fn inspect(args: InspectArgs) -> Result<String, CliError> {
    let mut config = offline_config(args.store)?;
    // Nothing is to be waited for, and one copy tells all.
    config.models.instances = Some(1);
    // What an earlier load found is shown; nothing is measured to be looked at.
    let tuning = &mut config.models.tuning;
    (tuning.tune, tuning.target_p99, tuning.insists) = (false, None, true);
    let target = lone_model::resolve(&args.model, &mut config)?;
    let version = args.model_version.map(Version);
    with_engine(&config, Some(&target.name), async |engine| {
        let model = engine.model(&target.name, version).await?;
        let versions: Vec<Version> =
            engine.status(&target.name)?.versions.iter().map(|version| version.version).collect();
        Ok(if args.json { pretty(&as_json(&model, &versions)) } else { as_text(&model, &versions) })
    })
}

/// What a user may want to add, in words; empty where the model is served with all that its task gives.
fn missing(model: &LoadedModel) -> Vec<String> {
    let Some(pipeline) = &model.pipeline else {
        return vec![
            "a task: the model takes and gives raw tensors; to serve typed input, add the files that came with it (config.json, \
             preprocessor_config.json) or name `task` under [pipeline] in model.toml"
                .to_owned(),
        ];
    };
    let mut missing = Vec::new();
    let task = pipeline.task();
    // Zero-shot tasks have their labels from the request.
    if task.ends_with("-classification") && !task.starts_with("zero-shot") && pipeline.labels().is_empty() {
        missing.push("labels: classes are answered by number; add labels.txt, or id2label to config.json".to_owned());
    }
    missing
}

fn labels(model: &LoadedModel) -> usize {
    model.pipeline.as_ref().map_or(0, |pipeline| pipeline.labels().len())
}

/// How requests share runs.
fn batching(model: &LoadedModel) -> String {
    let (joining, evidence) = model.handle.joining();
    let how = match joining {
        Joining::Alone => "each request is a run".to_owned(),
        Joining::Rows => "rows join".to_owned(),
        Joining::Fixed(1) => "runs of one row".to_owned(),
        Joining::Fixed(rows) => format!("rows join in runs of {rows}"),
    };
    format!("{how} ({evidence})")
}

/// What runs take for each row, and the largest batch that fits.
fn run_memory(runs: &RunMemory) -> String {
    let found = &runs.activation;
    let of = runs.row_tokens.map_or_else(String::new, |tokens| format!(" of {tokens} tokens"));
    let rows: Vec<String> = found.measured.iter().map(|(rows, _)| rows.to_string()).collect();
    let mut text = format!(
        "{} for each row{of}, {} for each run (by {}, {} rows)",
        size(found.bytes_per_row),
        size(found.fixed_bytes),
        found.measured_by.as_str(),
        rows.join(", ")
    );
    if let (Some(rows), Some(budget)) = (runs.rows_max, runs.budget_bytes) {
        text.push_str(&format!("; {} rows at once fit {}", count(rows as u64), size(budget)));
    }
    text
}

/// Where the optimised graph came from.
fn optimization(found: &Optimization) -> String {
    let times = [("cold", found.cold_load_ms), ("saved", found.warm_load_ms)];
    let times = times.into_iter().filter_map(|(name, time)| Some(format!("{name} {} ms", time?)));
    let all: Vec<String> = std::iter::once(found.state.as_str().to_owned()).chain(times).collect();
    match &found.reason {
        Some(reason) => format!("{} ({reason})", all.join(", ")),
        None => all.join(", "),
    }
}

fn saved_graph(found: &Optimization, before: u64, after: u64) -> String {
    let level = format!("{:?}", found.graph_level.unwrap_or(found.level)).to_lowercase();
    let bytes = found.saved_bytes.map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
    format!("level {level}, {} nodes made {}{bytes}", count(before), count(after))
}

/// What tuning chose, for what, when, and what it brought.
fn tuned_text(tuned: &Tuned) -> String {
    let chosen = &tuned.chosen;
    let batch = chosen.batch_size.map_or_else(String::new, |rows| format!(", batches of {rows}"));
    let (layout, optimization_level, memory) =
        (chosen.setup.layout, chosen.setup.optimization_level, chosen.setup.memory);
    let mut text = format!(
        "{} instances of {} threads{batch}, level {}, arena {}, pattern {}",
        layout.instances,
        layout.intra_threads,
        format!("{optimization_level:?}").to_lowercase(),
        on_off(memory.arena),
        on_off(memory.pattern)
    );
    text.push_str(match tuned.objective {
        Objective::Throughput => "; for throughput",
        Objective::Latency => "; for latency",
    });
    if let Some(target) = tuned.target_p99 {
        let kept = if tuned.target_reached { "kept" } else { "missed" };
        text.push_str(&format!(" with a p99 of {} ms, {kept}", target.as_millis()));
    }
    text.push_str(&format!(": {:.1} rows/s, p99 {:.2} ms", chosen.rows_per_second, chosen.p99.as_secs_f64() * 1e3));
    if let Some(gain) = tuned.gain() {
        text.push_str(&format!(", {:.2} times as good as untuned", gain.times_as_good));
    }
    if let Some(at) = tuned_at(tuned) {
        text.push_str(&format!("; measured at {at}"));
    }
    text
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn tuned_at(tuned: &Tuned) -> Option<String> {
    let since = tuned.at?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(rfc3339)
}

fn tuned_json(tuned: &Tuned) -> Value {
    let setup = tuned.chosen.setup;
    let (layout, optimization_level, memory) = (setup.layout, setup.optimization_level, setup.memory);
    json!({
        "objective": tuned.objective,
        "target_p99_ms": tuned.target_p99.map(|target| target.as_secs_f64() * 1e3),
        "target_reached": tuned.target_reached,
        "instances": layout.instances,
        "intra_threads": layout.intra_threads,
        "batch_size": tuned.chosen.batch_size,
        "optimization_level": optimization_level,
        "memory_arena": memory.arena,
        "memory_pattern": memory.pattern,
        "rows_per_second": tuned.chosen.rows_per_second,
        "p99_ms": tuned.chosen.p99.as_secs_f64() * 1e3,
        "times_as_good": tuned.gain().map(|gain| gain.times_as_good),
        "measured_at": tuned_at(tuned),
    })
}

fn as_text(model: &LoadedModel, versions: &[Version]) -> String {
    let facts = &model.facts;
    let mut table = Table::new(["MODEL", model.name.as_str()]);
    let mut line = |name: &str, value: String| table.row([name.to_owned(), value]);
    let all: Vec<String> = versions.iter().map(Version::to_string).collect();
    line("version", format!("{} (in the store: {})", model.version, all.join(", ")));
    let task = model.pipeline.as_ref().map_or("none (raw tensors)", |pipeline| pipeline.task());
    line("task", task.to_owned());
    line("detected from", model.task_evidence.clone());
    line("labels", count(labels(model) as u64));
    for (name, specs) in [("input", &model.inputs), ("output", &model.outputs)] {
        for spec in specs {
            let optional = if spec.optional { " (optional)" } else { "" };
            line(name, format!("{}: {}{optional}", spec.name, spec.ty));
        }
    }
    line("format", facts.format.to_owned());
    let unknown = || "unknown".to_owned();
    line("opset", facts.opset.map_or_else(unknown, |opset| opset.to_string()));
    line("IR version", facts.ir_version.map_or_else(unknown, |version| version.to_string()));
    line("producer", facts.producer.clone().unwrap_or_else(unknown));
    let optional = [("graph", &facts.graph_name), ("description", &facts.description), ("precision", &facts.precision)];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, value.clone());
        }
    }
    line("parameters", facts.num_parameters.map_or_else(unknown, count));
    line("size", size(facts.size_bytes));
    line("device", facts.device.clone());
    let execution = model.execution();
    line("providers", execution.registered.join(", "));
    for (provider, nodes) in &execution.nodes {
        line("nodes", format!("{} on {provider}", count(*nodes)));
    }
    for missing in &execution.missing {
        line("not used", format!("{}: {}", missing.provider, missing.reason));
    }
    let engine = model.engine.status();
    if engine.state != EngineState::None || engine.reason.is_some() {
        let built = engine.seconds.map(|seconds| format!(", {seconds:.1} s")).unwrap_or_default();
        let reason = engine.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        line("engine", format!("{}{built}{reason}", engine.state.as_str()));
    }
    line("batching", batching(model));
    if let Some(runs) = &model.memory.runs {
        line("memory of runs", run_memory(runs));
    }
    line("threads of a run", model.intra_threads.to_string());
    line("optimisation", optimization(&model.optimization));
    if let Some((before, after)) = model.optimization.nodes {
        line("saved graph", saved_graph(&model.optimization, before, after));
    }
    if let Some(tuned) = &model.optimization.tuned {
        line("tuned", tuned_text(tuned));
    }
    line("load time", format!("{} ms", model.load_time.as_millis()));
    for (key, value) in &facts.custom {
        line("metadata", format!("{key} = {value}"));
    }
    let missing = missing(model);
    if missing.is_empty() {
        line("missing", "nothing".to_owned());
    }
    for text in missing {
        line("missing", text);
    }
    table.finish()
}

fn as_json(model: &LoadedModel, versions: &[Version]) -> Value {
    let (facts, execution, engine) = (&model.facts, model.execution(), model.engine.status());
    json!({
        "name": model.name.as_str(),
        "version": model.version.to_string(),
        "versions": versions.iter().map(Version::to_string).collect::<Vec<_>>(),
        "task": model.pipeline.as_ref().map(|pipeline| pipeline.task()),
        "task_evidence": model.task_evidence,
        "labels": labels(model),
        "inputs": model.inputs.iter().map(spec_json).collect::<Vec<_>>(),
        "outputs": model.outputs.iter().map(spec_json).collect::<Vec<_>>(),
        "format": facts.format,
        "opset": facts.opset,
        "ir_version": facts.ir_version,
        "producer": facts.producer,
        "graph_name": facts.graph_name,
        "description": facts.description,
        "precision": facts.precision,
        "num_parameters": facts.num_parameters,
        "size_bytes": facts.size_bytes,
        "device": facts.device,
        "providers": facts.execution.registered,
        "execution": {
            "asked": execution.asked,
            "registered": facts.execution.registered,
            "nodes": facts.execution.nodes,
            "missing": execution.missing.iter()
                .map(|missing| json!({ "provider": missing.provider, "reason": missing.reason })).collect::<Vec<_>>(),
            "is_fallback": execution.is_fallback,
            "engine": {
                "state": engine.state.as_str(),
                "since": engine.since.map(rfc3339_of),
                "seconds": engine.seconds,
                "reason": engine.reason,
            },
        },
        "batching": { "joining": model.handle.joining().0.name(), "evidence": model.handle.joining().1 },
        "memory": model.memory.runs.as_ref().map(|runs| json!({
            "activation_bytes_per_row": runs.activation.bytes_per_row,
            "activation_fixed_bytes": runs.activation.fixed_bytes,
            "measured_by": runs.activation.measured_by.as_str(),
            "tokens_per_row": runs.row_tokens,
            "budget_bytes": runs.budget_bytes,
            "optimal_batch_size": runs.rows_max,
        })),
        "intra_threads": model.intra_threads,
        "optimization": {
            "state": model.optimization.state.as_str(),
            "reason": model.optimization.reason,
            "cold_load_ms": model.optimization.cold_load_ms,
            "warm_load_ms": model.optimization.warm_load_ms,
            "level": model.optimization.level,
            "graph_level": model.optimization.graph_level,
            "nodes": model.optimization.nodes.map(|(before, after)| json!({ "before": before, "after": after })),
            "saved_bytes": model.optimization.saved_bytes,
            "measurements_reused": model.optimization.measurements,
        },
        "tuned": model.optimization.tuned.as_ref().map(tuned_json),
        "load_time_ms": u64::try_from(model.load_time.as_millis()).unwrap_or(u64::MAX),
        "metadata": facts.custom,
        "missing": missing(model),
    })
}

fn spec_json(spec: &Spec) -> Value {
    json!({
        "name": spec.name,
        "dtype": spec.ty.dtype().map_or_else(|| spec.ty.to_string(), |dtype| dtype.name().to_owned()),
        "shape": spec.ty.shape().map(|shape| shape.iter().map(Dim::to_wire).collect::<Vec<_>>()),
        "optional": spec.optional,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::{BatchSettings, Handle, Inline, Plan, Start};
    use crate::cache::{CacheSettings, Caches};
    use crate::engine::{Item, ModelName, Parameters, Prediction};
    use crate::models::ModelSettings;
    use crate::pipelines::{Notes, Outputs, Pipeline, PipelineError, Prepared};
    use crate::runtime::{GraphFacts, GraphSource, RuntimeError};
    use crate::tasks::Tasks;
    use crate::tensor::{DType, ValueType};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    struct Classes(Vec<String>);

    impl Pipeline for Classes {
        fn task(&self) -> &'static str {
            "image-classification"
        }

        fn labels(&self) -> &[String] {
            &self.0
        }

        fn preprocess(&self, _: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
            Ok(Prepared::one(vec![]))
        }

        fn postprocess(&self, _: &[Outputs], _: &Notes, _: &Parameters) -> Result<Prediction, PipelineError> {
            Ok(Prediction::Classes(vec![]))
        }

        fn check_parameters(&self, _: &Parameters) -> Result<(), PipelineError> {
            Ok(())
        }
    }

    fn model(pipeline: Option<Arc<dyn Pipeline>>) -> LoadedModel {
        let tensor = |dtype, shape| ValueType::Tensor { dtype, shape };
        let shape = vec![Dim::Dynamic(Some("N\u{1b}[2J".to_owned())), Dim::Fixed(3)];
        let spec = |name: &str, ty, optional| Spec { name: name.to_owned(), ty, optional };
        let stats = crate::telemetry::Stats::default().model("m", 2);
        let start = Start {
            model: "m".to_owned(),
            sessions: vec![],
            settings: BatchSettings::default(),
            plan: Plan::alone("a test"),
            stats: stats.clone(),
            spare: Arc::new(|| Err(RuntimeError::Run(String::new()))),
            reserve: None,
            inline: Inline::default(),
        };
        LoadedModel {
            name: ModelName::parse("m").unwrap(),
            version: Version(2),
            inputs: vec![
                spec("x", tensor(DType::Fp32, Some(shape)), false),
                spec("s", tensor(DType::Int64, None), true),
            ],
            outputs: vec![spec("y\n", ValueType::Sequence(Box::new(tensor(DType::Fp32, None))), false)],
            facts: GraphFacts {
                format: "onnx",
                opset: Some(17),
                producer: Some("evil\u{1b}]0;title\u{7}".to_owned()),
                num_parameters: Some(1_235_496),
                size_bytes: 4_956_208,
                execution: crate::engine::Execution {
                    registered: vec!["CPUExecutionProvider".to_owned()],
                    nodes: BTreeMap::from([("CPUExecutionProvider".to_owned(), 49)]),
                    missing: vec![crate::engine::MissingProvider {
                        provider: "CUDAExecutionProvider".to_owned(),
                        reason: "no driver".to_owned(),
                    }],
                    ..Default::default()
                },
                device: "cpu".to_owned(),
                custom: BTreeMap::from([("author".to_owned(), "a\nq".to_owned())]),
                ..GraphFacts::default()
            },
            pipeline,
            task_evidence: "config.json".to_owned(),
            settings: ModelSettings::default(),
            device: Default::default(),
            gpu_bytes: None,
            engine: Default::default(),
            instances: 1,
            intra_threads: 2,
            tuned: None,
            optimization: Optimization::default(),
            untuned: None,
            output_labels: BTreeMap::new(),
            max_batch_size: 0,
            runtime: Arc::new(crate::runtime::fake::FakeRuntime::new(vec![], vec![], |_, _, _| Ok(vec![]))),
            config_json: Value::Null,
            caches: Caches::new(&CacheSettings::default()),
            stats,
            source: GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 },
            hints: Default::default(),
            handle: Handle::start(start, &Tasks::new()).unwrap(),
            memory: Default::default(),
            kept_profile: Default::default(),
            loaded_at: SystemTime::UNIX_EPOCH,
            load_time: Duration::from_millis(12),
        }
    }

    #[test]
    fn what_a_model_file_says_of_itself_cannot_touch_the_terminal() {
        let model = model(None);
        for text in [as_text(&model, &[Version(2)]), pretty(&as_json(&model, &[Version(2)]))] {
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
            assert!(text.contains("]0;title"), "{text}");
        }
        assert!(!as_text(&model, &[]).lines().any(|line| line.starts_with('q')));
    }

    #[test]
    fn text_and_json_say_what_the_model_takes_and_gives() {
        let model = model(None);
        let text = as_text(&model, &[Version(1), Version(2)]);
        for part in [
            "each request is a run (a test)",
            "2 (in the store: 1, 2)",
            "1 235 496",
            "4.7 MiB",
            "49 on CPUExecutionProvider",
            "CUDAExecutionProvider: no driver",
            "17",
            "12 ms",
            "(optional)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = as_json(&model, &[Version(1), Version(2)]);
        assert_eq!(json["inputs"][0], json!({ "name": "x", "dtype": "FP32", "shape": [-1, 3], "optional": false }));
        assert_eq!(json["inputs"][1]["shape"], Value::Null);
        assert_eq!(json["versions"], json!(["1", "2"]));
        assert_eq!(json["task"], Value::Null);
        assert_eq!(json["batching"], json!({ "joining": "alone", "evidence": "a test" }));
    }

    #[test]
    fn what_is_missing_to_serve_the_task_is_said() {
        let check = |pipeline: Option<Arc<dyn Pipeline>>, expected: Option<&str>| {
            let missing = missing(&model(pipeline));
            assert_eq!(missing.len(), usize::from(expected.is_some()));
            assert!(missing.iter().zip(expected).all(|(text, start)| text.starts_with(start)), "{missing:?}");
        };
        check(None, Some("a task"));
        check(Some(Arc::new(Classes(vec![]))), Some("labels"));
        check(Some(Arc::new(Classes(vec!["cat".to_owned()]))), None);
    }
}
