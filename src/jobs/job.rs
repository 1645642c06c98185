//! What is kept of a job: its request, its state, its times.
//!
//! Times are the wall clock's, in milliseconds since 1970, and are for people: what expires when is decided by `table`
//! with a clock that does not jump.

pub(super) use crate::telemetry::now_ms;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

/// What a job does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Predict,
    /// One at a time: it measures, and another would be measured along.
    Optimize,
}

impl Kind {
    /// Whether no two jobs of the kind run at once.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Kind::Optimize)
    }
}

/// A request as it came, without its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Records of before there were kinds are of predictions.
    #[serde(default)]
    pub kind: Kind,
    pub model: String,
    /// As the client named it; `None` = the default version when the job runs.
    pub version: Option<String>,
    /// The id of the request that brought the job.
    pub request_id: String,
    pub content_type: Option<String>,
    /// The values of `Accept`.
    pub accept: Vec<String>,
    pub query: Vec<(String, String)>,
}

impl JobRequest {
    fn text_bytes(&self) -> u64 {
        let texts = [&self.model, &self.request_id].into_iter().chain(&self.version).chain(&self.content_type);
        let texts = texts.chain(&self.accept).map(String::len).sum::<usize>();
        (texts + self.query.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()) as u64
    }
}

/// A result, without its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    pub media_type: String,
    /// The version of the model that answered.
    pub version: String,
    pub bytes: u64,
}

/// Why a job failed, in the door's own words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The status that the prediction would have been answered with.
    pub status: u16,
    /// The body of that answer, as JSON text.
    pub problem: String,
}

/// Where a job is in its life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    Queued,
    Running,
    Succeeded { output: Output },
    Failed { failure: Failure },
    Cancelled,
}

/// A [`State`] without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl State {
    pub fn status(&self) -> Status {
        match self {
            State::Queued => Status::Queued,
            State::Running => Status::Running,
            State::Succeeded { .. } => Status::Succeeded,
            State::Failed { .. } => Status::Failed,
            State::Cancelled => Status::Cancelled,
        }
    }
}

impl Status {
    pub const ALL: [Status; 5] =
        [Status::Queued, Status::Running, Status::Succeeded, Status::Failed, Status::Cancelled];

    /// The word for it in every answer.
    pub fn name(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed | Status::Cancelled)
    }
}

/// A job as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Order of acceptance.
    pub(super) seq: u64,
    pub(super) request: Arc<JobRequest>,
    #[serde(flatten)]
    pub(super) state: State,
    /// Starts that were not followed by an end: more than one means that the process ended meanwhile.
    pub(super) attempts: u32,
    pub(super) created_ms: u64,
    pub(super) started_ms: Option<u64>,
    pub(super) finished_ms: Option<u64>,
    pub(super) done: u64,
    pub(super) total: u64,
    /// The request's body, which is kept until the job is finished.
    pub(super) body_bytes: u64,
}

/// What a record costs besides its texts and blobs, generously.
const RECORD_BYTES: u64 = 1024;

impl Record {
    pub(super) fn new(seq: u64, request: JobRequest, body_bytes: u64) -> Record {
        Record {
            seq,
            request: Arc::new(request),
            state: State::Queued,
            attempts: 0,
            created_ms: now_ms(),
            started_ms: None,
            finished_ms: None,
            done: 0,
            total: 0,
            body_bytes,
        }
    }

    /// Bytes on disk, roughly and never too few.
    pub(super) fn disk_bytes(&self) -> u64 {
        let data = match &self.state {
            State::Queued | State::Running => self.body_bytes,
            State::Succeeded { output } => output.bytes,
            State::Failed { failure } => failure.problem.len() as u64,
            State::Cancelled => 0,
        };
        RECORD_BYTES.saturating_add(self.request.text_bytes()).saturating_add(data)
    }
}

/// A job as doors see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: Uuid,
    pub request: Arc<JobRequest>,
    pub state: State,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub finished_ms: Option<u64>,
    /// When a finished job is removed.
    pub expires_ms: Option<u64>,
    /// Items done of the items known so far.
    pub done: u64,
    pub total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_same_after_the_disk() {
        let request = JobRequest {
            kind: Kind::Optimize,
            model: "m".into(),
            version: Some("2".into()),
            request_id: "r".into(),
            content_type: None,
            accept: vec!["*/*".into()],
            query: vec![("top_k".into(), "3".into())],
        };
        let output = Output { media_type: "application/x-npy".into(), version: "1".into(), bytes: 7 };
        let failure = Failure { status: 422, problem: "{\"code\":\"x\"}".into() };
        for state in
            [State::Queued, State::Running, State::Succeeded { output }, State::Failed { failure }, State::Cancelled]
        {
            let record = Record { state, ..Record::new(3, request.clone(), 10) };
            let text = serde_json::to_vec(&record).unwrap();
            assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), record);
            assert!((text.len() as u64) < record.disk_bytes());
        }
    }

    #[test]
    fn a_record_of_before_there_were_kinds_is_a_prediction() {
        let text =
            r#"{"model": "m", "version": null, "request_id": "r", "content_type": null, "accept": [], "query": []}"#;
        assert_eq!(serde_json::from_str::<JobRequest>(text).unwrap().kind, Kind::Predict);
    }
}
