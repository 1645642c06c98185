//! A version that comes with the request: its files are written as they arrive, then it goes the way of a download.

use super::{DownloadError, Downloads, Report};
use crate::hub::{Archive, ArchiveLimits, ExportOptions, Fetched, HubError, Progress, Provenance, WorkFolder};
use crate::models::{Claim, LoadOverrides, ModelName, Staged, Version};
use crate::telemetry::now_ms;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

/// Files of one upload.
const FILES_MAX: usize = 64;

/// An upload that is being received. Dropped, it leaves nothing.
pub struct Upload {
    downloads: Downloads,
    name: ModelName,
    claim: Option<Claim>,
    work: Option<WorkFolder>,
    files: Vec<Received>,
    received: u64,
}

struct Received {
    /// As the client calls it; checked.
    name: String,
    path: PathBuf,
}

/// What an upload brings besides its files.
#[derive(Debug, Clone, Default)]
pub struct UploadOptions {
    pub load: bool,
    pub model_toml: Option<String>,
    pub export: ExportOptions,
    /// Lower-case hex of the only file.
    pub sha256: Option<String>,
}

/// The version that an upload became.
#[derive(Debug)]
pub struct Uploaded {
    pub version: Version,
    pub report: Report,
}

impl Downloads {
    /// Begins an upload: the next version of a model, or the first one of a new model.
    ///
    /// # Errors
    /// Where another version of the model is on its way, or the store cannot be written.
    pub async fn begin_upload(&self, name: ModelName) -> Result<Upload, DownloadError> {
        let claim = match self.0.models.status(&name) {
            Ok(_) => self.0.models.claim_version(&name).await?,
            Err(_) => self.0.models.claim(&name).await?,
        };
        let root = self.0.uploads_root();
        let work = self.off_the_async_threads(move || WorkFolder::fresh(&root)).await??;
        let (downloads, files) = (self.clone(), Vec::new());
        Ok(Upload { downloads, name, claim: Some(claim), work: Some(work), files, received: 0 })
    }

    async fn off_the_async_threads<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DownloadError> {
        self.0.tasks.spawn_blocking(work).await.map_err(|_| DownloadError::Panicked)
    }
}

impl Upload {
    /// Begins one file of the upload. `name` is the client's.
    ///
    /// # Errors
    /// Where the name is no plain relative path, stands twice, or there are too many.
    pub async fn begin_file(&mut self, name: &str) -> Result<UploadFile, DownloadError> {
        let Some(work) = &self.work else { return Err(DownloadError::Cancelled) };
        let Some(_) = crate::hub::safe_path(name) else {
            return Err(
                HubError::Refused("unsafe file name: expected a relative path such as model.onnx".into()).into()
            );
        };
        if self.files.len() >= FILES_MAX {
            return Err(HubError::TooLarge(format!("an upload has at most {FILES_MAX} files; send an archive")).into());
        }
        if self.files.iter().any(|file| file.name == name) {
            return Err(HubError::Invalid(format!("the file {name:?} is there twice")).into());
        }
        // The client's name is used only once all is there.
        let path = work.parts().join(self.files.len().to_string());
        self.files.push(Received { name: name.to_owned(), path: path.clone() });
        let file = self.downloads.off_the_async_threads(move || File::create_new(path)).await?;
        Ok(UploadFile { file: Some(file.map_err(disk)?), buffer: Vec::with_capacity(CHUNK) })
    }

    /// Takes the next bytes of a file.
    ///
    /// # Errors
    /// Where all files together are larger than allowed, or the disk is full.
    pub async fn write(&mut self, file: &mut UploadFile, bytes: &[u8]) -> Result<(), DownloadError> {
        let most = self.downloads.0.hub.settings().max_download_bytes;
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > most {
            let problem = format!("the files are larger than max_download_mb allows: {most} bytes");
            return Err(HubError::TooLarge(problem).into());
        }
        file.buffer.extend_from_slice(bytes);
        if file.buffer.len() >= CHUNK {
            self.flush(file).await?;
        }
        Ok(())
    }

    /// Ends a file.
    ///
    /// # Errors
    /// As [`Upload::write`].
    pub async fn end_file(&mut self, mut file: UploadFile) -> Result<(), DownloadError> {
        self.flush(&mut file).await?;
        let Some(file) = file.file.take() else { return Ok(()) };
        let synced = self.downloads.off_the_async_threads(move || file.sync_all()).await?;
        synced.map_err(|error| disk(error).into())
    }

    async fn flush(&self, file: &mut UploadFile) -> Result<(), DownloadError> {
        let Some(mut open) = file.file.take() else { return Ok(()) };
        let buffer = std::mem::replace(&mut file.buffer, Vec::with_capacity(CHUNK));
        let inner = &self.downloads.0;
        let (folder, reserve) = (inner.models_dir.clone(), inner.hub.settings().reserve_bytes);
        let write = move || {
            crate::hub::check_space(&folder, buffer.len() as u64, reserve)?;
            open.write_all(&buffer).map_err(disk)?;
            Ok::<File, HubError>(open)
        };
        file.file = Some(self.downloads.off_the_async_threads(write).await??);
        Ok(())
    }

