//! What was done, by whom, from where and with which result: lines of JSON, appended and synced before the answer goes out.
//!
//! Bounded: a full file is kept under the next number, and the oldest of [`FILES_KEPT`] goes. Holds names and ids only: no key, no
//! path, nothing of what a request or an answer says.

use super::gate::Caller;
use crate::tasks::Tasks;
use crate::telemetry::{now_ms, rfc3339};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const FILE_BYTES_MAX: u64 = 8 << 20;
/// Full files beside the one that is written.
const FILES_KEPT: u32 = 4;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditEntry {
    /// The key's id, or `loopback` or `anonymous` where no key was asked for, or `none` where a wrong one came.
    pub key: String,
    /// Method and route template, such as `POST /v1/models/{name}/load`.
    pub action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Of the job or download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The other end of the connection; `None` where it is not known.
    pub from: Option<IpAddr>,
    /// Of the answer; 499 where the client did not wait for it.
    pub status: u16,
    pub request_id: String,
}

/// Who is said to have asked.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    Known(&'a Caller),
    /// No key was asked for.
    Anybody,
    /// The key was wrong.
    Refused,
}

impl Who<'_> {
    /// As an entry has it, of who came from this address.
    pub fn name(self, from: Option<IpAddr>) -> String {
        match self {
            Who::Known(caller) => caller.id.to_string(),
            Who::Anybody if from.is_some_and(|from| from.to_canonical().is_loopback()) => "loopback".to_owned(),
            Who::Anybody => "anonymous".to_owned(),
            Who::Refused => "none".to_owned(),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a AuditEntry,
}

/// The log of one store. Clones write the same.
#[derive(Clone)]
pub struct AuditLog(Arc<Inner>);

struct Inner {
    /// Tells `None` where nothing is written down.
    path: Option<PathBuf>,
    tasks: Tasks,
    file: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    file: Option<(File, u64)>,
    /// Said once until it works again.
    has_failed: bool,
}

impl AuditLog {
    pub(super) fn new(path: Option<PathBuf>, tasks: Tasks) -> AuditLog {
        AuditLog(Arc::new(Inner { path, tasks, file: Mutex::default() }))
    }

    /// Writes the entry down and returns when it is on disk. Where that is impossible, the log of the process says so: what was
    /// done is done.
    ///
    /// # Cancel safety
    /// The entry is written also where the future is dropped.
    pub fn write(&self, entry: AuditEntry) -> impl Future<Output = ()> + use<> {
        let inner = self.0.clone();
        let written = inner.path.is_some().then(|| self.0.tasks.spawn_blocking(move || inner.append(&entry)));
        async move {
            if let Some(written) = written {
                let _ = written.await;
            }
        }
    }
}

/// The entry of a request that is being answered: written when it is, or when nobody waits for that any more.
pub struct Audited {
    log: AuditLog,
    entry: Option<AuditEntry>,
}

impl Audited {
    pub fn begin(log: &AuditLog, entry: AuditEntry) -> Audited {
        Audited { log: log.clone(), entry: Some(entry) }
    }

    /// The request was answered so; `model` is what it was about, where its head does not say. Returns when the entry is on disk.
    pub async fn finish(mut self, status: u16, model: Option<String>) {
        let Some(mut entry) = self.entry.take() else { return };
        entry.status = status;
        entry.model = entry.model.or(model);
        self.log.write(entry).await;
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            // Whoever has left may have changed something all the same.
            drop(self.log.write(entry));
        }
    }
}

impl Inner {
    fn append(&self, entry: &AuditEntry) {
        let Some(path) = &self.path else { return };
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match append(path, &mut open.file, entry, FILE_BYTES_MAX) {
            Ok(()) => open.has_failed = false,
            Err(error) => {
                open.file = None;
                if !std::mem::replace(&mut open.has_failed, true) {
                    tracing::error!(%error, "the audit log cannot be written: {error}");
                }
            }
        }
    }
}

fn append(path: &Path, open: &mut Option<(File, u64)>, entry: &AuditEntry, bytes_max: u64) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Line { time: rfc3339(now_ms()), entry })?;
    line.push(b'\n');
    if open.as_ref().is_some_and(|(_, bytes)| *bytes >= bytes_max) {
        *open = None;
        rotate(path)?;
    }
    let (file, bytes) = match open {
        Some(open) => open,
        None => open.insert(begin(path)?),
    };
    // One write: a line is whole, or the process died in it.
    file.write_all(&line)?;
    file.sync_data()?;
    *bytes += line.len() as u64;
    Ok(())
}

fn begin(path: &Path) -> io::Result<(File, u64)> {
    if let Some(folder) = path.parent()
        && let Err(error) = fs::create_dir(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

fn rotate(path: &Path) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.to_owned().into_os_string();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    for number in (0..FILES_KEPT).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> AuditEntry {
        AuditEntry {
            key: key.to_owned(),
            action: "POST /v1/models/{name}/load".to_owned(),
            model: Some("m".to_owned()),
            version: None,
            id: None,
            from: Some(IpAddr::from([127, 0, 0, 1])),
            status: 200,
            request_id: "r".to_owned(),
        }
    }

    #[test]
    fn f91_a_line_says_who_did_what_when_and_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".ortus/audit.log");
        let mut open = None;
        append(&path, &mut open, &entry("a\n\u{1b}"), 1000).unwrap();
        append(&path, &mut None, &entry("b"), 1000).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["key"], "a\n\u{1b}");
        assert_eq!(
            (&lines[1]["model"], &lines[1]["from"], &lines[1]["status"]),
            (&"m".into(), &"127.0.0.1".into(), &200.into())
        );
        assert!(lines[1]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn the_files_are_bounded_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let mut open = None;
        for number in 0..20 {
            append(&path, &mut open, &entry(&number.to_string()), 1).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"]);
        assert!(fs::read_to_string(&path).unwrap().contains(r#""key":"19""#));
        assert!(fs::read_to_string(folder.path().join("audit.log.4")).unwrap().contains(r#""key":"15""#));
    }
}
