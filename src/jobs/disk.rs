//! Jobs on disk: records and small blobs in one redb file, large blobs as files beside it. Blocks.
//!
//! Invariants: what a call wrote is on the disk when it returns; a call that fails leaves the records as they were. A file
//! that cannot be read is put aside and a new one begun. After an I/O error the file is closed, and opened and checked
//! again by who calls next: [`Disk::open`] must then be followed by [`Disk::make_equal`].
//!
//! Large blobs are files because they can then be given back to the disk at once, and because a full disk is found while
//! a file is written which can simply be removed, not in the middle of a tree.

use super::job::{Record, State};
use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const RECORDS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("records");
const BLOBS: TableDefinition<'_, (u128, u8), &[u8]> = TableDefinition::new("blobs");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");
/// The form of what is in the tables.
const SCHEMA: u64 = 1;
const FILE: &str = "jobs.redb";
/// Blobs up to this size are in the tables: one write to the disk for the record and them.
const INLINE_BYTES: u64 = 32 << 10;
const CACHE_BYTES: usize = 8 << 20;
/// What is left free on the disk for all else, such as the tables' own growth.
const RESERVE_BYTES: u64 = 4 << 20;

/// Why the disk did not do it.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum DiskError {
    #[error("no space is left")]
    Full,
    #[error("{0}")]
    Failed(String),
}

/// The two blobs of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blob {
    Request,
    Result,
}

/// The folder of the jobs; its file is open while all is well.
#[derive(Debug)]
pub(super) struct Disk {
    models_dir: PathBuf,
    database: Option<Database>,
}

impl Disk {
    /// Nothing is touched before [`Disk::open`].
    pub(super) fn new(models_dir: &Path) -> Disk {
        Disk { models_dir: models_dir.to_owned(), database: None }
    }

    fn folder(&self) -> PathBuf {
        self.models_dir.join(".ortus").join("jobs")
    }

    fn blob_path(&self, id: Uuid, blob: Blob) -> PathBuf {
        self.folder().join(format!("{}.{}", id.simple(), blob.extension()))
    }

    /// Whether there is a file of jobs.
    pub(super) fn exists(&self) -> bool {
        self.folder().join(FILE).is_file()
    }

    pub(super) fn is_open(&self) -> bool {
        self.database.is_some()
    }

    /// Opens the file, begins it where there is none, and gives what it holds. One that cannot be read is put aside.
    pub(super) fn open(&mut self) -> Result<Vec<(Uuid, Record)>, DiskError> {
        self.make_folder()?;
        let path = self.folder().join(FILE);
        let opened = match open_checked(&path) {
            Err(OpenError::Damaged(reason)) => {
                let aside = path.with_extension("redb.damaged");
                tracing::error!(
                    reason,
                    "the file of jobs cannot be read; it is kept as {FILE}.damaged and a new one is begun"
                );
                fs::rename(&path, aside)?;
                open_checked(&path)
            }
            other => other,
        };
        let (database, found) = opened.map_err(|error| match error {
            OpenError::Disk(error) => error,
            OpenError::Damaged(reason) => DiskError::Failed(reason),
        })?;
        sync_folder(&self.folder())?;
        self.database = Some(database);
        Ok(found)
    }

    /// Closes the file, so that the next process need not check it.
    pub(super) fn close(&mut self) {
        self.database = None;
    }

    /// Whether so many bytes can be written with something left for others.
    pub(super) fn check_free(&self, bytes: u64) -> Result<(), DiskError> {
        let Ok(stat) = rustix::fs::statvfs(self.folder()) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < bytes.saturating_add(RESERVE_BYTES) { Err(DiskError::Full) } else { Ok(()) }
    }

    /// Adds a job with its request's body.
    pub(super) fn add(&mut self, id: Uuid, record: &Record, body: &[u8]) -> Result<(), DiskError> {
        self.store(id, record, Some((Blob::Request, body)))
    }

    /// Writes the record of a job that goes on.
    pub(super) fn update(&mut self, id: Uuid, record: &Record) -> Result<(), DiskError> {
        self.store(id, record, None)
    }

