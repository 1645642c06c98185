//! HuggingFace's own cache on this machine: read, never written.
//!
//! A repository's folder there holds `refs/<revision>` (the name of a commit), `snapshots/<commit>/<path>` (links into
//! `blobs/`, or the files themselves where a system has no links) and `blobs/<hash>`. Other programs write it, so it is
//! foreign: no link may lead out of the repository's folder, and what is copied is verified while it is read.

use super::choose::{Entry, is_hex};
use super::transfer::{check_space, put};
use super::work::{disk_error, hex, sha256_hex};
use super::{HubError, Progress, ProvenanceFile, WorkFolder};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

const ENTRIES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 8;
/// Longest file that names a commit, in bytes.
const REF_MAX: u64 = 128;
const CHUNK: usize = 1 << 20;

/// What the cache has of one repository.
#[derive(Debug, Clone)]
pub(super) struct CachedRepository {
    /// Canonical.
    root: PathBuf,
}

/// Where copies go.
#[derive(Debug, Clone)]
pub(super) struct Places {
    parts: PathBuf,
    version: PathBuf,
    /// Bytes that are left free on the disk.
    reserve: u64,
}

impl Places {
    pub(super) fn of(work: &WorkFolder, reserve: u64) -> Places {
        Places { parts: work.parts(), version: work.version(), reserve }
    }
}

impl CachedRepository {
    /// `None` where the cache has nothing of `repository`. Blocks.
    pub(super) fn open(cache: &Path, repository: &str) -> Option<CachedRepository> {
        let folder = format!("models--{}", repository.replace('/', "--"));
        let root = cache.join(folder).canonicalize().ok()?;
        root.is_dir().then_some(CachedRepository { root })
    }

