//! What the document says of keys: how they are sent, which operations need which role, and how those without are answered. The
//! roles are the route table's own.

use super::{Modify, error_form, with_methods};
use crate::http::dialects::kserve;
use crate::http::router::described;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder};

const BEARER: &str = "bearer";
const HEADER: &str = "apiKey";

pub(super) struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(BEARER, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let header = ApiKeyValue::with_description("X-API-Key", "The same key in a header of its own.");
        components.add_security_scheme(HEADER, SecurityScheme::ApiKey(ApiKey::Header(header)));
        let (_, needs) = described().into_parts();
        for (path, item) in &mut document.paths.paths {
            let routed = kserve::routed(path);
            let Some(needs) = needs.get(routed.as_deref().unwrap_or(path)) else { continue };
            for (method, operation) in with_methods(item) {
                let Some(role) = needs.role(&method) else {
                    operation.security = Some(Vec::new());
                    continue;
                };
                let scheme = |name: &str| SecurityRequirement::new(name, Vec::<String>::new());
                // A server without keys asks for none.
                operation.security = Some(vec![scheme(BEARER), scheme(HEADER), SecurityRequirement::default()]);
                let extensions = ExtensionsBuilder::new().add("x-role", role.name()).build();
                match &mut operation.extensions {
                    Some(known) => known.merge(extensions),
                    none => *none = Some(extensions),
                }
                for (status, description) in [
                    ("401", "Keys are on, and there is none, or one that is wrong, expired or revoked."),
                    ("403", "The key's role is too low, or a page of another origin calls."),
                    (
                        "429",
                        "The key's requests of this minute are used up, or too many wrong keys came; `Retry-After` says when to come back.",
                    ),
                ] {
                    let (media_type, schema) = error_form(path);
                    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
                    let answer = ResponseBuilder::new().description(description).content(media_type, content).build();
                    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(answer));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn f07_every_operation_has_the_role_of_its_route() {
        let document: serde_json::Value = serde_json::from_str(&super::super::document_json()).unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let is_open = operation["security"].as_array().unwrap().is_empty();
                assert_eq!(is_open, operation.get("x-role").is_none(), "{method} {path}");
                assert_eq!(is_open, operation["responses"].get("401").is_none(), "{method} {path}");
            }
        }
        assert_eq!(document["paths"]["/v1/models/{name}/load"]["post"]["x-role"], "admin");
        assert_eq!(document["paths"]["/v1/models"]["get"]["x-role"], "infer");
    }
}
