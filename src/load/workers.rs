//! Runs work on threads, each in a closed loop, and measures every piece of it.
//!
//! Invariants: a measurement ends when its time is over and each worker has finished what it had begun; the first error
//! ends it for all.

use super::client::{Client, Request};
use super::sample::{Sample, ticks};
use crate::tasks::Tasks;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Why a measurement has no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the connection to {address}: {source}")]
    Connection { address: SocketAddr, source: io::Error },
    #[error("no thread could be started: {0}")]
    Thread(io::Error),
    #[error("a worker ended abnormally")]
    Panicked,
    #[error("{0}")]
    Work(String),
}

/// One piece of work: does it and says whether it counts (`false`: it was refused), or why there is no going on.
pub type Work = Box<dyn FnMut() -> Result<bool, String> + Send>;

/// Runs each of `workers` on a thread of its own, again and again, for `duration` or until `stop` is set. Blocks.
///
/// # Errors
/// The first error of a worker.
pub fn measure(
    tasks: &Tasks,
    workers: Vec<Work>,
    duration: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<Sample, LoadError> {
    let (sender, results) = mpsc::channel();
    let failed = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    for (index, mut work) in workers.into_iter().enumerate() {
        let (sender, stop, failed_too) = (sender.clone(), stop.clone(), failed.clone());
        let run = move || {
            let result = run(&mut work, started, duration, &[&stop, &failed_too]);
            if result.is_err() {
                failed_too.store(true, Ordering::Relaxed);
            }
            // The receiver waits for all of us.
            let _ = sender.send(result);
        };
        if let Err(error) = tasks.thread(&format!("load {index}"), run) {
            failed.store(true, Ordering::Relaxed);
            return Err(LoadError::Thread(error));
        }
    }
    drop(sender);
    let (mut all, mut refused, mut ended, mut cpu) = (Vec::new(), 0, started, Some(Duration::ZERO));
    let mut error = None;
    // Ends when the last worker has dropped its sender.
    for result in results {
        match result {
            Ok(done) => {
                all.extend(done.ticks);
                refused += done.refused;
                ended = ended.max(done.ended);
                cpu = cpu.zip(done.cpu).map(|(all, one)| all + one);
            }
            Err(problem) => error = error.or(Some(LoadError::Work(problem))),
        }
    }
    match error {
        Some(error) => Err(error),
        None => Ok(Sample::of_ticks(all, refused, ended - started, cpu)),
    }
}

/// What one worker did.
struct Done {
    ticks: Vec<u32>,
    refused: u64,
    ended: Instant,
    cpu: Option<Duration>,
}

fn run(work: &mut Work, started: Instant, duration: Duration, stop: &[&AtomicBool]) -> Result<Done, String> {
    let cpu_before = thread_cpu();
    let mut done = Done { ticks: Vec::with_capacity(4096), refused: 0, ended: started, cpu: None };
    let mut begun = Instant::now();
    while begun - started < duration && !stop.iter().any(|stop| stop.load(Ordering::Relaxed)) {
        let counts = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut *work))
            .unwrap_or_else(|_| Err(LoadError::Panicked.to_string()))?;
        let now = Instant::now();
        if counts {
            done.ticks.push(ticks(now - begun));
        } else {
            done.refused += 1;
        }
        begun = now;
        done.ended = now;
    }
    done.cpu = cpu_before.zip(thread_cpu()).map(|(before, after)| after.saturating_sub(before));
    Ok(done)
}

/// Processor time of this thread so far, as Linux's scheduler keeps it.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Sends `requests` in turn over `concurrency` connections for `duration` or until `stop` is set. Blocks. An answer other
/// than 200 counts as refused.
///
/// # Errors
/// Where a connection cannot be made or ends.
pub fn measure_http(
    tasks: &Tasks,
    address: SocketAddr,
    requests: &Arc<[Request]>,
    concurrency: usize,
    duration: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<Sample, LoadError> {
    let next = Arc::new(AtomicUsize::new(0));
    let worker = |_| {
        let mut client = Client::connect(address).map_err(|source| LoadError::Connection { address, source })?;
        let (requests, next) = (requests.clone(), next.clone());
        Ok(Box::new(move || {
            let index = next.fetch_add(1, Ordering::Relaxed) % requests.len().max(1);
            let request = requests.get(index).ok_or("there is nothing to send")?;
            let answer = client.send(request).map_err(|error| format!("the connection to the server: {error}"))?;
            Ok(answer.status == 200)
        }) as Work)
    };
    let workers = (0..concurrency).map(worker).collect::<Result<Vec<Work>, LoadError>>()?;
    measure(tasks, workers, duration, stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn going() -> Arc<AtomicBool> {
        Arc::new(AtomicBool::new(false))
    }

    #[test]
    fn every_piece_of_work_is_counted_once() {
        let tasks = Tasks::new();
        let count = Arc::new(AtomicUsize::new(0));
        let worker = |_| {
            let count = count.clone();
            Box::new(move || Ok(!count.fetch_add(1, Ordering::SeqCst).is_multiple_of(3))) as Work
        };
        let sample = measure(&tasks, (0..4).map(worker).collect(), Duration::from_millis(20), &going()).unwrap();
        assert_eq!(sample.count() + sample.refused as usize, count.load(Ordering::SeqCst));
        assert!(sample.count() > 0 && sample.refused > 0 && sample.per_second() > 0.0);
    }

    #[test]
    fn the_first_error_ends_the_measurement_for_all() {
        let tasks = Tasks::new();
        let workers: Vec<Work> =
            vec![Box::new(|| Ok(true)), Box::new(|| Err("broken".to_owned())), Box::new(|| Ok(true))];
        let error = measure(&tasks, workers, Duration::from_secs(600), &going()).unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }

    #[test]
    fn a_worker_that_panics_ends_the_measurement() {
        let tasks = Tasks::new();
        let workers: Vec<Work> = vec![Box::new(|| Ok(true)), Box::new(|| panic!("meant to be"))];
        let error = measure(&tasks, workers, Duration::from_secs(600), &going()).unwrap_err();
        assert_eq!(error.to_string(), "a worker ended abnormally");
    }

    #[test]
    fn a_stop_ends_the_measurement_early() {
        let tasks = Tasks::new();
        let stop = going();
        let switch = stop.clone();
        let work: Work = Box::new(move || {
            switch.store(true, Ordering::Relaxed);
            Ok(true)
        });
        assert_eq!(measure(&tasks, vec![work], Duration::from_secs(600), &stop).unwrap().count(), 1);
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let requests: Arc<[Request]> = vec![Request::get("/")].into();
        let error = measure_http(&Tasks::new(), address, &requests, 2, Duration::from_secs(600), &going()).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
