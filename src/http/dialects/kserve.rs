//! KServe's V1 protocol: `POST /v1/models/{name}:predict`, as its clients and TorchServe's call it.

use super::torchserve::predict::{Client, respond};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::extract::ModelPath;
use crate::http::middleware::Visit;
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const START: &str = "/v1/models/";
const VERB: &str = ":predict";
/// What stands in the route table for [`VERB`], since that matches whole parts of a path only.
const ROUTED: &str = "/instances";

/// The path that the route table has for one of this protocol.
pub(in crate::http) fn routed(path: &str) -> Option<String> {
    let name = path.strip_prefix(START)?.strip_suffix(VERB)?;
    (!name.is_empty() && !name.contains('/')).then(|| format!("{START}{name}{ROUTED}"))
}

/// The address that the route table has for one of this protocol.
pub(in crate::http) fn routed_uri(uri: &Uri) -> Option<Uri> {
    let path = routed(uri.path())?;
    let mut parts = uri.clone().into_parts();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    parts.path_and_query = Some(format!("{path}{query}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// The paths whose errors are `{"error"}`, as that protocol has them.
pub(super) fn is_kserve(path: &str) -> bool {
    path.starts_with(START) && (path.ends_with(ROUTED) || path.ends_with(VERB))
}

/// What is predicted on.
#[derive(Deserialize, Serialize, ToSchema)]
#[schema(as = KserveV1Request)]
pub(in crate::http) struct InstancesBody {
    /// A list: rows of the only input, or items of the task (texts, `{"b64": "…"}`).
    #[schema(value_type = Vec<Object>, example = json!([[0.5, 1.5]]))]
    instances: Vec<serde_json::Value>,
}

/// One prediction for each instance.
#[derive(Serialize, ToSchema)]
#[schema(as = KserveV1Answer)]
pub(in crate::http) struct PredictionsBody {
    /// As `/predictions/{name}` gives them.
    #[schema(value_type = Vec<Object>, example = json!([[0.25, 0.75]]))]
    predictions: Vec<serde_json::Value>,
}

/// Predicts by KServe's V1 protocol.
#[utoipa::path(post, path = "/v1/models/{name}:predict", tag = "torchserve", operation_id = "kserveV1Predict",
    description = "As KServe's V1 protocol has it; errors are `{\"error\"}`.",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    request_body = InstancesBody,
    responses((status = 200, description = "The predictions; of a model with several outputs, an object of them by name.", body = PredictionsBody)))]
pub(in crate::http) async fn predict(
    State(state): State<HttpState>,
    path: ModelPath,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    respond(&state, (path.name, path.version), Client::KserveV1, visit, request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_verb_of_a_model_goes_another_way() {
        for (path, expected) in [
            ("/v1/models/a.b:predict", Some("/v1/models/a.b/instances")),
            ("/v1/models/{name}:predict", Some("/v1/models/{name}/instances")),
            ("/v1/models/a:explain", None),
            ("/v1/models/:predict", None),
            ("/v1/models/a/b:predict", None),
            ("/v2/models/a:predict", None),
            ("/v1/models/a/predict", None),
        ] {
            assert_eq!(routed(path).as_deref(), expected, "{path}");
        }
        let uri: Uri = "/v1/models/a:predict?x=1".parse().unwrap();
        assert_eq!(routed_uri(&uri).unwrap(), "/v1/models/a/instances?x=1");
    }
}
