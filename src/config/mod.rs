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

use crate::http::HttpSettings;
use crate::jobs::JobSettings;
use crate::models::{ModelOverrides, ModelSettings, StoreSettings};
use crate::pipelines::PipelineLimits;
use crate::telemetry::{LogSettings, StatsSettings};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The configuration of the process: the settings of each room.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub http: HttpSettings,
    pub store: StoreSettings,
    /// What holds for every model whose own `model.toml` says nothing else.
    pub models: ModelSettings,
    pub pipelines: PipelineLimits,
    pub jobs: JobSettings,
    pub log: LogSettings,
    pub stats: StatsSettings,
    /// Where each key's value comes from, by `section.key`; every key is there.
    pub origins: BTreeMap<String, Origin>,
    /// The model sections as written, from which `models` is made.
    overrides: ModelOverrides,
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
    pub models_dir: Option<String>,
    pub log_level: Option<String>,
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
        let mut written = raw::from_file(&sources.file)?;
        written.extend(raw::from_environment(sources.environment)?);
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
        Ok(config)
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

    /// Whether other machines can reach the address to listen on.
    pub fn is_public(&self) -> bool {
        !self.http.listen.ip().to_canonical().is_loopback()
    }

    /// Refuses an address that others can reach, unless the user insists: there are no keys that would keep them out.
    ///
    /// # Errors
    /// [`ConfigError::Public`].
    pub fn check_exposure(&self, insecure: bool) -> Result<(), ConfigError> {
        if self.is_public() && !insecure {
            return Err(ConfigError::Public { listen: self.http.listen });
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            http: HttpSettings::default(),
            store: StoreSettings {
                models_dir: PathBuf::from("models"),
                autoload: true,
                poll_interval: None,
                max_model_bytes: 4 << 30,
                max_loaded_memory: None,
            },
            models: ModelSettings::default(),
            pipelines: PipelineLimits::default(),
            jobs: JobSettings::default(),
            log: LogSettings::default(),
            stats: StatsSettings::default(),
            origins: catalogue::KEYS.iter().map(|key| (key.path(), Origin::Default)).collect(),
            overrides: ModelOverrides::default(),
        }
    }
}

/// The variables of this process, for [`Sources::environment`].
///
/// # Errors
/// Where a variable that begins with `ORTUS_` is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let variable = name.to_string_lossy().into_owned();
        if !variable.starts_with(raw::PREFIX) {
            continue;
        }
        let Ok(value) = value.into_string() else { return Err(ConfigError::VariableNotText { variable }) };
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
