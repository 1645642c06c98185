//! Every key there is: its section, its kind, what it does, and the place of its value in [`Config`].
//!
//! Flat on purpose: one entry, one key. A default is not written here: it is what [`Config::default`] holds.

use super::Config;
use super::setting::{Given, Setting};
use crate::downloads::StartModel;
use crate::models::{ModelName, ModelSettings};
use crate::runtime::Fraction;
use crate::telemetry::LogSettings;
use crate::telemetry::trace::TraceSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::time::Duration;

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// One sentence for the example file.
    pub(super) doc: &'static str,
    kind: Kind,
}

/// What a key takes, how to put it into a configuration and how to read it from there.
#[derive(Debug)]
enum Kind {
    Boolean {
        get: fn(&Config) -> bool,
        set: fn(&mut Config, bool),
    },
    /// Inclusive range.
    Integer {
        min: u64,
        max: u64,
        get: fn(&Config) -> u64,
        set: fn(&mut Config, u64),
    },
    /// An integer that the server chooses where it is not set.
    Chosen {
        min: u64,
        max: u64,
        get: fn(&Config) -> Option<u64>,
        set: fn(&mut Config, u64),
    },
    /// The same of a yes or no.
    ChosenBoolean {
        get: fn(&Config) -> Option<bool>,
        set: fn(&mut Config, bool),
    },
    /// The same of a text.
    ChosenText {
        expected: &'static str,
        get: fn(&Config) -> Option<String>,
        set: fn(&mut Config, &str) -> Option<()>,
    },
    /// A share, above 0 and at most 1; not set by default.
    Fraction {
        get: fn(&Config) -> Option<f64>,
        set: fn(&mut Config, Fraction),
    },
    /// `set` gives `None` where the text is not what `expected` says.
    Text {
        expected: &'static str,
        get: fn(&Config) -> String,
        set: fn(&mut Config, &str) -> Option<()>,
    },
    List {
        expected: &'static str,
        get: fn(&Config) -> Vec<String>,
        set: fn(&mut Config, Vec<String>) -> Option<()>,
    },
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The sections, as the example file has them.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("server", "The server: REST on one port, gRPC on another, with the same bounds."),
    ("store", "The folder of models."),
    ("auth", "Who may call: keys, made with `ortus key create`. Where there is one, every caller needs one."),
    ("hub", "Where models are got from, and what that may cost."),
    ("device", "Where models run. This section and the next four can be overridden for a model in its model.toml."),
    ("optimization", "What ONNX Runtime does to a graph before it runs."),
    ("batch", "Which requests share a run, how many runs there are at once, and how many requests may wait."),
    ("performance", "Work before the first request: warm-up, and measuring what suits the model and the machine."),
    ("cache", "What of a model's work is kept and given again; each model has its own, of this size."),
    ("limits", "Bounds on what a request or a model file may be. Sizes are bytes unless the name says otherwise."),
    ("telemetry", "What the server says of itself."),
];