    /// Writes the record of a job that has ended, with its result; its request's body is given up.
    pub(super) fn finish(&mut self, id: Uuid, record: &Record, result: Option<&[u8]>) -> Result<(), DiskError> {
        self.store(id, record, result.map(|result| (Blob::Result, result)))?;
        if record.body_bytes > INLINE_BYTES {
            remove_file(&self.blob_path(id, Blob::Request));
        }
        Ok(())
    }

    /// Removes jobs with all that is theirs.
    pub(super) fn remove(&mut self, ids: &[Uuid]) -> Result<(), DiskError> {
        self.write(|records, blobs| {
            for id in ids {
                records.remove(id.as_u128())?;
                for blob in [Blob::Request, Blob::Result] {
                    blobs.remove((id.as_u128(), blob.key()))?;
                }
            }
            Ok(())
        })?;
        for id in ids {
            for blob in [Blob::Request, Blob::Result] {
                remove_file(&self.blob_path(*id, blob));
            }
        }
        Ok(())
    }

    /// The body of a job's request, which is `bytes` long.
    pub(super) fn request(&mut self, id: Uuid, bytes: u64) -> Result<Bytes, DiskError> {
        self.read(id, Blob::Request, bytes)
    }

    /// The result of a job, which is `bytes` long.
    pub(super) fn result(&mut self, id: Uuid, bytes: u64) -> Result<Bytes, DiskError> {
        self.read(id, Blob::Result, bytes)
    }

    /// Makes the file hold these records, and no others, after calls that failed: `found` is what it holds.
    pub(super) fn make_equal(&mut self, found: &[(Uuid, Record)], wanted: &[(Uuid, Record)]) -> Result<(), DiskError> {
        let ids: HashSet<Uuid> = wanted.iter().map(|(id, _)| *id).collect();
        let strangers: Vec<Uuid> = found.iter().map(|(id, _)| *id).filter(|id| !ids.contains(id)).collect();
        self.remove(&strangers)?;
        self.write(|records, _| {
            for (id, record) in wanted {
                records.insert(id.as_u128(), encoded(record)?.as_slice())?;
            }
            Ok(())
        })
    }

    /// A record and perhaps a blob, as one change.
    fn store(&mut self, id: Uuid, record: &Record, blob: Option<(Blob, &[u8])>) -> Result<(), DiskError> {
        let written = match blob {
            Some((blob, bytes)) if bytes.len() as u64 > INLINE_BYTES => {
                let path = self.blob_path(id, blob);
                if let Err(error) = write_file(&path, bytes).and_then(|()| sync_folder(&self.folder())) {
                    remove_file(&path);
                    return Err(error.into());
                }
                Some(path)
            }
            _ => None,
        };
        let result = self.write(|records, blobs| {
            records.insert(id.as_u128(), encoded(record)?.as_slice())?;
            if let Some((blob, bytes)) = blob.filter(|_| written.is_none()) {
                blobs.insert((id.as_u128(), blob.key()), bytes)?;
            }
            if record.state.status().is_final() {
                blobs.remove((id.as_u128(), Blob::Request.key()))?;
            }
            Ok(())
        });
        if let (Err(_), Some(path)) = (&result, &written) {
            remove_file(path);
        }
        result
    }

    fn write(
        &mut self,
        change: impl FnOnce(
            &mut redb::Table<'_, u128, &'static [u8]>,
            &mut redb::Table<'_, (u128, u8), &'static [u8]>,
        ) -> Result<(), redb::Error>,
    ) -> Result<(), DiskError> {
        let Some(database) = &self.database else { return Err(DiskError::Failed("the file is closed".into())) };
        let result = (|| {
            let transaction = database.begin_write()?;
            {
                let (mut records, mut blobs) = (transaction.open_table(RECORDS)?, transaction.open_table(BLOBS)?);
                change(&mut records, &mut blobs)?;
            }
            transaction.commit()?;
            Ok(())
        })();
        result.map_err(|error| self.broken(error))
    }

    fn read(&mut self, id: Uuid, blob: Blob, bytes: u64) -> Result<Bytes, DiskError> {
        let content = if bytes > INLINE_BYTES {
            Bytes::from(fs::read(self.blob_path(id, blob))?)
        } else {
            let Some(database) = &self.database else { return Err(DiskError::Failed("the file is closed".into())) };
            let result = (|| {
                let table = database.begin_read()?.open_table(BLOBS)?;
                let found = table.get((id.as_u128(), blob.key()))?;
                Ok(found.map(|content| Bytes::copy_from_slice(content.value())))
            })();
            result.map_err(|error| self.broken(error))?.unwrap_or_default()
        };
        if content.len() as u64 == bytes {
            return Ok(content);
        }
        Err(DiskError::Failed(format!("a {} of {bytes} bytes is {} bytes long", blob.extension(), content.len())))
    }

