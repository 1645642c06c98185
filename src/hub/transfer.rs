//! Gets files: several at once, resumed by `Range`, retried, verified, synced, then put into the version by rename.
//!
//! For a file there are, in `parts/`, while it is got: the bytes so far and what is known of them (`Sidecar`); and once it
//! is verified: what it was verified as (`Done`), so that a later try finds it complete. Bytes are written and hashed by two
//! blocking tasks, which hold the part's lock: a try that was dropped and the next one never write to the same part.
//!
//! Invariants: bytes of two states of a file are never joined (a strong `ETag` with `If-Range`, or a hash known before);
//! nothing comes under its final name that was not verified and synced.

use super::client::{Failed, Limits, Reply, Resume, Tries, page_for_people};
use super::work::{disk_error, hex, sha256_hex};
use super::{Hub, HubError, Progress, ProvenanceFile, WorkFolder};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes that are handed to the disk together, and how long they are kept until then.
const BATCH: usize = 1 << 20;
const BATCH_AGE: Duration = Duration::from_millis(200);
/// Batches that wait for the disk or the hash, for one file.
const BATCHES: usize = 4;
/// Bytes after which it is looked how much room the disk has.
const SPACE_STEP: u64 = 64 << 20;
/// How long a try that was dropped may take to let go of its files.
const LET_GO: Duration = Duration::from_millis(700);
/// Notes beside parts, in bytes.
const NOTE_MAX: u64 = 64 << 10;

/// A file to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) url: String,
    /// Where it goes in the version: relative, with `/`; checked by [`safe_path`].
    pub(super) path: String,
    /// What the source said before; checked where it is known.
    pub(super) bytes: Option<u64>,
    /// Lower-case hex of the content.
    pub(super) sha256: Option<String>,
    /// Git's name of the content (SHA-1 over `blob <length>\0` and it), lower-case hex.
    pub(super) git_oid: Option<String>,
}

/// What is known of a file before it is got: what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    bytes: Option<u64>,
    sha256: Option<String>,
    git_oid: Option<String>,
}

/// What is known of the bytes in a part.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sidecar {
    wanted: Identity,
    etag: Option<String>,
    bytes: Option<u64>,
    /// The system's run in which they were written: what was not synced may have been lost with it.
    boot: Option<String>,
}

/// What a complete file was verified as.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    wanted: Identity,
    etag: Option<String>,
    bytes: u64,
    sha256: String,
}

impl Identity {
    fn has_hash(&self) -> bool {
        self.sha256.is_some() || self.git_oid.is_some()
    }
}

