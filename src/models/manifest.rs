//! `model.toml`: what the operator says of one model.
//!
//! Invariants: unknown keys are refused; no path in a [`Manifest`] is absolute or climbs out of its folder. Knows the
//! form of the file only: whether the files it names are there is found when a version is loaded.

use super::{ModelOverrides, Version};
use crate::models::settings::{
    BatchOverrides, CacheOverrides, DeviceOverrides, OptimizationOverrides, PerformanceOverrides,
};
use crate::pipelines::{LabelsSource, PipelineManifest};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Component, Path};

/// Largest `model.toml` read, in bytes.
pub(super) const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// More instances than any machine has use for; a larger number is a slip of the pen.
pub(super) const INSTANCES_MAX: usize = 256;

/// A model's own description and settings; empty where the model has no `model.toml`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    pub description: Option<String>,
    pub author: Option<String>,
    pub license: Option<String>,
    pub tags: Vec<String>,
    /// `None` where the file is silent: the default is the highest version.
    pub version_policy: Option<VersionPolicy>,
    pub pipeline: PipelineManifest,
    pub overrides: ModelOverrides,
    pub warmup: Vec<WarmupSample>,
}

/// Which versions of a model are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The highest ones, as many as this.
    Latest(NonZeroUsize),
    All,
    Specific(BTreeSet<Version>),
}

/// One `[[warmup]]`: a file run through the model's task before the version is ready.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupSample {
    /// Relative to the model's folder.
    pub file: String,
}

/// What is wrong with `model.toml`, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("model.toml, line {line}: {problem}")]
    Syntax { line: usize, problem: String },
    #[error("model.toml, line {line}: unknown key '{key}'{}", Suggestion(.nearest, .allowed))]
    UnknownKey { line: usize, key: String, nearest: Option<String>, allowed: Vec<String> },
    #[error("model.toml: {key}: {problem}")]
    Value { key: &'static str, problem: String },
    #[error("model.toml is larger than {max} bytes")]
    TooLarge { max: u64 },
    #[error("model.toml is not UTF-8 text")]
    NotText,
    #[error("model.toml could not be read: {0}")]
    Io(std::io::ErrorKind),
}

struct Suggestion<'a>(&'a Option<String>, &'a [String]);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, "; did you mean '{nearest}'?"),
            None if self.1.is_empty() => Ok(()),
            None => write!(f, "; the keys here are {}", self.1.join(", ")),
        }
    }
}

impl Default for VersionPolicy {
    fn default() -> VersionPolicy {
        VersionPolicy::Latest(NonZeroUsize::MIN)
    }
}

impl fmt::Display for VersionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VersionPolicy::Latest(count) => write!(f, "latest:{count}"),
            VersionPolicy::All => f.write_str("all"),
            VersionPolicy::Specific(versions) => {
                let versions: Vec<String> = versions.iter().map(Version::to_string).collect();
                write!(f, "[{}]", versions.join(", "))
            }
        }
    }
}

/// The file as written. The shared sections are repeated here: `flatten` would let unknown keys pass.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    description: Option<String>,
    author: Option<String>,
    license: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    version_policy: Option<RawPolicy>,
    #[serde(default)]
    pipeline: PipelineManifest,
    #[serde(default)]
    device: DeviceOverrides,
    #[serde(default)]
    optimization: OptimizationOverrides,
    #[serde(default)]
    batch: BatchOverrides,
    #[serde(default)]
    performance: PerformanceOverrides,
    #[serde(default)]
    cache: CacheOverrides,
    #[serde(default)]
    warmup: Vec<WarmupSample>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"latest\", \"latest:N\", \"all\" or a list of versions such as [\"1\", \"4\"]"
)]
enum RawPolicy {
    Word(String),
    Versions(Vec<RawVersion>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawVersion {
    Number(u64),
    Text(String),
}

impl Manifest {
    /// Reads the text of a `model.toml`.
    ///
    /// # Errors
    /// The first mistake found, with its line or its key.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let raw: Raw = toml::from_str(text).map_err(|error| describe(text, &error))?;
        let overrides = ModelOverrides {
            device: raw.device,
            optimization: raw.optimization,
            batch: raw.batch,
            performance: raw.performance,
            cache: raw.cache,
        };
        let manifest = Manifest {
            description: raw.description,
            author: raw.author,
            license: raw.license,
            tags: raw.tags,
            version_policy: raw.version_policy.map(policy).transpose()?,
            pipeline: raw.pipeline,
            overrides,
            warmup: raw.warmup,
        };
        check(&manifest)?;
        Ok(manifest)
    }

    /// Reads a folder's `model.toml`; the empty manifest where there is none.
    ///
    /// # Errors
    /// As [`Manifest::parse`], and where the file cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Manifest, ManifestError> {
        let file = folder.join("model.toml");
        match super::repository::read_bounded(&file, MANIFEST_BYTES_MAX) {
            Ok(Some(bytes)) => {
                let text = String::from_utf8(bytes).map_err(|_| ManifestError::NotText)?;
                Manifest::parse(text.strip_prefix('\u{feff}').unwrap_or(&text))
            }
            Ok(None) => Err(ManifestError::TooLarge { max: MANIFEST_BYTES_MAX }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Manifest::default()),
            Err(error) => Err(ManifestError::Io(error.kind())),
        }
    }
}