pub(super) const KEYS: &[Key] = &[
    Key {
        section: "server",
        name: "listen",
        doc: "IP address and port to listen on; one that other machines can reach needs keys, or --insecure.",
        kind: Kind::Text {
            expected: "an IP address and port such as 127.0.0.1:8080 or [::1]:8080",
            get: |config| config.http.listen.to_string(),
            set: |config, text| text.parse().ok().map(|address| config.http.listen = address),
        },
    },
    Key {
        section: "server",
        name: "grpc_listen",
        doc: "IP address and port of gRPC, or off; one that other machines can reach needs keys, or --insecure.",
        kind: Kind::Text {
            expected: "an IP address and port such as 127.0.0.1:8081 or [::1]:8081, or off",
            get: |config| config.grpc_listen.map_or_else(|| "off".to_owned(), |address| address.to_string()),
            set: |config, text| {
                let address = if text == "off" { None } else { Some(text.parse().ok()?) };
                config.grpc_listen = address;
                Some(())
            },
        },
    },
    Key {
        section: "server",
        name: "request_timeout_ms",
        doc: "Deadline of a request that names none, from its arrival.",
        kind: Kind::Integer {
            min: 1,
            max: DAY_MS,
            get: |config| milliseconds(config.http.request_timeout),
            set: |config, value| config.http.request_timeout = Duration::from_millis(value),
        },
    },
    Key {
        section: "server",
        name: "max_body_bytes",
        doc: "Largest body of a request, and largest message of a call.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 40,
            get: |config| config.http.max_body_bytes as u64,
            set: |config, value| config.http.max_body_bytes = size(value),
        },
    },
    Key {
        section: "server",
        name: "max_connections",
        doc: "Connections open at once, of REST and of gRPC each; more wait to be accepted.",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.http.max_connections as u64,
            set: |config, value| config.http.max_connections = size(value),
        },
    },
    Key {
        section: "server",
        name: "shutdown_grace_ms",
        doc: "How long requests may take to finish after the signal to stop.",
        kind: Kind::Integer {
            min: 0,
            max: DAY_MS,
            get: |config| milliseconds(config.http.shutdown_grace),
            set: |config, value| config.http.shutdown_grace = Duration::from_millis(value),
        },
    },
    Key {
        section: "server",
        name: "cors_origins",
        doc: "Origins that browsers may call from, such as \"https://app.example.com\"; empty = none.",
        kind: Kind::List {
            expected: "a list of origins such as \"https://app.example.com\" (scheme, host and port only), or only \"*\"",
            get: |config| config.http.cors_origins.clone(),
            set: |config, list| origins(list).map(|list| config.http.cors_origins = list),
        },
    },
    Key {
        section: "server",
        name: "allowed_hosts",
        doc: "Names accepted in the Host header besides loopback names and the listen address; \"*\" = any.",
        kind: Kind::List {
            expected: "a list of host names without scheme and port, such as \"models.example.com\", or \"*\"",
            get: |config| config.http.allowed_hosts.clone(),
            set: |config, list| hosts(list).map(|list| config.http.allowed_hosts = list),
        },
    },
    Key {
        section: "server",
        name: "tls_cert",
        doc: "Certificate for TLS, a PEM file with those that signed it after it; empty = no TLS. Read again at SIGHUP.",
        kind: Kind::Text {
            expected: "the path of a file",
            get: |config| path_text(config.tls_files.cert.as_deref()),
            set: |config, text| path_of(text).map(|path| config.tls_files.cert = path),
        },
    },
    Key {
        section: "server",
        name: "tls_key",
        doc: "The certificate's private key, a PEM file without a password. Read again at SIGHUP.",
        kind: Kind::Text {
            expected: "the path of a file",
            get: |config| path_text(config.tls_files.key.as_deref()),
            set: |config, text| path_of(text).map(|path| config.tls_files.key = path),
        },
    },
    Key {
        section: "store",
        name: "models_dir",
        doc: "The folder of models; a relative path starts where the server is started.",
        kind: Kind::Text {
            expected: "the path of a folder",
            get: |config| config.store.models_dir.to_string_lossy().into_owned(),
            set: |config, text| {
                let good = !text.is_empty() && !text.contains('\0');
                good.then(|| config.store.models_dir = text.into())
            },
        },
    },
    Key {
        section: "store",
        name: "autoload",
        doc: "Load all models at start, and a model that is not loaded on its first request.",
        kind: Kind::Boolean { get: |config| config.store.autoload, set: |config, value| config.store.autoload = value },
    },
    Key {
        section: "store",
        name: "poll_interval_ms",
        doc: "How often the folder is read again for new, changed and removed models; 0 = never.",
        kind: Kind::Integer {
            min: 0,
            max: DAY_MS,
            get: |config| config.store.poll_interval.map_or(0, milliseconds),
            set: |config, value| config.store.poll_interval = (value > 0).then(|| Duration::from_millis(value)),
        },
    },
    Key {
        section: "store",
        name: "max_loaded_memory_mb",
        doc: "Memory of all loaded models together; the least recently used make room and come back on demand; 0 = no limit.",
        kind: Kind::Integer {
            min: 0,
            max: 1 << 30,
            get: |config| config.store.max_loaded_memory.map_or(0, |bytes| bytes >> 20),
            set: |config, value| config.store.max_loaded_memory = (value > 0).then_some(value << 20),
        },
    },
    Key {
        section: "store",
        name: "trial_load",
        doc: "first = before files are loaded for the first time, a process of its own loads them, so that files which crash ONNX \
              Runtime end that process and not the server; off = the server loads whatever it is given.",
        kind: Kind::Text {
            expected: "one of \"first\", \"off\"",
            get: |config| spelling(&config.store.trial_load),
            set: |config, text| word(text).map(|value| config.store.trial_load = value),
        },
    },
    Key {
        section: "store",
        name: "trial_load_timeout_s",
        doc: "The most that such a process may take; a load that takes longer fails.",
        kind: Kind::Integer {
            min: 1,
            max: 86_400,
            get: |config| config.store.trial_load_timeout.as_secs(),
            set: |config, value| config.store.trial_load_timeout = Duration::from_secs(value),
        },
    },
    Key {
        section: "store",
        name: "pull",
        doc: "Models to get where they are not there, and to serve before the server is ready: [NAME=]SOURCE as `ortus serve --model` has them.",
        kind: Kind::List {
            expected: "a list of models, each name once, as [NAME=]SOURCE: hf://org/name@REVISION, https://…#sha256=HEX, \
                file:///path or a path; a NAME is a letter or digit, then up to 99 letters, digits, '.', '_' or '-'",
            get: |config| config.start_models.iter().map(StartModel::to_string).collect(),
            set: |config, list| start_models(&list).map(|models| config.start_models = models),
        },
    },
    Key {
        section: "auth",
        name: "keys_file",
        doc: "Where the keys are, as hashes; a relative path starts at models_dir. Read again when it changes.",
        kind: Kind::Text {
            expected: "the path of a file",
            get: |config| config.auth.keys_file.to_string_lossy().into_owned(),
            set: |config, text| path_of(text).and_then(|path| path.map(|path| config.auth.keys_file = path)),
        },
    },
    Key {
        section: "auth",
        name: "require",
        doc: "Whether callers need a key though there is none yet; where there are keys, they need one anyway.",
        kind: Kind::Boolean { get: |config| config.auth.require, set: |config, value| config.auth.require = value },
    },
    Key {
        section: "hub",
        name: "hf_endpoint",
        doc: "HuggingFace's address; HF_ENDPOINT where not set.",
        kind: Kind::Text {
            expected: "an address such as https://huggingface.co",
            get: |config| config.hub.hf_endpoint.clone(),
            set: |config, text| {
                let text = text.trim_end_matches('/');
                let good = text.starts_with("https://") || text.starts_with("http://");
                good.then(|| config.hub.hf_endpoint = text.to_owned())
            },
        },
    },
    Key {
        section: "hub",
        name: "hf_token_file",
        doc: "File with the token that HuggingFace, and no other host, is sent; HF_TOKEN or HuggingFace's own file where not set.",
        kind: Kind::Text {
            expected: "the path of a file",
            get: |config| path_text(config.hub.hf_token_file.as_deref()),
            set: |config, text| path_of(text).map(|path| config.hub.hf_token_file = path),
        },
    },
    Key {
        section: "hub",
        name: "cache_dir",
        doc: "HuggingFace's cache, which is read and never written; HF_HUB_CACHE where not set.",
        kind: Kind::Text {
            expected: "the path of a folder",
            get: |config| path_text(config.hub.hf_cache.as_deref()),
            set: |config, text| path_of(text).map(|path| config.hub.hf_cache = path),
        },
    },
    Key {
        section: "hub",
        name: "offline",
        doc: "Fetch nothing: only what HuggingFace's cache and local files have; HF_HUB_OFFLINE where not set.",
        kind: Kind::Boolean { get: |config| config.hub.offline, set: |config, value| config.hub.offline = value },
    },
    Key {
        section: "hub",
        name: "allowed_hosts",
        doc: "Hosts that models may come from, as host or host:port, or *.domain; empty = all public ones. A host that is named in full may also have a private address and speak http.",
        kind: Kind::List {
            expected: "a list of hosts",
            get: |config| config.hub.allowed_hosts.clone(),
            set: |config, hosts| {
                let good = hosts.iter().all(|host| !host.is_empty() && !host.contains(['/', '@', ' ']));
                good.then(|| config.hub.allowed_hosts = hosts)
            },
        },
    },
    Key {
        section: "hub",
        name: "allowed_paths",
        doc: "Folders of this machine that a request may name as a source; empty = none. The command line may name any.",
        kind: Kind::List {
            expected: "a list of folders",
            get: |config| config.hub.allowed_paths.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            set: |config, paths| {
                let good = paths.iter().all(|path| !path.is_empty() && !path.contains('\0'));
                good.then(|| config.hub.allowed_paths = paths.into_iter().map(Into::into).collect())
            },
        },
    },
    Key {
        section: "hub",
        name: "max_download_mb",
        doc: "All files of one model together, uploads too.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 30,
            get: |config| config.hub.max_download_bytes >> 20,
            set: |config, value| config.hub.max_download_bytes = value << 20,
        },
    },
    Key {
        section: "hub",
        name: "parallel_files",
        doc: "Files of one model that are fetched at the same time.",
        kind: Kind::Integer {
            min: 1,
            max: 64,
            get: |config| config.hub.parallel_files as u64,
            set: |config, value| config.hub.parallel_files = size(value),
        },
    },
    Key {
        section: "hub",
        name: "downloads_at_once",
        doc: "Models that are fetched at the same time; others wait.",
        kind: Kind::Integer {
            min: 1,
            max: 64,
            get: |config| config.hub.downloads_at_once as u64,
            set: |config, value| config.hub.downloads_at_once = size(value),
        },
    },
    Key {
        section: "hub",
        name: "max_downloads",
        doc: "Downloads that wait or run; more are refused.",
        kind: Kind::Integer {
            min: 1,
            max: 10_000,
            get: |config| config.hub.max_downloads as u64,
            set: |config, value| config.hub.max_downloads = size(value),
        },
    },
    Key {
        section: "hub",
        name: "max_archive_entries",
        doc: "Files and folders of an archive.",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.hub.max_archive_entries as u64,
            set: |config, value| config.hub.max_archive_entries = size(value),
        },
    },
    Key {
        section: "hub",
        name: "reserve_mb",
        doc: "Space that is left free on the store's disk.",
        kind: Kind::Integer {
            min: 0,
            max: 1 << 30,
            get: |config| config.hub.reserve_bytes >> 20,
            set: |config, value| {
                config.hub.reserve_bytes = value << 20;
                config.store.reserve_bytes = value << 20;
            },
        },
    },
    Key {
        section: "hub",
        name: "idle_timeout_ms",
        doc: "How long a server may take to be reached, and be silent.",
        kind: Kind::Integer {
            min: 1,
            max: DAY_MS,
            get: |config| milliseconds(config.hub.idle_timeout),
            set: |config, value| config.hub.idle_timeout = Duration::from_millis(value),
        },
    },
    Key {
        section: "hub",
        name: "total_timeout_s",
        doc: "How long one model may take to be got, conversion included.",
        kind: Kind::Integer {
            min: 1,
            max: 30 * 24 * 3600,
            get: |config| config.hub.total_timeout.as_secs(),
            set: |config, value| config.hub.total_timeout = Duration::from_secs(value),
        },
    },
    Key {
        section: "hub",
        name: "python",
        doc: "Interpreter with PyTorch, for the exporter; empty = the one that `make exporter` sets up.",
        kind: Kind::Text {
            expected: "the path of a program",
            get: |config| path_text(config.hub.python.as_deref()),
            set: |config, text| path_of(text).map(|path| config.hub.python = path),
        },
    },
    Key {
        section: "hub",
        name: "pytorch_hub",
        doc: "Take models of PyTorch Hub. Their repositories' programs run on this machine, in the exporter's process.",
        kind: Kind::Boolean {
            get: |config| config.hub.pytorch_hub,
            set: |config, value| config.hub.pytorch_hub = value,
        },
    },
    Key {
        section: "hub",
        name: "export_timeout_s",
        doc: "How long the conversion of a PyTorch model may take.",
        kind: Kind::Integer {
            min: 1,
            max: 24 * 3600,
            get: |config| config.hub.export_timeout.as_secs(),
            set: |config, value| config.hub.export_timeout = Duration::from_secs(value),
        },
    },
    Key {
        section: "hub",
        name: "export_memory_mb",
        doc: "Memory that the conversion of a PyTorch model may take.",
        kind: Kind::Integer {
            min: 256,
            max: 1 << 30,
            get: |config| config.hub.export_memory >> 20,
            set: |config, value| config.hub.export_memory = value << 20,
        },
    },
    Key {
        section: "device",
        name: "device_type",
        doc: "auto, cpu, cuda or tensorrt; auto takes the best that works.",
        kind: Kind::Text {
            expected: "one of \"auto\", \"cpu\", \"cuda\", \"tensorrt\"",
            get: |config| spelling(&config.overrides.apply(&ModelSettings::default()).device.device_type),
            set: |config, text| word(text).map(|value| config.overrides.device.device_type = Some(value)),
        },
    },
    Key {
        section: "device",
        name: "device_index",
        doc: "Which GPU, from 0.",
        kind: Kind::Integer {
            min: 0,
            max: 1023,
            get: |config| u64::from(config.overrides.apply(&ModelSettings::default()).device.device_index),
            set: |config, value| config.overrides.device.device_index = u32::try_from(value).ok(),
        },
    },
    Key {
        section: "device",
        name: "allow_fallback",
        doc: "Use the CPU where the device named in device_type does not work, instead of an error.",
        kind: Kind::Boolean {
            get: |config| config.overrides.apply(&ModelSettings::default()).device.allow_fallback,
            set: |config, value| config.overrides.device.allow_fallback = Some(value),
        },
    },
    Key {
        section: "device",
        name: "use_fp16",
        doc: "Let a GPU compute in half precision: TensorRT chooses it, CUDA serves an fp16 graph where that is faster within the drift. None on a CPU.",
        kind: Kind::Boolean {
            get: |config| config.overrides.apply(&ModelSettings::default()).device.use_fp16,
            set: |config, value| config.overrides.device.use_fp16 = Some(value),
        },
    },
    Key {
        section: "device",
        name: "compile_mode",
        doc: "default; reduce-overhead records the runs of fixed shapes on a GPU; max-autotune tries all algorithms of a GPU, and tunes on a CPU.",
        kind: Kind::Text {
            expected: "one of \"default\", \"reduce-overhead\", \"max-autotune\"",
            get: |config| spelling(&config.overrides.apply(&ModelSettings::default()).device.compile_mode),
            set: |config, text| word(text).map(|value| config.overrides.device.compile_mode = Some(value)),
        },
    },
    Key {
        section: "device",
        name: "memory_fraction",
        doc: "Share of a GPU's memory that a session may take for its runs, above 0 and at most 1; not set = all there is. On the CPU: of the memory that is left at load, what bounds the rows of a run; not set = 0.8.",
        kind: Kind::Fraction {
            get: |config| config.overrides.device.memory_fraction.map(Fraction::get),
            set: |config, value| config.overrides.device.memory_fraction = Some(value),
        },
    },
    Key {
        section: "optimization",
        name: "enable_optimization",
        doc: "false is the same as the level none.",
        kind: Kind::Boolean {
            get: |config| config.overrides.optimization.enable_optimization.unwrap_or(true),
            set: |config, value| config.overrides.optimization.enable_optimization = Some(value),
        },
    },
    Key {
        section: "optimization",
        name: "optimization_level",
        doc: "none, basic, balanced or aggressive; not set: aggressive, or what [performance] tune finds.",
        kind: Kind::ChosenText {
            expected: "one of \"none\", \"basic\", \"balanced\", \"aggressive\"",
            get: |config| config.overrides.optimization.optimization_level.as_ref().map(spelling),
            set: |config, text| word(text).map(|value| config.overrides.optimization.optimization_level = Some(value)),
        },
    },
    Key {
        section: "optimization",
        name: "memory_arena",
        doc: "Keep on the CPU what memory a run took for the next one; false: freed after each run, and not measured; not set: true, or what [performance] tune finds.",
        kind: Kind::ChosenBoolean {
            get: |config| config.overrides.optimization.memory_arena,
            set: |config, value| config.overrides.optimization.memory_arena = Some(value),
        },
    },
    Key {
        section: "optimization",
        name: "memory_pattern",
        doc: "Take the memory of a run in one block, as the first run of the same shapes needed it; not set: true, or what [performance] tune finds.",
        kind: Kind::ChosenBoolean {
            get: |config| config.overrides.optimization.memory_pattern,
            set: |config, value| config.overrides.optimization.memory_pattern = Some(value),
        },
    },
    Key {
        section: "optimization",
        name: "enable_quantization",
        doc: "Try at load a graph with products of eight bits beside the model's own, on the CPU, and serve it where it is faster \
              by 5 % and its answers have a cosine of 0.99 with the original's; takes seconds, once for each version.",
        kind: Kind::Boolean {
            get: |config| config.overrides.optimization.enable_quantization.unwrap_or(false),
            set: |config, value| config.overrides.optimization.enable_quantization = Some(value),
        },
    },
    Key {
        section: "optimization",
        name: "cache_dir",
        doc: "Folder in which optimised graphs and measurements are kept for the next start, one for each store; empty = \
              .ortus/optimized in the store. The server's alone, not a model's.",
        kind: Kind::Text {
            expected: "a path, or \"\" for the place in the store",
            get: |config| {
                config.store.optimized_dir.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            },
            set: |config, text| {
                config.store.optimized_dir = (!text.is_empty()).then(|| text.into());
                Some(())
            },
        },
    },
    Key {
        section: "optimization",
        name: "enable_tensorrt",
        doc: "Try TensorRT before CUDA where device_type is auto or cuda; it builds an engine for minutes at the first load.",
        kind: Kind::Boolean {
            get: |config| config.overrides.apply(&ModelSettings::default()).device.enable_tensorrt,
            set: |config, value| config.overrides.optimization.enable_tensorrt = Some(value),
        },
    },
    Key {
        section: "optimization",
        name: "record_requests",
        doc: "Requests whose inputs a model keeps in memory as a sample, for optimising on what is really asked; 0 = none.",
        kind: Kind::Integer {
            min: 0,
            max: 10_000,
            get: |config| config.overrides.optimization.record_requests.unwrap_or(0) as u64,
            set: |config, value| config.overrides.optimization.record_requests = Some(size(value)),
        },
    },
    Key {
        section: "batch",
        name: "dynamic_batching",
        doc: "Let requests that wait share a run, where the model's rows do not see each other.",
        kind: Kind::Boolean {
            get: |config| config.overrides.apply(&ModelSettings::default()).batch.dynamic_batching,
            set: |config, value| config.overrides.batch.dynamic_batching = Some(value),
        },
    },
    Key {
        section: "batch",
        name: "batch_size",
        doc: "Rows of a run that are worth no further wait, where timeout_ms is above 0; not set: max_batch_size.",
        kind: Kind::Chosen {
            min: 1,
            max: 65_536,
            get: |config| config.overrides.batch.batch_size.map(|value| value as u64),
            set: |config, value| config.overrides.batch.batch_size = Some(size(value)),
        },
    },
    Key {
        section: "batch",
        name: "max_batch_size",
        doc: "Most rows of one run; a request with more is split; not set: 16, on a CPU fewer where more at once gain nothing, or what [performance] tune finds.",
        kind: Kind::Chosen {
            min: 1,
            max: 65_536,
            get: |config| config.overrides.batch.max_batch_size.map(|value| value as u64),
            set: |config, value| config.overrides.batch.max_batch_size = Some(size(value)),
        },
    },
    Key {
        section: "batch",
        name: "timeout_ms",
        doc: "How long a batch that is not full waits for mates; 0 = an idle instance takes at once what waits.",
        kind: Kind::Integer {
            min: 0,
            max: 60_000,
            get: |config| milliseconds(config.overrides.apply(&ModelSettings::default()).batch.timeout),
            set: |config, value| config.overrides.batch.timeout_ms = Some(value),
        },
    },
    Key {
        section: "batch",
        name: "max_batch_tokens",
        doc: "Most tokens of one run, padding counted, for models whose requests are padded to one length; not set: 16384, on a CPU fewer where more at once gain nothing, or what [performance] tune finds.",
        kind: Kind::Chosen {
            min: 1,
            max: 1 << 32,
            get: |config| config.overrides.batch.max_batch_tokens.map(|value| value as u64),
            set: |config, value| config.overrides.batch.max_batch_tokens = Some(size(value)),
        },
    },
    Key {
        section: "batch",
        name: "instances",
        doc: "Loaded copies of each model, each with its own thread; not set: chosen for the machine.",
        kind: Kind::Chosen {
            min: 1,
            max: 256,
            get: |config| config.overrides.batch.instances.map(|value| value as u64),
            set: |config, value| config.overrides.batch.instances = Some(size(value)),
        },
    },
    Key {
        section: "batch",
        name: "intra_threads",
        doc: "Threads of one run; not set: chosen for the machine.",
        kind: Kind::Chosen {
            min: 1,
            max: 1024,
            get: |config| config.overrides.batch.intra_threads.map(|value| value as u64),
            set: |config, value| config.overrides.batch.intra_threads = Some(size(value)),
        },
    },
    Key {
        section: "batch",
        name: "max_queue",
        doc: "Requests of one model that may wait for an instance; more are refused at once.",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.overrides.apply(&ModelSettings::default()).batch.max_queue as u64,
            set: |config, value| config.overrides.batch.max_queue = Some(size(value)),
        },
    },
    Key {
        section: "performance",
        name: "warmup_iterations",
        doc: "Runs with made-up input before a model is ready; 0 = none.",
        kind: Kind::Integer {
            min: 0,
            max: 10_000,
            get: |config| config.overrides.apply(&ModelSettings::default()).warmup_iterations as u64,
            set: |config, value| config.overrides.performance.warmup_iterations = Some(size(value)),
        },
    },
    Key {
        section: "performance",
        name: "enable_profiling",
        doc: "Time the operators over a few runs at each load; GET /v1/models/{name}/profile shows where the time goes.",
        kind: Kind::Boolean {
            get: |config| config.overrides.apply(&ModelSettings::default()).enable_profiling,
            set: |config, value| config.overrides.performance.enable_profiling = Some(value),
        },
    },
    Key {
        section: "performance",
        name: "log_memory_usage",
        doc: "Log what memory each load, unload and warm-up of a model took.",
        kind: Kind::Boolean {
            get: |config| config.overrides.performance.log_memory_usage.unwrap_or(false),
            set: |config, value| config.overrides.performance.log_memory_usage = Some(value),
        },
    },
    Key {
        section: "performance",
        name: "run_memory_mb",
        doc: "Most memory that runs on the CPU may take: those of a model from 16 MB on together, else those of each of its instances; twice the \
              model's files are allowed beside it, in case its weights lie there. 0 = as much as the system gives; not set: what the machine \
              or its container leaves when the model is loaded, at least 256. Needs memory_arena.",
        kind: Kind::Chosen {
            min: 0,
            max: 1 << 30,
            get: |config| config.overrides.performance.run_memory_mb,
            set: |config, value| config.overrides.performance.run_memory_mb = Some(value),
        },
    },
    Key {
        section: "performance",
        name: "tune",
        doc: "Measure at load, for seconds, at most 45 and not while the model has traffic, which instances, intra_threads, largest batch, graph level and memory settings serve best; what is set stays.",
        kind: Kind::Boolean {
            get: |config| config.overrides.performance.tune.unwrap_or(false),
            set: |config, value| config.overrides.performance.tune = Some(value),
        },
    },
    Key {
        section: "performance",
        name: "objective",
        doc: "What tuning is after: throughput, the most rows a second, or latency, the least time of a request at full load.",
        kind: Kind::Text {
            expected: "\"throughput\" or \"latency\"",
            get: |config| spelling(&config.overrides.performance.objective.unwrap_or_default()),
            set: |config, text| word(text).map(|value| config.overrides.performance.objective = Some(value)),
        },
    },
    Key {
        section: "performance",
        name: "target_p99_ms",
        doc: "The same among what answers requests within this at full load, all but one in a hundred; 0 = no such target.",
        kind: Kind::Integer {
            min: 0,
            max: DAY_MS,
            get: |config| config.overrides.performance.target_p99_ms.unwrap_or(0),
            set: |config, value| config.overrides.performance.target_p99_ms = Some(value),
        },
    },
    Key {
        section: "cache",
        name: "preprocess_mb",
        doc: "MiB of prepared items that each model keeps, by their exact bytes; 0 = off.",
        kind: Kind::Integer {
            min: 0,
            max: 1 << 20,
            get: |config| config.overrides.cache.preprocess_mb.unwrap_or(0),
            set: |config, value| config.overrides.cache.preprocess_mb = Some(value),
        },
    },
    Key {
        section: "cache",
        name: "response_mb",
        doc: "MiB of answers that each model keeps; equal requests, also in flight, are then run once. 0 = off.",
        kind: Kind::Integer {
            min: 0,
            max: 1 << 20,
            get: |config| config.overrides.cache.response_mb.unwrap_or(0),
            set: |config, value| config.overrides.cache.response_mb = Some(value),
        },
    },
    Key {
        section: "cache",
        name: "response_ttl_ms",
        doc: "How long an answer is given again; 0 = until it is displaced or its model is unloaded.",
        kind: Kind::Integer {
            min: 0,
            max: 365 * DAY_MS,
            get: |config| config.overrides.cache.response_ttl_ms.unwrap_or(0),
            set: |config, value| config.overrides.cache.response_ttl_ms = Some(value),
        },
    },
    Key {
        section: "limits",
        name: "max_wrong_keys",
        doc: "Wrong keys from one address in a minute; more are answered 429. Right keys are let in all the same.",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.auth.max_wrong_keys.into(),
            set: |config, value| config.auth.max_wrong_keys = u32::try_from(value).unwrap_or(u32::MAX),
        },
    },
    Key {
        section: "limits",
        name: "header_read_timeout_ms",
        doc: "Time for the head of a request to arrive.",
        kind: Kind::Integer {
            min: 1,
            max: DAY_MS,
            get: |config| milliseconds(config.http.limits.header_read_timeout),
            set: |config, value| config.http.limits.header_read_timeout = Duration::from_millis(value),
        },
    },
    Key {
        section: "limits",
        name: "body_read_timeout_ms",
        doc: "Time for the body of a request to arrive.",
        kind: Kind::Integer {
            min: 1,
            max: DAY_MS,
            get: |config| milliseconds(config.http.limits.body_read_timeout),
            set: |config, value| config.http.limits.body_read_timeout = Duration::from_millis(value),
        },
    },
    Key {
        section: "limits",
        name: "max_header_bytes",
        doc: "Size of a request's head.",
        kind: Kind::Integer {
            // The HTTP library takes no smaller buffer.
            min: 8192,
            max: 16 << 20,
            get: |config| config.http.limits.max_header_bytes as u64,
            set: |config, value| config.http.limits.max_header_bytes = size(value),
        },
    },
    Key {
        section: "limits",
        name: "max_headers",
        doc: "Header fields of a request.",
        kind: Kind::Integer {
            min: 1,
            max: 10_000,
            get: |config| config.http.limits.max_headers as u64,
            set: |config, value| config.http.limits.max_headers = size(value),
        },
    },
    Key {
        section: "limits",
        name: "max_inflight_bytes",
        doc: "Bytes that the bodies of all requests, over REST and gRPC, may hold together, never less than max_body_bytes; 0 = a quarter of the memory that is free at the start.",
        kind: Kind::Integer {
            min: 0,
            max: 1 << 50,
            get: |config| config.http.limits.max_inflight_bytes.unwrap_or(0) as u64,
            set: |config, value| config.http.limits.max_inflight_bytes = (value > 0).then_some(size(value)),
        },
    },
    Key {
        section: "limits",
        name: "max_json_depth",
        doc: "Nesting of a JSON body.",
        kind: Kind::Integer {
            // The stack of a reader is bounded: one JSON level costs a call.
            min: 1,
            max: 127,
            get: |config| config.http.limits.max_json_depth as u64,
            set: |config, value| config.http.limits.max_json_depth = size(value),
        },
    },
    Key {
        section: "limits",
        name: "max_tensor_elements",
        doc: "Elements of one tensor.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 40,
            get: |config| config.http.limits.max_tensor_elements as u64,
            set: |config, value| config.http.limits.max_tensor_elements = size(value),
        },
    },
    Key {
        section: "limits",
        name: "max_items",
        doc: "Items of one request to a task, and parts of a multipart body.",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.http.limits.max_items as u64,
            set: |config, value| config.http.limits.max_items = size(value),
        },
    },
    Key {
        section: "limits",
        name: "max_event_streams",
        doc: "Streams of events (jobs, downloads, the dashboard's pages) open at once; more are refused.",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.http.limits.max_event_streams as u64,
            set: |config, value| config.http.limits.max_event_streams = size(value),
        },
    },
    Key {
        section: "limits",
        name: "max_http2_streams",
        doc: "Requests at a time on one HTTP/2 connection; clients are told, and wait.",
        kind: Kind::Integer {
            min: 1,
            max: 65_536,
            get: |config| u64::from(config.http.limits.max_http2_streams),
            set: |config, value| config.http.limits.max_http2_streams = u32::try_from(value).unwrap_or(u32::MAX),
        },
    },
    Key {
        section: "limits",
        name: "write_timeout_ms",
        doc: "How long a client may take no byte of its answer before the connection is closed.",
        kind: Kind::Integer {
            min: 1,
            max: DAY_MS,
            get: |config| milliseconds(config.http.limits.write_timeout),
            set: |config, value| config.http.limits.write_timeout = Duration::from_millis(value),
        },
    },
    Key {
        section: "limits",
        name: "min_upload_bytes_per_s",
        doc: "What an upload must bring a second on average, once it has had the time of a body; 0 = anything.",
        kind: Kind::Integer {
            min: 0,
            max: 1 << 40,
            get: |config| config.http.limits.min_upload_bytes_per_second,
            set: |config, value| config.http.limits.min_upload_bytes_per_second = value,
        },
    },
    Key {
        section: "limits",
        name: "drain_delay_ms",
        doc: "How long a stopping server goes on accepting, so that balancers notice that it is not ready.",
        kind: Kind::Integer {
            min: 0,
            max: DAY_MS,
            get: |config| milliseconds(config.http.limits.drain_delay),
            set: |config, value| config.http.limits.drain_delay = Duration::from_millis(value),
        },
    },
    Key {
        section: "limits",
        name: "max_pixels",
        doc: "Pixels of one picture, checked before it is decoded.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 32,
            get: |config| config.pipelines.max_pixels,
            set: |config, value| config.pipelines.max_pixels = value,
        },
    },
    Key {
        section: "limits",
        name: "max_text_bytes",
        doc: "Bytes of one text, checked before it is tokenized.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 32,
            get: |config| config.pipelines.max_text_bytes,
            set: |config, value| config.pipelines.max_text_bytes = value,
        },
    },
    Key {
        section: "limits",
        name: "max_audio_seconds",
        doc: "Length of one sound, checked before and while it is decoded.",
        kind: Kind::Integer {
            min: 1,
            max: 86_400,
            get: |config| config.pipelines.max_audio_seconds,
            set: |config, value| config.pipelines.max_audio_seconds = value,
        },
    },
    Key {
        section: "limits",
        name: "max_model_bytes",
        doc: "Largest graph file, external data not counted.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 40,
            get: |config| config.store.max_model_bytes,
            set: |config, value| config.store.max_model_bytes = value,
        },
    },
    Key {
        section: "limits",
        name: "max_jobs",
        doc: "Jobs that are queued, running or kept for their results.",
        kind: Kind::Integer {
            min: 1,
            max: 100_000,
            get: |config| config.jobs.max_jobs as u64,
            set: |config, value| config.jobs.max_jobs = size(value),
        },
    },
    Key {
        section: "limits",
        name: "jobs_at_once",
        doc: "Jobs that run at the same time.",
        kind: Kind::Integer {
            min: 1,
            max: 64,
            get: |config| config.jobs.jobs_at_once as u64,
            set: |config, value| config.jobs.jobs_at_once = size(value),
        },
    },
    Key {
        section: "limits",
        name: "job_timeout_ms",
        doc: "How long a job may take from its start, waiting for a busy model included.",
        kind: Kind::Integer {
            min: 1,
            max: 30 * DAY_MS,
            get: |config| milliseconds(config.jobs.timeout),
            set: |config, value| config.jobs.timeout = Duration::from_millis(value),
        },
    },
    Key {
        section: "limits",
        name: "job_result_ttl_ms",
        doc: "How long a finished job and its result are kept.",
        kind: Kind::Integer {
            min: 1,
            max: 365 * DAY_MS,
            get: |config| milliseconds(config.jobs.result_ttl),
            set: |config, value| config.jobs.result_ttl = Duration::from_millis(value),
        },
    },
    Key {
        section: "limits",
        name: "max_job_bytes",
        doc: "Requests and results of all jobs together, on disk.",
        kind: Kind::Integer {
            min: 1,
            max: 1 << 40,
            get: |config| config.jobs.max_bytes,
            set: |config, value| config.jobs.max_bytes = value,
        },
    },
    Key {
        section: "telemetry",
        name: "log_format",
        doc: "text or json (one object a line); logs go to standard error.",
        kind: Kind::Text {
            expected: "\"text\" or \"json\"",
            get: |config| spelling(&config.log.format),
            set: |config, text| word(text).map(|value| config.log.format = value),
        },
    },
    Key {
        section: "telemetry",
        name: "log_level",
        doc: "off, error, warn, info, debug or trace, alone or with pairs such as \"info,ortus::models=debug\".",
        kind: Kind::Text {
            expected: LogSettings::LEVELS,
            get: |config| config.log.level.clone(),
            set: |config, text| LogSettings::is_level(text).then(|| config.log.level = text.to_owned()),
        },
    },
    Key {
        section: "telemetry",
        name: "max_events",
        doc: "Events that the dashboard shows, the last ones.",
        kind: Kind::Integer {
            min: 1,
            max: 100_000,
            get: |config| config.log.max_events as u64,
            set: |config, value| config.log.max_events = size(value),
        },
    },
    Key {
        section: "telemetry",
        name: "refusal_lines_per_second",
        doc: "Lines of the log on requests refused for one reason; of more, a line a second says how many there were; 0 = all.",
        kind: Kind::Integer {
            min: 0,
            max: 1_000_000,
            get: |config| u64::from(config.log.refusal_lines_per_second),
            set: |config, value| config.log.refusal_lines_per_second = u32::try_from(value).unwrap_or(u32::MAX),
        },
    },
    Key {
        section: "telemetry",
        name: "otlp_endpoint",
        doc: "Where spans of requests go: the gRPC port of an OpenTelemetry collector, such as http://localhost:4317; empty = \
              nowhere. OTEL_EXPORTER_OTLP_HEADERS has headers for it.",
        kind: Kind::Text {
            expected: TraceSettings::ENDPOINT,
            get: |config| config.trace.endpoint.clone().unwrap_or_default(),
            set: |config, text| {
                if !text.is_empty() && !TraceSettings::is_endpoint(text) {
                    return None;
                }
                config.trace.endpoint = (!text.is_empty()).then(|| text.to_owned());
                Some(())
            },
        },
    },
    Key {
        section: "telemetry",
        name: "trace_sample_ratio",
        doc: "Share of the requests that come without a trace which are exported, above 0 and at most 1; all where not set. A \
              request's own traceparent says whether it is.",
        kind: Kind::Fraction {
            get: |config| (config.trace.sample_ratio < 1.0).then_some(config.trace.sample_ratio),
            set: |config, value| config.trace.sample_ratio = value.get(),
        },
    },
    Key {
        section: "telemetry",
        name: "stats_window_s",
        doc: "How far back /v1/models/{name}/stats looks, in seconds.",
        kind: Kind::Integer {
            min: 1,
            max: 24 * 60 * 60,
            get: |config| config.stats.window.as_secs(),
            set: |config, value| config.stats.window = Duration::from_secs(value),
        },
    },
];

