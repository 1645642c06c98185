//! Commands, arguments and help texts.

use crate::engine::Objective;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Inference server for ONNX models.
#[derive(Debug, Parser)]
#[command(name = "ortus", version, arg_required_else_help = false, disable_help_subcommand = true)]
#[command(after_help = "Example: ortus serve --models ./models --listen 127.0.0.1:8080")]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the server until it is asked to stop (SIGINT, SIGTERM)
    #[command(after_help = "Examples: ortus serve --models ./models --listen 127.0.0.1:8080\n          \
        ortus serve --model minilm=hf://sentence-transformers/all-MiniLM-L6-v2@main\n\n\
        A SOURCE is hf://org/name, with @ and a branch, tag or commit, an address, with #sha256= and the file's hash, or\n\
        a path (file:///path), and what else `ortus pull` takes. What the store has of it is not got again.\n\n\
        Every setting can also be a variable (ORTUS_SERVER__LISTEN) or stand in ortus.toml; see `ortus config show`.")]
    Serve(ServeArgs),
    /// Get a model into the store, without a server
    #[command(after_help = "Examples: ortus pull sentence-transformers/all-MiniLM-L6-v2\n          \
        ortus pull https://example.org/resnet50.zip --name resnet50 --sha256 9f2c…\n          \
        ortus pull torchvision/resnet18\n          \
        ortus pull ./downloads/model.onnx --name mine\n\n\
        A model that is there already gets its next version, where the source has a newer one. HF_TOKEN, HF_ENDPOINT,\n\
        HF_HUB_CACHE and HF_HUB_OFFLINE mean what they mean to HuggingFace's own programs.")]
    Pull(PullArgs),
    /// Remove a model, or one version of it, from the store
    #[command(after_help = "Examples: ortus rm resnet50\n          ortus rm resnet50 --model-version 2")]
    Rm(RmArgs),
    /// Ask a running server whether it is alive; the exit code is 0 if so
    #[command(after_help = "Examples: ortus health\n          ortus health http://127.0.0.1:9000 --ready")]
    Health(HealthArgs),
    /// List the models of the store
    #[command(after_help = "Example: ortus list --models ./models")]
    List(ListArgs),
    /// Load a model and print what it takes, what it gives, and what is missing to serve it
    #[command(
        after_help = "Examples: ortus inspect resnet50\n          ortus inspect ./downloads/model.onnx --json\n\n\
        Of the files beside a lone file only those named after it and the usual HuggingFace files are used; name the\n\
        folder for all of them."
    )]
    Inspect(InspectArgs),
    /// Make one prediction without a server and print the answer as JSON
    #[command(after_help = "Examples: ortus predict resnet50 cat.jpg --top-k 3\n          \
        ortus predict iris --json '{\"inputs\": [[5.1, 3.5, 1.4, 0.2]]}'")]
    Predict(PredictArgs),
    /// Measure a model in this process and over HTTP, beside a bare ONNX Runtime loop
    #[command(after_help = "Examples: ortus bench resnet50 --concurrency 1,8,32 --plot resnet50.svg\n          \
        ortus bench ./downloads/model.onnx --seconds 2 --rounds 3 --json\n          \
        ortus bench resnet50 --tune --target-p99-ms 100\n\n\
        The bare loop, the engine and a server on a free loopback port run in this process, by turns, with the settings \
        that `ortus serve` would use. Printed are medians of the rounds, and beside them the share of the bare loop's best batch.")]
    Bench(BenchArgs),
    /// Make variants of a model, measure their speed and drift beside the original, and say which is better
    #[command(after_help = "Examples: ortus optimize encoder\n          \
        ortus optimize encoder --int8 --input texts.npz --adopt\n          \
        ortus optimize ./downloads/model.onnx --int8 --output ./variants\n\n\
        Where no variant is named, all that suit the device are tried.\n\
        Drift is 1 less the cosine of the variant's outputs with the original's, on made-up inputs where none are given.\n\
        With --adopt the best variant that is faster and within --max-drift becomes the model's next version.\n\
        A rollback goes back to the original.")]
    Optimize(OptimizeArgs),
    /// Make, list and revoke the keys that callers of the server need
    #[command(
        subcommand,
        after_help = "Example: ortus key create --role infer --name website",
        disable_help_subcommand = true
    )]
    Key(KeyCommand),
    /// Print the OpenAPI document of the server
    #[command(after_help = "Example: ortus openapi > openapi.yaml")]
    Openapi(OpenapiArgs),
    /// Load a model's files for a server that asks by standard input, so that a crash ends this process and not the server
    #[command(hide = true, after_help = "Example: ortus try-load < request.json")]
    TryLoad,
    /// Check or show the configuration
    #[command(
        subcommand,
        after_help = "Example: ortus config show --config ortus.toml",
        disable_help_subcommand = true
    )]
    Config(ConfigCommand),
}