    /// Makes a version of the files, tries it out, puts it into the store and loads it where that is asked for.
    ///
    /// # Errors
    /// Where the files do not make a version that can be served; nothing is left of them then.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the version in the store.
    pub async fn finish(mut self, options: UploadOptions) -> Result<Uploaded, DownloadError> {
        let (Some(claim), Some(work)) = (self.claim.take(), self.work.as_ref()) else {
            return Err(DownloadError::Cancelled);
        };
        let fetched = self.version(work, &options).await?;
        let inner = &self.downloads.0;
        let Fetched { folder, provenance } = fetched;
        let staged = folder.clone();
        let written = self.downloads.off_the_async_threads(move || provenance.write(&staged)).await?;
        written.map_err(disk)?;
        let staged = Staged { folder, model_toml: options.model_toml };
        let tried = inner.models.try_out(&claim, &staged).await?;
        let version = inner.models.install(claim, staged).await?;
        if options.load {
            inner.models.load(&self.name, LoadOverrides::default()).await?;
        }
        Ok(Uploaded { version, report: Report::from(tried) })
    }

    async fn version(&self, work: &WorkFolder, options: &UploadOptions) -> Result<Fetched, DownloadError> {
        let hub = &self.downloads.0.hub;
        let [.., last] = self.files.as_slice() else {
            return Err(HubError::Invalid("the form has no file; send one in the field file".into()).into());
        };
        let only = self.files.len() == 1;
        if let Some(hash) = &options.sha256 {
            if !only {
                return Err(HubError::Invalid("sha256 is that of one file, and there are several".into()).into());
            }
            let (path, hash) = (last.path.clone(), hash.clone());
            self.downloads.off_the_async_threads(move || check_hash(&path, &hash)).await??;
        }
        let ending = last.name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        if only && matches!(ending.as_str(), "pt" | "pth" | "pt2") {
            // The exporter tells files apart by their endings.
            let named = work.parts().join(format!("weights.{ending}"));
            let (from, to) = (last.path.clone(), named.clone());
            self.downloads.off_the_async_threads(move || std::fs::rename(from, to)).await?.map_err(disk)?;
            let mut fetched = hub.convert(&named, &options.export, work, &Progress::default()).await?;
            fetched.provenance.source = "upload".to_owned();
            fetched.provenance.model_id.clone_from(&last.name);
            return Ok(fetched);
        }
        let files: Vec<(String, PathBuf)> =
            self.files.iter().map(|file| (file.name.clone(), file.path.clone())).collect();
        let (target, model_id) = (work.version(), last.name.clone());
        let limits = ArchiveLimits::of(hub.settings());
        let made = self.downloads.off_the_async_threads(move || {
            match files.as_slice() {
                [(_, path)] if kind_of(path)?.is_some() => {
                    let Some(archive) = kind_of(path)? else { return Ok(Vec::new()) };
                    archive.unpack(path, &target, &limits)?;
                }
                files => put_in_place(files, &target)?,
            }
            crate::hub::ProvenanceFile::all_in(&target)
        });
        let files = made.await??;
        let provenance = Provenance {
            source: "upload".to_owned(),
            model_id,
            fetched_at: crate::telemetry::rfc3339(now_ms()),
            files,
            ..Provenance::default()
        };
        Ok(Fetched { folder: work.version(), provenance })
    }
}

/// A file that is being received.
pub struct UploadFile {
    file: Option<File>,
    buffer: Vec<u8>,
}

/// Bytes that are written at once.
const CHUNK: usize = 1 << 20;

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            drop(self.downloads.0.tasks.spawn_blocking(move || work.remove()));
        }
    }
}

fn kind_of(path: &std::path::Path) -> Result<Option<Archive>, HubError> {
    let mut first = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read(&mut first)).map_err(disk)?;
    Ok(Archive::of(first.get(..read).unwrap_or_default()))
}

/// Files as the client calls them; one of them is a graph.
fn put_in_place(files: &[(String, PathBuf)], target: &std::path::Path) -> Result<(), HubError> {
    let is_graph = |name: &str| name.ends_with(".onnx") || name.ends_with(".ort");
    if !files.iter().any(|(name, _)| is_graph(name)) {
        return Err(HubError::Invalid(
            "no file is a model: expected .onnx or .ort, an archive (.zip, .tar.gz) of a model's folder, or one \
             PyTorch file (.pt, .pth, .pt2)"
                .into(),
        ));
    }
    for (name, path) in files {
        let place = crate::hub::safe_path(name).map(|name| target.join(name));
        let place = place.ok_or_else(|| HubError::Refused("unsafe file name".into()))?;
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent).map_err(disk)?;
        }
        std::fs::rename(path, &place).map_err(disk)?;
    }
    Ok(())
}

fn check_hash(path: &std::path::Path, expected: &str) -> Result<(), HubError> {
    let found = crate::hub::sha256_of(path).map_err(disk)?;
    if found == expected { Ok(()) } else { Err(HubError::Corrupt(format!("checksum: the file has sha256 {found}"))) }
}

fn disk(error: std::io::Error) -> HubError {
    crate::hub::disk_error(error)
}
