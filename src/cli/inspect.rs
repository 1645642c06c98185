//! `ortus inspect`: loads one model and prints what it is.

use super::args::InspectArgs;
use super::configuration::pretty;
use super::error::CliError;
use super::lone_model;
use super::store::{offline_config, with_engine};
use super::table::{Table, count, size};
use crate::engine::{LoadedModel, Version};
use crate::tensor::{Dim, Spec};
use serde_json::{Value, json};

pub(super) fn inspect(args: InspectArgs) -> Result<String, CliError> {
    let mut config = offline_config(args.store)?;
    // Nothing is to be waited for, and one copy tells all.
    config.models.instances = Some(1);
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
    if pipeline.task().ends_with("-classification") && pipeline.labels().is_empty() {
        missing.push("labels: classes are answered by number; add labels.txt, or id2label to config.json".to_owned());
    }
    missing
}

fn labels(model: &LoadedModel) -> usize {
    model.pipeline.as_ref().map_or(0, |pipeline| pipeline.labels().len())
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
    line("providers", facts.providers.join(", "));
    line("threads of a run", model.intra_threads.to_string());
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
    let facts = &model.facts;
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
        "providers": facts.providers,
        "intra_threads": model.intra_threads,
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
