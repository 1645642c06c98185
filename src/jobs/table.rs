//! All jobs in memory: how many there may be, whose turn it is, which have expired. Pure: the clock is an argument.
//!
//! Invariants: jobs start in the order of their acceptance, except that one whose model is busy lets others pass until
//! its pause is over, and one of an exclusive kind while another of that kind runs; a finished job never changes again; the byte count is that of all records held.

use super::job::{Job, JobRequest, Kind, Record, State, Status, now_ms};
use super::{JobError, JobSettings, JobUsage};
use crate::tasks::Progress;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A result is kept at least so long after a restart: a clock that jumped must not take it from who waits for it.
const KEPT_AFTER_RESTART: Duration = Duration::from_secs(60);
/// The first pause of a job whose model is busy; each next one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Starts of a job that ended with the process.
pub(super) const ATTEMPTS_MAX: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: BTreeMap<u64, Entry>,
    by_id: HashMap<Uuid, u64>,
    bytes: u64,
    next_seq: u64,
    /// Whether what the disk held at the start is in here.
    loaded: bool,
}

#[derive(Debug)]
struct Entry {
    id: Uuid,
    record: Record,
    progress: Progress,
    /// Tells watchers to look again.
    changed: watch::Sender<()>,
    /// Fires when the job is cancelled.
    cancel: CancellationToken,
    /// When a started job is given up.
    deadline: Option<Instant>,
    /// Not before this time, since its model was busy.
    paused_until: Option<Instant>,
    pause: Duration,
    /// When it is removed, by the clock that does not jump and by the one for people.
    expires: Option<(Instant, u64)>,
}

/// A job that is to be run now.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) id: Uuid,
    pub(super) record: Record,
    pub(super) progress: Progress,
    pub(super) cancel: CancellationToken,
    pub(super) deadline: Instant,
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Next {
    Run(Claimed),
    /// Nobody's before this time.
    At(Instant),
    Nobody,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub kind: Option<Kind>,
    pub model: Option<String>,
    pub status: Option<Status>,
    /// Only jobs older than the one at this cursor.
    pub after: Option<u64>,
    pub limit: usize,
}

/// Jobs, the newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// The cursor of the next page, where there is one.
    pub next: Option<u64>,
}

impl Table {
    /// What is used of the bounds.
    pub(super) fn usage(&self) -> JobUsage {
        let running = self.jobs.values().filter(|entry| entry.record.state == State::Running).count();
        JobUsage { kept: self.jobs.len(), running, bytes: self.bytes }
    }

    /// Whether one more job of so many bytes may come.
    ///
    /// # Errors
    /// [`JobError::TooMany`] or [`JobError::NoRoom`].
    pub(super) fn check_room(&self, bytes: u64, settings: &JobSettings, now: Instant) -> Result<(), JobError> {
        if self.jobs.len() >= settings.max_jobs {
            let wait = self.next_expiry().map_or(PAUSE_MAX, |at| at.saturating_duration_since(now));
            let retry_after = wait.clamp(Duration::from_secs(1), Duration::from_secs(60));
            return Err(JobError::TooMany { limit: settings.max_jobs, retry_after });
        }
        if self.bytes.saturating_add(bytes) > settings.max_bytes {
            return Err(JobError::NoRoom { limit: settings.max_bytes });
        }
        Ok(())
    }

    /// Whether the job may become `record`.
    ///
    /// # Errors
    /// [`JobError::NoRoom`].
    pub(super) fn check_growth(&self, id: Uuid, record: &Record, settings: &JobSettings) -> Result<(), JobError> {
        let old = self.entry(id).map_or(0, |entry| entry.record.disk_bytes());
        if self.bytes.saturating_sub(old).saturating_add(record.disk_bytes()) > settings.max_bytes {
            return Err(JobError::NoRoom { limit: settings.max_bytes });
        }
        Ok(())
    }

    /// A record for a request that comes now.
    pub(super) fn record(&mut self, request: JobRequest, body_bytes: u64) -> Record {
        self.next_seq += 1;
        Record::new(self.next_seq, request, body_bytes)
    }

