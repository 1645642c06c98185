//! Jobs with a made-up executor: what happens to a job between its acceptance and its end, and over restarts.

use super::*;
use crate::tasks::Tasks;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Does what the body says: gives it back, waits for ever, is busy twice, panics, or fails.
#[derive(Default)]
struct Fake {
    runs: AtomicUsize,
}

impl Executor for Fake {
    fn is_ready(&self) -> bool {
        true
    }

    fn execute(&self, work: Work) -> BoxFuture<'static, Outcome> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        async move {
            work.progress.add_total(4);
            work.progress.add_done(1);
            match &work.body[..] {
                b"wait" => std::future::pending().await,
                b"busy" if run < 2 => Outcome::Busy,
                b"always busy" => Outcome::Busy,
                b"panic" => panic!("a job's panic"),
                b"fail" => Outcome::Failed(Failure { status: 422, problem: "{\"code\":\"bad\"}".into() }),
                body => {
                    let bytes = body.len() as u64;
                    Outcome::Done(
                        Output { media_type: "text/plain".into(), version: "1".into(), bytes },
                        work.body.clone(),
                    )
                }
            }
        }
        .boxed()
    }

    fn failure(&self, _: Uuid, _: &JobRequest, error: &JobError) -> Failure {
        Failure { status: 500, problem: format!("{error:?}") }
    }
}

struct House {
    jobs: Jobs,
    tasks: Tasks,
    fake: Arc<Fake>,
}

fn settings() -> JobSettings {
    JobSettings { jobs_at_once: 1, ..JobSettings::default() }
}

fn house(store: &Path, settings: JobSettings) -> House {
    let (tasks, fake) = (Tasks::new(), Arc::new(Fake::default()));
    let jobs = Jobs::new(settings, store, tasks.clone());
    jobs.start(fake.clone());
    House { jobs, tasks, fake }
}

impl House {
    async fn submit(&self, body: impl Into<Bytes>) -> Uuid {
        self.try_submit(body).await.unwrap().id
    }

    async fn try_submit(&self, body: impl Into<Bytes>) -> Result<Job, JobError> {
        let request = JobRequest {
            kind: Kind::Predict,
            model: "m".into(),
            version: None,
            request_id: "r".into(),
            content_type: None,
            accept: vec![],
            query: vec![],
        };
        self.jobs.submit(request, body.into()).await
    }

    /// Waits until the job is in this state.
    async fn wait(&self, id: Uuid, status: Status) -> Job {
        let waiting = async {
            let mut changes = self.jobs.watch(id).await.unwrap();
            loop {
                let job = self.jobs.get(id).await.unwrap();
                if job.state.status() == status {
                    return job;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap()
    }

    async fn stop(self) {
        assert!(self.tasks.close(Duration::from_secs(20)).await, "a task did not end");
    }
}

#[tokio::test]
async fn a_job_runs_and_keeps_its_result() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), settings());
    for size in [0, 3, 1 << 20] {
        let body = Bytes::from(vec![b'x'; size]);
        let id = house.submit(body.clone()).await;
        let job = house.wait(id, Status::Succeeded).await;
        assert_eq!((job.done, job.total), (4, 4));
        assert!(job.started_ms >= Some(job.created_ms) && job.finished_ms >= job.started_ms);
        let (output, bytes) = house.jobs.result(id).await.unwrap().unwrap();
        assert_eq!((output.media_type.as_str(), bytes), ("text/plain", body));
    }
    house.stop().await;
}

#[tokio::test]
async fn a_busy_model_is_waited_for_until_the_timeout() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), JobSettings { timeout: Duration::from_secs(2), ..settings() });
    let busy = house.submit("busy").await;
    let never = house.submit("always busy").await;
    let other = house.submit("other").await;
    house.wait(other, Status::Succeeded).await;
    house.wait(busy, Status::Succeeded).await;
    let job = house.wait(never, Status::Failed).await;
    assert_eq!(job.state, State::Failed { failure: Failure { status: 500, problem: "TimedOut".into() } });
    house.stop().await;
}

/// F84.
#[tokio::test]
async fn a_panic_or_a_failure_ends_its_job_alone() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), settings());
    let (panics, fails, good) = (house.submit("panic").await, house.submit("fail").await, house.submit("good").await);
    house.wait(good, Status::Succeeded).await;
    let failure = house.jobs.result(panics).await.unwrap().unwrap_err();
    assert!(failure.problem.contains("panicked"), "{failure:?}");
    assert_eq!(house.jobs.result(fails).await.unwrap().unwrap_err().status, 422);
    house.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_is_dropped_and_frees_its_slot() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), settings());
    let (running, queued) = (house.submit("wait").await, house.submit("queued").await);
    house.wait(running, Status::Running).await;
    let Deleted::Ended(job) = house.jobs.delete(queued).await.unwrap() else { panic!() };
    assert_eq!((job.state, job.started_ms), (State::Cancelled, None));
    let Deleted::Ended(job) = house.jobs.delete(running).await.unwrap() else { panic!() };
    assert_eq!((job.state, job.done, job.total), (State::Cancelled, 1, 4));
    assert_eq!(house.jobs.result(running).await, Err(JobError::Cancelled));
    let next = house.submit("next").await;
    house.wait(next, Status::Succeeded).await;
    for id in [running, queued, next] {
        assert_eq!(house.jobs.delete(id).await, Ok(Deleted::Removed));
        assert_eq!(house.jobs.delete(id).await, Err(JobError::NotFound));
    }
    assert_eq!(house.fake.runs.load(Ordering::SeqCst), 2, "the queued one never ran");
    house.stop().await;
}

