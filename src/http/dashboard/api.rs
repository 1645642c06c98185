//! The pages' only way to what they show and do: the native API's own handlers, called in this process. So a page has the API's
//! numbers, rules and errors, and none of its own.

use crate::http::HttpState;
use crate::http::error::Problem;
use crate::http::middleware::{Arrival, RequestId};
use crate::http::tally::protocol_of;
use crate::protocol::Tally;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use serde_json::Value;
use std::sync::Arc;
use tokio::time::Instant;
use tower::ServiceExt;

/// Largest answer that a page reads.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The native API.
#[derive(Clone)]
pub(super) struct Api {
    routes: Router,
    state: HttpState,
}

/// Why a call was refused, in the API's words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

/// An answer, read.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Api {
    /// `routes` without what stands around them: the page's own request went through that.
    pub(super) fn new(routes: Router<HttpState>, state: &HttpState) -> Api {
        Api { routes: routes.with_state(state.clone()), state: state.clone() }
    }

    /// # Errors
    /// As the API answers.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Refusal> {
        Ok(self.send(Method::GET, path, None).await?.body)
    }

    /// # Errors
    /// As the API answers.
    pub(super) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, Refusal> {
        let request = Request::builder().method(method).uri(path);
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.pass(
            request
                .map_err(|_| Refusal { status: StatusCode::BAD_REQUEST, detail: "there is no such page".to_owned() })?,
        )
        .await
    }

    /// Hands a request on, and counts it as any other where it is a prediction.
    ///
    /// # Errors
    /// As the API answers.
    pub(super) async fn pass(&self, mut request: Request) -> Result<Answer, Refusal> {
        let route = match request.uri().path() {
            path if path.starts_with("/v1/models/") && path.ends_with("/predict") => "/v1/models/{name}/predict",
            _ => "",
        };
        let now = Instant::now();
        let tally = Tally::begin(protocol_of(route), self.state.engine.stats(), now.into_std());
        let extensions = request.extensions_mut();
        extensions.insert(Arrival(now));
        if extensions.get::<RequestId>().is_none() {
            extensions.insert(RequestId(Arc::from(uuid::Uuid::new_v4().to_string())));
        }
        extensions.insert(tally.clone());
        let response = match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let problem = response.extensions().get::<Problem>();
        let code = problem.map(|problem| problem.code.clone());
        tally.finish(response.status().as_u16(), code);
        read(response).await
    }
}

async fn read(response: Response) -> Result<Answer, Refusal> {
    let (parts, body) = response.into_parts();
    if parts.status.is_client_error() || parts.status.is_server_error() {
        let problem = parts.extensions.get::<Problem>();
        if let Some(internal) = problem.and_then(|problem| problem.internal.as_deref()) {
            tracing::error!(problem = internal, "a page could not be answered");
        }
        let detail = problem.map_or_else(|| parts.status.to_string(), |problem| problem.detail.clone());
        return Err(Refusal { status: parts.status, detail });
    }
    let failed = |detail: &str| Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, detail: detail.to_owned() };
    let bytes = axum::body::to_bytes(body, ANSWER_BYTES_MAX)
        .await
        .map_err(|_| failed("the answer is too large to be shown"))?;
    let body = match bytes.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&bytes).map_err(|_| failed("the answer cannot be shown"))?,
    };
    Ok(Answer { headers: parts.headers, body })
}