    pub(super) fn insert(&mut self, id: Uuid, record: Record) -> Job {
        self.bytes = self.bytes.saturating_add(record.disk_bytes());
        self.next_seq = self.next_seq.max(record.seq);
        let seq = record.seq;
        let entry = Entry {
            id,
            record,
            progress: Progress::new(),
            changed: watch::Sender::new(()),
            cancel: CancellationToken::new(),
            deadline: None,
            paused_until: None,
            pause: PAUSE_MIN,
            expires: None,
        };
        let job = entry.job();
        self.by_id.insert(id, seq);
        self.jobs.insert(seq, entry);
        job
    }

    /// Takes what the disk held at the start of the process. What was running is queued again.
    pub(super) fn adopt(&mut self, found: Vec<(Uuid, Record)>, settings: &JobSettings, now: Instant, wall: u64) {
        self.loaded = true;
        for (id, mut record) in found {
            if !record.state.status().is_final() {
                record.state = State::Queued;
            }
            let left = record.finished_ms.map(|finished| {
                let ttl = settings.result_ttl;
                // A clock that went back makes `finished` lie ahead: kept for its whole time once more, not longer.
                let age = Duration::from_millis(wall.saturating_sub(finished));
                ttl.saturating_sub(age).max(KEPT_AFTER_RESTART.min(ttl))
            });
            self.insert(id, record);
            if let Some(entry) = self.entry_mut(id) {
                entry.expires = left.map(|left| (now + left, wall.saturating_add(millis(left))));
            }
        }
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Job> {
        self.entry(id).map(|entry| entry.job())
    }

    pub(super) fn records(&self) -> Vec<(Uuid, Record)> {
        self.jobs.values().map(|entry| (entry.id, entry.record.clone())).collect()
    }

    pub(super) fn record_of(&self, id: Uuid) -> Option<Record> {
        self.entry(id).map(|entry| entry.record.clone())
    }

    pub(super) fn watch(&self, id: Uuid) -> Option<watch::Receiver<()>> {
        self.entry(id).map(|entry| entry.changed.subscribe())
    }

    pub(super) fn list(&self, filter: &Filter) -> Page {
        let older = self.jobs.range(..filter.after.unwrap_or(u64::MAX)).rev().map(|(_, entry)| entry);
        let mut wanted = older.filter(|entry| {
            filter.kind.is_none_or(|kind| entry.record.request.kind == kind)
                && filter.model.as_ref().is_none_or(|model| entry.record.request.model == *model)
                && filter.status.is_none_or(|status| entry.record.state.status() == status)
        });
        let page: Vec<&Entry> = wanted.by_ref().take(filter.limit).collect();
        let more = wanted.next().is_some();
        let next = page.last().filter(|_| more).map(|entry| entry.record.seq);
        Page { jobs: page.iter().map(|entry| entry.job()).collect(), next }
    }

    /// Takes the job whose turn it is; from then on it is running.
    pub(super) fn next(&mut self, now: Instant, settings: &JobSettings) -> Next {
        let mut earliest: Option<Instant> = None;
        let is_exclusive = |entry: &Entry| entry.record.request.kind.is_exclusive();
        let excludes = self.jobs.values().any(|entry| entry.record.state == State::Running && is_exclusive(entry));
        let may_run = |entry: &&mut Entry| entry.record.state == State::Queued && !(excludes && is_exclusive(entry));
        for entry in self.jobs.values_mut().filter(may_run) {
            if let Some(until) = entry.paused_until.filter(|until| *until > now) {
                earliest = Some(earliest.map_or(until, |earliest| earliest.min(until)));
                continue;
            }
            entry.record.attempts = entry.record.attempts.saturating_add(1);
            if entry.deadline.is_none() {
                entry.record.started_ms = Some(now_ms());
            }
            let deadline = *entry.deadline.get_or_insert(now + settings.timeout);
            entry.record.state = State::Running;
            // What an earlier attempt counted is worked on again.
            entry.progress = Progress::new();
            entry.changed.send_replace(());
            return Next::Run(Claimed {
                id: entry.id,
                record: entry.record.clone(),
                progress: entry.progress.clone(),
                cancel: entry.cancel.clone(),
                deadline,
            });
        }
        earliest.map_or(Next::Nobody, Next::At)
    }

    /// Puts a running job back, since its model is busy: that start is no attempt. Gives what its record becomes.
    pub(super) fn pause(&mut self, id: Uuid, now: Instant) -> Option<Record> {
        let entry = self.entry_mut(id).filter(|entry| entry.record.state == State::Running)?;
        let until = now + entry.pause;
        entry.paused_until = Some(entry.deadline.map_or(until, |deadline| until.min(deadline)));
        entry.pause = (entry.pause * 2).min(PAUSE_MAX);
        entry.record.state = State::Queued;
        entry.record.attempts = entry.record.attempts.saturating_sub(1);
        entry.changed.send_replace(());
        Some(entry.record.clone())
    }

    /// What the record of a job becomes that ends now; `None` where it is no more, or has ended already.
    pub(super) fn ended(&self, id: Uuid, state: State) -> Option<Record> {
        let entry = self.entry(id).filter(|entry| !entry.record.state.status().is_final())?;
        let (done, total) = (entry.progress.done(), entry.progress.total());
        let done = if state.status() == Status::Succeeded { total } else { done };
        Some(Record { state, finished_ms: Some(now_ms()), attempts: 0, done, total, ..entry.record.clone() })
    }

    /// Ends a job: `record` is from [`Table::ended`].
    pub(super) fn end(&mut self, id: Uuid, record: Record, settings: &JobSettings, now: Instant) {
        let Some(entry) = self.entry_mut(id) else { return };
        let (old, new) = (entry.record.disk_bytes(), record.disk_bytes());
        let expires_ms = record.finished_ms.unwrap_or_default().saturating_add(millis(settings.result_ttl));
        entry.expires = Some((now + settings.result_ttl, expires_ms));
        entry.record = record;
        // A run in progress is dropped; for one that has just ended this means nothing.
        entry.cancel.cancel();
        entry.changed.send_replace(());
        self.bytes = self.bytes.saturating_sub(old).saturating_add(new);
    }

    pub(super) fn remove(&mut self, id: Uuid) -> Option<Record> {
        let entry = self.jobs.remove(&self.by_id.remove(&id)?)?;
        self.bytes = self.bytes.saturating_sub(entry.record.disk_bytes());
        Some(entry.record)
    }

    /// The records of jobs that this process runs and will not end, for the next one: such a start is none that failed.
    pub(super) fn left(&self) -> Vec<(Uuid, Record)> {
        let left = self.jobs.values().filter(|entry| entry.record.state == State::Running).map(|entry| {
            let attempts = entry.record.attempts.saturating_sub(1);
            (entry.id, Record { attempts, ..entry.record.clone() })
        });
        left.collect()
    }

    pub(super) fn expired(&self, now: Instant) -> Vec<Uuid> {
        let expired = self.jobs.values().filter(|entry| entry.expires.is_some_and(|(at, _)| at <= now));
        expired.map(|entry| entry.id).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.jobs.values().filter_map(|entry| entry.expires.map(|(at, _)| at)).min()
    }

    fn entry(&self, id: Uuid) -> Option<&Entry> {
        self.jobs.get(self.by_id.get(&id)?)
    }

    fn entry_mut(&mut self, id: Uuid) -> Option<&mut Entry> {
        self.jobs.get_mut(self.by_id.get(&id)?)
    }
}

impl Entry {
    fn job(&self) -> Job {
        let record = &self.record;
        let running = record.state == State::Running;
        Job {
            id: self.id,
            request: record.request.clone(),
            state: record.state.clone(),
            created_ms: record.created_ms,
            started_ms: record.started_ms,
            finished_ms: record.finished_ms,
            expires_ms: self.expires.map(|(_, ms)| ms),
            done: if running { self.progress.done() } else { record.done },
            total: if running { self.progress.total() } else { record.total },
        }
    }
}

impl Claimed {
    /// The request as the executor takes it.
    pub(super) fn request(&self) -> Arc<JobRequest> {
        self.record.request.clone()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{Failure, Output};
    use proptest::prelude::*;

    fn request(model: &str) -> JobRequest {
        JobRequest {
            kind: Kind::Predict,
            model: model.into(),
            version: None,
            request_id: "r".into(),
            content_type: None,
            accept: vec![],
            query: vec![],
        }
    }

    fn settings() -> JobSettings {
        JobSettings { max_jobs: 8, max_bytes: 100_000, ..JobSettings::default() }
    }

    fn add(table: &mut Table, model: &str) -> Uuid {
        let (id, record) = (Uuid::new_v4(), table.record(request(model), 10));
        table.insert(id, record);
        id
    }

    fn run(table: &mut Table, now: Instant) -> Option<Uuid> {
        match table.next(now, &settings()) {
            Next::Run(claimed) => Some(claimed.id),
            Next::At(_) | Next::Nobody => None,
        }
    }

    fn end(table: &mut Table, id: Uuid, state: State, now: Instant) {
        let record = table.ended(id, state).unwrap();
        table.end(id, record, &settings(), now);
    }

    #[test]
    fn one_of_an_exclusive_kind_runs_at_a_time_and_lets_others_pass() {
        let (mut table, now) = (Table::default(), Instant::now());
        let mut add_kind = |kind| {
            let request = JobRequest { kind, ..request("a") };
            let (id, record) = (Uuid::new_v4(), table.record(request, 10));
            table.insert(id, record);
            id
        };
        let ids = [Kind::Optimize, Kind::Optimize, Kind::Predict].map(&mut add_kind);
        assert_eq!((run(&mut table, now), run(&mut table, now)), (Some(ids[0]), Some(ids[2])));
        assert_eq!(run(&mut table, now), None, "one measures already");
        let filter = Filter { kind: Some(Kind::Optimize), limit: 9, ..Filter::default() };
        assert_eq!(table.list(&filter).jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[1], ids[0]]);
        end(&mut table, ids[0], State::Cancelled, now);
        assert_eq!(run(&mut table, now), Some(ids[1]));
    }