fn policy(raw: RawPolicy) -> Result<VersionPolicy, ManifestError> {
    let problem = |problem: String| ManifestError::Value { key: "version_policy", problem };
    match raw {
        RawPolicy::Word(word) => match word.as_str() {
            "latest" => Ok(VersionPolicy::default()),
            "all" => Ok(VersionPolicy::All),
            other => match other.strip_prefix("latest:").and_then(|count| count.parse().ok()) {
                Some(count) => Ok(VersionPolicy::Latest(count)),
                None => Err(problem(format!(
                    "expected \"latest\", \"latest:N\" with N at least 1, \"all\" or a list of versions, got {other:?}"
                ))),
            },
        },
        RawPolicy::Versions(versions) if versions.is_empty() => Err(problem("the list of versions is empty".into())),
        RawPolicy::Versions(versions) => versions
            .into_iter()
            .map(|version| match version {
                RawVersion::Number(number) => Ok(Version(number)),
                RawVersion::Text(text) => {
                    Version::parse(&text).ok_or_else(|| problem(format!("expected versions in digits, got {text:?}")))
                }
            })
            .collect::<Result<_, _>>()
            .map(VersionPolicy::Specific),
    }
}

fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    let batch = &manifest.overrides.batch;
    for (key, value) in [("batch.instances", batch.instances), ("batch.intra_threads", batch.intra_threads)] {
        if let Some(count) = value
            && !(1..=INSTANCES_MAX).contains(&count)
        {
            return Err(ManifestError::Value { key, problem: format!("expected 1 to {INSTANCES_MAX}, got {count}") });
        }
    }
    for (key, value) in [
        ("batch.max_queue", batch.max_queue),
        ("batch.batch_size", batch.batch_size),
        ("batch.max_batch_size", batch.max_batch_size),
        ("batch.max_batch_tokens", batch.max_batch_tokens),
    ] {
        if value == Some(0) {
            return Err(ManifestError::Value { key, problem: "expected at least 1, got 0".into() });
        }
    }
    check_path("pipeline.file", manifest.pipeline.file.as_deref())?;
    if let Some(LabelsSource::File(file)) = &manifest.pipeline.labels {
        check_path("pipeline.labels", Some(file))?;
    }
    manifest.warmup.iter().try_for_each(|sample| check_path("warmup.file", Some(&sample.file)))
}

fn check_path(key: &'static str, path: Option<&str>) -> Result<(), ManifestError> {
    match path {
        Some(path) if !is_contained(path) => Err(ManifestError::Value {
            key,
            problem: format!("expected a file inside the model's folder, such as \"samples/cat.jpg\", got {path:?}"),
        }),
        _ => Ok(()),
    }
}

/// Whether a relative path stays below the folder it is joined to, as far as its text tells.
pub(super) fn is_contained(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0'])
        && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)))
}

