//! The OpenAPI 3.1 document: a static part, the repository's `openapi.yaml`, and one typed operation for each loaded model.
//!
//! `v2` describes the Open Inference Protocol, `typed` the loaded models, `keys` who may call. Tests hold the document to the file, and it
//! and the route table to each other.

mod dialect_errors;
mod keys;
mod typed;
#[expect(dead_code, reason = "described for the document, never called or built")]
mod v2;

use self::keys::Keys;
use super::HttpState;
use super::dialects;
use super::dialects::torchserve::TorchserveError;
use super::error::{ApiError, FieldProblem, ProblemBody};
use super::health;
use super::metrics;
use super::v1;
use axum::extract::State;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use std::sync::OnceLock;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{self, ContentBuilder, PathItem, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ortus",
        description = "Serves ONNX models: typed predictions, raw tensors, and the Open Inference Protocol.\n\n\
            Errors of `/v1` are `application/problem+json` (RFC 9457), those of `/v2` are `{\"error\": …}`. Every answer \
            carries `X-Request-Id`. Where the server has keys, each operation needs one of its role (`x-role`).",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "predict", description = "Predictions."),
        (name = "jobs", description = "What is answered later."),
        (name = "models", description = "Models and their states."),
        (name = "health", description = "For balancers."),
        (name = "system", description = "The server itself."),
        (name = "torchserve", description = "What TorchServe's clients, and those of KServe's V1 protocol, call."),
        (name = "v2", description = "The Open Inference Protocol (KServe, Triton)."),
    ),
    paths(
        v1::predict::predict,
        dialects::openai::embeddings,
        dialects::tei::embed,
        dialects::tei::embed_all,
        dialects::tei::rerank,
        dialects::kserve::predict,
        dialects::torchserve::ping,
        dialects::torchserve::predict::predictions,
        dialects::torchserve::predict::explanations,
        dialects::torchserve::manage::list,
        dialects::torchserve::manage::describe,
        dialects::torchserve::manage::register,
        dialects::torchserve::manage::scale,
        dialects::torchserve::manage::unregister,
        dialects::torchserve::manage::set_default,
        v1::jobs::create,
        v1::jobs::list,
        v1::jobs::show,
        v1::jobs::delete,
        v1::jobs::result,
        v1::jobs::events,
        v1::models::list,
        v1::downloads::create,
        v1::models::show,
        v1::models::load,
        v1::models::unload,
        v1::models::delete,
        v1::downloads::create_version,
        v1::models::delete_version,
        v1::models::roll_back,
        v1::downloads::list,
        v1::downloads::show,
        v1::downloads::delete,
        v1::downloads::events,
        v1::models::files,
        v1::models::memory,
        v1::warmup::warm_up,
        v1::profile::profile,
        v1::profile::show,
        v1::optimize::optimize,
        v1::models::cleanup,
        v1::models::cleanup_all,
        v1::system::system,
        v1::stats::show,
        v1::stats::reset,
        v1::stats::list,
        metrics::serve,
        health::livez,
        health::readyz,
        health::healthz,
        json,
        yaml,
        v2::server_live,
        v2::server_ready,
        v2::server_metadata,
        v2::model_metadata,
        v2::model_ready,
        v2::model_infer,
        v2::model_config,
        v2::model_stats,
        v2::all_stats,
        v2::repository_index,
        v2::repository_load,
        v2::repository_unload,
    ),
    components(schemas(
        ProblemBody<'static>,
        FieldProblem,
        v2::V2Error,
        TorchserveError<'static>,
        dialect_errors::OpenAiError,
        dialect_errors::TeiError
    )),
    modifiers(&AlsoByPut, &Versioned, &ErrorAnswers, &Keys),
)]
struct ApiDoc;

/// The static document as JSON, pretty.
pub fn document_json() -> String {
    document().to_pretty_json().unwrap_or_default()
}

/// The static document as YAML: the repository's `openapi.yaml`.
pub fn document_yaml() -> String {
    document().to_yaml().unwrap_or_default()
}

fn document() -> &'static openapi::OpenApi {
    static DOCUMENT: OnceLock<openapi::OpenApi> = OnceLock::new();
    DOCUMENT.get_or_init(ApiDoc::openapi)
}

/// The static part and one operation for each loaded model.
fn served(state: &HttpState) -> openapi::OpenApi {
    let mut document = document().clone();
    for status in state.engine.models() {
        if let Some(model) = v1::models::default_of(&status) {
            let (path, item) = typed::operation(model);
            document.paths.paths.insert(path, item);
        }
    }
    document
}

