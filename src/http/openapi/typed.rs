//! One operation for a loaded model, with its own inputs and outputs as types.

use crate::engine::LoadedModel;
use crate::http::v1::models::task_of;
use crate::tensor::{DType, Dim, Spec, ValueType};
use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, ResponseBuilder};

/// The path of `model`'s predictions and what may be sent to it.
pub(super) fn operation(model: &LoadedModel) -> (String, PathItem) {
    let name = model.name.as_str();
    let (inputs, answer) = match &model.pipeline {
        Some(pipeline) => {
            let answers = ArrayBuilder::new().items(prediction(pipeline.task()));
            let answers = answers.description(Some("One for each item."));
            (items(pipeline.task()), ("predictions", Schema::from(answers).into()))
        }
        None => (tensors(&model.inputs), ("outputs", tensors(&model.outputs))),
    };
    let body = ObjectBuilder::new()
        .property("inputs", inputs)
        .required("inputs")
        .property("parameters", ObjectBuilder::new().description(Some("What the task may be told.")))
        .property("id", text(""))
        .property("timeout_ms", ObjectBuilder::new().schema_type(Type::Integer));
    let (key, schema) = answer;
    let response = ObjectBuilder::new()
        .property("model", text(name))
        .property("version", text(&model.version.to_string()))
        .property(key, schema)
        .required("model")
        .required("version")
        .required(key);
    let content = |schema: ObjectBuilder| ContentBuilder::new().schema(Some(Schema::from(schema))).build();
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let operation = OperationBuilder::new()
        .tag("predict")
        .operation_id(Some(format!("predict_{}", name.replace(['-', '.'], "_"))))
        .summary(Some(format!("Predict with {name}")))
        .description(Some(format!("Task: {}. Version {} is the default.", task_of(model), model.version)))
        .request_body(Some(
            RequestBodyBuilder::new().required(Some(Required::True)).content("application/json", content(body)).build(),
        ))
        .response(
            "200",
            ResponseBuilder::new().description("The predictions.").content("application/json", content(response)),
        )
        .response(
            "default",
            ResponseBuilder::new().description("See `Problem`.").content("application/problem+json", problem),
        )
        .build();
    (format!("/v1/models/{name}/predict"), PathItem::new(HttpMethod::Post, operation))
}

/// One property for each tensor.
fn tensors(specs: &[Spec]) -> RefOr<Schema> {
    let mut object = ObjectBuilder::new();
    for spec in specs {
        object = object.property(&spec.name, value(spec));
        if !spec.optional {
            object = object.required(&spec.name);
        }
    }
    Schema::from(object).into()
}

/// A nested array with the declared sizes.
fn value(spec: &Spec) -> RefOr<Schema> {
    let ValueType::Tensor { dtype, shape: Some(dims) } = &spec.ty else { return any(&spec.ty.to_string()) };
    let element = ObjectBuilder::new().schema_type(element_type(*dtype)).description(Some(spec.ty.to_string()));
    dims.iter().rev().fold(Schema::from(element).into(), |inner: RefOr<Schema>, dim| {
        let array = ArrayBuilder::new().items(inner);
        let array = match dim {
            Dim::Fixed(size) => array.min_items(Some(*size)).max_items(Some(*size)),
            Dim::Dynamic(_) => array,
        };
        Schema::from(array).into()
    })
}

fn element_type(dtype: DType) -> SchemaType {
    if dtype == DType::Bool {
        return Type::Boolean.into();
    }
    if dtype == DType::String {
        return Type::String.into();
    }
    // Non-finite numbers are text.
    if dtype.is_float() { SchemaType::from_iter([Type::Number, Type::String]) } else { Type::Integer.into() }
}

/// One item of a task or a list of them.
fn items(task: &str) -> RefOr<Schema> {
    let item = || -> RefOr<Schema> {
        let both = |first: &str, second: &str| {
            let object = ObjectBuilder::new().property(first, text("")).property(second, text(""));
            object.required(first).required(second)
        };
        match task {
            "text-classification" => {
                Schema::from(OneOfBuilder::new().item(text("A text.")).item(both("text", "text_pair"))).into()
            }
            "question-answering" => Schema::from(both("question", "context")).into(),
            "feature-extraction" | "token-classification" | "fill-mask" | "zero-shot-classification" => text("A text."),
            "tabular-classification" | "tabular-regression" => {
                Schema::from(ObjectBuilder::new().description(Some("A value for each column."))).into()
            }
            _ => {
                let b64 = ObjectBuilder::new().property("b64", text("The file in base64.")).required("b64");
                Schema::from(OneOfBuilder::new().item(text("The file as a `data:` URL.")).item(b64)).into()
            }
        }
    };
    Schema::from(OneOfBuilder::new().item(item()).item(ArrayBuilder::new().items(item()))).into()
}

/// The answer for one item; the names are those of the schemas that stand in the document for all models.
fn prediction(task: &str) -> RefOr<Schema> {
    let one = |name: &str| -> RefOr<Schema> { Ref::from_schema_name(name).into() };
    let several = |name: &str| -> RefOr<Schema> { Schema::from(ArrayBuilder::new().items(one(name))).into() };
    let either = |first, second| -> RefOr<Schema> { Schema::from(OneOfBuilder::new().item(first).item(second)).into() };
    let number = || -> RefOr<Schema> { Schema::from(ObjectBuilder::new().schema_type(Type::Number)).into() };
    match task {
        "image-classification"
        | "zero-shot-image-classification"
        | "audio-classification"
        | "text-classification"
        | "tabular-classification" => several("ScoredLabel"),
        "tabular-regression" => number(),
        "feature-extraction" | "image-feature-extraction" => {
            let vector = || -> RefOr<Schema> { Schema::from(ArrayBuilder::new().items(number())).into() };
            let vectors: RefOr<Schema> = Schema::from(ArrayBuilder::new().items(vector())).into();
            either(vector(), Schema::from(ArrayBuilder::new().items(vectors)).into())
        }
        "token-classification" => either(several("LabelledToken"), several("Entity")),
        "fill-mask" => {
            let masks = ArrayBuilder::new().items(several("FilledMask"));
            either(several("FilledMask"), Schema::from(masks).into())
        }
        "question-answering" => either(one("FoundAnswer"), several("FoundAnswer")),
        "zero-shot-classification" => one("RankedLabels"),
        "object-detection" => several("DetectedObject"),
        "image-segmentation" => several("Segment"),
        "depth-estimation" => one("Depth"),
        "automatic-speech-recognition" => one("SpokenText"),
        "voice-activity-detection" => one("VoiceActivity"),
        _ => one("Prediction"),
    }
}

fn text(description: &str) -> RefOr<Schema> {
    let description = (!description.is_empty()).then(|| description.to_owned());
    Schema::from(ObjectBuilder::new().schema_type(Type::String).description(description)).into()
}

fn any(description: &str) -> RefOr<Schema> {
    Schema::from(ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(description.to_owned())))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                let name = object.get("$ref").and_then(|name| name.as_str()?.strip_prefix("#/components/schemas/"));
                found.extend(name.map(str::to_owned));
                object.values().for_each(|value| names(value, found));
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_task_has_an_answer_that_the_document_describes() {
        let document = serde_json::to_value(super::super::document()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for task in crate::pipelines::detect::tasks() {
            let mut found = Vec::new();
            names(&serde_json::to_value(prediction(task)).unwrap(), &mut found);
            assert!(found.iter().all(|name| schemas.contains_key(name)), "{task}: {found:?}");
            assert_ne!(found, ["Prediction"], "{task} has an answer of its own");
        }
    }
}
