//! Runs the exporter: one request in, lines of JSON out, within limits of time, memory and words.

use super::Room;
use crate::hub::HubError;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Longest line of its answer.
const LINE_MAX: u64 = 1 << 20;
/// Lines of its answer.
const LINES_MAX: usize = 1000;
/// How much of what its libraries print is kept for the log.
const TAIL: usize = 16 << 10;
/// The exporter stands back behind requests.
const NICENESS: i32 = 10;

pub(super) struct Limits {
    pub(super) time: Duration,
    /// Bytes that it may write to, of its own.
    pub(super) memory: u64,
    /// Of one file.
    pub(super) file_bytes: u64,
}

pub(super) enum Answer {
    Done(Value),
    Failed { code: String, error: String },
}

/// A process and all that it started, ended with this value.
struct Group {
    child: Child,
    id: Option<Pid>,
}

impl Group {
    fn end(&self) {
        if let Some(id) = self.id {
            // Fails where all of them have ended.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }

    /// Ends what is left of it; how the first process ended.
    async fn wait(mut self) -> Option<ExitStatus> {
        // Before it is waited for: after that its number may be another's.
        self.end();
        let status = self.child.wait().await.ok();
        self.id = None;
        status
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs the exporter with `python`.
///
/// # Errors
/// [`HubError::NoExporter`] where it cannot be started, [`HubError::Export`] where it gives no answer in time.
///
/// # Cancel safety
/// Dropping the future ends the process and all that it started.
pub(super) async fn run(python: &Path, room: &Room, request: &Value, limits: &Limits) -> Result<Answer, HubError> {
    let mut group = start(python, room)?;
    // It reads its request before it does anything else.
    restrict(&group, limits)?;
    let (stdin, stdout, stderr) = (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(HubError::NoExporter);
    };
    let request = request.to_string();
    let mut tail = Vec::new();
    let talk = async {
        let asked = async {
            // Fails where it has ended; then its answer says why.
            let _ = stdin.write_all(request.as_bytes()).await;
            drop(stdin);
        };
        let said = async {
            let (_, answer) = tokio::join!(asked, read_answer(stdout));
            answer
        };
        // What it prints is read until it has answered; whoever still holds the pipe is ended then.
        tokio::pin!(said);
        let printed = keep_tail(stderr, &mut tail);
        tokio::pin!(printed);
        tokio::select! {
            answer = &mut said => answer,
            () = &mut printed => said.await,
        }
    };
    let answer = match tokio::time::timeout(limits.time, talk).await {
        Ok(answer) => answer,
        Err(_) => Err(HubError::Export(format!(
            "the conversion took longer than {} s; raise [hub] export_timeout_s",
            limits.time.as_secs()
        ))),
    };
    let status = group.wait().await;
    let tail = String::from_utf8_lossy(&tail);
    match &answer {
        Ok(Some(Answer::Done(_))) => tracing::debug!(output = %tail, "the exporter made a model"),
        _ => tracing::warn!(output = %tail, ?status, "the exporter failed"),
    }
    answer?.ok_or_else(|| {
        HubError::Export("the exporter ended without an answer; its output is in the server's log".to_owned())
    })
}

fn start(python: &Path, room: &Room) -> Result<Group, HubError> {
    let mut command = Command::new(python);
    command
        .args(["-s", "-B", "-m", "ortus_exporter"])
        .current_dir(&room.code)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", &room.home)
        .env("XDG_CACHE_HOME", &room.home)
        .env("TORCH_HOME", &room.home)
        .env("HF_HOME", &room.home)
        .env("TMPDIR", &room.scratch)
        .env("PYTHONUNBUFFERED", "1")
        // The graphics cards are the server's.
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn().map_err(|error| {
        tracing::warn!(%error, "the exporter's interpreter could not be started");
        HubError::NoExporter
    })?;
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    Ok(Group { child, id })
}

#[cfg(target_os = "linux")]
fn restrict(group: &Group, limits: &Limits) -> Result<(), HubError> {
    use rustix::process::{Resource, Rlimit, prlimit, setpriority_process};
    let set = |resource, most| {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(group.id, resource, limit).map(drop)
    };
    // What it may write to, and not its address space, of which PyTorch reserves far more than it uses.
    let set = set(Resource::Data, limits.memory)
        .and_then(|()| set(Resource::Fsize, limits.file_bytes))
        .and_then(|()| set(Resource::Core, 0))
        .and_then(|()| setpriority_process(group.id, NICENESS));
    match set {
        Ok(()) => Ok(()),
        // It has ended already.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(HubError::Export(format!("the exporter's limits could not be set: {}", error.kind()))),
    }
}

#[cfg(not(target_os = "linux"))]
fn restrict(_group: &Group, _limits: &Limits) -> Result<(), HubError> {
    Ok(())
}

/// The last line that is an answer; `None` where it ended without one.
async fn read_answer(stdout: impl AsyncRead + Unpin) -> Result<Option<Answer>, HubError> {
    let mut lines = BufReader::new(stdout);
    let odd = || HubError::Export("the exporter's answer could not be read".to_owned());
    for _ in 0..LINES_MAX {
        let mut line = Vec::new();
        let count = (&mut lines).take(LINE_MAX).read_until(b'\n', &mut line).await.map_err(|_| odd())?;
        if count == 0 {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            return Err(odd());
        }
        let mut said: Value = serde_json::from_slice(&line).map_err(|_| odd())?;
        match said.get("ok").and_then(Value::as_bool) {
            Some(true) => {
                let report = said.get_mut("report").map(Value::take).filter(Value::is_object).ok_or_else(odd)?;
                return Ok(Some(Answer::Done(report)));
            }
            Some(false) => {
                let text = |key| said.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                return Ok(Some(Answer::Failed { code: text("code"), error: text("error") }));
            }
            // How far it is.
            None => tracing::debug!(phase = ?said.get("phase"), "the exporter goes on"),
        }
    }
    Err(odd())
}

/// Reads to the end, and keeps the last of it.
async fn keep_tail(mut from: impl AsyncRead + Unpin, tail: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        tail.extend(buffer.get(..count).unwrap_or_default());
        if tail.len() > TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }
}
