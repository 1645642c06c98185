//! The rounds: bare sessions, the engine, HTTP, bare sessions, …, so that all see the same machine.

use super::inputs::{Inputs, Values};
use crate::cli::args::BenchArgs;
use crate::cli::error::CliError;
use crate::engine::{BareSession, EngineError, ErrorKind, InferRequest, InferenceEngine, LoadedModel, RunOptions};
use crate::load::{Client, LoadError, Request, Sample, Summary, Work, measure, measure_http};
use crate::tasks::Tasks;
use crate::tensor::Value;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of a refusal's text that are shown.
const REFUSAL_BYTES_MAX: usize = 1 << 20;

/// What is measured, and for how long.
pub(super) struct Plan {
    pub(super) concurrency: Vec<usize>,
    /// Of one measurement.
    pub(super) duration: Duration,
    pub(super) rounds: usize,
}

impl Plan {
    pub(super) fn new(args: &BenchArgs) -> Plan {
        let mut concurrency: Vec<usize> = args.concurrency.iter().map(|clients| usize::from(*clients)).collect();
        concurrency.sort_unstable();
        concurrency.dedup();
        Plan { concurrency, duration: Duration::from_secs_f64(args.seconds), rounds: usize::from(args.rounds) }
    }

    /// How long it will take at least.
    pub(super) fn seconds(&self, inputs: &Inputs) -> f64 {
        let measurements = inputs.bare.len() + 2 * self.concurrency.len();
        self.duration.as_secs_f64() * (self.rounds * measurements) as f64
    }
}

/// Medians of the rounds.
pub(super) struct Results {
    /// By the rows of a run.
    pub(super) bare: Vec<(usize, Summary)>,
    /// By the number of clients.
    pub(super) engine: Vec<(usize, Summary)>,
    pub(super) http: Vec<(usize, Summary)>,
}

/// What is measured with.
pub(super) struct Measurement<'a> {
    pub(super) engine: &'a InferenceEngine,
    pub(super) model: &'a Arc<LoadedModel>,
    pub(super) tasks: &'a Tasks,
    /// Of the server in this process.
    pub(super) address: SocketAddr,
    pub(super) timeout: Duration,
    pub(super) stop: &'a Arc<AtomicBool>,
}

type Sessions = Vec<Arc<Mutex<BareSession>>>;