    /// After an error the library takes no more calls: the next one opens the file again.
    fn broken(&mut self, error: redb::Error) -> DiskError {
        self.database = None;
        match error {
            redb::Error::Io(error) => error.into(),
            other => DiskError::Failed(other.to_string()),
        }
    }

    fn make_folder(&self) -> io::Result<()> {
        let folder = self.folder();
        if !folder.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            // The entries that lead to the folder must outlive a power cut as its content does.
            for parent in folder.ancestors().skip(1).take(2) {
                sync_folder(parent)?;
            }
        }
        // `.ortus` itself may have been made a link by whoever filled the store.
        if folder.canonicalize()?.starts_with(self.models_dir.canonicalize()?) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the folder of jobs is not inside the store"))
    }

    /// Removes blobs that none of these records names: a process that ended between a file and its record leaves such.
    pub(super) fn remove_strangers(&self, records: &[(Uuid, Record)]) {
        let mut wanted = HashSet::new();
        for (id, record) in records {
            match &record.state {
                State::Queued | State::Running => wanted.insert(self.blob_path(*id, Blob::Request)),
                State::Succeeded { .. } => wanted.insert(self.blob_path(*id, Blob::Result)),
                State::Failed { .. } | State::Cancelled => false,
            };
        }
        let Ok(entries) = fs::read_dir(self.folder()) else { return };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let is_blob = path.extension().is_some_and(|extension| {
                [Blob::Request, Blob::Result].iter().any(|blob| extension == blob.extension())
            });
            if is_blob && !wanted.contains(&path) {
                remove_file(&path);
            }
        }
    }
}

impl Blob {
    fn key(self) -> u8 {
        match self {
            Blob::Request => 0,
            Blob::Result => 1,
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Blob::Request => "request",
            Blob::Result => "result",
        }
    }
}

enum OpenError {
    /// What is in the file is not ours or not whole.
    Damaged(String),
    Disk(DiskError),
}

/// Opens a file with every page checked, and reads all records.
fn open_checked(path: &Path) -> Result<(Database, Vec<(Uuid, Record)>), OpenError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| OpenError::Disk(error.into()))?;
    // The check is promised not to panic; a file of jobs must not be what proves it wrong.
    let opened = catch_unwind(AssertUnwindSafe(move || {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        let database = FileBackend::new(file).and_then(|file| builder.create_with_backend(file)).map_err(open_error)?;
        let found = read_all(&database)?;
        Ok((database, found))
    }));
    opened.unwrap_or_else(|_| Err(OpenError::Damaged("reading it panicked".into())))
}

fn read_all(database: &Database) -> Result<Vec<(Uuid, Record)>, OpenError> {
    let result: Result<_, redb::Error> = (|| {
        let transaction = database.begin_write()?;
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        let schema = {
            let mut facts = transaction.open_table(FACTS)?;
            let schema = facts.get("schema")?.map(|schema| schema.value());
            if schema.is_none() {
                facts.insert("schema", SCHEMA)?;
            }
            transaction.open_table(BLOBS)?;
            let mut records = transaction.open_table(RECORDS)?;
            for row in records.iter()? {
                let (id, record) = row?;
                match serde_json::from_slice::<Record>(record.value()) {
                    Ok(record) => found.push((Uuid::from_u128(id.value()), record)),
                    Err(_) => unreadable.push(id.value()),
                }
            }
            let schema = schema.unwrap_or(SCHEMA);
            if schema != SCHEMA {
                return Ok((schema, found));
            }
            for id in unreadable {
                tracing::error!("the record of job {} is not readable; the job is lost", Uuid::from_u128(id));
                records.remove(id)?;
            }
            schema
        };
        transaction.commit()?;
        Ok((schema, found))
    })();
    let (schema, mut found) = result.map_err(|error| match error {
        redb::Error::Io(error) => io_error(error),
        other => OpenError::Damaged(other.to_string()),
    })?;
    if schema != SCHEMA {
        return Err(OpenError::Damaged(format!("its schema is {schema}, this server's is {SCHEMA}")));
    }
    found.sort_by_key(|(_, record)| record.seq);
    Ok(found)
}