fn describe(text: &str, error: &toml::de::Error) -> ManifestError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes().get(..start).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count() + 1;
    let message = error.message();
    if let Some(rest) = message.strip_prefix("unknown field `") {
        // Names stand between backticks: the unknown one first, then those allowed.
        let mut names = rest.split('`').step_by(2).map(str::to_owned).filter(|name| !name.is_empty());
        let key = names.next().unwrap_or_default();
        let allowed: Vec<String> = names.collect();
        let nearest = allowed
            .iter()
            .map(|name| (strsim::damerau_levenshtein(name, &key), name))
            .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, name)| name.clone());
        return ManifestError::UnknownKey { line, key, nearest, allowed };
    }
    ManifestError::Syntax { line, problem: message.lines().collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{ModelSettings, TuningSettings};
    use std::time::Duration;

    #[test]
    fn a_full_manifest_is_read() {
        let manifest = Manifest::parse(
            r#"
            description = "Cats"
            author = "A"
            license = "MIT"
            tags = ["cat", "dog"]
            version_policy = ["1", 4]
            [pipeline]
            task = "image-classification"
            file = "onnx/model.onnx"
            labels = ["cat", "dog"]
            [pipeline.image]
            size = { height = 4, width = 5 }
            [device]
            device_type = "cpu"
            [optimization]
            optimization_level = "basic"
            [batch]
            instances = 2
            max_queue = 7
            [performance]
            warmup_iterations = 3
            tune = true
            target_p99_ms = 0
            [[warmup]]
            file = "samples/cat.jpg"
            "#,
        )
        .unwrap();
        assert_eq!(manifest.version_policy, Some(VersionPolicy::Specific([Version(1), Version(4)].into())));
        assert_eq!(manifest.overrides.batch.instances, Some(2));
        assert_eq!(manifest.overrides.performance.warmup_iterations, Some(3));
        let base = ModelSettings {
            tuning: TuningSettings { target_p99: Some(Duration::from_millis(5)), ..TuningSettings::default() },
            ..ModelSettings::default()
        };
        let tuning = TuningSettings { tune: true, ..TuningSettings::default() };
        assert_eq!(manifest.overrides.apply(&base).tuning, tuning);
        let base = ModelSettings { tuning: TuningSettings { insists: true, ..base.tuning.clone() }, ..base };
        assert_eq!(manifest.overrides.apply(&base).tuning, base.tuning);
        assert_eq!(manifest.warmup, [WarmupSample { file: "samples/cat.jpg".into() }]);
        assert_eq!(Manifest::parse("").unwrap(), Manifest::default());
    }

    #[test]
    fn a_version_policy_has_four_forms() {
        let latest = |count| Some(VersionPolicy::Latest(NonZeroUsize::new(count).unwrap()));
        let check = |text: &str, expected: Option<VersionPolicy>| {
            let got =
                Manifest::parse(&format!("version_policy = {text}")).ok().and_then(|manifest| manifest.version_policy);
            assert_eq!(got, expected, "{text}");
        };
        check("\"latest\"", latest(1));
        check("\"latest:3\"", latest(3));
        check("\"all\"", Some(VersionPolicy::All));
        check("[\"7\"]", Some(VersionPolicy::Specific([Version(7)].into())));
        for bad in ["\"latest:0\"", "\"latest:\"", "\"newest\"", "[]", "[\"01\"]", "[-1]", "3", "{}", "\"latest:-1\""] {
            check(bad, None);
        }
    }

    #[test]
    fn a_mistake_names_the_file_the_line_and_what_was_meant() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = Manifest::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("model.toml") && error.contains(expected), "{error}");
        }
        check("descripton = \"x\"", "line 1: unknown key 'descripton'; did you mean 'description'?");
        check("\n[pipeline]\ntaks = \"x\"", "line 3: unknown key 'taks'; did you mean 'task'?");
        check("[batch]\ninstance = 1", "line 2: unknown key 'instance'; did you mean 'instances'?");
        check(
            "[batch]\nqqqqqqq = 1",
            "line 2: unknown key 'qqqqqqq'; the keys here are dynamic_batching, batch_size, max_batch_size, timeout_ms, \
             max_batch_tokens, max_queue, instances, intra_threads",
        );
        check("[warmup]\nfile = \"a\"", "line 1");
        check("[[warmup]]\nfil = \"a\"", "did you mean 'file'?");
        check("description = ", "line 1");
        check("tags = 3", "line 1");
        check("[batch]\ninstances = 0", "batch.instances: expected 1 to 256, got 0");
        check("[batch]\ninstances = -1", "line 2");
        check("[batch]\nmax_queue = 0", "batch.max_queue");
        check("[device]\ndevice_type = \"tpu\"", "line 2");
        check(&"[".repeat(100_000), "line 1");
        check(&format!("tags = {}", "[".repeat(100_000)), "line 1");
    }

    /// F02.
    #[test]
    fn a_path_may_not_leave_the_model() {
        for bad in ["../x", "a/../../x", "/etc/passwd", "", "a\\\\b", "./../x", "a/\\u0000"] {
            for text in [format!("[[warmup]]\nfile = \"{bad}\""), format!("[pipeline]\nfile = \"{bad}\"")] {
                assert!(matches!(Manifest::parse(&text), Err(ManifestError::Value { .. })), "{text}");
            }
        }
    }
}
