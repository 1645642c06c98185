//! First step: what was written, under which key, and where. Unknown keys and sections are refused here; values are
//! not looked at.

use super::catalogue::{self, Key};
use super::setting::{Given, quoted};
use super::{ConfigError, ConfigFile, Flags, Origin};
use std::io::{ErrorKind, Read};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Variables that begin so belong to the server; those that also hold `__` are keys.
pub(super) const PREFIX: &str = "ORTUS_";

/// Far above any real file: a bound for a wrong path.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A value and its key.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) key: &'static Key,
    pub(super) given: Given,
    pub(super) origin: Origin,
}

/// The entries of the file, from top to bottom; none where an optional file is not there.
pub(super) fn from_file(file: &ConfigFile) -> Result<Vec<Written>, ConfigError> {
    match file {
        ConfigFile::Named(path) => match read(path)? {
            Some(text) => parse(path, &text),
            None => Err(ConfigError::NoFile { path: path.clone() }),
        },
        ConfigFile::Optional(path) => match read(path)? {
            Some(text) => parse(path, &text),
            None => Ok(Vec::new()),
        },
    }
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
    }
    let text = String::from_utf8(bytes).map_err(|error| failed(std::io::Error::new(ErrorKind::InvalidData, error)))?;
    Ok(Some(text))
}

fn parse(path: &Path, text: &str) -> Result<Vec<Written>, ConfigError> {
    let line_at = |byte: usize| 1 + text.bytes().take(byte).filter(|byte| *byte == b'\n').count();
    let origin_at = |byte: usize| Origin::File { path: path.to_owned(), line: line_at(byte) };
    let document = DeTable::parse(text).map_err(|error| {
        let line = line_at(error.span().map_or(0, |span| span.start));
        ConfigError::Syntax { path: path.to_owned(), line, problem: error.message().replace('\n', ", ") }
    })?;
    let mut written = Vec::new();
    for (section_key, section_value) in in_order(document.get_ref()) {
        let section = section_key.get_ref().as_ref();
        let origin = origin_at(section_key.span().start);
        let DeValue::Table(table) = section_value.get_ref() else {
            // A key before the first section: name its section where it is one.
            return Err(unknown(origin, "", section, |key| format!("{} in [{}]", key.name, key.section)));
        };
        if !catalogue::is_section(section) {
            let nearest = catalogue::nearest_section(section);
            return Err(ConfigError::UnknownSection { origin, section: shown(section), nearest });
        }
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            let origin = origin_at(key.span().start);
            let Some(key) = catalogue::find(section, name) else {
                return Err(unknown(origin, section, name, |key| {
                    if key.section == section {
                        key.name.to_owned()
                    } else {
                        format!("{} in [{}]", key.name, key.section)
                    }
                }));
            };
            written.push(Written { key, given: given(value.get_ref()), origin });
        }
    }
    Ok(written)
}

/// A table's entries as they stand in the file, so that the first fault is reported first.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Spanned<toml::de::DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn given(value: &DeValue<'_>) -> Given {
    match value {
        DeValue::Boolean(value) => Given::Boolean(*value),
        DeValue::Integer(value) => Given::Integer { digits: value.as_str().to_owned(), radix: value.radix() },
        DeValue::String(text) => Given::Text(text.clone().into_owned()),
        // No key takes a list in a list, so that is not followed further.
        DeValue::Array(items) => {
            let item = |value: &DeValue<'_>| if value.is_array() { Given::Other("list") } else { given(value) };
            Given::List(items.iter().map(|value| item(value.get_ref())).collect())
        }
        DeValue::Float(value) => Given::Fraction(value.as_str().to_owned()),
        DeValue::Datetime(_) => Given::Other("date or time"),
        DeValue::Table(_) => Given::Other("table"),
    }
}

/// Sorted by name, so that the same environment gives the same error.
pub(super) fn from_environment(variables: impl Iterator<Item = (String, String)>) -> Result<Vec<Written>, ConfigError> {
    let mut variables: Vec<(String, String)> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    variables.sort();
    let mut written = Vec::new();
    for (variable, value) in variables {
        let rest = variable.strip_prefix(PREFIX).unwrap_or_default();
        // One underscore where two belong is the mistake to expect; passing over it would hide it.
        if let Some(key) = catalogue::KEYS.iter().find(|key| variable_of(key).replacen("__", "_", 1) == variable) {
            return Err(unknown_variable(&variable, Some(key)));
        }
        let Some((section, name)) = rest.split_once("__") else { continue };
        let upper = rest.bytes().all(|byte| !byte.is_ascii_lowercase());
        let (section, name) = (section.to_ascii_lowercase(), name.to_ascii_lowercase());
        let key = if upper { catalogue::find(&section, &name) } else { None };
        let Some(key) = key else { return Err(unknown_variable(&variable, catalogue::nearest(&section, &name))) };
        written.push(Written { key, given: Given::Plain(value), origin: Origin::Environment { variable } });
    }
    Ok(written)
}

/// How the environment spells a key.
fn variable_of(key: &Key) -> String {
    format!("{PREFIX}{}__{}", key.section, key.name).to_ascii_uppercase()
}

pub(super) fn from_flags(flags: Flags) -> Vec<Written> {
    let Flags { listen, grpc, models_dir, pull, log_level, tls_cert, tls_key } = flags;
    let plain = |text: Option<String>| text.map(Given::Plain);
    let list = |items: Vec<String>| Given::List(items.into_iter().map(Given::Text).collect());
    let set = [
        ("--listen", "server", "listen", plain(listen)),
        ("--grpc", "server", "grpc_listen", plain(grpc)),
        ("--models", "store", "models_dir", plain(models_dir)),
        ("--model", "store", "pull", (!pull.is_empty()).then(|| list(pull))),
        ("--log-level", "telemetry", "log_level", plain(log_level)),
        ("--tls-cert", "server", "tls_cert", plain(tls_cert)),
        ("--tls-key", "server", "tls_key", plain(tls_key)),
    ];
    set.into_iter()
        .filter_map(|(flag, section, name, value)| {
            let key = catalogue::find(section, name)?;
            Some(Written { key, given: value?, origin: Origin::Flag { name: flag.to_owned() } })
        })
        .collect()
}

fn unknown(origin: Origin, section: &str, name: &str, spell: impl Fn(&Key) -> String) -> ConfigError {
    let key = if section.is_empty() { shown(name) } else { format!("{section}.{}", shown(name)) };
    ConfigError::UnknownKey { origin, key, nearest: catalogue::nearest(section, name).map(spell).unwrap_or_default() }
}

fn unknown_variable(variable: &str, nearest: Option<&Key>) -> ConfigError {
    ConfigError::UnknownVariable { variable: shown(variable), nearest: nearest.map(variable_of).unwrap_or_default() }
}

/// A name as the user wrote it, where it is one; otherwise quoted.
fn shown(name: &str) -> String {
    let plain = name.len() <= 80 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if plain { name.to_owned() } else { quoted(name) }
}
