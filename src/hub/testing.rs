//! A server that behaves like a model hub with its CDN, and like what goes wrong with them. Knows nothing of the crate, so
//! that tests outside of it can include this file.
//!
//! Repositories have commits and branches; small files come from the hub after a relative redirect, large ones from the CDN
//! on another port, which refuses requests that carry a token. [`FakeHub::fault`] scripts what goes wrong for a path.

use serde_json::{Value, json};
use sha2::Digest;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Hub,
    Cdn,
}

/// What goes wrong with one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status and a short text.
    Status(u16),
    /// 429; `Retry-After` in seconds where there is one.
    TooMany(Option<u64>),
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// As [`Fault::Cut`], and the file has this content from then on.
    CutAndReplace(usize, Vec<u8>),
    /// Nothing more comes after so many bytes of the body, and the connection stays.
    Stall(usize),
    /// So many bytes at a time, with a pause between.
    Slow(usize, Duration),
    /// `Content-Length` says so many bytes more, or fewer, than come.
    WrongLength(i64),
    /// So many bytes more than the file has, which `Content-Length` counts.
    Longer(usize),
    /// No `Content-Length`: the body ends with the connection.
    NoLength,
    /// No `Content-Length` and no end.
    Endless,
    /// 200 and all of it where a range was asked for.
    IgnoreRange,
    /// The range, whatever `If-Range` says.
    IgnoreIfRange,
    /// 206 that begins so many bytes later than it was asked for, and says so.
    ShiftedRange(usize),
    NoEtag,
    /// This `ETag` instead of the file's, quotes included.
    Etag(String),
    /// The content's bytes, each changed; the size stays.
    WrongContent,
    /// 302 to here.
    Redirect(String),
    /// 302 to itself.
    RedirectLoop,
    /// A page for people, with status 200.
    Html,
    /// 400 MiB of zeros, compressed.
    GzipBomb,
    /// One more header.
    Header(&'static str, String),
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub side: Side,
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub status: u16,
    /// Bytes of the body that were written.
    pub sent: u64,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// A repository of the hub.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Commits, by their names.
    pub commits: BTreeMap<String, BTreeMap<String, RepositoryFile>>,
    /// Branches and tags, and the commits they stand for.
    pub refs: BTreeMap<String, String>,
    /// The token that is needed for its files.
    pub gated: Option<String>,
    /// The token that is needed to know of it.
    pub private: Option<String>,
    /// What stands beside `id`, `sha` and `siblings` in its description.
    pub info: Value,
}

/// A file of a commit.
#[derive(Debug, Clone)]
pub struct RepositoryFile {
    pub content: Arc<Vec<u8>>,
    /// Whether it lies at the CDN.
    pub lfs: bool,
}

/// The two servers; they end when this is dropped.
pub struct FakeHub {
    shared: Arc<Shared>,
    hub: SocketAddr,
    cdn: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
    cdn: String,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    /// Files at the CDN that belong to no repository, by path.
    files: HashMap<String, Arc<Vec<u8>>>,
    faults: Vec<Script>,
    log: Vec<Seen>,
    page: usize,
}

struct Script {
    side: Side,
    ending: String,
    left: usize,
    faults: Vec<Fault>,
}

impl FakeHub {
    pub fn start() -> FakeHub {
        let listen = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (hub, cdn) = (listen(), listen());
        let (hub_address, cdn_address) = (hub.local_addr().unwrap(), cdn.local_addr().unwrap());
        let state = Mutex::new(State { page: 1000, ..State::default() });
        let shared = Arc::new(Shared { state, stop: AtomicBool::new(false), cdn: format!("http://{cdn_address}") });
        for (side, listener) in [(Side::Hub, hub), (Side::Cdn, cdn)] {
            let shared = shared.clone();
            start(move || accept(side, &listener, &shared));
        }
        FakeHub { shared, hub: hub_address, cdn: cdn_address }
    }

    /// The hub's address, as `HF_ENDPOINT` has it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// `host:port` of the CDN.
    pub fn cdn_host(&self) -> String {
        self.cdn.to_string()
    }