/// Gets all files into `work.version()`; the token goes to the host of HuggingFace's endpoint alone.
///
/// # Errors
/// See [`HubError`]. What was got so far stays in `work`, but for what is wrong, and for want of space.
///
/// # Cancel safety
/// Dropping the future ends the calls at once and the work on files soon after.
pub(super) async fn get_all(
    hub: &Hub,
    wanted: Vec<Wanted>,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Vec<ProvenanceFile>, HubError> {
    get_into(hub, wanted, work, &work.version(), progress).await
}

/// As [`get_all`], into a folder of `work`.
pub(super) async fn get_into(
    hub: &Hub,
    wanted: Vec<Wanted>,
    work: &WorkFolder,
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<ProvenanceFile>, HubError> {
    let taken = check(&wanted, hub.0.settings.max_download_bytes)?;
    progress.add_files(wanted.iter().map(|file| (file.path.clone(), file.bytes)));
    let stop = CancellationToken::new();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (alive, mut ended) = mpsc::channel(1);
    let transfers = Transfers {
        hub,
        progress,
        parts: work.parts(),
        folder: folder.to_owned(),
        limits: Limits::default(),
        taken: AtomicU64::new(taken),
        stop: stop.clone(),
        alive,
    };
    let result = {
        let all = transfers.all(wanted);
        tokio::select! {
            // A wish to end is heard before anything else.
            biased;
            () = progress.cancelled().cancelled() => Err(HubError::Cancelled),
            result = all => result,
        }
    };
    if result.is_err() {
        // Whoever called may remove the folder: nothing must be written there any more.
        stop.cancel();
        drop(transfers);
        let _ = tokio::time::timeout(LET_GO, ended.recv()).await;
    }
    if let Err(HubError::NoSpace(_)) = result {
        // A disk that is full is of no use to anybody.
        let parts = work.parts();
        let _ = hub.0.tasks.spawn_blocking(move || remove_parts(&parts)).await;
    }
    result
}

/// Gives the bytes of all whose size is known.
fn check(wanted: &[Wanted], max: u64) -> Result<u64, HubError> {
    let mut paths = BTreeSet::new();
    for file in wanted {
        if safe_path(&file.path).is_none() {
            return Err(HubError::Refused(format!("unsafe file name {:?}", file.path)));
        }
        if !paths.insert(&file.path) {
            return Err(HubError::Refused(format!("{}: named twice", file.path)));
        }
    }
    let mut sizes = wanted.iter().filter_map(|file| file.bytes);
    sizes.try_fold(0_u64, u64::checked_add).filter(|sum| *sum <= max).ok_or_else(|| too_large(max))
}

fn too_large(max: u64) -> HubError {
    HubError::TooLarge(format!("all files together have more than the {max} bytes that [hub] max_download_mb allows"))
}

/// The files of one fetch.
struct Transfers<'a> {
    hub: &'a Hub,
    progress: &'a Progress,
    parts: PathBuf,
    folder: PathBuf,
    limits: Limits,
    /// Bytes of all files, as far as they are known.
    taken: AtomicU64,
    /// Ends the blocking work.
    stop: CancellationToken,
    /// Held by all blocking work.
    alive: mpsc::Sender<Infallible>,
}

/// Where one file's parts are.
#[derive(Debug, Clone)]
struct Place {
    part: PathBuf,
    sidecar: PathBuf,
    done: PathBuf,
    folder: PathBuf,
    path: PathBuf,
}

/// A file on its way, locked.
struct Part {
    place: Place,
    file: File,
    written: u64,
    hash: Sha256,
    known: Sidecar,
    /// The hash that the endpoint's own tag is.
    linked: Option<String>,
    /// Bytes of `Transfers::taken` that are this file's.
    taken: u64,
    /// Whether some of the bytes are of an earlier answer.
    joined: bool,
}

/// What came of one call.
enum Came {
    All(Part),
    NotAll(Part, Failed),
    /// It is what is complete already.
    Same(Done),
}

impl Transfers<'_> {
    async fn all(&self, wanted: Vec<Wanted>) -> Result<Vec<ProvenanceFile>, HubError> {
        let missing: Vec<_> = wanted.iter().map(|file| (self.place(file), file.bytes.unwrap_or(0))).collect();
        let (parts, reserve) = (self.parts.clone(), self.hub.0.settings.reserve_bytes);
        self.blocking(move || {
            let there = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
            let there = |place: &Place| there(&place.part).max(there(&place.folder.join(&place.path)));
            let missing = missing.iter().map(|(place, bytes)| bytes.saturating_sub(there(place))).sum();
            check_space(&parts, missing, reserve)
        })
        .await??;
        let count = wanted.len();
        let one = |(index, file): (usize, Wanted)| async move { Ok((index, self.one(&file).await?)) };
        let mut got: Vec<(usize, ProvenanceFile)> = stream::iter(wanted.into_iter().enumerate())
            .map(one)
            .buffer_unordered(self.hub.0.settings.parallel_files.clamp(1, count.max(1)))
            .try_collect()
            .await?;
        got.sort_by_key(|(index, _)| *index);
        Ok(got.into_iter().map(|(_, file)| file).collect())
    }

    async fn one(&self, wanted: &Wanted) -> Result<ProvenanceFile, HubError> {
        let (place, identity) = (self.place(wanted), wanted.identity());
        let part = loop {
            let (place, identity, stop) = (place.clone(), identity.clone(), self.stop.clone());
            let found = self.blocking(move || match find_done(&place, &identity) {
                Some(done) => Ok(Found::Done(done)),
                None => Part::open(place, identity, &stop),
            });
            match found.await?? {
                Found::Done(done) => return Ok(self.finished(wanted, done)),
                Found::Part(part) => break *part,
                Found::Moved => {}
            }
        };
        self.progress.set_done(&wanted.path, part.written);
        let (mut part, mut tries, mut again) = (part, Tries::default(), false);
        part.taken = wanted.bytes.unwrap_or(0);
        loop {
            let before = part.written;
            match self.call(wanted, part).await? {
                Came::Same(done) => return Ok(self.finished(wanted, done)),
                Came::NotAll(after, failed) => {
                    part = after;
                    if part.written > before {
                        tries.moved();
                    }
                    tries.wait(&self.hub.0.client, failed, &self.limits).await?;
                }
                Came::All(complete) => {
                    let (joined, stop) = (complete.joined, self.stop.clone());
                    let place = place.clone();
                    match self.blocking(move || complete.finish(&stop)).await? {
                        Ok(done) => return Ok(self.finished(wanted, done)),
                        // The earlier bytes may be the wrong ones.
                        Err(HubError::Corrupt(_)) if joined && !again => {
                            again = true;
                            let (identity, stop) = (identity.clone(), self.stop.clone());
                            match self.blocking(move || Part::open(place, identity, &stop)).await?? {
                                Found::Part(fresh) => part = *fresh,
                                Found::Done(_) | Found::Moved => return Err(busy()),
                            }
                            part.taken = wanted.bytes.unwrap_or(0);
                            self.progress.set_done(&wanted.path, 0);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// Makes one call and takes what comes.
    async fn call(&self, wanted: &Wanted, mut part: Part) -> Result<Came, HubError> {
        let resumable = part.known.etag.is_some() || part.known.wanted.has_hash();
        if part.written > 0 && part.known.bytes == Some(part.written) {
            return Ok(Came::All(part));
        }
        let etag = part.known.etag.clone();
        let resume = Resume { from: part.written, etag: etag.as_deref() };
        let resume = (part.written > 0 && resumable).then_some(resume);
        let reply = match self.hub.0.client.get(&wanted.url, resume).await {
            Ok(reply) => reply,
            Err(failed) => return Ok(Came::NotAll(part, failed)),
        };
        if reply.is_page() {
            return Err(page_for_people(&wanted.url));
        }
        let goes_on = resume.is_some() && part.goes_on(&reply);
        match reply.status() {
            206 if goes_on => {
                part.joined = true;
                part.known.bytes = part.known.bytes.or(reply.range().and_then(|(_, all)| all));
            }
            200 => {
                let known = Sidecar {
                    etag: reply.strong_etag().map(str::to_owned),
                    bytes: reply.length(),
                    boot: boot(),
                    ..part.known.clone()
                };
                if let Some(done) = self.same(&part, &known).await? {
                    return Ok(Came::Same(done));
                }
                part = self.blocking(move || part.restart(known)).await??;
                self.progress.set_done(&wanted.path, 0);
            }
            206 | 416 if resume.is_some() => {
                let known = Sidecar { etag: None, bytes: None, ..part.known.clone() };
                part = self.blocking(move || part.restart(known)).await??;
                self.progress.set_done(&wanted.path, 0);
                return Ok(Came::NotAll(part, Failed::soon(changed(wanted))));
            }
            status => {
                let text = format!("{}: the server answers a plain request with status {status}", wanted.path);
                return Err(HubError::Corrupt(text));
            }
        }
        part.linked = reply.linked_etag.clone().filter(|etag| is_sha256(etag));
        if let Some(bytes) = part.known.bytes.or(wanted.bytes) {
            if wanted.bytes.is_some_and(|wanted| wanted != bytes) {
                self.blocking(move || part.remove()).await?;
                return Err(size(wanted, bytes));
            }
            self.progress.set_total(&wanted.path, bytes);
            if let Err(error) = self.take(&mut part.taken, bytes) {
                self.blocking(move || part.remove()).await?;
                return Err(error);
            }
            let (parts, reserve) = (self.parts.clone(), self.hub.0.settings.reserve_bytes);
            let missing = bytes.saturating_sub(part.written);
            self.blocking(move || check_space(&parts, missing, reserve)).await??;
        }
        self.receive(wanted, part, reply).await
    }

    /// Takes the body, which is written and hashed meanwhile.
    async fn receive(&self, wanted: &Wanted, part: Part, mut reply: Reply) -> Result<Came, HubError> {
        let end = part.known.bytes.or(wanted.bytes);
        let Part { place, file, written, hash, known, linked, taken, joined } = part;
        let (to_disk, mut for_disk) = mpsc::channel::<Vec<Bytes>>(BATCHES);
        let (to_hash, mut for_hash) = mpsc::channel::<Vec<Bytes>>(BATCHES);
        // What is synced on the way is not waited for at the end, which for large files is as long as the way itself.
        let (to_sync, mut for_sync) = mpsc::channel::<()>(1);
        let sync =
            if end.is_none_or(|end| end > SPACE_STEP) { Some(file.try_clone().map_err(disk_error)?) } else { None };
        let sync = self.blocking(move || {
            let Some(file) = sync else { return Ok(()) };
            while for_sync.blocking_recv().is_some() {
                // The system tells of a failed write once: it must not be lost.
                file.sync_data().map_err(disk_error)?;
            }
            Ok::<_, HubError>(())
        });
        let (stop, parts, reserve) = (self.stop.clone(), self.parts.clone(), self.hub.0.settings.reserve_bytes);
        let disk = self.blocking(move || {
            let mut unchecked = 0;
            while let Some(batch) = for_disk.blocking_recv() {
                for bytes in batch {
                    (&file).write_all(&bytes).map_err(disk_error)?;
                    unchecked += bytes.len() as u64;
                }
                if stop.is_cancelled() {
                    return Err(HubError::Cancelled);
                }
                if unchecked >= SPACE_STEP {
                    unchecked = 0;
                    check_space(&parts, 0, reserve)?;
                    // Not where the one before still runs.
                    let _ = to_sync.try_send(());
                }
            }
            Ok(file)
        });
        let stop = self.stop.clone();
        let hash = self.blocking(move || {
            let mut hash = hash;
            while let Some(batch) = for_hash.blocking_recv() {
                if stop.is_cancelled() {
                    break;
                }
                batch.iter().for_each(|bytes| hash.update(bytes));
            }
            hash
        });
        let came = async {
            let (mut came, mut taken) = (written, taken);
            let (mut batch, mut size_of_batch, mut since) = (Vec::new(), 0, Instant::now());
            let end_of_it = loop {
                let (chunk, over) = match reply.chunk().await {
                    Ok(Some(chunk)) => (Some(chunk), None),
                    Ok(None) => (None, Some(Ok(()))),
                    Err(failed) => (None, Some(Err(failed))),
                };
                if let Some(chunk) = chunk {
                    let after = came + chunk.len() as u64;
                    if end.is_some_and(|end| after > end) {
                        break Err(Failed::never(size(wanted, after)));
                    }
                    if let Err(error) = self.take(&mut taken, after) {
                        break Err(Failed::never(error));
                    }
                    self.progress.received(&wanted.path, chunk.len() as u64);
                    came = after;
                    size_of_batch += chunk.len();
                    batch.push(chunk);
                }
                if !batch.is_empty() && (over.is_some() || size_of_batch >= BATCH || since.elapsed() >= BATCH_AGE) {
                    let batch = std::mem::take(&mut batch);
                    (size_of_batch, since) = (0, Instant::now());
                    // Fails where the disk does, which says itself why.
                    if to_hash.send(batch.clone()).await.is_err() || to_disk.send(batch).await.is_err() {
                        break Ok(());
                    }
                }
                if let Some(over) = over {
                    break over;
                }
            };
            drop((to_disk, to_hash));
            (came, taken, end_of_it)
        };
        let ((came, taken, end_of_it), file, hash, synced) = futures_util::join!(came, disk, hash, sync);
        let (file, hash) = (file??, hash?);
        synced??;
        let part = Part { place, file, written: came, hash, known, linked, taken, joined };
        match end_of_it {
            Ok(()) if end.is_none_or(|end| came == end) => Ok(Came::All(part)),
            Ok(()) => {
                let text = format!("{}: the server ended it early; try again later", wanted.path);
                Ok(Came::NotAll(part, Failed::soon(HubError::Unreachable(text))))
            }
            Err(failed) => {
                // What is wrong is of no use to a later try.
                if matches!(failed.error, HubError::Corrupt(_) | HubError::TooLarge(_)) {
                    self.blocking(move || part.remove()).await?;
                    return Err(failed.error);
                }
                Ok(Came::NotAll(part, failed))
            }
        }
    }

    /// What is complete already, where the source says that it has not changed. For files of which nothing was known before.
    async fn same(&self, part: &Part, known: &Sidecar) -> Result<Option<Done>, HubError> {
        if known.etag.is_none() || known.wanted.has_hash() {
            return Ok(None);
        }
        let (place, known) = (part.place.clone(), known.clone());
        let same = move || {
            let done = complete(&place)?;
            (done.etag == known.etag && known.bytes.is_none_or(|bytes| bytes == done.bytes)).then_some(done)
        };
        self.blocking(same).await
    }

    fn finished(&self, wanted: &Wanted, done: Done) -> ProvenanceFile {
        self.progress.set_total(&wanted.path, done.bytes);
        self.progress.finish(&wanted.path);
        ProvenanceFile { path: wanted.path.clone(), bytes: done.bytes, sha256: done.sha256 }
    }

    /// Counts a file's size towards what all may have; `taken` of it is counted already.
    fn take(&self, taken: &mut u64, bytes: u64) -> Result<(), HubError> {
        let Some(more) = bytes.checked_sub(*taken).filter(|more| *more > 0) else { return Ok(()) };
        *taken = bytes;
        let before = self.taken.fetch_add(more, Ordering::Relaxed);
        let max = self.hub.0.settings.max_download_bytes;
        if before.checked_add(more).is_none_or(|all| all > max) { Err(too_large(max)) } else { Ok(()) }
    }

    fn place(&self, wanted: &Wanted) -> Place {
        Place::of(&self.parts, &self.folder, &wanted.path)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, HubError> {
        let alive = self.alive.clone();
        let work = move || {
            let _alive = alive;
            work()
        };
        let ended = self.hub.0.tasks.spawn_blocking(work).await;
        ended.map_err(|_| HubError::Disk("the work on a file broke off".to_owned()))
    }
}

impl Wanted {
    fn identity(&self) -> Identity {
        Identity { bytes: self.bytes, sha256: self.sha256.clone(), git_oid: self.git_oid.clone() }
    }
}

/// What there is of a file.
enum Found {
    Done(Done),
    Part(Box<Part>),
    /// Another try completed it at this moment: look again.
    Moved,
}

/// The file, where it is complete and what is wanted; a verified part is put in its place. Blocks.
fn find_done(place: &Place, wanted: &Identity) -> Option<Done> {
    let done: Done = read_note(&place.done)?;
    if done.wanted != *wanted || !wanted.has_hash() {
        return None;
    }
    let length = |path: &Path| fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|file| file.len());
    if length(&place.target()) != Some(done.bytes) && length(&place.part) == Some(done.bytes) {
        place.install(&place.part).ok()?;
    }
    complete(place)
}

/// What the file in its final place was verified as. Blocks.
fn complete(place: &Place) -> Option<Done> {
    let done: Done = read_note(&place.done)?;
    let there = fs::symlink_metadata(place.target()).ok()?;
    (there.is_file() && there.len() == done.bytes).then_some(done)
}

impl Place {
    /// `path` was checked before.
    fn of(parts: &Path, folder: &Path, path: &str) -> Place {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = sha256_hex(format!("{name}/{path}").as_bytes());
        let beside = |ending: &str| parts.join(format!("{name}.{ending}"));
        Place {
            part: beside("part"),
            sidecar: beside("json"),
            done: beside("done"),
            folder: folder.to_owned(),
            path: PathBuf::from(path),
        }
    }

    fn target(&self) -> PathBuf {
        self.folder.join(&self.path)
    }

    /// Puts a synced file under its final name, and syncs the folders. Blocks.
    fn install(&self, from: &Path) -> io::Result<()> {
        let mut folders = vec![self.folder.clone()];
        for parent in self.path.parent().into_iter().flat_map(Path::components) {
            let next = folders.last().map(|folder| folder.join(parent)).unwrap_or_default();
            // One by one: where the work folder was removed, none of it is made again.
            match fs::create_dir(&next) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => folders.push(next),
            }
        }
        fs::rename(from, self.target())?;
        folders.iter().rev().try_for_each(|folder| File::open(folder)?.sync_all())
    }
}

/// Puts a file that was verified and synced without being transferred, such as a copy, into the version. What transfers
/// knew of an earlier file in its place is forgotten. Blocks.
pub(super) fn put(from: &Path, parts: &Path, version: &Path, path: &str) -> io::Result<()> {
    let place = Place::of(parts, version, path);
    match fs::remove_file(&place.done) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => place.install(from),
    }
}

impl Part {
    /// Opens what there is of a file, and hashes it, or begins anew. Blocks.
    fn open(place: Place, wanted: Identity, stop: &CancellationToken) -> Result<Found, HubError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&place.part).map_err(disk_error)?;
        let until = Instant::now() + LET_GO * 4;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(disk_error(error)),
                Err(TryLockError::WouldBlock) if stop.is_cancelled() => return Err(HubError::Cancelled),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return Err(busy()),
                // Whoever has it was dropped, and lets go of it within its next write.
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        let opened = file.metadata().map_err(disk_error)?;
        if fs::metadata(&place.part).map(|there| there.ino()).ok() != Some(opened.ino()) {
            return Ok(Found::Moved);
        }
        let usable = |known: &Sidecar| {
            let kept = known.etag.is_some() && known.boot.is_some() && known.boot == boot();
            known.wanted == wanted
                && (wanted.has_hash() || kept)
                && known.bytes.or(wanted.bytes).is_none_or(|bytes| opened.len() <= bytes)
        };
        let old = read_note(&place.sidecar).filter(usable);
        let known = Sidecar { wanted, etag: None, bytes: None, boot: boot() };
        let mut part =
            Part { place, file, written: 0, hash: Sha256::new(), known, linked: None, taken: 0, joined: false };
        match old {
            Some(known) if opened.len() > 0 => {
                part.hash = hash_file(&part.file, opened.len(), stop)?;
                part.written = opened.len();
                part.known = known;
                part.joined = true;
            }
            _ => part.file.set_len(0).map_err(disk_error)?,
        }
        part.file.seek(SeekFrom::Start(part.written)).map_err(disk_error)?;
        Ok(Found::Part(Box::new(part)))
    }

    /// Whether an answer of status 206 goes on where the part ends, with the same file.
    fn goes_on(&self, reply: &Reply) -> bool {
        let same = self.known.etag.is_none() || reply.strong_etag() == self.known.etag.as_deref();
        let bytes = self.known.bytes.or(self.known.wanted.bytes);
        reply.status() == 206
            && same
            && reply
                .range()
                .is_some_and(|(first, all)| first == self.written && (all.is_none() || bytes.is_none() || all == bytes))
    }

    /// Begins anew with what an answer says of the file. Blocks.
    fn restart(mut self, known: Sidecar) -> Result<Part, HubError> {
        self.file.set_len(0).map_err(disk_error)?;
        self.file.rewind().map_err(disk_error)?;
        // Written before the first byte that it is about.
        write_note(&self.place.sidecar, &known).map_err(disk_error)?;
        (self.written, self.hash, self.known, self.joined) = (0, Sha256::new(), known, false);
        Ok(self)
    }

    /// Verifies, syncs and puts the file in its place. Blocks.
    fn finish(self, stop: &CancellationToken) -> Result<Done, HubError> {
        let wanted = &self.known.wanted;
        let name = self.place.path.display();
        let sha256 = hex(&self.hash.clone().finalize());
        let mut wrong = None;
        if wanted.bytes.is_some_and(|bytes| bytes != self.written) {
            wrong =
                Some(format!("size: {name} has {} bytes, {} were announced", self.written, wanted.bytes.unwrap_or(0)));
        } else if let Some(expected) = wanted.sha256.as_ref().or(self.linked.as_ref())
            && *expected != sha256
        {
            wrong = Some(format!("checksum: {name} has the SHA-256 {sha256}, expected {expected}"));
        } else if let Some(expected) = &wanted.git_oid {
            let oid = git_oid(&self.file, self.written, stop)?;
            if oid != *expected {
                wrong = Some(format!("checksum: {name} has the Git id {oid}, expected {expected}"));
            }
        }
        if let Some(text) = wrong {
            self.remove();
            return Err(HubError::Corrupt(text));
        }
        self.file.sync_all().map_err(disk_error)?;
        if stop.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        let done = Done { wanted: wanted.clone(), etag: self.known.etag.clone(), bytes: self.written, sha256 };
        write_note(&self.place.done, &done).map_err(disk_error)?;
        self.place.install(&self.place.part).map_err(disk_error)?;
        // Of no use, and not in the way.
        let _ = fs::remove_file(&self.place.sidecar);
        Ok(done)
    }

    /// Removes the part and what is known of it. Blocks.
    fn remove(&self) {
        for path in [&self.place.part, &self.place.sidecar] {
            // Where it stays, its content is verified again.
            let _ = fs::remove_file(path);
        }
    }
}

fn remove_parts(parts: &Path) {
    for entry in fs::read_dir(parts).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "part" || ending == "json") {
            let _ = fs::remove_file(path);
        }
    }
}

