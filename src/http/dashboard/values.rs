//! Reading the API's answers: a missing or null field is a dash, never an error. And how states look. Pure.

use serde_json::Value;

/// How a state looks: never by its colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) icon: &'static str,
    pub(super) word: &'static str,
    pub(super) class: &'static str,
}

const fn look(icon: &'static str, word: &'static str, class: &'static str) -> Look {
    Look { icon, word, class }
}

/// Of a model, a version, a download or a job.
pub(super) fn state(word: &str) -> Look {
    match word {
        "ready" => look("✓", "ready", "ok"),
        "done" => look("✓", "done", "ok"),
        "succeeded" => look("✓", "succeeded", "ok"),
        "ok" => look("✓", "serving", "ok"),
        "loading" => look("◌", "loading", "busy"),
        "unloading" => look("◌", "unloading", "busy"),
        "downloading" => look("↓", "downloading", "busy"),
        "verifying" => look("◌", "verifying", "busy"),
        "converting" => look("◌", "converting", "busy"),
        "queued" => look("…", "queued", "busy"),
        "building" => look("◌", "building", "busy"),
        "running" => look("▶", "running", "busy"),
        "starting" => look("◌", "starting", "busy"),
        "stopping" => look("■", "stopping", "busy"),
        "failed" => look("✕", "failed", "bad"),
        "cancelled" => look("■", "cancelled", "off"),
        "info" => look("•", "info", "off"),
        "warning" => look("▲", "warning", "busy"),
        "error" => look("✕", "error", "bad"),
        _ => look("○", "unloaded", "off"),
    }
}

/// Indented JSON, cut after so many characters.
pub(super) fn pretty_up_to(value: &Value, chars: usize) -> String {
    let mut json = format!("{value:#}");
    if let Some((end, _)) = json.char_indices().nth(chars) {
        json.truncate(end);
        json.push_str("\n… cut; the API gives all of it");
    }
    json
}

/// The text at a JSON pointer, numbers too; `None` where there is none.
pub(super) fn text(value: &Value, pointer: &str) -> Option<String> {
    plain(value.pointer(pointer)?)
}

/// The same, a dash where there is none.
pub(super) fn text_or_dash(value: &Value, pointer: &str) -> String {
    text(value, pointer).unwrap_or_else(|| "–".to_owned())
}

/// A scalar as text; lists of them with commas.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => Some(items.iter().filter_map(plain).collect::<Vec<_>>().join(", ")),
        other => Some(other.to_string()),
    }
}

pub(super) fn number(value: &Value, pointer: &str) -> Option<f64> {
    value.pointer(pointer)?.as_f64()
}

pub(super) fn integer(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The leaves of an object with their paths: `batch.max_queue`, `256`.
pub(super) fn leaves(value: &Value, at: &str, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                leaves(inner, &path, out);
            }
        }
        other => out.push((at.to_owned(), plain(other).unwrap_or_else(|| "–".to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read_by_their_paths() {
        let value = json!({"a": {"b": [1, "x", null]}, "n": null, "t": true, "f": 0.5});
        assert_eq!(text(&value, "/a/b").as_deref(), Some("1, x"));
        assert_eq!((text(&value, "/n"), text_or_dash(&value, "/z")), (None, "–".to_owned()));
        assert_eq!((number(&value, "/f"), integer(&value, "/a/b/0"), list(&value, "/a/b").len()), (Some(0.5), 1, 3));
        let mut out = Vec::new();
        leaves(&value, "", &mut out);
        let expected = [("a.b", "1, x"), ("n", "–"), ("t", "true"), ("f", "0.5")];
        assert_eq!(out, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
