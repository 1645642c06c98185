//! TorchServe's management: `/models` on the store. Workers are instances: none means unloaded, any means loaded with as many as
//! the model's settings say. Registering is getting a model from elsewhere, unregistering deletes it from the store.

use super::{StatusBody, TorchservePath};
use crate::downloads::{Download, DownloadError, Order, Place, State as DownloadState};
use crate::engine::{LoadOverrides, LoadedModel, ModelName, ModelState, ModelStatus, Version, VersionStatus};
use crate::http::HttpState;
use crate::http::audited::About;
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, invalid_query, no_such_version, query_bool};
use crate::http::v1::downloads::check_local;
use crate::hub::{FetchRequest, Source};
use crate::telemetry::rfc3339_of;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Models of one page.
const PAGE: usize = 100;
/// The handlers whose work a model's task does here.
const HANDLERS: [&str; 5] =
    ["image_classifier", "object_detector", "image_segmenter", "text_classifier", "base_handler"];
const PROCESSING: &str = "Processing worker updates...";

/// A page of the models, by name.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TorchserveModels)]
pub(in crate::http) struct ModelPage {
    /// For the next page; left out on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "100")]
    next_page_token: Option<String>,
    models: Vec<ListedModel>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TorchserveListedModel)]
pub(in crate::http) struct ListedModel {
    #[schema(example = "resnet50")]
    model_name: String,
    /// What it is called where it came from.
    #[schema(example = "microsoft/resnet-50")]
    model_url: String,
}

/// One version of a model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TorchserveModel)]
pub(in crate::http) struct DescribedVersion {
    #[schema(example = "resnet50")]
    model_name: String,
    #[schema(example = "1")]
    model_version: String,
    #[schema(example = "microsoft/resnet-50")]
    model_url: String,
    #[schema(example = "onnxruntime")]
    runtime: &'static str,
    /// Instances, as `maxWorkers`; 0 where it is not loaded.
    min_workers: usize,
    max_workers: usize,
    /// Most rows of a run.
    batch_size: usize,
    /// Milliseconds that a batch waits for more.
    max_batch_delay: u64,
    workers: Vec<Worker>,
    job_queue_status: Queue,
}

/// An instance.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TorchserveWorker)]
pub(in crate::http) struct Worker {
    #[schema(example = "0")]
    id: String,
    /// When the version was loaded.
    #[schema(example = "2026-03-01T12:30:05.250Z")]
    start_time: String,
    #[schema(example = "READY")]
    status: &'static str,
    /// Of all instances together, bytes.
    memory_usage: u64,
    gpu: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TorchserveQueue)]
pub(in crate::http) struct Queue {
    remaining_capacity: usize,
    pending_requests: usize,
}

#[derive(Debug, Deserialize)]
pub(in crate::http) struct PageQuery {
    limit: Option<usize>,
    next_page_token: Option<usize>,
}

/// What is to be registered.
#[derive(Debug, Default)]
struct Registration {
    url: Option<String>,
    model_name: Option<String>,
    initial_workers: u32,
    synchronous: bool,
    batch_size: Option<u32>,
    max_batch_delay: Option<u32>,
}

/// How many workers there are to be.
#[derive(Debug, PartialEq)]
struct Scale {
    workers: u32,
    synchronous: bool,
}

/// Lists the models.
#[utoipa::path(get, path = "/models", tag = "torchserve", operation_id = "torchserveListModels",
    params(
        ("limit" = Option<usize>, Query, description = "Models of a page, 100 at most."),
        ("next_page_token" = Option<usize>, Query, description = "As the page before gave it."),
    ),
    responses((status = 200, description = "A page of the models, by name.", body = ModelPage)))]
pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Json<ModelPage> {
    let all = state.engine.models();
    let limit = query.limit.filter(|limit| *limit > 0).unwrap_or(PAGE).min(PAGE);
    let first = query.next_page_token.unwrap_or(0).min(all.len());
    let next = first.saturating_add(limit);
    let page = all.iter().skip(first).take(limit);
    let models = page.map(|status| {
        let known = status.versions.iter().find(|known| Some(known.version) == status.default_version);
        ListedModel { model_name: status.name.to_string(), model_url: url_of(&status.name, known) }
    });
    Json(ModelPage { models: models.collect(), next_page_token: (next < all.len()).then(|| next.to_string()) })
}

