//! What the user wrote, turned into one checked [`Config`].
//!
//! Two steps: `raw` finds what was written and where (file, environment, flags; unknown keys refused), then the keys of
//! `catalogue` put each value, checked, into its place. The catalogue is the only list of keys: parsing, `config show`
//! and `config.example.toml` follow it. Later sources win: default, file, environment, flag.
//! The only room that reads the environment. Knows no model and starts nothing.

mod catalogue;
mod error;
#[cfg(test)]
mod example;
mod raw;
mod setting;

pub use error::ConfigError;
pub use setting::Setting;

use crate::auth::AuthSettings;
use crate::downloads::StartModel;
use crate::http::HttpSettings;
use crate::hub::{HubSettings, Secret};
use crate::jobs::JobSettings;
use crate::models::{ModelOverrides, ModelSettings, StoreSettings, TrialLoad};
use crate::pipelines::PipelineLimits;
use crate::telemetry::trace::TraceSettings;
use crate::telemetry::{LogSettings, StatsSettings};
use crate::tls::TlsSettings;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration of the process: the settings of each room.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub auth: AuthSettings,
    pub http: HttpSettings,
    /// `None`: doors speak without TLS.
    pub tls: Option<TlsSettings>,
    /// Of the gRPC door, whose bounds are those of `http`; `None`: there is none.
    pub grpc_listen: Option<SocketAddr>,
    pub store: StoreSettings,
    /// What the server is to serve before it is ready, each name once.
    pub start_models: Vec<StartModel>,
    pub hub: HubSettings,
    /// What holds for every model whose own `model.toml` says nothing else.
    pub models: ModelSettings,
    pub pipelines: PipelineLimits,
    pub jobs: JobSettings,
    pub log: LogSettings,
    pub stats: StatsSettings,
    pub trace: TraceSettings,
    /// Where each key's value comes from, by `section.key`; every key is there.
    pub origins: BTreeMap<String, Origin>,
    /// The model sections as written, from which `models` is made.
    overrides: ModelOverrides,
    /// The two files as written, from which `tls` is made.
    tls_files: TlsFiles,
}

/// `[server] tls_cert` and `tls_key`.
#[derive(Debug, Clone, Default, PartialEq)]
struct TlsFiles {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// `line` counts from 1.
    File {
        path: PathBuf,
        line: usize,
    },
    Environment {
        variable: String,
    },
    /// With its dashes: `--listen`.
    Flag {
        name: String,
    },
}

/// Where to look for values.
#[derive(Debug)]
pub struct Sources<E> {
    pub file: ConfigFile,
    /// Variables and their values; those that do not begin with `ORTUS_` are passed over.
    pub environment: E,
    pub flags: Flags,
}

#[derive(Debug, Clone)]
pub enum ConfigFile {
    /// Named by the user: must be there.
    Named(PathBuf),
    /// Read where it exists.
    Optional(PathBuf),
}

/// What the command line may set.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub listen: Option<String>,
    pub grpc: Option<String>,
    pub models_dir: Option<String>,
    /// Of `store.pull`; empty = not set.
    pub pull: Vec<String>,
    pub log_level: Option<String>,
    pub tls_cert: Option<String>,
    pub tls_key: Option<String>,
}

/// A key as it is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// `section.key`.
    pub key: String,
    pub value: Setting,
    pub origin: Origin,
    /// One sentence.
    pub description: &'static str,
}