    #[test]
    fn jobs_start_in_their_order_and_one_with_a_busy_model_lets_others_pass() {
        let (mut table, now) = (Table::default(), Instant::now());
        let ids = [add(&mut table, "a"), add(&mut table, "b"), add(&mut table, "c")];
        assert_eq!(run(&mut table, now), Some(ids[0]));
        table.pause(ids[0], now);
        assert_eq!((run(&mut table, now), run(&mut table, now)), (Some(ids[1]), Some(ids[2])));
        let Next::At(at) = table.next(now, &settings()) else { panic!("its pause is not over") };
        let Next::Run(claimed) = table.next(at, &settings()) else { panic!("its pause is over") };
        assert_eq!((claimed.id, claimed.record.attempts), (ids[0], 1), "a start that was put back is no attempt");
        assert_eq!(claimed.deadline, now + settings().timeout, "a pause does not move the deadline");
        // Pauses grow, and never reach beyond the deadline.
        let mut pauses = Vec::new();
        let mut at = at;
        for _ in 0..10 {
            table.pause(ids[0], at);
            let Next::At(next) = table.next(at, &settings()) else { panic!() };
            pauses.push(next - at);
            at = next;
            assert_eq!(run(&mut table, at), Some(ids[0]));
        }
        assert!(pauses.is_sorted() && pauses.last() == Some(&PAUSE_MAX), "{pauses:?}");
        table.pause(ids[0], claimed.deadline - Duration::from_millis(1));
        assert_eq!(run(&mut table, claimed.deadline), Some(ids[0]));
    }