fn open_error(error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::Storage(StorageError::Io(error)) => io_error(error),
        DatabaseError::DatabaseAlreadyOpen => OpenError::Disk(DiskError::Failed(error.to_string())),
        other => OpenError::Damaged(other.to_string()),
    }
}

/// A file that ends too early or holds something else shows as these kinds; all others are the disk's.
fn io_error(error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => OpenError::Damaged(error.to_string()),
        _ => OpenError::Disk(error.into()),
    }
}

fn encoded(record: &Record) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(record).map_err(|error| redb::Error::Io(error.into()))
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What cannot be removed is a stranger to the next start, which tries again.
fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %error.kind(), "a file of a removed job could not be removed: {}", error.kind());
    }
}

impl From<io::Error> for DiskError {
    fn from(error: io::Error) -> DiskError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => DiskError::Full,
            kind => DiskError::Failed(format!("{kind}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::job::{JobRequest, Kind};
    use crate::jobs::{Failure, Output};

    fn request() -> JobRequest {
        JobRequest {
            kind: Kind::Predict,
            model: "m".into(),
            version: None,
            request_id: "r".into(),
            content_type: None,
            accept: vec![],
            query: vec![],
        }
    }

    fn record(seq: u64, body: &[u8]) -> Record {
        Record::new(seq, request(), body.len() as u64)
    }

    fn succeeded(record: &Record, result: &[u8]) -> Record {
        let output = Output { media_type: "x".into(), version: "1".into(), bytes: result.len() as u64 };
        Record { state: State::Succeeded { output }, ..record.clone() }
    }

    fn open(store: &Path) -> (Disk, Vec<(Uuid, Record)>) {
        let mut disk = Disk::new(store);
        let found = disk.open().unwrap();
        disk.remove_strangers(&found);
        (disk, found)
    }

    fn files(store: &Path) -> Vec<String> {
        let entries = fs::read_dir(store.join(".ortus/jobs")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn jobs_small_and_large_are_the_same_after_opening_again() {
        let store = tempfile::tempdir().unwrap();
        for size in [0, 1, INLINE_BYTES as usize, INLINE_BYTES as usize + 1, 3 << 20] {
            let (id, body, result) = (Uuid::new_v4(), vec![7; size], vec![9; size]);
            let (mut disk, before) = open(store.path());
            let queued = record(1, &body);
            disk.add(id, &queued, &body).unwrap();
            drop(disk);

            let (mut disk, found) = open(store.path());
            assert_eq!(found.len(), before.len() + 1);
            assert!(found.contains(&(id, queued.clone())));
            assert_eq!(disk.request(id, size as u64).unwrap(), body);
            let done = succeeded(&queued, &result);
            disk.finish(id, &done, Some(&result)).unwrap();
            drop(disk);

            let (mut disk, found) = open(store.path());
            assert!(found.contains(&(id, done)));
            assert_eq!(disk.result(id, size as u64).unwrap(), result);
            assert!(size == 0 || disk.request(id, size as u64).is_err(), "the request is given up");
            disk.remove(&[id]).unwrap();
            assert_eq!(files(store.path()), [FILE]);
        }
        assert_eq!(open(store.path()).1, []);
    }

    #[test]
    fn blobs_without_a_record_are_removed() {
        let store = tempfile::tempdir().unwrap();
        let (mut disk, _) = open(store.path());
        let (id, body) = (Uuid::new_v4(), vec![1; INLINE_BYTES as usize + 1]);
        disk.add(id, &record(1, &body), &body).unwrap();
        let stranger = disk.blob_path(Uuid::new_v4(), Blob::Result);
        fs::write(&stranger, "left over").unwrap();
        drop(disk);
        open(store.path());
        assert!(!stranger.exists());
        assert_eq!(files(store.path()).len(), 2);
    }

    #[test]
    fn a_file_can_be_made_equal_to_the_table() {
        let store = tempfile::tempdir().unwrap();
        let (mut disk, _) = open(store.path());
        let (stays, goes, fails) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        for (seq, id) in [stays, goes, fails].into_iter().enumerate() {
            disk.add(id, &record(seq as u64, b"ab"), b"ab").unwrap();
        }
        let failed = State::Failed { failure: Failure { status: 507, problem: "{}".into() } };
        let wanted = vec![(stays, record(0, b"ab")), (fails, Record { state: failed, ..record(2, b"ab") })];
        disk.close();
        assert!(disk.update(stays, &record(0, b"ab")).is_err(), "a closed file takes nothing");
        let found = disk.open().unwrap();
        disk.make_equal(&found, &wanted).unwrap();
        drop(disk);
        assert_eq!(open(store.path()).1, wanted);
    }

    /// Damages the file of a store with one job in every way; it must open, with or without the job, and take new ones.
    #[test]
    fn a_damaged_file_is_put_aside_or_repaired() {
        let whole = tempfile::tempdir().unwrap();
        let (mut disk, _) = open(whole.path());
        let id = Uuid::new_v4();
        disk.add(id, &record(1, b"body"), b"body").unwrap();
        drop(disk);
        let bytes = fs::read(whole.path().join(".ortus/jobs").join(FILE)).unwrap();

        let mut damaged: Vec<Vec<u8>> = vec![b"no database".to_vec(), vec![0; 100_000], bytes.repeat(2)];
        damaged.extend([1, 100, 320, 4096, 5000, bytes.len() / 2, bytes.len() - 1].map(|end| bytes[..end].to_vec()));
        for at in (0..512).step_by(16).chain((512..bytes.len()).step_by(997)) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x5a;
            damaged.push(bytes);
        }
        let mut put_aside = 0;
        for (case, content) in damaged.into_iter().enumerate() {
            let store = tempfile::tempdir().unwrap();
            let folder = store.path().join(".ortus/jobs");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(FILE), content).unwrap();
            let (mut disk, found) = open(store.path());
            let is_aside = folder.join("jobs.redb.damaged").exists();
            assert!(is_aside || found == [(id, record_of(&found))], "case {case}: {found:?}");
            put_aside += usize::from(is_aside);
            let id = Uuid::new_v4();
            disk.add(id, &record(2, b"new"), b"new").unwrap();
            assert_eq!(disk.request(id, 3).unwrap(), "new");
        }
        assert!(put_aside > 10, "{put_aside}");
    }

    fn record_of(found: &[(Uuid, Record)]) -> Record {
        found.first().map_or_else(|| record(1, b"body"), |(_, found)| found.clone())
    }

    #[test]
    fn a_file_of_another_schema_is_put_aside_and_an_unreadable_record_is_dropped() {
        let store = tempfile::tempdir().unwrap();
        let (mut disk, _) = open(store.path());
        let (good, bad) = (Uuid::new_v4(), Uuid::new_v4());
        disk.add(good, &record(1, b""), b"").unwrap();
        disk.write(|records, _| Ok(records.insert(bad.as_u128(), b"{}".as_slice()).map(drop)?)).unwrap();
        drop(disk);
        assert_eq!(open(store.path()).1.len(), 1);

        let path = store.path().join(".ortus/jobs").join(FILE);
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(FACTS).unwrap().insert("schema", SCHEMA + 1).unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert_eq!(open(store.path()).1, []);
        assert_eq!(files(store.path()), [FILE, "jobs.redb.damaged"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_or_lies_outside_is_refused() {
        let store = tempfile::tempdir().unwrap();
        fs::write(store.path().join(".ortus"), "a file").unwrap();
        assert!(matches!(Disk::new(store.path()).open(), Err(DiskError::Failed(_))));

        let (store, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), store.path().join(".ortus")).unwrap();
        assert!(matches!(Disk::new(store.path()).open(), Err(DiskError::Failed(_))));
        assert!(!outside.path().join("jobs").join(FILE).exists());
    }

    #[test]
    fn a_full_disk_is_told_from_other_faults() {
        assert_eq!(DiskError::from(io::Error::from(io::ErrorKind::StorageFull)), DiskError::Full);
        assert!(matches!(DiskError::from(io::Error::from(io::ErrorKind::PermissionDenied)), DiskError::Failed(_)));
        let store = tempfile::tempdir().unwrap();
        let (disk, _) = open(store.path());
        assert_eq!(disk.check_free(u64::MAX), Err(DiskError::Full));
    }
}
