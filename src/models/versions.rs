//! Chooses which version serves, goes back to an earlier one, and deletes versions and models.
//!
//! Invariants: what serves goes only after what takes its place is ready; runs in flight end with the version that they
//! began with; a choice is on disk before others are retired for it.

use super::admission::MakeRoom;
use super::choice::Choice;
use super::install::store_error;
use super::lifecycle::{self, Command};
use super::manager::{Aim, Change, Gate};
use super::swap::{self, InstallLock};
use super::{LoadOverrides, ModelError, ModelManager, ModelName, Version, overrides};
use std::collections::BTreeSet;
use std::io;

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Ascending.
    pub versions: Vec<Version>,
    /// Whether the model went with them.
    pub model: bool,
}

/// Which version is to serve.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    This(Version),
    /// The highest below the one that answers now.
    Before,
    /// Whatever the version policy says.
    ByPolicy,
}

impl ModelManager {
    /// Makes one version serve whatever the model's version policy says, until another is chosen or installed; `None` gives
    /// the word back to the policy. Returns when it is so: what served before serves until then.
    ///
    /// # Errors
    /// `NotFound`, `VersionNotFound`; `Load` where the version does not load, and nothing is changed then.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the change.
    pub async fn choose(&self, name: &ModelName, version: Option<Version>) -> Result<(), ModelError> {
        self.serve(name, version.map_or(Wanted::ByPolicy, Wanted::This)).await.map(|_| ())
    }

    /// Chooses the highest version below the one that answers now, and gives it.
    ///
    /// # Errors
    /// As [`ModelManager::choose`]; `Conflict` where there is no such version.
    ///
    /// # Cancel safety
    /// As [`ModelManager::choose`].
    pub async fn roll_back(&self, name: &ModelName) -> Result<Option<Version>, ModelError> {
        self.serve(name, Wanted::Before).await
    }