/// Gives this document as JSON.
#[utoipa::path(get, path = "/openapi.json", tag = "system", operation_id = "getOpenApiJson",
    responses((status = 200, description = "This document, with one typed operation for each loaded model.", body = Object)))]
pub(super) async fn json(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let text = served(&state).to_json().map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Gives this document as YAML.
#[utoipa::path(get, path = "/openapi.yaml", tag = "system", operation_id = "getOpenApiYaml",
    responses((status = 200, description = "This document, with one typed operation for each loaded model.", body = Object, content_type = "application/yaml")))]
pub(super) async fn yaml(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let text = served(&state).to_yaml().map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

/// The browsable page `/docs/`: its files are in the program, and it asks no other server.
pub(super) fn docs() -> axum::Router<HttpState> {
    SwaggerUi::new("/docs").config(Config::new(["/openapi.json"]).validator_url("none")).into()
}

/// TorchServe's clients predict by PUT as by POST.
struct AlsoByPut;

impl Modify for AlsoByPut {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let Some(item) = document.paths.paths.get_mut("/predictions/{name}") else { return };
        let mut operation = item.post.clone();
        if let Some(id) = operation.as_mut().and_then(|operation| operation.operation_id.as_mut()) {
            id.push_str("ByPut");
        }
        item.put = operation;
    }
}

/// Routes that also exist for one version of the model.
struct Versioned;

impl Modify for Versioned {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let mut added = Vec::new();
        for (path, item) in &document.paths.paths {
            let (base, between) = match path.as_str() {
                "/v1/models/{name}/predict" => ("/v1/models/{name}", "/versions"),
                "/predictions/{name}" | "/models/{name}" => (path.as_str(), ""),
                _ if path.starts_with("/v2/models/{name}") => ("/v2/models/{name}", "/versions"),
                _ => continue,
            };
            let rest = path.strip_prefix(base).unwrap_or_default();
            let mut item = item.clone();
            for operation in operations(&mut item) {
                operation.operation_id = operation.operation_id.as_ref().map(|id| format!("{id}OfVersion"));
                let parameters = operation.parameters.get_or_insert_default();
                parameters.retain(|known| !is_named(known, "version"));
                let at = parameters.iter().position(|known| is_named(known, "name")).map_or(0, |index| index + 1);
                parameters.insert(at, RefOr::T(version_parameter()));
            }
            added.push((format!("{base}{between}/{{version}}{rest}"), item));
        }
        document.paths.paths.extend(added);
    }
}

fn is_named(parameter: &RefOr<openapi::path::Parameter>, name: &str) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.name == name)
}

fn version_parameter() -> openapi::path::Parameter {
    openapi::path::ParameterBuilder::new()
        .name("version")
        .parameter_in(openapi::path::ParameterIn::Path)
        .required(openapi::Required::True)
        .description(Some("The model's version."))
        .schema(Some(openapi::ObjectBuilder::new().schema_type(openapi::schema::Type::String)))
        .example(Some(serde_json::json!("1")))
        .build()
}

/// The error answers, which are the same for all operations of a kind.
struct ErrorAnswers;

impl Modify for ErrorAnswers {
    fn modify(&self, document: &mut openapi::OpenApi) {
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in with_methods(item) {
                for (status, description) in errors_of(path, &method) {
                    let (media_type, schema) = error_form(path);
                    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
                    let response =
                        ResponseBuilder::new().description(*description).content(media_type, content).build();
                    operation.responses.responses.entry((*status).to_owned()).or_insert_with(|| response.into());
                }
            }
        }
    }
}