/// Describes a model.
///
/// Its default version; one with its number behind the name, all with `all` there.
#[utoipa::path(get, path = "/models/{name}", tag = "torchserve", operation_id = "torchserveDescribeModel",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "One entry for each version.", body = Vec<DescribedVersion>)))]
pub(in crate::http) async fn describe(
    State(state): State<HttpState>,
    path: TorchservePath,
) -> Result<Json<Vec<DescribedVersion>>, ApiError> {
    let status = state.engine.status(&path.name)?;
    let wanted = path.version.or(status.default_version);
    let versions = status.versions.iter().filter(|known| path.all || Some(known.version) == wanted);
    let described: Vec<_> = versions.map(|known| DescribedVersion::of(&status.name, known)).collect();
    if described.is_empty() && path.version.is_some() {
        return Err(no_such_version());
    }
    Ok(Json(described))
}

/// Registers a model: gets it into the store.
#[utoipa::path(post, path = "/models", tag = "torchserve", operation_id = "torchserveRegisterModel",
    description = "Gets a model from an address, as `POST /v1/models` does: a graph (.onnx, .ort) or an archive of a model's \
        folder (.zip, .tar.gz). Archives of TorchServe (.mar) are refused. `handler` may name a default handler, whose work the \
        model's task does; `runtime`, `response_timeout`, `startup_timeout` and `s3_sse_kms` change nothing.",
    params(
        ("url" = String, Query, description = "`https://…`, `hf://org/name@revision`, or `file:///path` inside `[hub] allowed_paths`."),
        ("model_name" = Option<String>, Query, description = "From the address where absent."),
        ("initial_workers" = Option<u32>, Query, description = "Above 0: loaded when it is there; the settings say with how many instances."),
        ("synchronous" = Option<bool>, Query, description = "`true` answers when it is so."),
        ("batch_size" = Option<u32>, Query, description = "Most rows of a run."),
        ("max_batch_delay" = Option<u32>, Query, description = "Milliseconds that a batch waits for more."),
    ),
    responses(
        (status = 200, description = "The model is there.", body = StatusBody),
        (status = 202, description = "On its way; `GET /v1/downloads/{id}` says how far.", body = StatusBody,
            headers(("Location" = String, description = "The download: `/v1/downloads/{id}`."))),
        (status = 409, description = "There is a model of this name.", body = super::TorchserveError),
    ))]
pub(in crate::http) async fn register(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let registration = Registration::parse(query)?;
    let request = registration.request(&state)?;
    let name = registration.model_name.clone().or_else(|| request.source.default_name()).unwrap_or_default();
    let name = ModelName::parse(&name).map_err(|rule| ApiError::field("model_name", rule.to_string()))?;
    let (load, model_toml) = (registration.initial_workers > 0, registration.model_toml());
    let order = Order { name: name.clone(), place: Place::NewModel, request, load, model_toml };
    let id = state.downloads.order(order).await?.id;
    // Whoever asks for no workers has no other call to wait for.
    let waits = registration.synchronous || !load;
    let ended = state.downloads.ended(id);
    let ended = match waits {
        true => tokio::time::timeout(state.settings.request_timeout, ended).await.ok().transpose()?,
        false => None,
    };
    let mut response = match ended {
        Some(download) => StatusBody::new(registered(&state, &download)?).into_response(),
        None => {
            let location = [(header::LOCATION, format!("/v1/downloads/{id}"))];
            (StatusCode::ACCEPTED, location, StatusBody::new(PROCESSING)).into_response()
        }
    };
    response.extensions_mut().insert(About(name));
    Ok(response)
}

