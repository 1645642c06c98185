//! `ortus config check` and `ortus config show`.

use super::args::ConfigArgs;
use super::error::CliError;
use super::key::has_keys;
use super::store::load_config;
use super::table::Table;
use crate::config::{Config, Flags, Origin, Setting};
use crate::telemetry::printable;
use serde_json::{Value, json};

pub(super) fn check(args: ConfigArgs) -> Result<String, CliError> {
    let json = args.json;
    let config = load_config(args.config, Flags::default())?;
    let insecure = config.check_exposure(has_keys(&config)?, false).err().map(|error| error.to_string());
    if json {
        return Ok(pretty(&json!({ "valid": true, "needs_insecure": insecure.is_some(), "note": insecure })));
    }
    let note = insecure.map(|text| format!("\nnote: `ortus serve` will refuse to start: {text}")).unwrap_or_default();
    Ok(format!("the configuration is valid{note}"))
}

pub(super) fn show(args: ConfigArgs) -> Result<String, CliError> {
    let config = load_config(args.config, Flags::default())?;
    Ok(if args.json { pretty(&as_json(&config)) } else { as_text(&config) })
}

fn as_text(config: &Config) -> String {
    let mut table = Table::new(["KEY", "VALUE", "ORIGIN"]);
    for entry in config.effective() {
        let is_unset = entry.value == Setting::Unset;
        let value = if is_unset { "(chosen for the machine)".to_owned() } else { entry.value.to_string() };
        table.row([entry.key, value, entry.origin.to_string()]);
    }
    table.finish()
}

fn as_json(config: &Config) -> Value {
    let entry = |entry: crate::config::Effective| {
        let value = match entry.value {
            Setting::Unset => Value::Null,
            Setting::Boolean(value) => value.into(),
            Setting::Integer(value) => value.into(),
            Setting::Fraction(value) => value.into(),
            Setting::Text(text) => text.into(),
            Setting::List(items) => items.into(),
        };
        json!({ "key": entry.key, "value": value, "origin": origin_json(&entry.origin), "description": entry.description })
    };
    config.effective().into_iter().map(entry).collect()
}

fn origin_json(origin: &Origin) -> Value {
    match origin {
        Origin::Default => json!({ "kind": "default" }),
        Origin::File { path, line } => json!({ "kind": "file", "path": path.to_string_lossy(), "line": line }),
        Origin::Environment { variable } => json!({ "kind": "environment", "variable": variable }),
        Origin::Flag { name } => json!({ "kind": "flag", "name": name }),
    }
}

/// Indented JSON that a terminal shows as it is: JSON escapes only some of the control characters.
pub(super) fn pretty(value: &Value) -> String {
    let text = format!("{value:#}");
    let lines: Vec<_> = text.lines().map(json_escaped).collect();
    lines.join("\n")
}

fn json_escaped(line: &str) -> String {
    if matches!(printable(line), std::borrow::Cow::Borrowed(_)) {
        return line.to_owned();
    }
    let escape = |c: char| {
        if printable(c.encode_utf8(&mut [0; 4])).len() == c.len_utf8() {
            c.to_string()
        } else {
            format!("\\u{:04x}", u32::from(c))
        }
    };
    line.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigFile, Sources};

    fn config() -> Config {
        let environment = [("ORTUS_SERVER__ALLOWED_HOSTS".to_owned(), "a,b".to_owned())].into_iter();
        let flags = Flags { listen: Some("127.0.0.1:1".to_owned()), ..Flags::default() };
        Config::load(Sources { file: ConfigFile::Optional("/nonexistent/ortus.toml".into()), environment, flags })
            .unwrap()
    }

    #[test]
    fn show_prints_every_key_with_value_and_origin() {
        let text = as_text(&config());
        let line = |key: &str| {
            text.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("server.listen"), "server.listen \"127.0.0.1:1\" --listen");
        assert_eq!(line("server.allowed_hosts"), "server.allowed_hosts [\"a\", \"b\"] ORTUS_SERVER__ALLOWED_HOSTS");
        assert_eq!(line("batch.instances"), "batch.instances (chosen for the machine) default");
        assert_eq!(text.lines().count(), 1 + config().effective().len());
    }

    #[test]
    fn show_prints_json_with_typed_values() {
        let json = as_json(&config());
        let find = |key: &str| json.as_array().unwrap().iter().find(|entry| entry["key"] == key).unwrap().clone();
        assert_eq!(find("server.listen")["origin"], json!({ "kind": "flag", "name": "--listen" }));
        assert_eq!(find("server.allowed_hosts")["value"], json!(["a", "b"]));
        assert_eq!(find("store.autoload")["value"], true);
        assert_eq!(find("batch.instances")["value"], Value::Null);
        assert_eq!(find("server.max_body_bytes")["value"], 64 << 20);
    }

    #[test]
    fn printed_json_is_safe_for_a_terminal_and_the_same_json() {
        let value = json!({ "a": "x\u{1b}\u{9b}\n\u{7f}\u{202e}é" });
        let text = pretty(&value);
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{7f}', '\u{202e}']) && text.contains('é'));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
