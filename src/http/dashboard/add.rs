//! Adding a model: say where it is, see what would be fetched, and only then order it.

use super::api::Refusal;
use super::frame::{Frame, Notice, Visitor, page};
use super::values::{integer, list, number, text, text_or_dash};
use super::{actions, format};
use crate::engine::ModelName;
use crate::http::audited::About;
use askama::Template;
use axum::Form;
use axum::extract::Query;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Template)]
#[template(path = "add.html")]
struct Add {
    frame: Frame,
    /// The model that gets a further version.
    model: Option<String>,
    source: String,
    name: String,
    found: Option<Found>,
}

/// What an order would fetch.
struct Found {
    size: String,
    /// What the store's disk has left.
    room: String,
    license: String,
    task: String,
    revision: String,
    files: Vec<(String, String)>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AddQuery {
    model: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OrderForm {
    source: String,
    name: String,
    model: String,
    step: String,
}

pub(super) async fn show(visitor: Visitor, Query(query): Query<AddQuery>) -> Response {
    let model = query.model.filter(|model| !model.is_empty());
    // A name that is none is said at once, before a file is chosen.
    let problem =
        model.as_deref().and_then(|model| ModelName::parse(model).err()).map(|rule| Notice::bad(rule.to_string()));
    let model = if problem.is_some() { None } else { model };
    let frame = frame(&visitor, model.as_deref()).with(problem);
    page(&Add { frame, model, source: String::new(), name: String::new(), found: None })
}

fn frame(visitor: &Visitor, model: Option<&str>) -> Frame {
    let (title, here) = match model {
        Some(model) => (format!("New version of {model}"), format!("/ui/add?model={model}")),
        None => ("Add a model".to_owned(), "/ui/add".to_owned()),
    };
    visitor.frame(title, "/ui/add", here)
}

pub(super) async fn order(visitor: Visitor, Form(form): Form<OrderForm>) -> Response {
    let model = Some(form.model.clone()).filter(|model| ModelName::parse(model).is_ok());
    let order = match order_of(&form.source) {
        Ok(order) => order,
        Err(problem) => return again(&visitor, form, model, Err(Notice::bad(problem))),
    };
    let api = &visitor.dashboard.api;
    if form.step == "order" {
        let mut order = order;
        let call = match &model {
            Some(model) => format!("/v1/models/{model}/versions"),
            None => {
                if !form.name.trim().is_empty() {
                    order.insert("name".to_owned(), form.name.trim().into());
                }
                "/v1/models".to_owned()
            }
        };
        return match api.send(Method::POST, &call, Some(Value::Object(order))).await {
            Ok(answer) => {
                let mut response = actions::done("/ui/jobs", "order");
                if let Ok(name) = ModelName::parse(&text_or_dash(&answer.body, "/download/name")) {
                    response.extensions_mut().insert(About(name));
                }
                response
            }
            Err(refusal) => again(&visitor, form, model, Err(Notice::bad(refusal.detail))),
        };
    }
    let found = api.send(Method::POST, "/v1/models?check=true", Some(Value::Object(order))).await;
    match found {
        Ok(answer) => {
            let system = api.get("/v1/system").await.unwrap_or(Value::Null);
            again(&visitor, form, model, Ok(Found::of(&answer.body, &system)))
        }
        Err(Refusal { detail, .. }) => again(&visitor, form, model, Err(Notice::bad(detail))),
    }
}

/// The form with what was typed, and what came of it.
fn again(visitor: &Visitor, form: OrderForm, model: Option<String>, result: Result<Found, Notice>) -> Response {
    let (found, problem) = match result {
        Ok(found) => (Some(found), None),
        Err(problem) => (None, Some(problem)),
    };
    let frame = frame(visitor, model.as_deref()).with(problem);
    page(&Add { frame, model, source: form.source, name: form.name, found }).into_response()
}

/// An order of the API from one field, as the command line reads it.
fn order_of(text: &str) -> Result<Map<String, Value>, String> {
    let text = text.trim();
    let order = if text.contains("://") {
        // A link to a repository's page is what people have at hand.
        match text.strip_prefix("https://huggingface.co/").filter(|rest| !rest.contains("/resolve/")) {
            Some(rest) => {
                let mut parts = rest.trim_end_matches('/').split('/');
                let (owner, repository) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
                let revision = if parts.next() == Some("tree") { parts.next() } else { None };
                json!({"source": "huggingface", "model_id": format!("{owner}/{repository}"), "revision": revision})
            }
            None => json!({"source": "url", "url": text}),
        }
    } else if let Some(model) = text.strip_prefix("torchvision/") {
        json!({"source": "torchvision", "model_id": model})
    } else if let Some(entry) = text.strip_prefix("pytorch_hub:") {
        json!({"source": "pytorch_hub", "model_id": entry})
    } else if text.starts_with(['/', '.', '~']) {
        json!({"source": "local", "path": text})
    } else if text.is_empty() {
        return Err("Name a model first.".to_owned());
    } else {
        let (id, revision) = text.split_once('@').map_or((text, None), |(id, revision)| (id, Some(revision)));
        json!({"source": "huggingface", "model_id": id, "revision": revision})
    };
    let Value::Object(mut order) = order else { return Err("Name a model first.".to_owned()) };
    order.retain(|_, value| !value.is_null());
    Ok(order)
}

impl Found {
    fn of(listing: &Value, system: &Value) -> Found {
        let files = list(listing, "/files").iter();
        let size =
            |bytes: Option<f64>| bytes.map_or_else(|| "not known".to_owned(), |bytes| format::bytes(bytes as u64));
        Found {
            size: size(number(listing, "/bytes_total")),
            room: size(number(system, "/disk/free_mb").map(|free| free * 1_048_576.0)),
            license: text(listing, "/license").unwrap_or_else(|| "not named".to_owned()),
            task: text(listing, "/task").unwrap_or_else(|| "told when it is there".to_owned()),
            revision: text_or_dash(listing, "/revision"),
            files: files
                .map(|file| {
                    (
                        text_or_dash(file, "/path"),
                        size(Some(integer(file, "/bytes") as f64).filter(|bytes| *bytes > 0.0)),
                    )
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_field_says_where_a_model_is() {
        let check = |text: &str, expected: Value| assert_eq!(order_of(text).map(Value::Object), Ok(expected), "{text}");
        check(" org/name ", json!({"source": "huggingface", "model_id": "org/name"}));
        check("org/name@v2", json!({"source": "huggingface", "model_id": "org/name", "revision": "v2"}));
        check(
            "https://huggingface.co/org/name/tree/v2",
            json!({"source": "huggingface", "model_id": "org/name", "revision": "v2"}),
        );
        check("https://huggingface.co/org/name", json!({"source": "huggingface", "model_id": "org/name"}));
        check(
            "https://huggingface.co/o/n/resolve/main/model.onnx",
            json!({"source": "url", "url": "https://huggingface.co/o/n/resolve/main/model.onnx"}),
        );
        check("https://example.com/m.onnx", json!({"source": "url", "url": "https://example.com/m.onnx"}));
        check("torchvision/resnet18", json!({"source": "torchvision", "model_id": "resnet18"}));
        check("/srv/m", json!({"source": "local", "path": "/srv/m"}));
        assert!(order_of("  ").is_err());
    }
}