/// What a variant is to make better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ObjectiveArg {
    Both,
    Latency,
    Throughput,
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// IP address and port to listen on
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) listen: Option<String>,
    /// IP address and port of gRPC, or off [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub(super) grpc: Option<String>,
    /// Get this model where it is not in the store, and serve it before the server is ready; may be given several times
    #[arg(long = "model", value_name = "[NAME=]SOURCE")]
    pub(super) pull: Vec<String>,
    /// Listen on an address that other machines can reach, although there is no key that callers would need
    #[arg(long)]
    pub(super) insecure: bool,
    /// Certificate for TLS (PEM); with --tls-key
    #[arg(long, value_name = "FILE")]
    pub(super) tls_cert: Option<String>,
    /// The certificate's private key (PEM); with --tls-cert
    #[arg(long, value_name = "FILE")]
    pub(super) tls_key: Option<String>,
    /// off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
}

/// What every command on a store takes.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreArgs {
    /// Configuration file [default: ./ortus.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Folder of models [default: store.models_dir of the configuration]
    #[arg(long, value_name = "DIR")]
    pub(super) models: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// org/name of HuggingFace (hf://org/name@REVISION), https://…, torchvision/NAME, pytorch_hub:owner/repo:NAME, or a local
    /// file or folder
    #[arg(value_name = "SOURCE")]
    pub(super) source: String,
    /// Name of the model in the store [default: from the source]
    #[arg(long, value_name = "N")]
    pub(super) name: Option<String>,
    /// Branch, tag or commit
    #[arg(long, value_name = "R")]
    pub(super) revision: Option<String>,
    /// The graph's path in the source, where there are several
    #[arg(long, value_name = "F")]
    pub(super) file: Option<String>,
    /// Which variant of the graph, where there are several: fp32, fp16, int8 or q4
    #[arg(long, value_name = "P")]
    pub(super) precision: Option<String>,
    /// What the file of a URL must be
    #[arg(long, value_name = "HEX")]
    pub(super) sha256: Option<String>,
    /// Pretrained weights of a PyTorch model: a name, or none for random ones [default: DEFAULT]
    #[arg(long, value_name = "NAME")]
    pub(super) weights: Option<String>,
    /// Shape of a PyTorch model's example input, batch included
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub(super) input_shape: Option<Vec<u64>>,
    /// Function of torchvision that lone PyTorch weights belong to
    #[arg(long, value_name = "NAME")]
    pub(super) architecture: Option<String>,
    /// Only say what would be got
    #[arg(long)]
    pub(super) check: bool,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// A model of the store
    #[arg(value_name = "NAME")]
    pub(super) model: String,
    /// Only this version
    #[arg(long, value_name = "N")]
    pub(super) model_version: Option<u64>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Where the server listens [default: server.listen, by TLS where server.tls_cert is set]; the certificate of this
    /// machine's own addresses is not checked
    pub(super) url: Option<String>,
    /// Configuration file [default: ./ortus.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Ask whether it is ready for requests
    #[arg(long)]
    pub(super) ready: bool,
    /// How long it may take to answer
    #[arg(long, value_name = "MS", default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub(super) timeout_ms: u64,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A model of the store, a model file (.onnx, .ort) or a model's folder
    #[arg(value_name = "NAME|FILE")]
    pub(super) model: String,
    /// Version of the model [default: its default version]
    #[arg(long, value_name = "N")]
    pub(super) model_version: Option<u64>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// A model of the store
    #[arg(value_name = "NAME")]
    pub(super) model: String,
    /// Pictures or other files, one item each
    #[arg(value_name = "FILE", conflicts_with_all = ["text", "json"])]
    pub(super) files: Vec<PathBuf>,
    /// One text item
    #[arg(long, conflicts_with = "json")]
    pub(super) text: Option<String>,
    /// The body of a predict request, or only its `inputs`
    #[arg(long, value_name = "JSON")]
    pub(super) json: Option<String>,
    /// How many classes to print, best first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) top_k: Option<u32>,
    /// Version of the model [default: its default version]
    #[arg(long, value_name = "N")]
    pub(super) model_version: Option<u64>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// A model of the store, a model file (.onnx, .ort) or a model's folder
    #[arg(value_name = "NAME|FILE")]
    pub(super) model: String,
    /// Clients at a time, each with one request under way
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,32",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) concurrency: Vec<u16>,
    /// Length of one measurement
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(super) seconds: f64,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(super) rounds: u16,
    /// Tensors to send: .npy, .npz, .safetensors or .json [default: made up from what the graph declares]
    #[arg(long, value_name = "FILE", conflicts_with = "batch")]
    pub(super) input: Option<PathBuf>,
    /// Rows of each request that is made up [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) batch: Option<u32>,
    /// Measure instead which instances, intra_threads, max_batch_size, graph level and memory settings suit the model, as
    /// `[performance] tune` does at load
    #[arg(long, conflicts_with_all = ["concurrency", "seconds", "rounds", "input", "batch", "plot"])]
    pub(super) tune: bool,
    /// What the best is: the most rows a second, or the least time of a request at full load [default: as the model has it]
    #[arg(long, value_name = "WHAT", requires = "tune", value_enum)]
    pub(super) objective: Option<TuneObjectiveArg>,
    /// Take the best of those whose requests take at most this, all but one in a hundred
    #[arg(long, value_name = "MS", requires = "tune", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub(super) target_p99_ms: Option<u64>,
    /// Show instead where the time of a run goes, by operator
    #[arg(long, conflicts_with_all = ["concurrency", "seconds", "rounds", "input", "plot", "tune"])]
    pub(super) profile: bool,
    /// Write what was timed as a trace for chrome://tracing or Perfetto
    #[arg(long, value_name = "FILE.json", requires = "profile")]
    pub(super) trace: Option<PathBuf>,
    /// Draw throughput and latency into an SVG file
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,
    /// Version of the model [default: its default version]
    #[arg(long, value_name = "N")]
    pub(super) model_version: Option<u64>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct OptimizeArgs {
    /// A model of the store, a model file (.onnx) or a model's folder
    #[arg(value_name = "NAME|FILE")]
    pub(super) model: String,
    /// Numbers of 16 bits
    #[arg(long)]
    pub(super) fp16: bool,
    /// Products of 8-bit numbers: weights by column, activations as they come
    #[arg(long)]
    pub(super) int8: bool,
    /// Products and convolutions of 8-bit numbers, with scales that are calibrated on --input or the model's samples
    #[arg(long)]
    pub(super) int8_static: bool,
    /// Weights of products in 4 bits
    #[arg(long)]
    pub(super) int4: bool,
    /// Measure also which instances, threads, batches, graph level and memory settings serve the model best; alone, no variant is tried
    #[arg(long)]
    pub(super) tune: bool,
    /// Most drift of a variant that counts as better
    #[arg(long, value_name = "D", default_value = "0.01", value_parser = drift)]
    pub(super) max_drift: f64,
    /// How many times as fast a variant has to be, to count as better
    #[arg(long, value_name = "X", default_value = "1.05", value_parser = times)]
    pub(super) min_speed: f64,
    /// What counts: runs of all sizes, the smallest, or the most rows a second
    #[arg(long, value_enum, default_value = "both", value_name = "O")]
    pub(super) objective: ObjectiveArg,
    /// Make the best of those that are better the model's next version
    #[arg(long)]
    pub(super) adopt: bool,
    /// Folder in which each variant is left, in a folder of its name that must not be there yet
    #[arg(long, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
    /// What to run on, as `ortus predict` takes it [default: the model's samples, or made up from what the graph declares]
    #[arg(long, value_name = "FILE")]
    pub(super) input: Option<PathBuf>,
    /// How long the original and a variant are timed together
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(super) seconds: f64,
    /// How often the two take turns with each size
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(super) rounds: u16,
    /// Version of the model [default: its default version]
    #[arg(long, value_name = "N")]
    pub(super) model_version: Option<u64>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn drift(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|drift| (0.0..=2.0).contains(drift)).ok_or_else(|| "expected 0 to 2".to_owned())
}