    /// F75.
    #[test]
    fn too_many_jobs_or_bytes_are_refused() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert_eq!(table.check_room(100_001, &settings(), now), Err(JobError::NoRoom { limit: 100_000 }));
        let ids: Vec<Uuid> = (0..8).map(|_| add(&mut table, "m")).collect();
        assert!(matches!(table.check_room(1, &settings(), now), Err(JobError::TooMany { limit: 8, .. })));
        run(&mut table, now);
        end(&mut table, ids[0], State::Cancelled, now);
        assert!(table.check_room(1, &settings(), now).is_err(), "a finished job is kept and counts");
        assert_eq!(table.usage(), JobUsage { kept: 8, running: 0, bytes: table.bytes });
        table.remove(ids[0]);
        assert_eq!(table.check_room(1, &settings(), now), Ok(()));
        let output = Output { media_type: String::new(), version: String::new(), bytes: 99_000 };
        let record = table.ended(ids[1], State::Succeeded { output }).unwrap();
        assert!(table.check_growth(ids[1], &record, &settings()).is_err());
    }

    #[test]
    fn a_finished_job_never_changes() {
        let (mut table, now) = (Table::default(), Instant::now());
        let id = add(&mut table, "m");
        run(&mut table, now);
        end(&mut table, id, State::Cancelled, now);
        assert_eq!(table.ended(id, State::Failed { failure: Failure { status: 500, problem: "{}".into() } }), None);
        table.pause(id, now);
        assert_eq!(table.get(id).unwrap().state, State::Cancelled);
        assert_eq!(run(&mut table, now), None);
    }

