//! All downloads in memory. Pure: knows no clock, task or file.
//!
//! Invariants: what waits or runs is never forgotten; of what has ended, the newest are kept.

use super::DownloadError;
use crate::hub::{Phase, Progress, ProgressSnapshot};
use crate::models::{ModelName, Version};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Downloads that have ended and are still shown.
const ENDED_MAX: usize = 200;

/// Where a download is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Queued,
    Downloading,
    Verifying,
    Converting,
    Loading,
    Done,
    Failed,
    Cancelled,
}

impl State {
    pub fn is_final(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }
}

/// What was found when the version was tried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub task: String,
    /// What the task was told from.
    pub evidence: String,
    /// The inputs and outputs as text, one each.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub load_seconds: f64,
    /// Of one run with made-up input; `None` where none could be made up.
    pub run_seconds: Option<f64>,
    /// Why it did not run, where it did not: a graph may rightly refuse what is made up.
    pub run_problem: Option<String>,
}

/// One download as it is now.
#[derive(Debug, Clone)]
pub struct Download {
    pub id: Uuid,
    pub name: ModelName,
    /// The kind of its source.
    pub source: &'static str,
    pub model_id: String,
    pub revision: Option<String>,
    pub state: State,
    pub progress: ProgressSnapshot,
    /// A stable word and a sentence.
    pub error: Option<(&'static str, String)>,
    /// Of one that failed: whether the same order may succeed later.
    pub may_pass: bool,
    /// The version that it became.
    pub version: Option<Version>,
    /// Whether the store had exactly this already.
    pub unchanged: bool,
    pub report: Option<Report>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub finished_ms: Option<u64>,
}

/// What is kept of each.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) name: ModelName,
    pub(super) source: &'static str,
    pub(super) model_id: String,
    pub(super) revision: Option<String>,
    pub(super) state: State,
    pub(super) progress: Progress,
    pub(super) error: Option<(&'static str, String)>,
    pub(super) may_pass: bool,
    pub(super) version: Option<Version>,
    pub(super) unchanged: bool,
    pub(super) report: Option<Report>,
    pub(super) created_ms: u64,
    pub(super) finished_ms: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// By number, which counts up: the newest last.
    records: BTreeMap<u64, (Uuid, Record)>,
    next: u64,
}

impl Table {
    /// # Errors
    /// Where `active_max` wait or run already.
    pub(super) fn insert(&mut self, id: Uuid, record: Record, active_max: usize) -> Result<(), DownloadError> {
        let active = self.records.values().filter(|(_, record)| !record.state.is_final()).count();
        if active >= active_max {
            return Err(DownloadError::TooMany { limit: active_max });
        }
        self.records.insert(self.next, (id, record));
        self.next += 1;
        self.forget();
        Ok(())
    }

    /// The newest first.
    pub(super) fn list(&self) -> Vec<Download> {
        self.records.values().rev().map(|(id, record)| record.seen(*id)).collect()
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Download> {
        self.records.values().find(|(known, _)| *known == id).map(|(id, record)| record.seen(*id))
    }

    /// The download of a model that waits or runs.
    pub(super) fn active_of(&self, name: &ModelName) -> Option<Uuid> {
        let mut active = self.records.values().filter(|(_, record)| !record.state.is_final());
        active.find(|(_, record)| record.name == *name).map(|(id, _)| *id)
    }

    pub(super) fn edit<T>(&mut self, id: Uuid, edit: impl FnOnce(&mut Record) -> T) -> Option<T> {
        self.records.values_mut().find(|(known, _)| *known == id).map(|(_, record)| edit(record))
    }

    /// Removes what has ended.
    pub(super) fn remove_ended(&mut self, id: Uuid) -> bool {
        let ended = self.records.iter().find(|(_, (known, record))| *known == id && record.state.is_final());
        let number = ended.map(|(number, _)| *number);
        number.is_some_and(|number| self.records.remove(&number).is_some())
    }

    fn forget(&mut self) {
        let ended: Vec<u64> =
            self.records.iter().filter(|(_, (_, record))| record.state.is_final()).map(|(number, _)| *number).collect();
        for number in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            self.records.remove(number);
        }
    }
}

impl Record {
    fn seen(&self, id: Uuid) -> Download {
        let progress = self.progress.snapshot();
        // The transfers know what they do while the download does not say more.
        let state = match (self.state, progress.phase) {
            (State::Downloading, Phase::Verifying) => State::Verifying,
            (State::Downloading, Phase::Converting) => State::Converting,
            (state, _) => state,
        };
        Download {
            id,
            name: self.name.clone(),
            source: self.source,
            model_id: self.model_id.clone(),
            revision: self.revision.clone(),
            state,
            progress,
            error: self.error.clone(),
            may_pass: self.may_pass,
            version: self.version,
            unchanged: self.unchanged,
            report: self.report.clone(),
            created_ms: self.created_ms,
            finished_ms: self.finished_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, state: State) -> Record {
        Record {
            name: ModelName::parse(name).unwrap(),
            source: "url",
            model_id: String::new(),
            revision: None,
            state,
            progress: Progress::default(),
            error: None,
            may_pass: false,
            version: None,
            unchanged: false,
            report: None,
            created_ms: 0,
            finished_ms: None,
        }
    }

    #[test]
    fn what_runs_is_bounded_and_never_forgotten() {
        let mut table = Table::default();
        let first = Uuid::new_v4();
        table.insert(first, record("a", State::Downloading), 2).unwrap();
        for _ in 0..2 * ENDED_MAX {
            table.insert(Uuid::new_v4(), record("b", State::Done), 2).unwrap();
        }
        assert_eq!(table.list().len(), ENDED_MAX + 1);
        assert_eq!(table.list().last().unwrap().id, first);
        table.insert(Uuid::new_v4(), record("c", State::Queued), 2).unwrap();
        assert!(matches!(
            table.insert(Uuid::new_v4(), record("d", State::Queued), 2),
            Err(DownloadError::TooMany { limit: 2 })
        ));
        assert_eq!(table.active_of(&ModelName::parse("a").unwrap()), Some(first));
        assert_eq!(table.active_of(&ModelName::parse("b").unwrap()), None);
        assert!(!table.remove_ended(first), "it runs");
        table.edit(first, |record| record.state = State::Failed);
        assert!(table.remove_ended(first) && table.get(first).is_none());
    }

    #[test]
    fn the_phase_of_the_transfers_shows_while_they_run() {
        let mut table = Table::default();
        let id = Uuid::new_v4();
        table.insert(id, record("a", State::Downloading), 1).unwrap();
        table.edit(id, |record| record.progress.set_phase(Phase::Converting));
        assert_eq!(table.get(id).unwrap().state, State::Converting);
        table.edit(id, |record| record.state = State::Loading);
        assert_eq!(table.get(id).unwrap().state, State::Loading);
    }
}
