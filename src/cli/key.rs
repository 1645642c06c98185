//! `ortus key`: makes, lists and revokes the keys of a store. A server that runs on it sees the change within a second.

use super::args::{KeyCommand, KeyCreateArgs, KeyListArgs, KeyRevokeArgs, RoleArg, StoreArgs};
use super::configuration::pretty;
use super::error::CliError;
use super::run::note;
use super::store::load_config;
use super::table::Table;
use crate::auth::{KeyFile, KeyId, KeyRecord, NewKey, Role, Terms};
use crate::config::{Config, Flags};
use crate::telemetry::{now_ms, rfc3339};
use serde_json::{Value, json};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) fn key(command: KeyCommand) -> Result<String, CliError> {
    match command {
        KeyCommand::Create(args) => create(args),
        KeyCommand::List(args) => list(args),
        KeyCommand::Revoke(args) => revoke(args),
    }
}

/// Whether the store of `config` has a key that is in force.
///
/// # Errors
/// Where the file of keys cannot be read.
pub(super) fn has_keys(config: &Config) -> Result<bool, CliError> {
    let now = now_ms();
    Ok(file_of(config).read()?.iter().any(|key| !key.is_expired(now)))
}

fn file_of(config: &Config) -> KeyFile {
    KeyFile::new(config.auth.path(&config.store.models_dir))
}

fn open(store: StoreArgs) -> Result<KeyFile, CliError> {
    let config = load_config(store.config, Flags { models_dir: store.models, ..Flags::default() })?;
    Ok(file_of(&config))
}

fn create(args: KeyCreateArgs) -> Result<String, CliError> {
    let KeyCreateArgs { role, name, expires_days, requests_per_minute, max_body_bytes, store, json } = args;
    let now = now_ms();
    let role = match role {
        RoleArg::Infer => Role::Infer,
        RoleArg::Admin => Role::Admin,
    };
    let expires_ms = expires_days.map(|days| now.saturating_add(u64::from(days) * DAY_MS));
    let terms = Terms { role, name: name.unwrap_or_default(), expires_ms, requests_per_minute, max_body_bytes };
    let key = NewKey::make(terms, now).map_err(CliError::Random)?;
    open(store)?.add(key.record.clone())?;
    if json {
        let mut shown = as_json(&key.record, now);
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("key".to_owned(), key.reveal().into());
        }
        return Ok(pretty(&shown));
    }
    note("The key is shown this once; only its hash is kept. Servers of this store ask for keys from now on.");
    Ok(key.reveal().to_owned())
}

fn list(args: KeyListArgs) -> Result<String, CliError> {
    let (keys, now) = (open(args.store)?.read()?, now_ms());
    if args.json {
        return Ok(pretty(&keys.iter().map(|key| as_json(key, now)).collect()));
    }
    let mut table = Table::new(["ID", "ROLE", "NAME", "CREATED", "EXPIRES", "REQUESTS/MIN", "BODY"]);
    for key in keys {
        let expired = if key.is_expired(now) { " (expired)" } else { "" };
        let limit = |limit: Option<u64>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        table.row([
            key.id.to_string(),
            key.role.name().to_owned(),
            key.name,
            rfc3339(key.created_ms),
            key.expires_ms.map_or_else(|| "never".to_owned(), |at| format!("{}{expired}", rfc3339(at))),
            limit(key.requests_per_minute.map(u64::from)),
            limit(key.max_body_bytes),
        ]);
    }
    Ok(table.finish())
}

fn revoke(args: KeyRevokeArgs) -> Result<String, CliError> {
    let file = open(args.store)?;
    let id = KeyId::parse(&args.id).ok_or(CliError::NoKeyId)?;
    file.revoke(&id)?;
    let last = match file.read()?.is_empty() {
        true => {
            "; it was the last: servers that run refuse everybody, and one that starts asks for no key unless auth.require is set"
        }
        false => "",
    };
    Ok(format!("key {id} is revoked{last}"))
}

fn as_json(key: &KeyRecord, now: u64) -> Value {
    json!({
        "id": key.id.as_str(),
        "role": key.role.name(),
        "name": key.name,
        "created": rfc3339(key.created_ms),
        "expires": key.expires_ms.map(rfc3339),
        "expired": key.is_expired(now),
        "requests_per_minute": key.requests_per_minute,
        "max_body_bytes": key.max_body_bytes,
    })
}
