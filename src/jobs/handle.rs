//! What doors call ([`Jobs`]): accept, look, wait for changes, fetch, cancel, remove.
//!
//! The table in memory is the truth, the disk follows it: a job is accepted only once it is on the disk; what happens to it
//! later counts also where the disk did not take it, and is written when the disk takes writes again. The locks: `disk` is
//! held across blocking work on threads for that, by one call at a time; `table` for look-ups only, never across an await.

use super::disk::{Disk, DiskError};
use super::job::{Record, now_ms};
use super::scheduler::{self, Executor};
use super::table::{ATTEMPTS_MAX, Claimed, Filter, Next, Page, Table};
use super::{Failure, Job, JobError, JobRequest, JobSettings, Output, State, Status};
use crate::tasks::Tasks;
use bytes::Bytes;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, watch};
use tokio::time::Instant;
use uuid::Uuid;

/// All jobs of one store. Clones are the same jobs.
#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

struct Inner {
    settings: JobSettings,
    tasks: Tasks,
    /// A std mutex: see the module.
    table: Mutex<Table>,
    /// An async mutex: who waits for it holds no thread.
    disk: Arc<tokio::sync::Mutex<Disk>>,
    /// Set once what an earlier process left has been read.
    recovered: OnceCell<()>,
    /// There is something to run.
    wake: Notify,
    /// There is something that will expire.
    expiry: Notify,
}

/// What jobs use of their bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobUsage {
    /// Beside [`JobSettings::max_jobs`].
    pub kept: usize,
    /// Beside [`JobSettings::jobs_at_once`].
    pub running: usize,
    /// Beside [`JobSettings::max_bytes`].
    pub bytes: u64,
}

/// What a delete did.
#[derive(Debug, Clone, PartialEq)]
pub enum Deleted {
    /// It was queued or running and is cancelled; or it ended in that very moment, as the job says.
    Ended(Job),
    /// It was finished and is gone.
    Removed,
}

impl Jobs {
    /// The jobs of the store at `models_dir`, in `.ortus/jobs`. Nothing is read before the first call and nothing is
    /// written before the first job.
    pub fn new(settings: JobSettings, models_dir: &Path, tasks: Tasks) -> Jobs {
        Jobs(Arc::new(Inner {
            settings,
            tasks,
            table: Mutex::default(),
            disk: Arc::new(tokio::sync::Mutex::new(Disk::new(models_dir))),
            recovered: OnceCell::new(),
            wake: Notify::new(),
            expiry: Notify::new(),
        }))
    }

    /// What is used of the bounds of [`Jobs::settings`].
    pub fn usage(&self) -> JobUsage {
        self.0.table().usage()
    }

    pub fn settings(&self) -> &JobSettings {
        &self.0.settings
    }

    /// Runs jobs with `executor` until the process is asked to stop, those that an earlier process left first.
    pub fn start(&self, executor: Arc<dyn Executor>) {
        let (tasks, runs, expires) = (&self.0.tasks, self.clone(), self.clone());
        tasks.spawn("run jobs", async move { scheduler::run(runs, executor).await });
        tasks.spawn("remove old jobs", async move { scheduler::expire(expires).await });
    }

    /// How long a job may take.
    pub fn timeout(&self) -> Duration {
        self.0.settings.timeout
    }

    /// Whether one more job with a body of `bytes` would be taken; asked before the body is read.
    ///
    /// # Errors
    /// [`JobError::TooMany`], [`JobError::NoRoom`], [`JobError::Stopping`].
    pub async fn check_room(&self, bytes: u64) -> Result<(), JobError> {
        if self.0.tasks.stopping().is_cancelled() {
            return Err(JobError::Stopping);
        }
        self.recover().await;
        self.0.table().check_room(bytes, &self.0.settings, Instant::now())
    }

    /// Takes a job: when this returns, it is on the disk and will run, also after the process was killed.
    ///
    /// # Errors
    /// As [`Jobs::check_room`]; [`JobError::DiskFull`] and [`JobError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave the job taken.
    pub async fn submit(&self, request: JobRequest, body: Bytes) -> Result<Job, JobError> {
        self.check_room(body.len() as u64).await?;
        self.on_disk(move |inner, disk| {
            inner.ready(disk)?;
            let record = {
                let mut table = inner.table();
                let record = table.record(request, body.len() as u64);
                table.check_room(record.disk_bytes(), &inner.settings, Instant::now())?;
                record
            };
            disk.check_free(record.disk_bytes())?;
            // Random, so that nobody finds another's job by counting.
            let id = Uuid::new_v4();
            disk.add(id, &record, &body)?;
            let job = inner.table().insert(id, record);
            inner.wake.notify_one();
            Ok(job)
        })
        .await?
    }

    /// # Errors
    /// [`JobError::NotFound`].
    pub async fn get(&self, id: Uuid) -> Result<Job, JobError> {
        self.recover().await;
        self.0.table().get(id).ok_or(JobError::NotFound)
    }