/// Loads or unloads a model.
#[utoipa::path(put, path = "/models/{name}", tag = "torchserve", operation_id = "torchserveScaleModel",
    description = "Loads the model where workers are asked for, unloads it where none are. How many instances it has is said by its \
        settings (`[batch] instances`, or what the machine has), and by the answer. A version by itself is not unloaded.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("min_worker" = Option<u32>, Query, description = "1 where absent; 0 unloads."),
        ("max_worker" = Option<u32>, Query, description = "0 unloads."),
        ("synchronous" = Option<bool>, Query, description = "`true` answers when it is so."),
    ),
    responses(
        (status = 200, description = "It is so.", body = StatusBody),
        (status = 202, description = "On its way.", body = StatusBody),
    ))]
pub(in crate::http) async fn scale(
    State(state): State<HttpState>,
    path: TorchservePath,
    ApiQuery(query): ApiQuery<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let (name, version) = path.one()?;
    let Scale { workers, synchronous } = Scale::parse(query)?;
    check_versions(&state.engine.status(&name)?, version, workers)?;
    let (engine, model) = (state.engine.clone(), name.clone());
    let work = async move {
        match workers {
            0 => engine.unload(&model).await,
            _ => engine.load(&model, LoadOverrides::default()).await,
        }
    };
    if !synchronous {
        // What is wrong with the model shows where it is described, as TorchServe has it.
        drop(state.tasks.spawn("scale a model", async move { drop(work.await) }));
        return Ok((StatusCode::ACCEPTED, StatusBody::new(PROCESSING)).into_response());
    }
    let status = work.await?;
    let serving = version.or(status.default_version);
    let loaded = status.versions.iter().find(|known| Some(known.version) == serving);
    let instances = loaded.and_then(|known| known.loaded.as_ref()).map_or(0, |model| model.instances);
    if workers > 0 && instances == 0 {
        let detail =
            "the model's version policy does not serve this version; PUT /models/NAME/VERSION/set-default chooses it";
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", detail));
    }
    let more = if workers as usize == instances { "" } else { "; how many is said by the model's settings" };
    Ok(StatusBody::new(format!("Workers scaled to {instances} for model: {name}{more}")).into_response())
}

/// Unregisters a model: deletes it from the store.
#[utoipa::path(delete, path = "/models/{name}", tag = "torchserve", operation_id = "torchserveUnregisterModel",
    description = "Deletes the model's files, or one version's, as `DELETE /v1/models/{name}` does.",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "Its files are gone; requests that it had taken were answered.", body = StatusBody)))]
pub(in crate::http) async fn unregister(
    State(state): State<HttpState>,
    path: TorchservePath,
) -> Result<Json<StatusBody>, ApiError> {
    let (name, version) = path.one()?;
    state.engine.delete(&name, version).await?;
    Ok(StatusBody::new(format!("Model \"{name}\" unregistered")))
}

/// Chooses the version that answers.
#[utoipa::path(put, path = "/models/{name}/{version}/set-default", tag = "torchserve", operation_id = "torchserveSetDefault",
    description = "As `POST /v1/models/{name}/rollback` with a version: it serves alone until another is chosen or a new one comes.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = String, Path, description = "The version's number.", example = "1"),
    ),
    responses((status = 200, description = "The version serves.", body = StatusBody)))]
pub(in crate::http) async fn set_default(
    State(state): State<HttpState>,
    path: TorchservePath,
) -> Result<Json<StatusBody>, ApiError> {
    let (name, version) = path.one()?;
    let version = version.ok_or_else(no_such_version)?;
    state.engine.choose(&name, Some(version)).await?;
    Ok(StatusBody::new(format!("Default version successfully updated for model \"{name}\" to \"{version}\"")))
}

/// Keeps nothing of the status: whoever holds what is loaded holds up its unload.
///
/// # Errors
/// Where there is no such version, or one of several is to be unloaded by itself.
fn check_versions(status: &ModelStatus, version: Option<Version>, workers: u32) -> Result<(), ApiError> {
    let Some(version) = version else { return Ok(()) };
    if status.versions.iter().all(|known| known.version != version) {
        return Err(no_such_version());
    }
    if workers == 0 && status.versions.len() > 1 {
        let detail = "one version by itself is not unloaded; leave the version out, or delete it";
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", detail));
    }
    Ok(())
}