fn read_note<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(NOTE_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write_note<T: Serialize>(path: &Path, note: &T) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&serde_json::to_vec(note)?)?;
    file.sync_all()
}

/// The system's run; what a file has in memory ends with it.
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Whether the disk has room for so many more bytes. Blocks.
pub(crate) fn check_space(folder: &Path, missing: u64, reserve: u64) -> Result<(), HubError> {
    let disk = rustix::fs::statvfs(folder).map_err(|error| disk_error(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < missing.saturating_add(reserve) {
        return Err(HubError::NoSpace(format!(
            "no space: {missing} bytes are missing and {reserve} stay free by reserve_mb, but the disk of the store has {free}"
        )));
    }
    Ok(())
}

/// The hash of a file's first `length` bytes. Blocks.
pub(super) fn hash_file(file: &File, length: u64, stop: &CancellationToken) -> Result<Sha256, HubError> {
    let mut hash = Sha256::new();
    read_file(file, length, stop, |bytes| hash.update(bytes))?;
    Ok(hash)
}

/// Git's name of a file's content. Blocks.
fn git_oid(file: &File, length: u64, stop: &CancellationToken) -> Result<String, HubError> {
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {length}\0"));
    read_file(file, length, stop, |bytes| hash.update(bytes))?;
    Ok(hex(&hash.finalize()))
}

fn read_file(
    mut file: &File,
    length: u64,
    stop: &CancellationToken,
    mut take: impl FnMut(&[u8]),
) -> Result<(), HubError> {
    file.rewind().map_err(disk_error)?;
    let mut left = length;
    let mut buffer = vec![0; BATCH];
    while left > 0 {
        if stop.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        let most = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
        let read = file.read(buffer.get_mut(..most).unwrap_or_default()).map_err(disk_error)?;
        if read == 0 {
            return Err(HubError::Disk("a file became shorter while it was read".to_owned()));
        }
        take(buffer.get(..read).unwrap_or_default());
        left -= read as u64;
    }
    Ok(())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn busy() -> HubError {
    HubError::Busy("another try is still at work on the same file; try again".to_owned())
}

fn changed(wanted: &Wanted) -> HubError {
    HubError::Corrupt(format!("{}: it changes at its source while it is fetched; try again later", wanted.path))
}

fn size(wanted: &Wanted, came: u64) -> HubError {
    let announced = wanted.bytes.map_or_else(|| "fewer".to_owned(), |bytes| bytes.to_string());
    HubError::Corrupt(format!("size: {} has {came} bytes or more, {announced} were announced", wanted.path))
}

/// `text` as a path inside a folder: relative, with `/`, of plain parts that no system reads as something else. `None`
/// where it is none.
pub(crate) fn safe_path(text: &str) -> Option<PathBuf> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    let good = text.len() <= 1024
        && !text.contains(['\\', ':'])
        && !text.chars().any(char::is_control)
        && text.split('/').all(plain)
        && text.split('/').count() <= 8;
    good.then(|| PathBuf::from(text))
}

#[cfg(test)]
mod tests;