    async fn serve(&self, name: &ModelName, wanted: Wanted) -> Result<Option<Version>, ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        let gate = self.gate(name).await?;
        let (manager, model) = (self.clone(), name.clone());
        let work = async move { manager.serve_under(&model, &gate, wanted).await };
        self.to_its_end("choose a version", work).await
    }

    async fn serve_under(&self, name: &ModelName, gate: &Gate, wanted: Wanted) -> Result<Option<Version>, ModelError> {
        let Some(prepared) = self.look(name, gate).await? else {
            return Err(ModelError::NotFound { model: name.clone() });
        };
        let on_disk: BTreeSet<Version> = prepared.folder.versions.keys().copied().collect();
        let version = match wanted {
            Wanted::ByPolicy => None,
            Wanted::This(version) if on_disk.contains(&version) => Some(version),
            Wanted::This(version) => {
                let available = on_disk.into_iter().collect();
                return Err(ModelError::VersionNotFound { model: name.clone(), version, available });
            }
            Wanted::Before => {
                let present = self.status(name)?.default_version;
                let Some(version) = lifecycle::below(present, &on_disk) else {
                    let shown = present.map_or_else(|| "the present one".to_owned(), |version| version.to_string());
                    let problem = format!("there is no version below {shown} to go back to");
                    return Err(ModelError::Conflict { model: name.clone(), problem });
                };
                Some(version)
            }
        };
        let change = Change { command: Command::Load, room: MakeRoom::Evict, aim: Aim::Beside(version) };
        self.change(name, gate, change, LoadOverrides::default()).await?;
        let choice = version.zip(on_disk.last().copied()).map(|(version, newest)| Choice { version, newest });
        self.on_disk(name, move |models_dir, model, _lock| match choice {
            Some(choice) => choice.write(models_dir, model),
            None => Choice::clear(models_dir, model),
        })
        .await?;
        tracing::info!(model = %name, version = ?version.map(|version| version.0), "the version that serves is chosen");
        let change = Change { command: Command::Refresh, room: MakeRoom::Evict, aim: Aim::InForce };
        self.change(name, gate, change, LoadOverrides::default()).await?;
        Ok(version)
    }

    /// Deletes a version, or the model with all of them; the only version takes its model along. Returns when its files are
    /// gone and its runs have ended, or after 30 seconds of waiting for them. Where other versions stay, the one that
    /// follows is ready before this one goes.
    ///
    /// # Errors
    /// `NotFound`, `VersionNotFound`; `Conflict` while the model is being downloaded, or where the store cannot be changed.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the deletion.
    pub async fn delete(&self, name: &ModelName, version: Option<Version>) -> Result<Deleted, ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        self.refuse_on_its_way(name, version)?;
        let gate = self.gate(name).await?;
        let (manager, model) = (self.clone(), name.clone());
        let work = async move { manager.delete_under(&model, &gate, version).await };
        self.to_its_end("delete a model", work).await
    }

    fn refuse_on_its_way(&self, name: &ModelName, version: Option<Version>) -> Result<(), ModelError> {
        let what = match (self.is_on_its_way(name), version) {
            (Some(true), _) => "it is being downloaded",
            (Some(false), None) => "a version of it is being downloaded",
            (Some(false), Some(_)) | (None, _) => return Ok(()),
        };
        let problem = format!("{what}; DELETE /v1/downloads/{{id}} stops that");
        Err(ModelError::Conflict { model: name.clone(), problem })
    }

    async fn delete_under(
        &self,
        name: &ModelName,
        gate: &Gate,
        version: Option<Version>,
    ) -> Result<Deleted, ModelError> {
        self.refuse_on_its_way(name, version)?;
        // A folder that cannot be served can be deleted all the same.
        let folder = self.look(name, gate).await.ok().flatten();
        let (manager, model) = (self.clone(), name.clone());
        let found = self.blocking(move || {
            let repository = manager.repository();
            (repository.is_taken(&model), repository.is_inside(&model), repository.numbers(&model).unwrap_or_default())
        });
        let (is_taken, is_inside, numbers) = found.await.ok_or(ModelError::Stopping)?;
        let slots = self.edit(name, |entry| entry.slots.keys().copied().collect::<BTreeSet<Version>>());
        let slots = slots.unwrap_or_default();
        let on_disk: BTreeSet<Version> = match folder {
            Some(folder) => folder.folder.versions.keys().copied().collect(),
            None => numbers,
        };
        match version {
            Some(version) if !on_disk.contains(&version) => {
                let available = on_disk.into_iter().collect();
                Err(ModelError::VersionNotFound { model: name.clone(), version, available })
            }
            Some(version) if on_disk.len() > 1 => {
                if !is_inside {
                    let problem = "its folder is a link that leads outside the store; only the model can be deleted";
                    return Err(ModelError::Conflict { model: name.clone(), problem: problem.to_owned() });
                }
                self.delete_version(name, gate, version).await
            }
            Some(_) | None => {
                let versions = on_disk.union(&slots).copied().collect();
                self.delete_model(name, is_taken, versions).await
            }
        }
    }

    async fn delete_version(&self, name: &ModelName, gate: &Gate, version: Version) -> Result<Deleted, ModelError> {
        let taken = self.on_disk(name, move |models_dir, model, lock| {
            let taken = swap::take_out(lock, models_dir, model, Some(version))?;
            if Choice::read(models_dir, model).ok().flatten().is_some_and(|choice| choice.version == version) {
                Choice::forget(models_dir, model);
            }
            Ok(taken)
        });
        let taken = taken.await?;
        let serves = self.edit(name, |entry| entry.serving(None).is_some() && !entry.pinned);
        if serves == Some(true) {
            // The one that follows is loaded before this one goes; why it is not is in the registry.
            let change = Change { command: Command::Refresh, room: MakeRoom::Evict, aim: Aim::InForce };
            let _ = self.change(name, gate, change, LoadOverrides::default()).await;
        }
        self.take_down(name, &BTreeSet::from([version])).await;
        let _ = self.look(name, gate).await;
        let (state, passed, model) = (self.state_place(), self.passed_place(), name.clone());
        self.blocking(move || {
            swap::remove(&taken);
            state.forget(&model, Some(version));
            passed.forget(&model, Some(version));
        })
        .await;
        tracing::info!(model = %name, %version, "a version is deleted");
        Ok(Deleted { versions: vec![version], model: false })
    }

    async fn delete_model(
        &self,
        name: &ModelName,
        is_taken: bool,
        versions: BTreeSet<Version>,
    ) -> Result<Deleted, ModelError> {
        let taken = self.on_disk(name, move |models_dir, model, lock| {
            // A model that came with a load call has no folder.
            let taken = if is_taken { Some(swap::take_out(lock, models_dir, model, None)?) } else { None };
            Choice::forget(models_dir, model);
            overrides::clean(models_dir, model, None);
            Ok(taken)
        });
        let taken = taken.await?;
        // Nobody waits for a model that will not come back.
        self.edit(name, |entry| entry.held = true);
        self.take_down(name, &versions).await;
        self.remove(&mut self.lock(), name);
        let (state, passed, model) = (self.state_place(), self.passed_place(), name.clone());
        self.blocking(move || {
            taken.iter().for_each(|taken| swap::remove(taken));
            state.forget(&model, None);
            passed.forget(&model, None);
        })
        .await;
        tracing::info!(model = %name, "a model is deleted");
        Ok(Deleted { versions: versions.into_iter().collect(), model: true })
    }

    /// Changes the store, as the only one who does.
    async fn on_disk<T: Send + 'static>(
        &self,
        name: &ModelName,
        act: impl FnOnce(&std::path::Path, &ModelName, &InstallLock) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ModelError> {
        let (manager, model) = (self.clone(), name.clone());
        let work = move || {
            let models_dir = &manager.store().models_dir;
            InstallLock::acquire(models_dir).and_then(|lock| act(models_dir, &model, &lock))
        };
        let done = self.blocking(work).await.ok_or(ModelError::Stopping)?;
        done.map_err(|error| store_error(name, &error))
    }
}