    pub async fn list(&self, filter: &Filter) -> Page {
        self.recover().await;
        self.0.table().list(filter)
    }

    /// Something that changes whenever the state of the job does, and closes when the job is removed.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub async fn watch(&self, id: Uuid) -> Result<watch::Receiver<()>, JobError> {
        self.recover().await;
        self.0.table().watch(id).ok_or(JobError::NotFound)
    }

    /// The result of a job that succeeded, or how it failed.
    ///
    /// # Errors
    /// [`JobError::NotFound`], [`JobError::NotFinished`], [`JobError::Cancelled`]; [`JobError::Internal`] where the disk
    /// does not give it.
    pub async fn result(&self, id: Uuid) -> Result<Result<(Output, Bytes), Failure>, JobError> {
        let job = self.get(id).await?;
        match job.state {
            State::Queued | State::Running => {
                Err(JobError::NotFinished { state: if job.state == State::Queued { "queued" } else { "running" } })
            }
            State::Cancelled => Err(JobError::Cancelled),
            State::Failed { failure } => Ok(Err(failure)),
            State::Succeeded { output } => {
                let bytes = output.bytes;
                let read = self
                    .on_disk(move |inner, disk| {
                        inner.ready(disk)?;
                        // It may have been removed while this call waited for its turn.
                        if inner.table().record_of(id).is_none() {
                            return Err(JobError::NotFound);
                        }
                        Ok(disk.result(id, bytes))
                    })
                    .await??;
                let content = read.map_err(|error| JobError::Internal { detail: error.to_string() })?;
                Ok(Ok((output, content)))
            }
        }
    }

    /// Cancels a job that has not ended, and removes one that has.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave it done.
    pub async fn delete(&self, id: Uuid) -> Result<Deleted, JobError> {
        let is_final = self.get(id).await?.state.status().is_final();
        self.on_disk(move |inner, disk| {
            if is_final {
                inner.table().remove(id).ok_or(JobError::NotFound)?;
                inner.follow(disk, |disk| disk.remove(&[id]));
                return Ok(Deleted::Removed);
            }
            let cancelled = inner.table().ended(id, State::Cancelled);
            if let Some(record) = cancelled {
                inner.end(disk, id, record, None);
            }
            inner.table().get(id).map(Deleted::Ended).ok_or(JobError::NotFound)
        })
        .await?
    }

    /// Reads what an earlier process left, once; later calls return at once.
    async fn recover(&self) {
        self.0
            .recovered
            .get_or_init(|| async {
                // What goes wrong is logged, and tried again with the next job.
                let _ = self
                    .on_disk(|inner, disk| {
                        if disk.exists() {
                            let _ = inner.ready(disk);
                        }
                    })
                    .await;
            })
            .await;
    }

    /// Runs `work` on the disk, off the async threads and after all that was asked before it. Runs to its end also where
    /// the caller goes away.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &mut Disk) -> T + Send + 'static,
    ) -> Result<T, JobError> {
        let inner = self.0.clone();
        let mut disk = self.0.disk.clone().lock_owned().await;
        let done = self.0.tasks.spawn_blocking(move || work(&inner, &mut disk)).await;
        done.map_err(|error| JobError::Internal { detail: format!("work on the jobs' disk: {error}") })
    }
}

/// What the scheduler needs.
impl Jobs {
    pub(super) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    pub(super) fn wake(&self) -> &Notify {
        &self.0.wake
    }

    pub(super) fn expiry(&self) -> &Notify {
        &self.0.expiry
    }

    pub(super) async fn recovered(&self) {
        self.recover().await;
    }

    pub(super) fn next(&self) -> Next {
        self.0.table().next(Instant::now(), &self.0.settings)
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.0.table().next_expiry()
    }

