//! The way of every request from its connection to its handler: the two calls that carry the load go straight there, all
//! else through the route table.
//!
//! Invariant: a direct call is answered exactly as the route table would answer it; who is unsure takes the table. Matching
//! a route, boxing its future and passing through its extensions cost a tiny model's prediction as much as its run.

use super::access::Peer;
use super::dashboard::Dashboard;
use super::dialects::kserve;
use super::extract::ModelPath;
use super::middleware::{Around, Visit};
use super::v1::predict;
use super::v2::infer;
use super::{HttpState, middleware, router};
use crate::engine::ModelName;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use tower::ServiceExt;

/// The entrance of all connections. Clones are the same.
#[derive(Clone)]
pub(super) struct Door(Arc<Inner>);

struct Inner {
    state: HttpState,
    around: Arc<Around>,
    router: Router,
    dashboard: Dashboard,
}

/// A call that needs no route table, and the model it names.
#[derive(Debug, PartialEq)]
enum Direct {
    Predict(ModelName),
    Infer(ModelName),
}

impl Door {
    /// `listen` is the address that clients may name in `Host`.
    pub(super) fn new(state: HttpState, listen: IpAddr) -> Door {
        let (routes, dashboard) = router::routes(&state);
        let (routes, needs) = routes.into_parts();
        let methods = router::methods(&routes.clone().with_state(state.clone()), &needs);
        let around = Arc::new(Around::new(&state, listen, (needs, methods)));
        let router = middleware::wrap(routes, around.clone()).with_state(state.clone());
        Door(Arc::new(Inner { state, around, router, dashboard }))
    }

    /// Begins what goes on beside requests.
    pub(super) fn start(&self) {
        self.0.dashboard.start();
    }

    /// Answers a request, which came from this address as far as it is known; a refusal is an answer, too.
    pub(super) async fn call(&self, mut request: Request, from: Option<IpAddr>) -> Response {
        let Inner { state, around, router, .. } = &*self.0;
        // The route table matches whole parts of a path, and this verb is the end of one.
        if let Some(uri) = kserve::routed_uri(request.uri()) {
            *request.uri_mut() = uri;
        }
        let direct = if around.has_cors() { None } else { direct(&request) };
        match direct {
            Some(Direct::Predict(name)) => {
                let handler = |request, visit: Visit| async move {
                    let path = ModelPath { name, version: None };
                    predict::respond(state, path, visit, request).await.into_response()
                };
                around.direct("/v1/models/{name}/predict", from, request, handler).await
            }
            Some(Direct::Infer(name)) => {
                let handler = |request, visit: Visit| async move {
                    let path = ModelPath { name, version: None };
                    infer::respond(state, path, visit, request).await.into_response()
                };
                around.direct("/v2/models/{name}/infer", from, request, handler).await
            }
            None => {
                if let Some(from) = from {
                    request.extensions_mut().insert(Peer(from));
                }
                router.clone().oneshot(request).await.unwrap_or_else(|never: Infallible| match never {})
            }
        }
    }
}

fn direct(request: &Request) -> Option<Direct> {
    if request.method() != Method::POST || request.headers().contains_key(header::CONTENT_ENCODING) {
        return None;
    }
    let path = request.uri().path();
    // Names of other characters are encoded in a path; the route table decodes them, and says what is wrong with them.
    let name = |prefix, suffix| ModelName::parse(path.strip_prefix(prefix)?.strip_suffix(suffix)?).ok();
    name("/v1/models/", "/predict").map(Direct::Predict).or_else(|| name("/v2/models/", "/infer").map(Direct::Infer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn only_plain_predictions_go_straight_to_their_handler() {
        let call = |method: &str, path: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            direct(&request.body(Body::empty()).unwrap())
        };
        let name = |text| ModelName::parse(text).unwrap();
        assert_eq!(call("POST", "/v1/models/a/predict", &[]), Some(Direct::Predict(name("a"))));
        assert_eq!(call("POST", "/v1/models/a.b-1/predict?top_k=1", &[]), Some(Direct::Predict(name("a.b-1"))));
        assert_eq!(call("POST", "/v2/models/a/infer", &[]), Some(Direct::Infer(name("a"))));
        for path in [
            "/v1/models/a/predict/",
            "/v1/models//predict",
            "/v1/models/../predict",
            "/v1/models/%61/predict",
            "/v1/models/a/versions/1/predict",
            "/v2/models/a/versions/1/infer",
            "/v1/models/a/infer",
            "/v1/models/predict",
        ] {
            assert_eq!(call("POST", path, &[]), None, "{path}");
        }
        assert_eq!(call("GET", "/v1/models/a/predict", &[]), None);
        assert_eq!(call("POST", "/v1/models/a/predict", &[("content-encoding", "gzip")]), None);
    }
}