    /// A URL at the CDN.
    pub fn cdn_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.cdn)
    }

    /// Adds files to the commit that `main` of the repository stands for; the repository is made where it is not there.
    /// Files with `true` lie at the CDN.
    pub fn add(&self, repository: &str, files: &[(&str, &[u8], bool)]) {
        self.edit(repository, |repository| {
            let commit = repository.refs.get("main").cloned().unwrap_or_default();
            let tree = repository.commits.entry(commit).or_default();
            for (path, content, lfs) in files {
                let content = Arc::new(content.to_vec());
                tree.insert((*path).to_owned(), RepositoryFile { content, lfs: *lfs });
            }
        });
    }

    /// Changes a repository, which is made where it is not there: one commit with no files, of which is `main`.
    pub fn edit(&self, repository: &str, change: impl FnOnce(&mut Repository)) {
        let mut state = self.shared.lock();
        let made = || {
            let commit = hex(&sha1::Sha1::digest(repository.as_bytes()));
            Repository {
                commits: [(commit.clone(), BTreeMap::new())].into(),
                refs: [("main".to_owned(), commit)].into(),
                gated: None,
                private: None,
                info: json!({}),
            }
        };
        change(state.repositories.entry(repository.to_owned()).or_insert_with(made));
    }

    /// The commit that `main` stands for.
    pub fn commit(&self, repository: &str) -> String {
        self.shared.lock().repositories[repository].refs["main"].clone()
    }

    /// Puts a file at the CDN that belongs to no repository; gives its URL.
    pub fn put(&self, path: &str, content: &[u8]) -> String {
        self.shared.lock().files.insert(path.to_owned(), Arc::new(content.to_vec()));
        self.cdn_url(path)
    }

    /// The next `times` answers of `side` to paths that end with `ending` have these faults; scripts for the same path
    /// follow each other.
    pub fn fault(&self, side: Side, ending: &str, times: usize, faults: &[Fault]) {
        let script = Script { side, ending: ending.to_owned(), left: times, faults: faults.to_vec() };
        self.shared.lock().faults.push(script);
    }

    /// How many files a page of a listing has.
    pub fn page(&self, files: usize) {
        self.shared.lock().page = files;
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Seen> {
        self.shared.lock().log.clone()
    }

    /// Those requests whose path ends so.
    pub fn seen(&self, side: Side, ending: &str) -> Vec<Seen> {
        self.log().into_iter().filter(|seen| seen.side == side && seen.path.ends_with(ending)).collect()
    }

    /// Bytes of bodies that the CDN wrote.
    pub fn cdn_sent(&self) -> u64 {
        self.log().iter().filter(|seen| seen.side == Side::Cdn).map(|seen| seen.sent).sum()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for address in [self.hub, self.cdn] {
            // Wakes the listener.
            drop(TcpStream::connect(address));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Git's name of a file's content.
pub fn git_oid(content: &[u8]) -> String {
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

pub fn sha256(content: &[u8]) -> String {
    hex(&sha2::Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[expect(clippy::disallowed_methods, reason = "a server of the tests, which ends with its value")]
fn start(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(work);
}

fn accept(side: Side, listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopped() {
            return;
        }
        let shared = shared.clone();
        start(move || {
            // An end of the connection is the client's right.
            let _ = serve(side, &stream, &shared);
        });
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    fn token(&self) -> Option<&str> {
        self.header("authorization").and_then(|value| value.strip_prefix("Bearer "))
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    content: Arc<Vec<u8>>,
    from: usize,
}

impl Answer {
    fn new(status: u16, content: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: Vec::new(), content: Arc::new(content.into()), from: 0 }
    }

    fn json(value: &Value) -> Answer {
        Answer::new(200, value.to_string()).with("content-type", "application/json; charset=utf-8")
    }

    fn error(status: u16, code: &str, message: &str) -> Answer {
        let body = json!({"error": message}).to_string();
        Answer::new(status, body).with("x-error-code", code).with("x-error-message", message)
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

fn serve(side: Side, stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut reader = BufReader::with_capacity(16 << 10, stream);
    loop {
        // Until a request comes, the connection ends or the server does.
        match reader.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if shared.stopped() {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        let Some(request) = read_head(&mut reader)? else { return Ok(()) };
        let faults = {
            let mut state = shared.lock();
            let script = state
                .faults
                .iter_mut()
                .find(|script| script.side == side && script.left > 0 && request.path.ends_with(&script.ending));
            script.map_or_else(Vec::new, |script| {
                script.left -= 1;
                script.faults.clone()
            })
        };
        let answer = answer(side, &request, &faults, shared);
        if !write(side, stream, request, answer, &faults, shared)? {
            return Ok(());
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(64 << 10).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut lines = lines.into_iter();
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let header = |line: String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: lines.filter_map(header).collect(),
    }))
}

fn answer(side: Side, request: &Request, faults: &[Fault], shared: &Shared) -> Answer {
    for fault in faults {
        match fault {
            Fault::Status(status) => return Answer::new(*status, "it went wrong"),
            Fault::TooMany(after) => {
                let answer = Answer::new(429, "too many requests");
                return match after {
                    Some(seconds) => answer.with("retry-after", seconds.to_string()),
                    None => answer,
                };
            }
            Fault::Redirect(url) => return Answer::new(302, "").with("location", url),
            Fault::RedirectLoop => return Answer::new(302, "").with("location", request.path.as_str()),
            Fault::Html => {
                let page = "<!DOCTYPE html><html><body>Please log in.</body></html>";
                return Answer::new(200, page).with("content-type", "text/html; charset=utf-8");
            }
            Fault::GzipBomb => {
                return Answer::new(200, bomb())
                    .with("content-type", "application/json")
                    .with("content-encoding", "gzip");
            }
            _ => {}
        }
    }
    match side {
        Side::Hub => from_hub(request, faults, shared),
        Side::Cdn => from_cdn(request, faults, shared),
    }
}

/// Members of a stream of gzip may follow each other: one is made and repeated.
fn bomb() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&vec![0; 1 << 20]).unwrap();
    encoder.finish().unwrap().repeat(400)
}

fn from_hub(request: &Request, faults: &[Fault], shared: &Shared) -> Answer {
    let state = shared.lock();
    let path = decode(&request.path);
    let path = path.trim_start_matches('/');
    let (api, rest) = match path.strip_prefix("api/models/") {
        Some(rest) => (true, rest),
        None => (false, path.strip_prefix("api/resolve-cache/models/").unwrap_or(path)),
    };
    let cached = !api && rest != path;
    // The longest name that fits: a repository may have no owner.
    let known = state.repositories.iter().filter(|(name, _)| {
        rest.strip_prefix(name.as_str()).is_some_and(|after| after.is_empty() || after.starts_with('/'))
    });
    let found = known.max_by_key(|(name, _)| name.len());
    let hidden =
        |repository: &Repository| repository.private.is_some() && repository.private.as_deref() != request.token();
    let Some((name, repository)) = found.filter(|(_, repository)| !hidden(repository)) else {
        return match request.token() {
            Some(_) => Answer::error(404, "RepoNotFound", "Repository not found"),
            None => Answer::error(401, "RepoNotFound", "Invalid username or password."),
        };
    };
    let rest = rest.get(name.len()..).unwrap_or_default().trim_start_matches('/');
    // Names of branches may have a slash: the longest that fits, as with names.
    let split = |rest: &str| -> Option<(String, String)> {
        let names = repository.refs.iter();
        let commits = repository.commits.keys().map(|commit| (commit, commit));
        let fits = names.chain(commits).filter_map(|(name, commit)| {
            let after = rest.strip_prefix(name.as_str())?;
            (after.is_empty() || after.starts_with('/'))
                .then(|| (name.len(), commit.clone(), after.trim_start_matches('/').to_owned()))
        });
        fits.max_by_key(|(length, ..)| *length).map(|(_, commit, after)| (commit, after))
    };
    let no_revision = || Answer::error(404, "RevisionNotFound", "Invalid rev id");
    if api {
        if let Some(rest) = rest.strip_prefix("tree/") {
            return split(rest).map_or_else(no_revision, |(commit, under)| {
                tree(request, name, &commit, &under, &repository.commits[&commit], state.page)
            });
        }
        let revision = if rest.is_empty() { "main" } else { rest.trim_start_matches("revision/") };
        return split(revision).map_or_else(no_revision, |(commit, _)| describe(name, &commit, repository));
    }
    let rest = if cached { rest } else { rest.trim_start_matches("resolve/") };
    let Some((commit, path)) = split(rest) else { return no_revision() };
    if repository.gated.is_some() && repository.gated.as_deref() != request.token() {
        let status = if request.token().is_some() { 403 } else { 401 };
        return Answer::error(status, "GatedRepo", "Access to this model is restricted.");
    }
    let Some(file) = repository.commits[&commit].get(&path) else {
        return Answer::error(404, "EntryNotFound", "Entry not found").with("x-repo-commit", commit);
    };
    if file.lfs {
        let url = format!("{}/repos/{name}/{commit}/{path}?X-Signature=abc", shared.cdn);
        return Answer::new(302, "")
            .with("location", url)
            .with("x-repo-commit", commit)
            .with("x-linked-size", file.content.len().to_string())
            .with("x-linked-etag", format!("\"{}\"", sha256(&file.content)));
    }
    if !cached {
        return Answer::new(307, "")
            .with("location", format!("/api/resolve-cache/models/{name}/{commit}/{path}"))
            .with("x-repo-commit", commit)
            .with("x-linked-size", file.content.len().to_string())
            .with("x-linked-etag", format!("\"{}\"", git_oid(&file.content)));
    }
    content(request, &file.content, &git_oid(&file.content), faults).with("x-repo-commit", commit)
}

fn describe(name: &str, commit: &str, repository: &Repository) -> Answer {
    let siblings: Vec<Value> = repository.commits[commit].keys().map(|path| json!({"rfilename": path})).collect();
    let mut value = json!({
        "id": name,
        "modelId": name,
        "sha": commit,
        "private": repository.private.is_some(),
        "gated": if repository.gated.is_some() { json!("manual") } else { json!(false) },
        "tags": [],
        "siblings": siblings,
    });
    for (key, more) in repository.info.as_object().into_iter().flatten() {
        value[key] = more.clone();
    }
    Answer::json(&value)
}

fn tree(
    request: &Request,
    name: &str,
    commit: &str,
    under: &str,
    files: &BTreeMap<String, RepositoryFile>,
    page: usize,
) -> Answer {
    let parameter = |key: &str| request.query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
    let start: usize = parameter("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut entries = Vec::new();
    let mut folders = std::collections::BTreeSet::new();
    for (path, file) in files {
        let Some(inside) = path.strip_prefix(under).map(|rest| rest.trim_start_matches('/')) else { continue };
        if let Some((folder, _)) = inside.rsplit_once('/') {
            folders.insert(folder.to_owned());
            if parameter("recursive") != Some("true") {
                continue;
            }
        }
        let mut entry =
            json!({"type": "file", "oid": git_oid(&file.content), "size": file.content.len(), "path": path});
        if file.lfs {
            entry["lfs"] = json!({"oid": sha256(&file.content), "size": file.content.len(), "pointerSize": 134});
            entry["oid"] = json!(git_oid(format!("pointer to {path}").as_bytes()));
        }
        entries.push(entry);
    }
    entries.extend(
        folders.into_iter().map(|path| json!({"type": "directory", "oid": "0".repeat(40), "size": 0, "path": path})),
    );
    let end = (start + page).min(entries.len());
    let more = end < entries.len();
    let answer = Answer::json(&Value::Array(entries.into_iter().skip(start).take(page).collect()));
    if !more {
        return answer;
    }
    let host = request.header("host").unwrap_or_default();
    let next = format!("<http://{host}/api/models/{name}/tree/{commit}?recursive=true&cursor={end}>; rel=\"next\"");
    answer.with("link", next)
}

fn from_cdn(request: &Request, faults: &[Fault], shared: &Shared) -> Answer {
    // As object stores do with a signed URL.
    if request.header("authorization").is_some() {
        return Answer::new(400, "only one authorization is allowed");
    }
    match shared.lock().stored(&decode(&request.path)) {
        Some(found) => content(request, &found, &sha256(&found), faults),
        None => Answer::new(404, "no such file"),
    }
}

impl State {
    /// What lies at the CDN.
    fn stored(&self, path: &str) -> Option<Arc<Vec<u8>>> {
        if let Some(found) = self.files.get(path) {
            return Some(found.clone());
        }
        let rest = path.strip_prefix("/repos/")?;
        self.repositories.iter().find_map(|(name, repository)| {
            let (commit, path) = rest.strip_prefix(name.as_str())?.strip_prefix('/')?.split_once('/')?;
            Some(repository.commits.get(commit)?.get(path)?.content.clone())
        })
    }

    /// The file of a path of the CDN has this content from now on.
    fn replace(&mut self, path: &str, content: Vec<u8>) {
        if let Some(found) = self.files.get_mut(path) {
            *found = Arc::new(content);
            return;
        }
        let Some(rest) = path.strip_prefix("/repos/") else { return };
        for (name, repository) in &mut self.repositories {
            let inside = rest.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('/'));
            let Some((commit, path)) = inside.and_then(|inside| inside.split_once('/')) else { continue };
            if let Some(file) = repository.commits.get_mut(commit).and_then(|tree| tree.get_mut(path)) {
                file.content = Arc::new(content);
                return;
            }
        }
    }
}

/// All of a file, or the range that was asked for.
fn content(request: &Request, content: &Arc<Vec<u8>>, hash: &str, faults: &[Fault]) -> Answer {
    let own = faults.iter().find_map(|fault| match fault {
        Fault::Etag(etag) => Some(etag.clone()),
        _ => None,
    });
    let etag = own.unwrap_or_else(|| format!("\"{hash}\""));
    let has = |fault: Fault| faults.contains(&fault);
    let condition = request.header("if-range").is_none_or(|wanted| wanted == etag || has(Fault::IgnoreIfRange));
    let range = request.header("range").filter(|_| condition && !has(Fault::IgnoreRange));
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let length = content.len();
    let with_etag = |answer: Answer| if has(Fault::NoEtag) { answer } else { answer.with("etag", etag.as_str()) };
    let mut content = content.clone();
    if has(Fault::WrongContent) {
        content = Arc::new(content.iter().map(|byte| byte ^ 0x55).collect());
    }
    for fault in faults {
        if let Fault::Longer(more) = fault {
            Arc::make_mut(&mut content).extend(std::iter::repeat_n(0, *more));
        }
    }
    let kind = |answer: Answer| answer.with("content-type", "application/octet-stream").with("accept-ranges", "bytes");
    let (status, from) = match range {
        Some(from) if from >= length => {
            return with_etag(Answer::new(416, "").with("content-range", format!("bytes */{length}")));
        }
        Some(from) => (206, from),
        None => (200, 0),
    };
    let shift = faults.iter().find_map(|fault| match fault {
        Fault::ShiftedRange(by) => Some(*by),
        _ => None,
    });
    let from = if status == 206 { from + shift.unwrap_or(0) } else { from };
    let mut answer = Answer { status, headers: Vec::new(), content, from };
    if status == 206 {
        answer = answer.with("content-range", format!("bytes {from}-{}/{length}", length - 1));
    }
    kind(with_etag(answer))
}

/// Gives whether the connection may be used again.
fn write(
    side: Side,
    mut stream: &TcpStream,
    request: Request,
    answer: Answer,
    faults: &[Fault],
    shared: &Shared,
) -> io::Result<bool> {
    let body = answer.content.get(answer.from..).unwrap_or_default();
    let endless = faults.contains(&Fault::Endless);
    let no_length = endless || faults.contains(&Fault::NoLength);
    let mut length = i64::try_from(body.len()).unwrap();
    let mut cut = None;
    let mut stall = None;
    let mut slow = (64 << 10, Duration::ZERO);
    let mut head = format!("HTTP/1.1 {} Said\r\n", answer.status);
    for fault in faults {
        match fault {
            Fault::WrongLength(more) => length += more,
            Fault::Cut(after) | Fault::CutAndReplace(after, _) => cut = Some(*after),
            Fault::Stall(after) => stall = Some(*after),
            Fault::Slow(bytes, pause) => slow = (*bytes, *pause),
            Fault::Header(name, value) => head.push_str(&format!("{name}: {value}\r\n")),
            _ => {}
        }
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if no_length {
        head.push_str("connection: close\r\n");
    } else {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head.push_str("\r\n");
    let index = {
        let mut state = shared.lock();
        let Request { method, path, query, headers } = request;
        let is_head = method == "HEAD";
        state.log.push(Seen { side, method, path: path.clone(), query, headers, status: answer.status, sent: 0 });
        for fault in faults {
            if let Fault::CutAndReplace(_, content) = fault {
                state.replace(&decode(&path), content.clone());
            }
        }
        if is_head {
            drop(state);
            stream.write_all(head.as_bytes())?;
            return Ok(!no_length);
        }
        state.log.len() - 1
    };
    stream.write_all(head.as_bytes())?;
    let sent = |bytes: usize| shared.lock().log[index].sent += bytes as u64;
    let wanted = usize::try_from(length).unwrap_or(0);
    let end =
        cut.or(stall).unwrap_or(body.len()).min(body.len()).min(wanted.max(if no_length { body.len() } else { 0 }));
    for part in body.get(..end).unwrap_or_default().chunks(slow.0.max(1)) {
        stream.write_all(part)?;
        sent(part.len());
        if !slow.1.is_zero() {
            std::thread::sleep(slow.1);
        }
        if shared.stopped() {
            return Ok(false);
        }
    }
    if stall.is_some() {
        while !shared.stopped() {
            std::thread::sleep(Duration::from_millis(20));
        }
        return Ok(false);
    }
    let zeros = [0; 64 << 10];
    while endless && !shared.stopped() {
        stream.write_all(&zeros)?;
        sent(zeros.len());
    }
    // A cut body ends early, a body of the wrong length too, and one without a length with the connection.
    Ok(cut.is_none() && !no_length && wanted == body.len())
}

/// `%2F` and its like.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
            .flatten();
        out.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}