    /// Writes that the job is being run, and gives its request's body.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub(super) async fn begin(&self, claimed: &Claimed) -> Result<Bytes, JobError> {
        let (id, record) = (claimed.id, claimed.record.clone());
        if record.attempts > ATTEMPTS_MAX {
            return Err(JobError::Crashed { attempts: ATTEMPTS_MAX });
        }
        let read = self.on_disk(move |inner, disk| {
            inner.ready(disk)?;
            // A cancelled job has a later record by now.
            let is_running = inner.table().record_of(id).is_some_and(|record| record.state == State::Running);
            if is_running {
                inner.follow(disk, |disk| disk.update(id, &record));
                inner.ready(disk)?;
            }
            Ok::<_, JobError>(disk.request(id, record.body_bytes))
        });
        read.await??.map_err(|error| JobError::Internal { detail: format!("the job's request: {error}") })
    }

    /// Puts a job back whose model is busy. That is written, too: where the process ends while the job waits, it was not the
    /// job that ended it.
    pub(super) async fn pause(&self, id: Uuid) {
        let paused = self.on_disk(move |inner, disk| {
            let record = inner.table().pause(id, Instant::now());
            if let Some(record) = record {
                inner.follow(disk, |disk| disk.update(id, &record));
            }
        });
        log_failure(paused.await);
        // Whoever waits for the next job must learn of the end of the pause.
        self.0.wake.notify_one();
    }

    /// Ends a job with a result. Where that cannot be kept, the job fails as `failure` says.
    pub(super) async fn succeed(
        &self,
        id: Uuid,
        output: Output,
        result: Bytes,
        failure: impl FnOnce(&JobError) -> Failure + Send + 'static,
    ) {
        let ended = self.on_disk(move |inner, disk| {
            let record = inner.table().ended(id, State::Succeeded { output });
            let Some(record) = record else { return };
            let kept = inner.table().check_growth(id, &record, &inner.settings).and_then(|()| {
                inner.ready(disk)?;
                disk.check_free(record.disk_bytes())?;
                Ok(disk.finish(id, &record, Some(&result))?)
            });
            let error = match kept {
                Ok(()) => return inner.ended(id, record),
                Err(error) => error,
            };
            let failed = inner.table().ended(id, State::Failed { failure: failure(&error) });
            if let Some(record) = failed {
                inner.end(disk, id, record, None);
            }
        });
        log_failure(ended.await);
    }

    /// Ends a job without a result.
    pub(super) async fn fail(&self, id: Uuid, failure: Failure) {
        let ended = self.on_disk(move |inner, disk| {
            let record = inner.table().ended(id, State::Failed { failure });
            if let Some(record) = record {
                inner.end(disk, id, record, None);
            }
        });
        log_failure(ended.await);
    }

    pub(super) async fn remove_expired(&self) {
        let removed = self.on_disk(|inner, disk| {
            let expired = inner.table().expired(Instant::now());
            if expired.is_empty() {
                return;
            }
            for id in &expired {
                inner.table().remove(*id);
            }
            inner.follow(disk, |disk| disk.remove(&expired));
        });
        log_failure(removed.await);
    }

    /// Leaves what has not ended to the next process and closes the file, once nothing is run any more.
    pub(super) async fn close(&self) {
        let closed = self.on_disk(|inner, disk| {
            let left = inner.table().left();
            if !left.is_empty() {
                inner.follow(disk, |disk| disk.make_equal(&[], &left));
            }
            disk.close();
        });
        log_failure(closed.await);
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file where it is not open, and brings it and the table together: the first time the table takes what
    /// the file holds, later the file takes what the table holds.
    fn ready(&self, disk: &mut Disk) -> Result<(), JobError> {
        if disk.is_open() {
            return Ok(());
        }
        let opened = disk.open().and_then(|found| {
            let records = {
                let mut table = self.table();
                if !table.is_loaded() {
                    table.adopt(found, &self.settings, Instant::now(), now_ms());
                    self.wake.notify_one();
                    self.expiry.notify_one();
                    let records = table.records();
                    drop(table);
                    disk.remove_strangers(&records);
                    return Ok(());
                }
                table.records()
            };
            disk.make_equal(&found, &records)?;
            disk.remove_strangers(&records);
            Ok(())
        });
        if let Err(error) = &opened {
            tracing::error!(error = %error, "the jobs' file cannot be used: {error}");
        }
        Ok(opened?)
    }

    /// Writes what has happened in the table. Where the disk does not take it, opening the file again will.
    fn follow(&self, disk: &mut Disk, write: impl FnOnce(&mut Disk) -> Result<(), DiskError>) {
        // Opening the file writes the whole table: what has happened is then there already, and writing it twice is no harm.
        if self.ready(disk).is_err() {
            return;
        }
        if let Err(error) = write(disk) {
            tracing::warn!(error = %error, "a change of a job is not on the disk yet: {error}");
            disk.close();
        }
    }

    /// Ends a job without a result, in the table first.
    fn end(&self, disk: &mut Disk, id: Uuid, record: Record, result: Option<&[u8]>) {
        self.ended(id, record.clone());
        self.follow(disk, |disk| disk.finish(id, &record, result));
    }

    fn ended(&self, id: Uuid, record: Record) {
        let status: Status = record.state.status();
        self.table().end(id, record, &self.settings, Instant::now());
        self.expiry.notify_one();
        tracing::debug!(job = %id, status = status.name(), "job {id} {}", status.name());
    }
}

fn log_failure(result: Result<(), JobError>) {
    if let Err(JobError::Internal { detail }) = result {
        tracing::error!(detail, "a change of a job was not written: {detail}");
    }
}

impl From<DiskError> for JobError {
    fn from(error: DiskError) -> JobError {
        match error {
            DiskError::Full => JobError::DiskFull,
            DiskError::Failed(detail) => JobError::Unavailable { detail },
        }
    }
}