/// The media type and schema of the errors of a path.
fn error_form(path: &str) -> (&'static str, &'static str) {
    match path {
        // KServe's V1 protocol has the same form.
        _ if path.starts_with("/v2") || dialects::is_kserve(path) => ("application/json", "V2Error"),
        _ if dialects::is_torchserve(path) => ("application/json", "TorchserveError"),
        _ if dialects::is_openai(path) => ("application/json", "OpenAiError"),
        _ if dialects::is_tei(path) => ("application/json", "TeiError"),
        _ => ("application/problem+json", "Problem"),
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    with_methods(item).map(|(_, operation)| operation)
}

fn with_methods(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let all = [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::DELETE, &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

type Errors = &'static [(&'static str, &'static str)];

fn errors_of(path: &str, method: &Method) -> Errors {
    const NOT_FOUND: (&str, &str) = ("404", "No such model or version.");
    const INTERNAL: (&str, &str) = ("500", "A fault of the server; its log has the reason under the request id.");
    const BUSY: (&str, &str) = (
        "503",
        "The queue is full, the model is not ready, or the server drains; `Retry-After` says when to come back.",
    );
    const MEMORY: (&str, &str) = ("507", "There is no memory for the model; others cannot make enough room.");
    const PREDICT: Errors = &[
        ("400", "Malformed."),
        NOT_FOUND,
        ("406", "No format of the answer suits `Accept`."),
        ("408", "The body did not arrive in time."),
        ("413", "The body or something in it is larger than a limit."),
        ("415", "The media type or content encoding is not served."),
        ("422", "Well-formed, but not what the model takes: `errors` names the fields."),
        INTERNAL,
        BUSY,
        ("504", "The deadline passed."),
        MEMORY,
    ];
    const CREATE_JOB: Errors = &[
        ("400", "Malformed."),
        NOT_FOUND,
        ("406", "No format of the answer suits `Accept`."),
        ("408", "The body did not arrive in time."),
        ("413", "The body or something in it is larger than a limit."),
        ("415", "The media type or content encoding is not served."),
        ("422", "Well-formed, but not what the model takes: `errors` names the fields."),
        INTERNAL,
        (
            "503",
            "There are too many jobs, the model is not ready, or the server drains; `Retry-After` says when to come back.",
        ),
        ("507", "The jobs' bound on bytes or the disk is full, or the store cannot be written."),
    ];
    const WARMUP: Errors = &[
        ("400", "Malformed."),
        NOT_FOUND,
        ("408", "The body did not arrive in time."),
        ("413", "The body is larger than a limit."),
        ("415", "The media type or content encoding is not served."),
        ("422", "The model cannot be run so: `errors` names the field."),
        INTERNAL,
        BUSY,
        ("504", "The runs did not end in time."),
        MEMORY,
    ];
    const NO_JOB: (&str, &str) = ("404", "No such job.");
    const JOB: Errors = &[NO_JOB, INTERNAL];
    const JOB_RESULT: Errors = &[
        ("400", "The job failed: its request was malformed."),
        NO_JOB,
        ("406", "The job failed: no format of the answer suits its `Accept`."),
        (
            "409",
            "There is no result: the job is not finished, or was cancelled. Or the job failed: the model's state did not allow it.",
        ),
        ("413", "The job failed: something in its request is larger than a limit."),
        ("415", "The job failed: the media type of its request is not served."),
        ("422", "The job failed: its request is not what the model takes, or the model cannot be optimised so."),
        INTERNAL,
        ("503", "The job failed: its model was not there to run it."),
        ("504", "The job failed: it took too long."),
        ("507", "The job failed: there was no memory for it, or no room for its result."),
    ];
    const NO_DOWNLOAD: (&str, &str) = ("404", "No such download.");
    const DOWNLOAD: Errors = &[NO_DOWNLOAD, INTERNAL];
    const ORDER: Errors = &[
        ("400", "Malformed."),
        ("404", "There is no such model, of which it would be a further version."),
        ("408", "The body did not arrive in time."),
        ("409", "The model is there already, or something of its name is on its way."),
        ("413", "The body or the model is larger than a limit."),
        ("415", "The media type or content encoding is not served."),
        (
            "422",
            "There is no such model at the source, the settings do not allow it, or it is none: `detail` says which, `errors` names the field.",
        ),
        INTERNAL,
        (
            "503",
            "The source cannot be reached, there are too many downloads, or the server drains; `Retry-After` says when to come back.",
        ),
        ("504", "The files did not arrive in time."),
        ("507", "The disk or the memory has no room for it."),
    ];
    const LIFECYCLE: Errors = &[
        ("400", "Malformed."),
        NOT_FOUND,
        ("408", "The body did not arrive in time."),
        ("409", "The model's state does not allow it."),
        ("413", "The body is larger than a limit."),
        ("415", "The media type or content encoding is not served."),
        ("422", "It cannot be done with this model; `detail` says why."),
        INTERNAL,
        BUSY,
        MEMORY,
    ];
    const V2_INFER: Errors = &[
        ("400", "Malformed, or not what the model takes."),
        NOT_FOUND,
        ("408", "The body did not arrive in time."),
        ("413", "The body or something in it is larger than a limit."),
        ("415", "The content encoding is not served."),
        INTERNAL,
        BUSY,
        ("504", "The deadline passed."),
        MEMORY,
    ];
    const BARE: Errors = &[("400", "Malformed."), INTERNAL];
    const INDEX: Errors = &[
        ("400", "Malformed."),
        ("408", "The body did not arrive in time."),
        ("413", "The body is larger than a limit."),
        ("415", "The content encoding is not served."),
        INTERNAL,
        BUSY,
    ];
    const MODEL: Errors = &[("400", "Malformed."), NOT_FOUND, INTERNAL, BUSY];
    /// What TorchServe's clients change.
    const CHANGE: Errors = &[
        ("400", "Malformed, or the address is not allowed: `message` says why."),
        NOT_FOUND,
        ("408", "The body did not arrive in time."),
        ("409", "The name is taken, or the model's state does not allow it."),
        ("413", "The body or the model is larger than a limit."),
        ("415", "The content encoding is not served."),
        ("422", "It cannot be done with this model, or there is none at the source: `message` says why."),
        INTERNAL,
        BUSY,
        ("504", "The files did not arrive in time."),
        ("507", "The disk or the memory has no room for it."),
    ];
    let is_predict = path.ends_with("/predict") || path.starts_with("/predictions/") || dialects::is_kserve(path);
    if is_predict || dialects::is_openai(path) || dialects::is_tei(path) {
        return PREDICT;
    }
    match path {
        "/v1/models/{name}/jobs" => return CREATE_JOB,
        "/v1/models/{name}/warmup" => return WARMUP,
        "/v1/models/{name}/profile" if *method == Method::POST => return WARMUP,
        "/models" if *method == Method::GET => return BARE,
        _ if path.starts_with("/models") && *method != Method::GET => return CHANGE,
        "/v1/jobs" | "/v1/cleanup" => return BARE,
        "/v2/repository/index" => return INDEX,
        "/v1/models" if *method == Method::POST => return ORDER,
        "/v1/models/{name}/versions" => return ORDER,
        _ if path.starts_with("/v1/downloads/") => return DOWNLOAD,
        "/v1/jobs/{id}/result" => return JOB_RESULT,
        _ if path.starts_with("/v1/jobs/") => return JOB,
        _ => {}
    }
    if path.ends_with("/infer") {
        return V2_INFER;
    }
    if path.starts_with("/v1") && ["/load", "/unload", "/rollback", "/optimize"].iter().any(|end| path.ends_with(end)) {
        return LIFECYCLE;
    }
    if path.contains("{name}") { MODEL } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_openapi_yaml_is_this_document() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
        let document = document_yaml();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &document).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file == document, "openapi.yaml is not the document of this code: run `ortus openapi > openapi.yaml`");
    }

    #[tokio::test]
    async fn a_loaded_model_has_its_own_types() {
        use crate::tensor::{DType, Dim, Spec, ValueType};
        let tasks = crate::tasks::Tasks::new();
        let spec = |name: &str, dtype, shape| Spec {
            name: name.to_owned(),
            ty: ValueType::Tensor { dtype, shape },
            optional: false,
        };
        let inputs =
            vec![spec("x", DType::Fp32, Some(vec![Dim::Dynamic(None), Dim::Fixed(3)])), spec("s", DType::String, None)];
        let model = crate::engine::testing::model(&tasks, inputs, vec![], |_, _, _| Ok(vec![]));
        let (path, item) = typed::operation(&model);
        let item = serde_json::to_value(item).unwrap();
        let schema = &item["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]["inputs"];
        assert_eq!(path, "/v1/models/fake/predict");
        assert_eq!(schema["required"], serde_json::json!(["x", "s"]));
        let rows = &schema["properties"]["x"];
        assert_eq!(
            (&rows["type"], &rows["items"]["minItems"], &rows["items"]["maxItems"]),
            (&"array".into(), &3.into(), &3.into())
        );
        assert_eq!(rows["items"]["items"]["type"], serde_json::json!(["number", "string"]));
        assert_eq!(schema["properties"]["s"]["description"], "BYTES[...]");
    }

    #[test]
    fn every_operation_has_its_own_id_and_every_reference_a_target() {
        let document: serde_json::Value = serde_json::from_str(&document_json()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let mut ids = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for operation in item.as_object().unwrap().values() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{path}: {id} is there twice");
            }
        }
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "there is no schema {name}");
        }
    }
}
