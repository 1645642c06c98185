//! The composition root: builds every room from the configuration, runs the server, drains it.
//!
//! The only place that knows all rooms. A stop is: not ready → accepted requests finish → models close → exit.

use crate::auth::{Gate, KeyFileError};
use crate::config::{Config, Effective, Origin, Setting};
use crate::downloads::{Downloads, NotBrought};
use crate::engine::InferenceEngine;
use crate::grpc::{self, GrpcSettings};
use crate::http::{HttpSettings, Server, Services, ShownSetting};
use crate::hub::{Hub, HubError, Source};
use crate::jobs::Jobs;
use crate::models::{ChildError, ModelManager, StoreError, StoreLock, TrialLoad, answer_trial};
use crate::optimize::Optimizer;
use crate::pipelines::Pool;
use crate::runtime::onnx::{LibraryError, OnnxRuntime, set_up_allocator};
use crate::tasks::{Tasks, cores};
use crate::telemetry::trace::{TraceError, start_tracing};
use crate::telemetry::{Stats, tell_left_out};
use crate::tls::{Certificate, TlsError};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("cannot listen on {address}: {source}; is another server running there? choose another with --listen")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error(
        "cannot listen on {address} for gRPC: {source}; is another server running there? choose another with --grpc, or --grpc off"
    )]
    ListenGrpc { address: std::net::SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("[hub]: {0}")]
    Hub(#[from] HubError),
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Start(#[from] NotBrought),
    #[error(transparent)]
    Trial(#[from] ChildError),
    #[error("the async runtime or its signals could not be set up: {0}")]
    Runtime(#[from] std::io::Error),
}

/// How long the last spans may take on their way to the collector: one that is gone must not hold the exit.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Runs the server until SIGTERM or SIGINT, then drains it. A second signal ends the process at once.
///
/// # Errors
/// Where ONNX Runtime's library is missing or the address is taken.
pub fn serve(config: Config) -> Result<(), AppError> {
    let runtime = async_runtime()?;
    let exporter = {
        let _inside = runtime.enter();
        start_tracing(&config.trace)?
    };
    let result = runtime.block_on(run(config));
    if let Some(exporter) = exporter {
        exporter.stop(if matches!(result, Ok(Stop::AtOnce)) { Duration::ZERO } else { LAST_SPANS });
    }
    // A run that ignores its stop signal (one long operator) must not hold the exit.
    runtime.shutdown_background();
    result.map(drop)
}

/// How serving came to its end.
enum Stop {
    Drained,
    /// By a second signal.
    AtOnce,
}

/// Loads the files that a server names on standard input, and says on standard output whether that went well: for a server that
/// does not load files which another process has not loaded before it.
///
/// # Errors
/// Where nobody asks, or takes the answer.
pub fn try_load() -> Result<(), AppError> {
    Ok(answer_trial(&Tasks::new(), OnnxRuntime::open)?)
}

/// An engine without doors, for the commands that need no server. Nothing is loaded until asked.
pub struct Offline {
    pub engine: InferenceEngine,
    pub downloads: Downloads,
    pub optimizer: Optimizer,
    pub runtime: tokio::runtime::Runtime,
}

/// Opens the store of `config` without serving it.
///
/// # Errors
/// Where ONNX Runtime's library is missing.
pub fn open_store(config: &Config) -> Result<Offline, AppError> {
    let runtime = async_runtime()?;
    // Whoever has the command line may name any file.
    let mut config = config.clone();
    config.hub.allowed_paths.clear();
    let Rooms { engine, downloads, optimizer, .. } = runtime.block_on(open_rooms(&config))?;
    Ok(Offline { engine, downloads, optimizer, runtime })
}

/// An engine with its REST door on a loopback port that the system chose, for measurements in one process.
pub struct Loopback {
    pub engine: InferenceEngine,
    pub runtime: tokio::runtime::Runtime,
    pub tasks: Tasks,
    pub address: SocketAddr,
}

/// Opens the store of `config` as [`open_store`] does, and serves it to this machine alone.
///
/// # Errors
/// Where ONNX Runtime's library is missing or no port is free.
pub fn open_loopback(config: &Config) -> Result<Loopback, AppError> {
    let runtime = async_runtime()?;
    let mut settings = config.http.clone();
    settings.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let (rooms, address) = runtime.block_on(async {
        let rooms = open_rooms(config).await?;
        // Nothing is read or written before a first job, and nobody sends one.
        let jobs = Jobs::new(config.jobs.clone(), &config.store.models_dir, rooms.tasks.clone());
        let services = rooms.services(Gate::none(rooms.tasks.clone()), jobs, &settings, None);
        let server = Server::bind(settings, services, rooms.tasks.clone())
            .map_err(|source| AppError::Listen { address: SocketAddr::from(([127, 0, 0, 1], 0)), source })?;
        let address = server.local_addr();
        rooms.tasks.spawn("serve", server.serve());
        Ok::<_, AppError>((rooms, address))
    })?;
    Ok(Loopback { engine: rooms.engine, runtime, tasks: rooms.tasks, address })
}

/// The rooms over a store from which nothing is loaded until asked.
async fn open_rooms(config: &Config) -> Result<Rooms, AppError> {
    let mut config = config.clone();
    config.store.autoload = false;
    config.store.poll_interval = None;
    // Files that crash the library end a command, and no server.
    config.store.trial_load = TrialLoad::Off;
    let rooms = Rooms::build(&config, Tasks::new())?;
    rooms.models.start().await;
    Ok(rooms)
}

fn async_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    set_up_allocator();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores().clamp(1, 8))
        .thread_name("async")
        .enable_all()
        .build()
}

struct Rooms {
    models: ModelManager,
    engine: InferenceEngine,
    downloads: Downloads,
    optimizer: Optimizer,
    tasks: Tasks,
}

impl Rooms {
    fn build(config: &Config, tasks: Tasks) -> Result<Rooms, AppError> {
        let runtime = Arc::new(OnnxRuntime::open()?);
        let models = ModelManager::new(
            runtime,
            tasks.clone(),
            config.store.clone(),
            config.models.clone(),
            config.pipelines.clone(),
            Stats::new(config.stats.window),
        );
        let engine = InferenceEngine::new(models.clone(), Pool::new(tasks.clone(), cores()), tasks.clone());
        let hub = Hub::new(config.hub.clone(), tasks.clone())?;
        let downloads = Downloads::new(hub, models.clone(), &config.store.models_dir, tasks.clone());
        let models_dir = &config.store.models_dir;
        let optimizer = Optimizer::new(engine.clone(), downloads.clone(), models_dir, tasks.clone());
        Ok(Rooms { models, engine, downloads, optimizer, tasks })
    }

    fn services(&self, auth: Gate, jobs: Jobs, http: &HttpSettings, tls: Option<Certificate>) -> Services {
        let (engine, downloads, optimizer) = (self.engine.clone(), self.downloads.clone(), self.optimizer.clone());
        let bodies = http.in_flight_bytes();
        Services { auth, engine, jobs, downloads, optimizer, bodies, tls }
    }
}

async fn run(mut config: Config) -> Result<Stop, AppError> {
    config.http.shown = shown(&config);
    let mut signals = Signals::new()?;
    // From here on a hangup ends nothing.
    let hangup = signal(SignalKind::hangup())?;
    let certificate = config.tls.clone().map(Certificate::open).transpose()?;
    // Two servers on one store would write over each other's files. The lock ends with the process.
    let _lock = StoreLock::acquire(&config.store.models_dir)?;
    let start_models = std::mem::take(&mut config.start_models);
    // Where folders are named for those who call, whoever starts the server may name others.
    if !config.hub.allowed_paths.is_empty() {
        config.hub.allowed_paths.extend(start_models.iter().filter_map(|model| match &model.request.source {
            Source::Local { path } => Some(path.clone()),
            _ => None,
        }));
    }
    let rooms = Rooms::build(&config, Tasks::new())?;
    rooms.downloads.await_all(&start_models);
    let (tasks, grace) = (rooms.tasks.clone(), config.http.shutdown_grace);
    let address = config.http.listen;
    let jobs = Jobs::new(config.jobs, &config.store.models_dir, tasks.clone());
    let auth = Gate::open(&config.auth, &config.store.models_dir, tasks.clone())?;
    let scheme = if certificate.is_some() { "https" } else { "http" };
    tasks.spawn("reload", reload_at_hangup(hangup, auth.clone(), certificate.clone(), tasks.clone()));
    if let Some(certificate) = certificate.clone() {
        tasks.spawn("the certificate's end", watch_certificate(certificate, tasks.clone()));
    }
    tasks.spawn("refusals in the log", tell_refusals(tasks.clone()));
    let services = rooms.services(auth.clone(), jobs, &config.http, certificate.clone());
    let server = Server::bind(config.http.clone(), services.clone(), tasks.clone())
        .map_err(|source| AppError::Listen { address, source })?;
    let grpc = bind_grpc(&config.http, config.grpc_listen, services, tasks.clone())?;
    announce(&format!("listening on {scheme}://{}", server.local_addr()));
    if let Some(grpc) = &grpc {
        announce(&format!("gRPC on {}", grpc.local_addr()));
    }
    let (models, downloads) = (rooms.models.clone(), rooms.downloads.clone());
    let starting = tasks.spawn("load models", async move {
        models.forget_overrides().await;
        models.keep_states().await;
        models.start().await;
        downloads.bring_all(start_models).await
    });
    let serving = tasks.spawn("serve", server.serve());
    let serving_grpc = grpc.map(|grpc| tasks.spawn("serve gRPC", grpc.serve()));

    let failed = async {
        match starting.await {
            Ok(Err(error)) => error,
            // It has served what it was to serve, or its panic is logged.
            Ok(Ok(())) | Err(_) => std::future::pending().await,
        }
    };
    let failed = tokio::select! {
        biased; // Whoever wants a stop gets one, whatever failed.
        () = signals.next() => None,
        error = failed => Some(error),
    };
    match &failed {
        None => tracing::info!("stopping: accepted requests are finished"),
        Some(error) => tracing::error!(%error, "stopping: the server cannot serve what it was told to start with"),
    }
    tasks.stop();
    let drain = async {
        for serving in [Some(serving), serving_grpc].into_iter().flatten() {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the server ended abnormally");
            }
        }
        rooms.models.close().await;
        tasks.close(grace).await
    };
    tokio::select! {
        biased;
        // Whoever signals twice does not want to wait.
        () = signals.next() => {
            tracing::warn!("stopped at once by a second signal");
            return Ok(Stop::AtOnce);
        }
        // The grace bounds the whole drain; what is left then is given up.
        ended = tokio::time::timeout(grace + Duration::from_secs(1), drain) => match ended {
            Ok(true) => tracing::info!("stopped"),
            Ok(false) | Err(_) => tracing::warn!("stopped with work left after shutdown_grace_ms"),
        },
    }
    tell_left_out(true);
    failed.map_or(Ok(Stop::Drained), |error| Err(error.into()))
}