#[tokio::test]
async fn bounds_are_kept() {
    let store = tempfile::tempdir().unwrap();
    let bounded = JobSettings { max_jobs: 3, max_bytes: 100_000, ..settings() };
    let house = house(store.path(), bounded);
    assert_eq!(house.try_submit(vec![0; 100_000]).await, Err(JobError::NoRoom { limit: 100_000 }));
    let ids = [house.submit("wait").await, house.submit("a").await, house.submit("b").await];
    assert!(matches!(house.try_submit("c").await, Err(JobError::TooMany { limit: 3, .. })));
    house.jobs.delete(ids[0]).await.unwrap();
    house.wait(ids[2], Status::Succeeded).await;
    house.jobs.delete(ids[0]).await.unwrap();
    house.submit("c").await;
    house.stop().await;
}

#[tokio::test]
async fn finished_jobs_are_removed_when_their_time_is_over() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), JobSettings { result_ttl: Duration::from_millis(50), ..settings() });
    let id = house.submit(vec![b'x'; 100_000]).await;
    let mut changes = house.jobs.watch(id).await.unwrap();
    let gone = async { while changes.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    assert_eq!(house.jobs.get(id).await, Err(JobError::NotFound));
    house.stop().await;
    assert_eq!(std::fs::read_dir(store.path().join(".ortus/jobs")).unwrap().count(), 1, "only the file is left");
}

#[tokio::test]
async fn a_stop_leaves_jobs_to_the_next_process() {
    let store = tempfile::tempdir().unwrap();
    let first = house(store.path(), settings());
    let done = first.submit("done").await;
    first.wait(done, Status::Succeeded).await;
    let running = first.submit("wait").await;
    first.wait(running, Status::Running).await;
    let queued = first.submit(vec![b'q'; 100_000]).await;
    let jobs = first.jobs.clone();
    first.stop().await;
    assert_eq!(jobs.check_room(1).await, Err(JobError::Stopping));

    // As often as one likes: a stop is no crash.
    for _ in 0..5 {
        let next = house(store.path(), settings());
        next.wait(running, Status::Running).await;
        assert_eq!(next.jobs.get(queued).await.unwrap().state, State::Queued);
        assert_eq!(next.jobs.result(done).await.unwrap().unwrap().1, "done");
        next.stop().await;
    }
    let last = house(store.path(), settings());
    last.wait(running, Status::Running).await;
    last.jobs.delete(running).await.unwrap();
    last.wait(queued, Status::Succeeded).await;
    assert_eq!(last.jobs.list(&Filter { limit: 9, ..Filter::default() }).await.jobs.len(), 3);
    last.stop().await;
}

#[tokio::test]
async fn a_job_that_ends_the_process_again_and_again_is_given_up() {
    let store = tempfile::tempdir().unwrap();
    let mut disk = disk::Disk::new(store.path());
    disk.open().unwrap();
    let request = JobRequest {
        kind: Kind::Predict,
        model: "m".into(),
        version: None,
        request_id: "r".into(),
        content_type: None,
        accept: vec![],
        query: vec![],
    };
    let record = job::Record { state: State::Running, attempts: 3, ..job::Record::new(1, request, 4) };
    let id = Uuid::new_v4();
    disk.add(id, &record, b"deal").unwrap();
    drop(disk);
    let house = house(store.path(), settings());
    let job = house.wait(id, Status::Failed).await;
    let State::Failed { failure } = job.state else { panic!() };
    assert!(failure.problem.contains("Crashed"), "{failure:?}");
    assert_eq!(house.fake.runs.load(Ordering::SeqCst), 0);
    house.stop().await;
}

/// The job's record as a process would find it if this one were killed now.
fn record_after_a_kill(store: &Path, id: Uuid) -> Option<job::Record> {
    let copy = tempfile::tempdir().unwrap();
    let folder = copy.path().join(".ortus/jobs");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(store.join(".ortus/jobs/jobs.redb"), folder.join("jobs.redb")).unwrap();
    let found = disk::Disk::new(copy.path()).open().unwrap();
    found.into_iter().find(|(found, _)| *found == id).map(|(_, record)| record)
}

#[tokio::test]
async fn a_job_that_waits_for_its_model_when_the_process_ends_has_not_ended_it() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), settings());
    let id = house.submit("always busy").await;
    house.wait(id, Status::Running).await;
    house.wait(id, Status::Queued).await;
    let waits = async {
        let is_no_attempt = |record: job::Record| record.attempts == 0 && record.started_ms.is_some();
        while !record_after_a_kill(store.path(), id).is_some_and(is_no_attempt) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits).await.unwrap();
    house.stop().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_written_takes_no_jobs_and_breaks_nothing() {
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join(".ortus"), "a file").unwrap();
    let house = house(store.path(), settings());
    assert_eq!(house.jobs.get(Uuid::new_v4()).await, Err(JobError::NotFound));
    assert!(matches!(house.try_submit("a").await, Err(JobError::Unavailable { .. })));
    // As soon as it can be, it does.
    std::fs::remove_file(store.path().join(".ortus")).unwrap();
    let id = house.submit("a").await;
    house.wait(id, Status::Succeeded).await;
    house.stop().await;
}

#[tokio::test]
async fn a_request_lost_on_disk_fails_its_job() {
    let store = tempfile::tempdir().unwrap();
    let house = house(store.path(), settings());
    let running = house.submit("wait").await;
    house.wait(running, Status::Running).await;
    let queued = house.submit(vec![b'q'; 100_000]).await;
    std::fs::remove_file(store.path().join(format!(".ortus/jobs/{}.request", queued.simple()))).unwrap();
    house.jobs.delete(running).await.unwrap();
    house.wait(queued, Status::Failed).await;
    house.stop().await;
}