impl Key {
    /// `section.key`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    pub(super) fn get(&self, config: &Config) -> Setting {
        match &self.kind {
            Kind::Boolean { get, .. } => Setting::Boolean(get(config)),
            Kind::Integer { get, .. } => Setting::Integer(get(config)),
            Kind::Chosen { get, .. } => get(config).map_or(Setting::Unset, Setting::Integer),
            Kind::ChosenBoolean { get, .. } => get(config).map_or(Setting::Unset, Setting::Boolean),
            Kind::ChosenText { get, .. } => get(config).map_or(Setting::Unset, Setting::Text),
            Kind::Fraction { get, .. } => get(config).map_or(Setting::Unset, Setting::Fraction),
            Kind::Text { get, .. } => Setting::Text(get(config)),
            Kind::List { get, .. } => Setting::List(get(config)),
        }
    }

    /// Puts `given` into its place.
    ///
    /// # Errors
    /// What the key takes, in words, where `given` is something else.
    pub(super) fn put(&self, config: &mut Config, given: &Given) -> Result<(), String> {
        match &self.kind {
            Kind::Boolean { set, .. } | Kind::ChosenBoolean { set, .. } => {
                set(config, given.boolean().ok_or("true or false")?);
                Ok(())
            }
            Kind::Integer { min, max, set, .. } | Kind::Chosen { min, max, set, .. } => {
                let Some(value) = given.integer().filter(|value| (*min..=*max).contains(value)) else {
                    return Err(format!("a whole number from {min} to {max}"));
                };
                set(config, value);
                Ok(())
            }
            Kind::Text { expected, set, .. } | Kind::ChosenText { expected, set, .. } => {
                Ok(given.text().and_then(|text| set(config, text)).ok_or(*expected)?)
            }
            Kind::Fraction { set, .. } => {
                set(config, given.number().and_then(Fraction::new).ok_or("a number above 0 and at most 1")?);
                Ok(())
            }
            Kind::List { expected, set, .. } => Ok(given.list().and_then(|list| set(config, list)).ok_or(*expected)?),
        }
    }
}

