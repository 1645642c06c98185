//! What can be wrong with a configuration. Every text names the place, the key, what was expected and what came.

use super::Origin;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration file {} does not exist; create it, or leave --config out", path.display())]
    NoFile { path: PathBuf },
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is larger than {limit} bytes; is it the right file?", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{}:{line}: not TOML: {problem}", path.display())]
    Syntax { path: PathBuf, line: usize, problem: String },
    #[error("{origin}: unknown section [{section}]; the nearest valid one is [{nearest}]")]
    UnknownSection { origin: Origin, section: String, nearest: &'static str },
    #[error("{origin}: unknown key {key}; the nearest valid one is {nearest}")]
    UnknownKey { origin: Origin, key: String, nearest: String },
    #[error("unknown environment variable {variable}; the nearest valid one is {nearest}")]
    UnknownVariable { variable: String, nearest: String },
    #[error("{origin}: {key}: expected {expected}, got {came}")]
    Value { origin: Origin, key: String, expected: String, came: String },
    #[error("server.{set} is set and server.{missing} is not: TLS takes both files; set server.{missing}, or neither")]
    HalfOfTls { set: &'static str, missing: &'static str },
    #[error("environment variable {variable}: the value is not UTF-8; set it to plain text")]
    VariableNotText { variable: String },
    #[error(
        "{key} = {address} can be reached from other machines and nothing asks callers for a key; make one with \
         `ortus key create --role admin`, listen on a loopback address such as 127.0.0.1:{}, or pass --insecure where a \
         firewall or proxy guards the port",
        address.port()
    )]
    Public { key: &'static str, address: SocketAddr },
}