    /// The commit that `revision` stands for, as the cache last heard. Blocks.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_hex(revision, 40) {
            return self.root.join("snapshots").join(revision).is_dir().then(|| revision.to_owned());
        }
        let file = self.inside(&self.root.join("refs").join(revision)).filter(|file| file.is_file())?;
        let mut text = String::new();
        File::open(file).ok()?.take(REF_MAX).read_to_string(&mut text).ok()?;
        let commit = text.trim();
        is_hex(commit, 40).then(|| commit.to_owned())
    }

    /// The files that the cache has of `commit`. Blocks.
    ///
    /// # Errors
    /// [`HubError::Refused`] where a link leads out of the repository's folder, or there are too many files.
    pub(super) fn entries(&self, commit: &str) -> Result<Vec<Entry>, HubError> {
        let top = self.root.join("snapshots").join(commit);
        let mut entries = Vec::new();
        let mut pending = vec![(String::new(), DEPTH_MAX)];
        let mut seen = 0;
        while let Some((below, depth)) = pending.pop() {
            let Ok(folder) = fs::read_dir(top.join(&below)) else { continue };
            for found in folder.filter_map(Result::ok) {
                seen += 1;
                if seen > ENTRIES_MAX {
                    return Err(HubError::Refused(format!(
                        "HuggingFace's cache has more than {ENTRIES_MAX} files of it"
                    )));
                }
                let name = found.file_name();
                let (Some(name), Ok(kind)) = (name.to_str(), found.file_type()) else { continue };
                let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
                if kind.is_dir() {
                    if depth > 1 {
                        pending.push((path, depth - 1));
                    }
                    continue;
                }
                entries.extend(self.entry(&found.path(), path)?);
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// `None` for a link to nothing, and what is no regular file.
    fn entry(&self, file: &Path, path: String) -> Result<Option<Entry>, HubError> {
        let Ok(target) = file.canonicalize() else { return Ok(None) };
        if !target.starts_with(&self.root) {
            return Err(HubError::Refused(format!(
                "{path:?} in HuggingFace's cache is a link that leads out of its repository's folder"
            )));
        }
        let Ok(metadata) = fs::metadata(&target) else { return Ok(None) };
        if !metadata.is_file() {
            return Ok(None);
        }
        let blob = target.strip_prefix(self.root.join("blobs")).ok().and_then(Path::to_str);
        let hash = |length| blob.filter(|name| is_hex(name, length)).map(str::to_owned);
        Ok(Some(Entry { path, bytes: Some(metadata.len()), git_oid: hash(40), sha256: hash(64) }))
    }

    /// Copies `entry` of `commit`, whose path was checked before, into the version: verified, synced, then renamed. `None` where the cache does not have
    /// it, or has it damaged. Blocks, until `cancelled` at most.
    ///
    /// # Errors
    /// Where the store cannot be written, and [`HubError::Cancelled`].
    pub(super) fn copy(
        &self,
        commit: &str,
        entry: &Entry,
        places: &Places,
        progress: &Progress,
        cancelled: &CancellationToken,
    ) -> Result<Option<ProvenanceFile>, HubError> {
        let part = places.parts.join(format!("cached-{}", sha256_hex(entry.path.as_bytes())));
        let is_over = || cancelled.is_cancelled() || progress.cancelled().is_cancelled();
        let Some(from) = self.find(commit, entry) else { return Ok(None) };
        check_space(&places.parts, from.metadata().map_or(0, |found| found.len()), places.reserve)?;
        let copied = write(from, entry, &part, progress, &is_over);
        let Ok(Some(file)) = copied else {
            progress.set_done(&entry.path, 0);
            return copied;
        };
        if is_over() {
            return Err(HubError::Cancelled);
        }
        put(&part, &places.parts, &places.version, &entry.path).map_err(disk_error)?;
        progress.finish(&entry.path);
        Ok(Some(file))
    }

    /// A file of the cache that seems to be `entry` of `commit`.
    fn find(&self, commit: &str, entry: &Entry) -> Option<File> {
        let hash = entry.sha256.as_ref().or(entry.git_oid.as_ref());
        let blob = hash.map(|hash| self.root.join("blobs").join(hash));
        let own = self.root.join("snapshots").join(commit).join(&entry.path);
        let fits = |file: &PathBuf| {
            let found = fs::metadata(file);
            found.is_ok_and(|found| found.is_file() && entry.bytes.is_none_or(|bytes| bytes == found.len()))
        };
        let found = blob.into_iter().chain([own]).filter_map(|file| self.inside(&file)).find(fits)?;
        File::open(found).ok()
    }

    /// `path` without links, where it is inside the repository's folder.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        path.canonicalize().ok().filter(|path| path.starts_with(&self.root))
    }
}

/// Copies `from` to `part`; `None` where it is not `entry`. A part that did not become one is removed.
fn write(
    from: File,
    entry: &Entry,
    part: &Path,
    progress: &Progress,
    is_over: &dyn Fn() -> bool,
) -> Result<Option<ProvenanceFile>, HubError> {
    let mut options = OpenOptions::new();
    let to = options.write(true).create(true).truncate(false).open(part).map_err(disk_error)?;
    // An earlier try, which was dropped, may be at its last bytes.
    if to.try_lock().is_err() {
        return Ok(None);
    }
    to.set_len(0).map_err(disk_error)?;
    let written = write_to(&to, from, entry, progress, is_over);
    if !matches!(written, Ok(Some(_))) {
        let _ = fs::remove_file(part);
    }
    written
}

fn write_to(
    mut to: &File,
    mut from: File,
    entry: &Entry,
    progress: &Progress,
    is_over: &dyn Fn() -> bool,
) -> Result<Option<ProvenanceFile>, HubError> {
    let Ok(bytes) = from.metadata().map(|found| found.len()) else { return Ok(None) };
    let (mut sha256, mut git_oid) = (Sha256::new(), Sha1::new());
    git_oid.update(format!("blob {bytes}\0"));
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        if is_over() {
            return Err(HubError::Cancelled);
        }
        let Ok(read) = from.read(&mut buffer) else { return Ok(None) };
        let read = buffer.get(..read).unwrap_or_default();
        done += read.len() as u64;
        if read.is_empty() || done > bytes {
            break;
        }
        sha256.update(read);
        git_oid.update(read);
        to.write_all(read).map_err(disk_error)?;
        progress.set_done(&entry.path, done);
    }
    let (sha256, git_oid) = (hex(&sha256.finalize()), hex(&git_oid.finalize()));
    let fits = |wanted: &Option<String>, got: &String| wanted.as_ref().is_none_or(|wanted| wanted == got);
    if done != bytes || !fits(&entry.sha256, &sha256) || !fits(&entry.git_oid, &git_oid) {
        tracing::warn!(file = entry.path, "a file of HuggingFace's cache is damaged, and is not used");
        return Ok(None);
    }
    to.sync_all().map_err(disk_error)?;
    Ok(Some(ProvenanceFile { path: entry.path.clone(), bytes, sha256 }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const GRAPH: &[u8] = b"a graph";
    const CONFIG: &[u8] = b"{}";

    fn git_oid(content: &[u8]) -> String {
        hex(&Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content].concat()))
    }

    fn sha256(content: &[u8]) -> String {
        hex(&Sha256::digest(content))
    }

    /// Puts files into a cache as HuggingFace's client does; those with `true` are large ones.
    pub(in crate::hub) fn fill(cache: &Path, repository: &str, commit: &str, files: &[(&str, &[u8], bool)]) {
        let root = cache.join(format!("models--{}", repository.replace('/', "--")));
        for folder in ["blobs", "refs"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("refs/main"), commit).unwrap();
        for (path, content, large) in files {
            let blob = if *large { sha256(content) } else { git_oid(content) };
            fs::write(root.join("blobs").join(&blob), content).unwrap();
            let link = root.join("snapshots").join(commit).join(path);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let up = "../".repeat(path.split('/').count() + 1);
            symlink(format!("{up}blobs/{blob}"), link).unwrap();
        }
    }

    /// A cache with a repository of two files.
    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8], bool); 2] = [("onnx/model.onnx", GRAPH, true), ("config.json", CONFIG, false)];
        fill(cache.path(), "org/name", COMMIT, &files);
        cache
    }

    fn open(cache: &tempfile::TempDir) -> CachedRepository {
        CachedRepository::open(cache.path(), "org/name").unwrap()
    }

    /// Copies one file, for nobody who would stop it.
    fn copy(repository: &CachedRepository, entry: &Entry, work: &WorkFolder) -> Option<ProvenanceFile> {
        let (progress, never) = (Progress::default(), CancellationToken::new());
        repository.copy(COMMIT, entry, &Places::of(work, 0), &progress, &never).unwrap()
    }

    fn work(folder: &tempfile::TempDir) -> WorkFolder {
        WorkFolder::fresh(folder.path()).unwrap()
    }

    #[test]
    fn a_snapshot_is_listed_with_the_hashes_of_its_blobs() {
        let cache = cache();
        let repository = open(&cache);
        assert_eq!(repository.commit("main").as_deref(), Some(COMMIT));
        assert_eq!(repository.commit(COMMIT).as_deref(), Some(COMMIT));
        assert_eq!(repository.commit(&"0".repeat(40)), None);
        assert_eq!(repository.commit("v1"), None);
        // A file without links, a link to nothing and a named folder.
        let snapshot = repository.root.join("snapshots").join(COMMIT);
        fs::write(snapshot.join("labels.txt"), "a").unwrap();
        symlink("../../blobs/absent", snapshot.join("absent.json")).unwrap();
        let entries = repository.entries(COMMIT).unwrap();
        let shown: Vec<_> =
            entries.iter().map(|entry| (entry.path.as_str(), entry.bytes, &entry.git_oid, &entry.sha256)).collect();
        assert_eq!(
            shown,
            [
                ("config.json", Some(2), &Some(git_oid(CONFIG)), &None),
                ("labels.txt", Some(1), &None, &None),
                ("onnx/model.onnx", Some(7), &None, &Some(sha256(GRAPH))),
            ]
        );
        assert!(CachedRepository::open(cache.path(), "org/other").is_none());
        assert_eq!(repository.entries(&"0".repeat(40)), Ok(Vec::new()));
    }

    #[test]
    fn what_is_copied_is_verified_and_put_into_the_version() {
        let (cache, folder) = (cache(), tempfile::tempdir().unwrap());
        let (repository, work) = (open(&cache), work(&folder));
        let progress = Progress::default();
        progress.set_files([("onnx/model.onnx".to_owned(), Some(7)), ("config.json".to_owned(), Some(2))]);
        for entry in repository.entries(COMMIT).unwrap() {
            let done = repository.copy(COMMIT, &entry, &Places::of(&work, 0), &progress, &CancellationToken::new());
            let done = done.unwrap().unwrap();
            let content = fs::read(work.version().join(&entry.path)).unwrap();
            assert_eq!((done.bytes, done.sha256), (content.len() as u64, sha256(&content)));
        }
        let seen = progress.snapshot();
        assert!(seen.bytes_done == 9 && seen.files.iter().all(|file| file.done));
        assert!(fs::read_dir(work.parts()).unwrap().next().is_none());
        // Neither another size nor another hash is there.
        let entry = |bytes, sha256: String| Entry {
            path: "onnx/model.onnx".into(),
            bytes: Some(bytes),
            git_oid: None,
            sha256: Some(sha256),
        };
        for (bytes, content) in [(8, GRAPH), (7, b"other")] {
            assert_eq!(copy(&repository, &entry(bytes, sha256(content)), &work), None);
        }
        let stopped = CancellationToken::new();
        stopped.cancel();
        let right = entry(7, sha256(GRAPH));
        let copied = repository.copy(COMMIT, &right, &Places::of(&work, 0), &progress, &stopped);
        assert_eq!(copied, Err(HubError::Cancelled));
        assert!(fs::read_dir(work.parts()).unwrap().next().is_none());
    }

    #[test]
    fn a_damaged_blob_is_not_used() {
        let (cache, folder) = (cache(), tempfile::tempdir().unwrap());
        let (repository, work) = (open(&cache), work(&folder));
        let entries = repository.entries(COMMIT).unwrap();
        for entry in &entries {
            let blob = entry.sha256.as_ref().or(entry.git_oid.as_ref()).unwrap();
            let file = repository.root.join("blobs").join(blob);
            let mut content = fs::read(&file).unwrap();
            content[0] ^= 1;
            fs::write(&file, content).unwrap();
            assert_eq!(copy(&repository, entry, &work), None, "{}", entry.path);
        }
        for folder in [work.version(), work.parts()] {
            assert!(fs::read_dir(folder).unwrap().next().is_none());
        }
    }

    #[test]
    fn links_out_of_the_repository_are_not_followed() {
        let (cache, folder) = (cache(), tempfile::tempdir().unwrap());
        let (repository, work) = (open(&cache), work(&folder));
        let secret = cache.path().join("secret");
        fs::write(&secret, COMMIT).unwrap();
        symlink(&secret, repository.root.join("refs/evil")).unwrap();
        assert_eq!(repository.commit("evil"), None);
        // A blob that is a link to elsewhere, of the right name and size.
        let blob = repository.root.join("blobs").join(sha256(COMMIT.as_bytes()));
        symlink(&secret, &blob).unwrap();
        let entry = Entry {
            path: "model.onnx".into(),
            bytes: Some(40),
            git_oid: None,
            sha256: Some(sha256(COMMIT.as_bytes())),
        };
        assert_eq!(copy(&repository, &entry, &work), None);
        let link = repository.root.join("snapshots").join(COMMIT).join("model.onnx");
        for target in [secret.clone(), PathBuf::from("/etc/passwd"), PathBuf::from("../../../secret"), blob] {
            symlink(&target, &link).unwrap();
            let refused = repository.entries(COMMIT);
            assert!(matches!(&refused, Err(HubError::Refused(text)) if !text.contains("secret")), "{refused:?}");
            fs::remove_file(&link).unwrap();
        }
        // A folder that is a link is not entered.
        symlink(cache.path(), &link).unwrap();
        assert!(matches!(repository.entries(COMMIT), Err(HubError::Refused(_))));
        fs::remove_file(&link).unwrap();
        symlink("onnx", &link).unwrap();
        assert_eq!(repository.entries(COMMIT).unwrap().len(), 2);
        fs::remove_file(&link).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &link, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(repository.entries(COMMIT).unwrap().len(), 2);
    }
}