pub(super) fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The section spelt most alike.
pub(super) fn nearest_section(name: &str) -> &'static str {
    let name = start(name);
    let nearest =
        SECTIONS.iter().map(|(section, _)| *section).min_by_key(|section| strsim::damerau_levenshtein(section, name));
    nearest.unwrap_or("server")
}

/// The key that was probably meant: the same name in another section, else the name spelt most alike in this section,
/// or in any where the section is unknown too. One is always found: every section has keys.
pub(super) fn nearest(section: &str, name: &str) -> Option<&'static Key> {
    let name = start(name);
    let in_section = |key: &&Key| !is_section(section) || key.section == section;
    let distance = |key: &&Key| {
        let of_section = if is_section(section) || section.is_empty() {
            0
        } else {
            strsim::damerau_levenshtein(key.section, start(section))
        };
        strsim::damerau_levenshtein(key.name, name) + of_section
    };
    let same_name = KEYS.iter().filter(|key| key.name == name).min_by_key(distance);
    same_name.or_else(|| KEYS.iter().filter(in_section).min_by_key(distance))
}

/// Enough of a name to compare: comparing takes time with the square of its length.
fn start(name: &str) -> &str {
    let end = name.char_indices().nth(64).map_or(name.len(), |(index, _)| index);
    name.get(..end).unwrap_or(name)
}