/// What became of a registration that has ended.
fn registered(state: &HttpState, download: &Download) -> Result<String, ApiError> {
    let name = &download.name;
    match (download.state, &download.error, download.version) {
        (DownloadState::Done, _, Some(version)) => {
            let workers = instances_of(state, name, version);
            let more = if workers == 0 { ". Use scale workers API to add workers for the model." } else { "" };
            Ok(format!("Model \"{name}\" Version: {version} registered with {workers} initial workers{more}"))
        }
        (_, Some((_, problem)), _) => Err(ApiError::new(StatusCode::BAD_REQUEST, "download_failed", problem.clone())),
        _ => Err(DownloadError::Cancelled.into()),
    }
}

fn instances_of(state: &HttpState, name: &ModelName, version: Version) -> usize {
    state.engine.loaded_version(name.as_str(), version.0).map_or(0, |model| model.instances)
}

fn url_of(name: &ModelName, version: Option<&VersionStatus>) -> String {
    let origin = version.and_then(|known| known.origin.as_ref()).map(|origin| origin.model_id.clone());
    origin.unwrap_or_else(|| name.to_string())
}

impl Registration {
    fn parse(query: Vec<(String, String)>) -> Result<Registration, ApiError> {
        let mut found = Registration::default();
        for (key, value) in query {
            match key.as_str() {
                "url" => found.url = Some(value),
                "model_name" => found.model_name = Some(value),
                "initial_workers" => found.initial_workers = number(&key, &value)?,
                "synchronous" => found.synchronous = query_bool(&key, &value)?,
                "batch_size" => found.batch_size = Some(at_least_one(&key, &value)?),
                "max_batch_delay" => found.max_batch_delay = Some(number(&key, &value)?),
                "handler" if !HANDLERS.contains(&value.as_str()) => {
                    return Err(invalid_query(format!(
                        "handler: Python is not run here; what a model does is told from its files (its task), as the \
                         handlers {} do it",
                        HANDLERS.join(", ")
                    )));
                }
                "handler" | "runtime" | "response_timeout" | "startup_timeout" | "s3_sse_kms" => {}
                other => {
                    let other: String = other.chars().take(64).collect();
                    return Err(invalid_query(format!("there is no parameter {other:?}")));
                }
            }
        }
        Ok(found)
    }

    fn request(&self, state: &HttpState) -> Result<FetchRequest, ApiError> {
        let url = self.url.as_deref().unwrap_or_default();
        let path = url.split(['?', '#']).next().unwrap_or_default();
        if path.ends_with(".mar") {
            return Err(invalid_query(
                "url: a .mar archive holds Python that would be run, which this server never does; export the model to ONNX \
                 (torch.onnx.export) and register the .onnx file, or a .zip of it with its config.json and labels",
            ));
        }
        // What has no scheme could be a path of this machine, whose being there must not show.
        if !url.contains("://") {
            return Err(invalid_query("url: expected an address: https://…, hf://org/name@revision or file:///path"));
        }
        let request = FetchRequest::parse(url).map_err(DownloadError::from)?;
        if matches!(request.source, Source::Local { .. }) {
            check_local(state)?;
        }
        Ok(request)
    }

    /// The new model's file, where there is something for it to say.
    fn model_toml(&self) -> Option<String> {
        let rows = self.batch_size.map(|rows| format!("max_batch_size = {rows}\n"));
        let delay = self.max_batch_delay.map(|delay| format!("timeout_ms = {delay}\n"));
        let lines: String = rows.into_iter().chain(delay).collect();
        (!lines.is_empty()).then(|| format!("[batch]\n{lines}"))
    }
}

impl Scale {
    fn parse(query: Vec<(String, String)>) -> Result<Scale, ApiError> {
        let (mut min, mut max, mut synchronous) = (1, None, false);
        for (key, value) in query {
            match key.as_str() {
                "min_worker" => min = number(&key, &value)?,
                "max_worker" => max = Some(number(&key, &value)?),
                "synchronous" => synchronous = query_bool(&key, &value)?,
                // Of a worker that is stopped, and of its devices, which the settings say.
                "timeout" | "number_gpu" => {}
                other => {
                    let other: String = other.chars().take(64).collect();
                    return Err(invalid_query(format!("there is no parameter {other:?}")));
                }
            }
        }
        match max {
            Some(max) if max < min => {
                Err(invalid_query("max_worker must be at least min_worker, which is 1 where absent"))
            }
            _ => Ok(Scale { workers: min, synchronous }),
        }
    }
}