impl Measurement<'_> {
    /// Runs all rounds.
    ///
    /// # Errors
    /// Where the model refuses the inputs, or the server is not to be reached.
    pub(super) async fn run(&self, plan: &Plan, inputs: &Inputs) -> Result<Results, CliError> {
        let requests: Arc<[Request]> = [inputs.wire(self.model)].into();
        let values = inputs.named(&self.model.inputs);
        self.check_http(&requests).await?;
        let mut sessions: Sessions = Vec::new();
        for _ in 0..self.model.instances {
            sessions.push(Arc::new(Mutex::new(self.engine.bare_session(self.model).await?)));
        }
        let batches = self.batches_that_run(&sessions, inputs).await?;
        let mut bare: Vec<(usize, Vec<Sample>)> = batches.iter().map(|(rows, _)| (*rows, Vec::new())).collect();
        let start = || plan.concurrency.iter().map(|clients| (*clients, Vec::new())).collect::<Vec<(usize, Vec<_>)>>();
        let (mut engine, mut http) = (start(), start());
        for _ in 0..plan.rounds {
            for ((_, values), (_, samples)) in batches.iter().zip(&mut bare) {
                samples.push(self.bare(&sessions, values, plan.duration).await?);
            }
            for (clients, samples) in &mut engine {
                samples.push(self.in_process(&values, *clients, plan.duration).await?);
            }
            for (clients, samples) in &mut http {
                samples.push(self.over_http(&requests, *clients, plan.duration).await?);
            }
        }
        let medians = |all: Vec<(usize, Vec<Sample>)>| {
            all.into_iter().map(|(key, samples)| (key, Summary::of(&samples))).collect()
        };
        Ok(Results { bare: medians(bare), engine: medians(engine), http: medians(http) })
    }

    /// One request over HTTP, whose refusal is worth more than a count.
    async fn check_http(&self, requests: &Arc<[Request]>) -> Result<(), CliError> {
        let (address, requests) = (self.address, requests.clone());
        let failed = |source| CliError::Load(LoadError::Connection { address, source });
        let sent = self.tasks.spawn_blocking(move || {
            let Some(request) = requests.first() else { return Err(std::io::ErrorKind::InvalidInput.into()) };
            Client::connect(address)?.fetch(request, usize::MAX)
        });
        let (answer, body) = sent.await.map_err(|_| CliError::Load(LoadError::Panicked))?.map_err(failed)?;
        if answer.status == 200 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(body.get(..body.len().min(REFUSAL_BYTES_MAX)).unwrap_or_default());
        Err(CliError::Refused { status: answer.status, text: text.trim().to_owned() })
    }

    /// The batches that the graph takes: some declare a free dimension and refuse more than one row. The request's own
    /// must run.
    async fn batches_that_run(&self, sessions: &Sessions, inputs: &Inputs) -> Result<Vec<(usize, Values)>, CliError> {
        let (sessions, batches, rows) = (sessions.clone(), inputs.bare.clone(), inputs.rows);
        let tried = self.tasks.spawn_blocking(move || {
            let mut running = Vec::new();
            for (batch, values) in batches {
                let run = |session: &Arc<Mutex<BareSession>>| lock(session).run(&values);
                match sessions.iter().try_for_each(run) {
                    Ok(()) => running.push((batch, values)),
                    Err(error) if batch == rows => return Err(error),
                    Err(_) => {}
                }
            }
            Ok(running)
        });
        Ok(tried.await.map_err(|_| CliError::Load(LoadError::Panicked))??)
    }

    /// Every instance's worth of bare sessions at once, each on a thread of its own.
    async fn bare(&self, sessions: &Sessions, values: &Values, duration: Duration) -> Result<Sample, CliError> {
        // A GPU plans anew where the shape is another than before: once, not in what is measured.
        let (prepared, own) = (sessions.clone(), values.clone());
        let ran = self.tasks.spawn_blocking(move || prepared.iter().try_for_each(|session| lock(session).run(&own)));
        ran.await.map_err(|_| CliError::Load(LoadError::Panicked))??;
        let worker = |session: &Arc<Mutex<BareSession>>| {
            let (session, values) = (session.clone(), values.clone());
            Box::new(move || lock(&session).run(&values).map(|()| true).map_err(|error| error.to_string())) as Work
        };
        let workers = sessions.iter().map(worker).collect();
        self.blocking(move |tasks, stop| measure(tasks, workers, duration, stop)).await
    }

    async fn over_http(
        &self,
        requests: &Arc<[Request]>,
        clients: usize,
        duration: Duration,
    ) -> Result<Sample, CliError> {
        let (address, requests) = (self.address, requests.clone());
        self.blocking(move |tasks, stop| measure_http(tasks, address, &requests, clients, duration, stop)).await
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Tasks, &Arc<AtomicBool>) -> Result<Sample, LoadError> + Send + 'static,
    ) -> Result<Sample, CliError> {
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        let done = self.tasks.spawn_blocking(move || work(&tasks, &stop)).await;
        Ok(done.unwrap_or(Err(LoadError::Panicked))?)
    }

    /// Tasks that call the engine as a door does.
    async fn in_process(
        &self,
        values: &[(String, Value)],
        clients: usize,
        duration: Duration,
    ) -> Result<Sample, CliError> {
        let started = Instant::now();
        let client = |_| {
            let (engine, model, stop) = (self.engine.clone(), self.model.clone(), self.stop.clone());
            let (values, timeout) = (values.to_vec(), self.timeout);
            self.tasks.spawn("bench client", async move {
                let (mut latencies, mut refused) = (Vec::with_capacity(4096), 0);
                let mut begun = Instant::now();
                while begun - started < duration && !stop.load(Ordering::Relaxed) {
                    let result = infer(&engine, &model, values.clone(), timeout).await;
                    let now = Instant::now();
                    match result {
                        Ok(()) => latencies.push(now - begun),
                        Err(error) if error.kind() == ErrorKind::Overloaded => {
                            refused += 1;
                            // Refused at once: whoever tries again at once would keep the others from their turn.
                            tokio::task::yield_now().await;
                        }
                        Err(error) => return Err(error),
                    }
                    begun = now;
                }
                Ok((latencies, refused, begun))
            })
        };
        let running: Vec<_> = (0..clients).map(client).collect();
        let (mut all, mut refused, mut ended) = (Vec::new(), 0, started);
        for client in running {
            let (latencies, more, end) = client.await.map_err(|_| CliError::Load(LoadError::Panicked))??;
            all.extend(latencies);
            refused += more;
            ended = ended.max(end);
        }
        Ok(Sample::new(all, refused, ended - started))
    }
}

/// One request to the engine.
pub(super) async fn infer(
    engine: &InferenceEngine,
    model: &Arc<LoadedModel>,
    inputs: Vec<(String, Value)>,
    timeout: Duration,
) -> Result<(), EngineError> {
    let request = InferRequest { inputs, outputs: Vec::new(), options: RunOptions::until(Instant::now() + timeout) };
    std::hint::black_box(engine.infer(model, request).await?);
    Ok(())
}

/// Nobody else holds it: each session has one worker. What a panic left is as good as before, or says so in its next run.
fn lock(session: &Mutex<BareSession>) -> std::sync::MutexGuard<'_, BareSession> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