/// Reads keys and certificate again whenever the process gets SIGHUP, until it stops.
async fn reload_at_hangup(mut hangup: Signal, auth: Gate, certificate: Option<Certificate>, tasks: Tasks) {
    loop {
        tokio::select! {
            biased;
            () = tasks.stopping().cancelled() => return,
            signal = hangup.recv() => if signal.is_none() { return },
        }
        let (auth, held) = (auth.clone(), certificate.clone());
        let read = held.clone();
        let reading = tasks.spawn_blocking(move || (auth.reload(), read.map(|certificate| certificate.reload())));
        let Ok((keys, certificate)) = reading.await else { return };
        match keys {
            Ok(Some(keys)) => tracing::info!(keys, "SIGHUP: the keys were read again: {keys} are in force"),
            Ok(None) => tracing::info!("SIGHUP: the keys file has not changed"),
            Err(error) => tracing::error!(%error, "SIGHUP: the keys stay as they were: {error}"),
        }
        if let (Some(held), Some(Ok(_))) = (&held, &certificate) {
            held.warn_of_expiry();
        }
        match certificate {
            Some(Ok(true)) => tracing::info!("SIGHUP: the certificate was read again and serves new connections"),
            Some(Ok(false)) => tracing::info!("SIGHUP: the certificate was read again and is the same"),
            Some(Err(error)) => tracing::error!(%error, "SIGHUP: the certificate stays as it was: {error}"),
            None => tracing::info!("SIGHUP: no certificate is configured, so there is none to read again"),
        }
    }
}