fn number(key: &str, value: &str) -> Result<u32, ApiError> {
    value.parse().map_err(|_| invalid_query(format!("{key} must be a whole number of at least 0")))
}

fn at_least_one(key: &str, value: &str) -> Result<u32, ApiError> {
    match number(key, value)? {
        0 => Err(invalid_query(format!("{key} must be at least 1"))),
        number => Ok(number),
    }
}

impl DescribedVersion {
    fn of(name: &ModelName, known: &VersionStatus) -> DescribedVersion {
        let loaded = known.loaded.as_deref();
        let batch = loaded.map(|model| &model.settings.batch);
        let pending = loaded.map_or(0, |model| model.handle.queue_depth());
        let instances = loaded.map_or(0, |model| model.instances);
        DescribedVersion {
            model_name: name.to_string(),
            model_version: known.version.to_string(),
            model_url: url_of(name, Some(known)),
            runtime: "onnxruntime",
            min_workers: instances,
            max_workers: instances,
            batch_size: batch.map_or(0, |batch| batch.max_batch_size),
            max_batch_delay: batch.map_or(0, |batch| u64::try_from(batch.timeout.as_millis()).unwrap_or(u64::MAX)),
            workers: loaded.map_or_else(Vec::new, |model| workers_of(model, known.state)),
            job_queue_status: Queue {
                remaining_capacity: batch.map_or(0, |batch| batch.max_queue.saturating_sub(pending)),
                pending_requests: pending,
            },
        }
    }
}

fn workers_of(model: &LoadedModel, state: ModelState) -> Vec<Worker> {
    let status = if state == ModelState::Ready { "READY" } else { "UNLOADING" };
    let worker = |id: usize| Worker {
        id: id.to_string(),
        start_time: rfc3339_of(model.loaded_at),
        status,
        memory_usage: model.memory.total_bytes(),
        gpu: model.gpu_bytes.is_some(),
    };
    (0..model.instances).map(worker).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &str) -> Vec<(String, String)> {
        let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        query.split('&').filter_map(pair).collect()
    }

    #[test]
    fn a_registration_says_how_its_model_batches() {
        let parsed = Registration::parse(pairs(
            "url=https://a/x.onnx&model_name=m&initial_workers=2&synchronous=true&batch_size=8&max_batch_delay=50\
             &handler=image_classifier&response_timeout=5",
        ));
        let parsed = parsed.unwrap();
        assert_eq!((parsed.initial_workers, parsed.synchronous), (2, true));
        assert_eq!(parsed.model_toml().as_deref(), Some("[batch]\nmax_batch_size = 8\ntimeout_ms = 50\n"));
        assert_eq!(Registration::default().model_toml(), None);
        for (wrong, part) in [
            ("handler=/tmp/x.py:f", "Python is not run"),
            ("initial_workers=-1", "initial_workers must be"),
            ("batch_size=0", "at least 1"),
            ("synchronous=maybe", "synchronous must be"),
            ("nonsense=1", "no parameter"),
        ] {
            let error = Registration::parse(pairs(wrong)).unwrap_err();
            assert!(error.detail().contains(part), "{wrong}: {}", error.detail());
        }
    }

    #[test]
    fn workers_are_scaled_to_none_or_some() {
        let scale = |query| Scale::parse(pairs(query)).map_err(|error| error.status().as_u16());
        for (query, workers, synchronous) in [
            ("", 1, false),
            ("min_worker=0", 0, false),
            ("min_worker=0&max_worker=0&synchronous=true", 0, true),
            ("min_worker=3&max_worker=4&timeout=-1", 3, false),
        ] {
            assert_eq!(scale(query), Ok(Scale { workers, synchronous }), "{query}");
        }
        for wrong in ["max_worker=0", "min_worker=x", "min_worker=3&max_worker=2", "workers=1"] {
            assert_eq!(scale(wrong), Err(400), "{wrong}");
        }
    }
}