    /// F75, F86.
    #[test]
    fn results_expire_by_the_clock_that_does_not_jump() {
        let (mut table, now) = (Table::default(), Instant::now());
        let ttl = settings().result_ttl;
        let id = add(&mut table, "m");
        assert_eq!(table.next_expiry(), None);
        end(&mut table, id, State::Cancelled, now);
        assert!(table.expired(now + ttl - Duration::from_millis(1)).is_empty());
        assert_eq!((table.next_expiry(), table.expired(now + ttl)), (Some(now + ttl), vec![id]));

        // After a restart the wall clock says how old a result is, within bounds.
        let wall = 1_000_000_000_000;
        let hour = 3_600_000;
        for (finished, left) in [
            (wall - hour / 2, ttl / 2),
            (wall - hour + 1, KEPT_AFTER_RESTART),
            (wall - 100_000 * hour, KEPT_AFTER_RESTART),
            (wall + 100_000 * hour, ttl),
        ] {
            let mut table = Table::default();
            let mut record = table.record(request("m"), 0);
            (record.state, record.finished_ms) = (State::Cancelled, Some(finished));
            table.adopt(vec![(id, record)], &settings(), now, wall);
            assert_eq!(table.next_expiry(), Some(now + left), "{finished}");
        }
    }

    #[test]
    fn what_ran_is_queued_again_after_a_restart() {
        let (mut table, now) = (Table::default(), Instant::now());
        let ids = [add(&mut table, "a"), add(&mut table, "b")];
        run(&mut table, now);
        let records = table.records();
        assert_eq!(records[0].1.attempts, 1);
        let mut next = Table::default();
        next.adopt(records, &settings(), now, now_ms());
        assert!(next.is_loaded());
        let Next::Run(claimed) = next.next(now, &settings()) else { panic!() };
        assert_eq!((claimed.id, claimed.record.attempts), (ids[0], 2));
        // A stop that was asked for is no failed start.
        assert_eq!(next.left().iter().map(|(id, record)| (*id, record.attempts)).collect::<Vec<_>>(), [(ids[0], 1)]);
        assert_eq!(add(&mut next, "c"), next.list(&Filter { limit: 1, ..Filter::default() }).jobs[0].id);
    }

    #[test]
    fn a_list_is_paged_from_the_newest() {
        let mut table = Table::default();
        let ids: Vec<Uuid> = (0..7).map(|index| add(&mut table, if index % 2 == 0 { "even" } else { "odd" })).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = table.list(&Filter { after, limit: 3, ..Filter::default() });
            seen.extend(page.jobs.iter().map(|job| job.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert!(seen.iter().eq(ids.iter().rev()));
        run(&mut table, Instant::now());
        let count = |model: Option<&str>, status| {
            let filter = Filter { kind: None, model: model.map(str::to_owned), status, after: None, limit: 100 };
            table.list(&filter).jobs.len()
        };
        assert_eq!(count(Some("even"), None), 4);
        assert_eq!(count(Some("even"), Some(Status::Queued)), 3);
        assert_eq!(count(None, Some(Status::Running)), 1);
        assert_eq!(count(Some("none"), None), 0);
    }

    proptest! {
        /// Whatever happens: the bytes are those of the records held, and each job starts only while it has not ended.
        #[test]
        fn the_count_of_bytes_is_that_of_the_records(steps in proptest::collection::vec((0..5_u8, 0..8_usize, 0..500_u64), 0..60)) {
            let (mut table, mut now, mut ids) = (Table::default(), Instant::now(), Vec::new());
            for (step, which, bytes) in steps {
                let id = ids.get(which).copied().unwrap_or_default();
                match step {
                    0 => {
                        let record = table.record(request("m"), bytes);
                        let id = Uuid::new_v4();
                        table.insert(id, record);
                        ids.push(id);
                    }
                    1 => drop(table.next(now, &settings())),
                    2 => drop(table.pause(id, now)),
                    3 => {
                        let output = Output { media_type: "x".into(), version: "1".into(), bytes };
                        if let Some(record) = table.ended(id, State::Succeeded { output }) {
                            table.end(id, record, &settings(), now);
                        }
                    }
                    _ => drop(table.remove(id)),
                }
                now += Duration::from_millis(bytes);
                prop_assert_eq!(table.bytes, table.records().iter().map(|(_, record)| record.disk_bytes()).sum::<u64>());
                prop_assert_eq!(table.by_id.len(), table.jobs.len());
            }
        }
    }
}