/// Warns at the start and once a day of a certificate that ends soon, until the process stops.
async fn watch_certificate(certificate: Certificate, tasks: Tasks) {
    let mut days = tokio::time::interval(Duration::from_secs(24 * 60 * 60));
    loop {
        tokio::select! {
            biased;
            () = tasks.stopping().cancelled() => return,
            _ = days.tick() => certificate.warn_of_expiry(),
        }
    }
}

/// Says once a second how many refusals have no line of their own in the log, until the process stops.
async fn tell_refusals(tasks: Tasks) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = tasks.stopping().cancelled() => return,
            _ = seconds.tick() => tell_left_out(false),
        }
    }
}

/// The configuration in words, for those who look at the dashboard.
fn shown(config: &Config) -> Arc<[ShownSetting]> {
    let entry = |entry: Effective| {
        let value = match entry.value {
            Setting::Unset => "(chosen for the machine)".to_owned(),
            value => value.to_string(),
        };
        let origin = match &entry.origin {
            // Where the file lies is of no use to who looks from elsewhere.
            Origin::File { path, line } => {
                format!("{}, line {line}", path.file_name().unwrap_or_default().to_string_lossy())
            }
            origin => origin.to_string(),
        };
        ShownSetting { key: entry.key, value, origin }
    };
    config.effective().into_iter().map(entry).collect()
}

/// The gRPC door, where there is one: bounded as the REST door is.
fn bind_grpc(
    http: &HttpSettings,
    listen: Option<SocketAddr>,
    services: Services,
    tasks: Tasks,
) -> Result<Option<grpc::Server>, AppError> {
    let Some(listen) = listen else { return Ok(None) };
    let settings = GrpcSettings {
        listen,
        request_timeout: http.request_timeout,
        max_body_bytes: http.max_body_bytes,
        body_read_timeout: http.limits.body_read_timeout,
        values: (&http.limits).into(),
        connections: http.connection_limits(),
    };
    let Services { auth, engine, bodies, tls, .. } = services;
    let services = grpc::Services { auth, engine, bodies, tls };
    grpc::Server::bind(settings, services, tasks)
        .map(Some)
        .map_err(|source| AppError::ListenGrpc { address: listen, source })
}

/// One line on stdout, for people and for programs that started us on port 0.
fn announce(what: &str) {
    let mut stdout = std::io::stdout().lock();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(stdout, "Ortus {} {what}", env!("CARGO_PKG_VERSION"));
    let _ = stdout.flush();
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
