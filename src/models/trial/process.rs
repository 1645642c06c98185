//! The process that tries files out, from the server's side: one request in, one line out, within limits of time and memory.

use super::{Answer, Request};
use rustix::process::Pid;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// How much of what it prints besides is kept for the log, in bytes.
const PRINTED_BYTES_MAX: u64 = 4 << 10;
/// It stands back behind requests.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// What it needs to find the libraries that this process has found; all else is nothing to it.
const VARIABLES: [&str; 2] = ["ORT_DYLIB_PATH", "LD_LIBRARY_PATH"];

pub(super) struct Limits {
    pub(super) time: Duration,
    /// Bytes of its own that it may write to; `None` = as many as the system gives.
    pub(super) memory: Option<u64>,
}

/// How it ended.
pub(super) enum Ended {
    Answered(Answer),
    /// Without an answer; how, in words.
    Crashed(String),
    TooLong,
    NotStarted(io::Error),
}

/// Has this program, in another process, load what is asked.
///
/// # Cancel safety
/// Dropping the future ends the process.
pub(super) async fn run(request: &Request, limits: &Limits) -> Ended {
    match tokio::time::timeout(limits.time, talk(request, limits)).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => Ended::NotStarted(error),
        Err(_) => Ended::TooLong,
    }
}

async fn talk(request: &Request, limits: &Limits) -> io::Result<Ended> {
    let line = format!("{}\n", serde_json::to_string(request)?);
    let mut child = start()?;
    // It does nothing before it has its request.
    restrict(&child, limits)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    // Fails where it has ended; then how it ended says more. Kept open: at its end the process ends.
    let _ = stdin.write_all(line.as_bytes()).await;
    let (said, printed) = tokio::join!(head(stdout, ANSWER_BYTES_MAX), head(stderr, PRINTED_BYTES_MAX));
    let status = child.wait().await?;
    if let Ok(answer) = serde_json::from_slice(&said) {
        return Ok(Ended::Answered(answer));
    }
    let output = String::from_utf8_lossy(&printed);
    tracing::warn!(%output, %status, "the process that tries a model's files out ended without an answer");
    Ok(Ended::Crashed(in_words(status)))
}

fn start() -> io::Result<Child> {
    // Also where the program's file was replaced since this process started.
    let program = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    Command::new(program)
        .arg0("ortus")
        .arg("try-load")
        .env_clear()
        .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A signal of the terminal is for the server, which ends it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

#[cfg(target_os = "linux")]
fn restrict(child: &Child, limits: &Limits) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, prlimit, setpriority_process};
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let set = |resource, most| {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(id, resource, limit).map(drop)
    };
    let memory = limits.memory.map_or(Ok(()), |most| set(Resource::Data, most));
    match memory.and_then(|()| set(Resource::Core, 0)).and_then(|()| setpriority_process(id, NICENESS)) {
        // It has ended already, and how is told by its status.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn restrict(_child: &Child, _limits: &Limits) -> io::Result<()> {
    Ok(())
}

/// Reads to the end, and keeps the first of it.
async fn head(mut from: impl AsyncRead + Unpin, most: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    // What cannot be read was not said.
    let _ = (&mut from).take(most).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    kept
}

fn in_words(status: ExitStatus) -> String {
    let name = match status.signal() {
        Some(4) => "SIGILL: an instruction that this processor does not have",
        Some(6) => "SIGABRT: it gave up, as where it gets no memory",
        Some(7) => "SIGBUS: a file that it reads was cut meanwhile",
        Some(8) => "SIGFPE: a division by zero",
        Some(9) => "SIGKILL: the system ends a process so where memory is short",
        Some(11) => "SIGSEGV: it reached for memory that is not its own, as where a graph is nested too deeply",
        Some(signal) => return format!("signal {signal}"),
        None => return format!("exit code {} without an answer", status.code().unwrap_or(-1)),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words() {
        assert!(in_words(ExitStatus::from_raw(11)).starts_with("SIGSEGV"));
        assert_eq!(in_words(ExitStatus::from_raw(31)), "signal 31");
        assert_eq!(in_words(ExitStatus::from_raw(3 << 8)), "exit code 3 without an answer");
    }

    #[tokio::test]
    async fn the_first_of_a_long_text_is_kept_and_the_rest_is_read() {
        let mut text = std::io::Cursor::new(vec![7; 100_000]);
        assert_eq!(head(&mut text, 10).await, [7; 10]);
        assert_eq!(text.position(), 100_000);
    }
}