fn times(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|times| (0.0..=1000.0).contains(times)).ok_or_else(|| "expected 0 to 1000".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=600.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 0.01 to 600".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct OpenapiArgs {
    /// Print JSON instead of YAML
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key and print it, this once
    #[command(after_help = "Examples: ortus key create --role admin --name me\n          \
        ortus key create --role infer --name website --expires-days 90 --requests-per-minute 600\n\n\
        From the first key on every caller needs one. A server that runs sees it within a second.")]
    Create(KeyCreateArgs),
    /// List the keys, without their secrets
    #[command(after_help = "Example: ortus key list --models ./models")]
    List(KeyListArgs),
    /// Take a key away, for good
    #[command(after_help = "Example: ortus key revoke 3f0c9a11d2")]
    Revoke(KeyRevokeArgs),
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum RoleArg {
    /// Predictions and their jobs, and looking at everything
    Infer,
    /// Everything
    Admin,
}

#[derive(Debug, Args)]
pub(super) struct KeyCreateArgs {
    /// What the key may do
    #[arg(long, value_enum, value_name = "R")]
    pub(super) role: RoleArg,
    /// Whose it is, for people
    #[arg(long, value_name = "N", value_parser = key_name)]
    pub(super) name: Option<String>,
    /// After how many days it ends [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(super) expires_days: Option<u32>,
    /// More requests in a minute are answered 429 [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(super) requests_per_minute: Option<u32>,
    /// Largest body of a request, in bytes on the wire [default: as for all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_body_bytes: Option<u64>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn key_name(text: &str) -> Result<String, String> {
    let good = text.chars().count() <= 100 && !text.chars().any(char::is_control);
    if good { Ok(text.to_owned()) } else { Err("expected up to 100 characters without control characters".to_owned()) }
}

#[derive(Debug, Args)]
pub(super) struct KeyListArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct KeyRevokeArgs {
    /// As `ortus key list` prints it
    #[arg(value_name = "ID")]
    pub(super) id: String,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration, without starting anything
    #[command(after_help = "Example: ortus config check --config /etc/ortus.toml")]
    Check(ConfigArgs),
    /// Print every key with its value in force and where that comes from
    #[command(after_help = "Example: ORTUS_BATCH__INSTANCES=2 ortus config show")]
    Show(ConfigArgs),
}

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Configuration file [default: ./ortus.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What tuning is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TuneObjectiveArg {
    Throughput,
    Latency,
}

impl From<TuneObjectiveArg> for Objective {
    fn from(given: TuneObjectiveArg) -> Objective {
        match given {
            TuneObjectiveArg::Throughput => Objective::Throughput,
            TuneObjectiveArg::Latency => Objective::Latency,
        }
    }
}