fn path_text(path: Option<&std::path::Path>) -> String {
    path.map_or_else(String::new, |path| path.to_string_lossy().into_owned())
}

/// `None` where `text` can be no path; the empty text is none.
#[expect(clippy::option_option, reason = "no path is a value")]
fn path_of(text: &str) -> Option<Option<std::path::PathBuf>> {
    (!text.contains('\0')).then(|| (!text.is_empty()).then(|| text.into()))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A word of an enum, by the names that serde gives its variants.
fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::from(text)).ok()
}

/// The opposite of [`word`].
fn spelling<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(_) | Err(_) => String::new(),
    }
}

fn start_models(list: &[String]) -> Option<Vec<StartModel>> {
    let models: Vec<StartModel> = list.iter().map(|text| StartModel::parse(text).ok()).collect::<Option<_>>()?;
    let names: BTreeSet<&ModelName> = models.iter().map(|model| &model.name).collect();
    (names.len() == models.len()).then_some(models)
}

/// Scheme, host and port as a browser sends them in `Origin`: no path, no upper case.
fn origins(list: Vec<String>) -> Option<Vec<String>> {
    let good = |origin: &String| {
        let Some(rest) = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")) else {
            return false;
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        is_host(host)
            && port.is_none_or(|port| port.parse::<u16>().is_ok())
            && !origin.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let any = matches!(list.as_slice(), [only] if only == "*");
    (any || list.iter().all(good)).then_some(list)
}

fn hosts(list: Vec<String>) -> Option<Vec<String>> {
    list.iter().all(|host| host == "*" || is_host(host)).then_some(list)
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}