impl Config {
    /// # Errors
    /// The first key, in the order of the sources, that does not exist or has a value that cannot be used; a file that
    /// cannot be read.
    pub fn load(sources: Sources<impl Iterator<Item = (String, String)>>) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let variables: Vec<(String, String)> = sources.environment.collect();
        config.read_hf_environment(&variables);
        let mut written = raw::from_file(&sources.file)?;
        written.extend(raw::from_environment(variables.into_iter())?);
        written.extend(raw::from_flags(sources.flags));
        for entry in written {
            let path = entry.key.path();
            if let Err(expected) = entry.key.put(&mut config, &entry.given) {
                return Err(ConfigError::Value {
                    origin: entry.origin,
                    key: path,
                    expected,
                    came: entry.given.to_string(),
                });
            }
            config.origins.insert(path, entry.origin);
        }
        config.models = config.overrides.apply(&ModelSettings::default());
        config.tls = config.tls_files.pair()?;
        config.read_hf_token()?;
        Ok(config)
    }

    /// What HuggingFace's own variables say stands where no key of ours does.
    fn read_hf_environment(&mut self, variables: &[(String, String)]) {
        let get = |wanted: &str| variables.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let usual = self.hub.clone();
        self.hub = HubSettings::from_hf_environment(usual.clone(), get, |path| read_token(path).ok());
        for (key, changed, variable) in [
            ("hub.hf_endpoint", self.hub.hf_endpoint != usual.hf_endpoint, "HF_ENDPOINT"),
            ("hub.cache_dir", self.hub.hf_cache != usual.hf_cache, "HF_HUB_CACHE"),
            ("hub.offline", self.hub.offline != usual.offline, "HF_HUB_OFFLINE"),
        ] {
            if changed {
                self.origins.insert(key.to_owned(), Origin::Environment { variable: variable.to_owned() });
            }
        }
    }

    fn read_hf_token(&mut self) -> Result<(), ConfigError> {
        let Some(path) = &self.hub.hf_token_file else { return Ok(()) };
        match read_token(path) {
            Ok(token) if !token.trim().is_empty() => {
                self.hub.hf_token = Some(Secret::new(token.trim().to_owned()));
                Ok(())
            }
            Ok(_) => Err(self.token_file_error("a file with a token; it is empty".to_owned())),
            Err(error) => Err(self.token_file_error(format!("a file that can be read ({})", error.kind()))),
        }
    }

    fn token_file_error(&self, expected: String) -> ConfigError {
        let key = "hub.hf_token_file".to_owned();
        let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
        let path = self.hub.hf_token_file.as_ref().map(|path| path.display().to_string());
        ConfigError::Value { origin, key, expected, came: path.unwrap_or_default() }
    }

    /// All keys as they are in force, in the order of the catalogue.
    pub fn effective(&self) -> Vec<Effective> {
        let entry = |key: &catalogue::Key| {
            let path = key.path();
            let origin = self.origins.get(&path).cloned().unwrap_or(Origin::Default);
            Effective { value: key.get(self), key: path, origin, description: key.doc }
        };
        catalogue::KEYS.iter().map(entry).collect()
    }

    /// The addresses to listen on that other machines can reach, by their keys.
    pub fn public_addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let addresses = [("server.listen", Some(self.http.listen)), ("server.grpc_listen", self.grpc_listen)];
        let with_address = addresses.into_iter().filter_map(|(key, address)| Some((key, address?)));
        with_address.filter(|(_, address)| !address.ip().to_canonical().is_loopback()).collect()
    }

    /// Refuses an address that others can reach where no key keeps them out, unless the user insists. `has_keys` says whether
    /// there is a key that is in force.
    ///
    /// # Errors
    /// [`ConfigError::Public`].
    pub fn check_exposure(&self, has_keys: bool, insecure: bool) -> Result<(), ConfigError> {
        match self.public_addresses().first() {
            Some((key, address)) if !has_keys && !self.auth.require && !insecure => {
                Err(ConfigError::Public { key, address: *address })
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl TlsFiles {
    fn pair(&self) -> Result<Option<TlsSettings>, ConfigError> {
        match (&self.cert, &self.key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some(TlsSettings { cert: cert.clone(), key: key.clone() })),
            (Some(_), None) => Err(ConfigError::HalfOfTls { set: "tls_cert", missing: "tls_key" }),
            (None, Some(_)) => Err(ConfigError::HalfOfTls { set: "tls_key", missing: "tls_cert" }),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            auth: AuthSettings::default(),
            http: HttpSettings::default(),
            tls: None,
            grpc_listen: Some(SocketAddr::from(([127, 0, 0, 1], 8081))),
            store: StoreSettings {
                models_dir: PathBuf::from("models"),
                autoload: true,
                poll_interval: None,
                max_model_bytes: 4 << 30,
                max_loaded_memory: None,
                optimized_dir: None,
                reserve_bytes: HubSettings::default().reserve_bytes,
                trial_load: TrialLoad::First,
                trial_load_timeout: Duration::from_secs(300),
            },
            start_models: Vec::new(),
            hub: HubSettings::default(),
            models: ModelSettings::default(),
            pipelines: PipelineLimits::default(),
            jobs: JobSettings::default(),
            log: LogSettings::default(),
            stats: StatsSettings::default(),
            trace: TraceSettings::default(),
            origins: catalogue::KEYS.iter().map(|key| (key.path(), Origin::Default)).collect(),
            overrides: ModelOverrides::default(),
            tls_files: TlsFiles::default(),
        }
    }
}

/// Variables of other programs that are read, and what they are read with.
const HF_VARIABLES: [&str; 12] = [
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HOME",
    "XDG_CACHE_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HOME",
];

/// Far more than any token has.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

fn read_token(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The variables of this process, for [`Sources::environment`].
///
/// # Errors
/// Where a variable that begins with `ORTUS_` is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let variable = name.to_string_lossy().into_owned();
        let is_foreign = HF_VARIABLES.contains(&variable.as_str());
        if !variable.starts_with(raw::PREFIX) && !is_foreign {
            continue;
        }
        let value = match value.into_string() {
            Ok(value) => value,
            // Not ours to complain of.
            Err(_) if is_foreign => continue,
            Err(_) => return Err(ConfigError::VariableNotText { variable }),
        };
        variables.push((variable, value));
    }
    Ok(variables)
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment { variable } => f.write_str(variable),
            Origin::Flag { name } => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests;
