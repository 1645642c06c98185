//! Models that the server is to be ready with: got where the store does not have them, loaded, and waited for.
//!
//! Invariants: what the store has of the same source and revision is not fetched again, and of a commit, an address or a path
//! nobody is even asked; where a source cannot be reached, what the store has of it serves. A failure that may pass is tried
//! again, a few times; what fails after that is the end of the start, for whoever started the server to see.

use super::{Download, DownloadError, Downloads, Order, Place, State};
use crate::hub::{FetchRequest, HubError, Provenance};
use crate::models::{LoadOverrides, ModelName, ModelStatus, Version};
use futures_util::{StreamExt, TryStreamExt};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How often one model is tried.
const TRIES: u32 = 5;
/// Before the second try; twice as long before each further one.
const DELAY: Duration = Duration::from_secs(2);
/// Models that are brought at the same time; of those that are fetched, `downloads_at_once`.
const AT_ONCE: usize = 8;
/// How long a source may take to say whether it has something newer than what could serve meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often it is noted how far a download is.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A model that the server is to serve before it is ready. Displays as it is written, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartModel {
    pub name: ModelName,
    pub request: FetchRequest,
}

/// Why the server could not become ready.
#[derive(Debug, thiserror::Error)]
#[error("model '{model}' could not be got from {from}: {problem}")]
pub struct NotBrought {
    model: ModelName,
    from: String,
    problem: String,
}

/// What the store has of what is wanted.
enum Has {
    Nothing,
    /// The model, from elsewhere or of another revision.
    Another,
    /// This version came from just there.
    This(Version),
}

/// Why one try failed.
struct Failure {
    may_pass: bool,
    problem: String,
}

impl StartModel {
    /// Reads `[NAME=]SOURCE`; see [`FetchRequest::parse`]. A name from the source where none is given.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<StartModel, HubError> {
        let (name, source) = match text.split_once('=') {
            // What stands before the first '=' of an address or a path is part of it.
            Some((name, source)) if !name.contains(['/', ':']) => (Some(name), source),
            _ => (None, text),
        };
        let request = FetchRequest::parse(source)?;
        let name = name.map(str::to_owned).or_else(|| request.source.default_name());
        let name = name.ok_or_else(|| HubError::Invalid("the source gives no name; write NAME=SOURCE".to_owned()))?;
        let name = ModelName::parse(&name).map_err(|rule| HubError::Invalid(format!("{name:?}: {rule}")))?;
        Ok(StartModel { name, request })
    }
}

impl fmt::Display for StartModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.request)
    }
}

/// The version at or below `at` that came from elsewhere: those that were made of it here have come since.
pub(super) fn origin(status: &ModelStatus, at: Version) -> Option<(Version, Arc<Provenance>)> {
    let mut known = status.versions.iter().rev().filter(|known| known.version <= at);
    known.find_map(|known| match &known.origin {
        Some(origin) if origin.is_made_here() => None,
        Some(origin) => Some(Some((known.version, origin.clone()))),
        // Whoever put it there did not say where from.
        None => Some(None),
    })?
}

/// The version that answers, or from which the one was made that does.
fn answering(status: &ModelStatus) -> Option<Version> {
    origin(status, status.default_version?).map(|(version, _)| version)
}

impl Has {
    fn of(status: Option<&ModelStatus>, request: &FetchRequest) -> Has {
        let Some(status) = status.filter(|status| !status.versions.is_empty()) else { return Has::Nothing };
        let key = request.key();
        let came_so = |known: &&Provenance| known.request == key;
        let answers = status.default_version.and_then(|version| origin(status, version));
        if let Some((version, _)) = answers.filter(|(_, known)| came_so(&known.as_ref())) {
            return Has::This(version);
        }
        let all = status.versions.iter().rev();
        let found = all.filter(|known| known.origin.as_deref().filter(came_so).is_some()).map(|known| known.version);
        found.max().map_or(Has::Another, Has::This)
    }
}

impl Downloads {
    /// Notes that the server is not ready before these models serve.
    pub fn await_all(&self, wanted: &[StartModel]) {
        for model in wanted {
            self.0.models.await_model(&model.name, "waits for the models of the store".to_owned());
        }
    }

    /// Makes these models serve, and returns when all do. The models of the store have been tried before.
    ///
    /// # Errors
    /// The first model that could not be got, or did not load.
    ///
    /// # Cancel safety
    /// Dropping the future leaves downloads that it ordered running.
    pub async fn bring_all(&self, wanted: Vec<StartModel>) -> Result<(), NotBrought> {
        let each = wanted.into_iter().map(|model| self.bring(model));
        futures_util::stream::iter(each).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn bring(&self, wanted: StartModel) -> Result<(), NotBrought> {
        let StartModel { name, request } = wanted;
        let mut delay = DELAY;
        for attempt in 1.. {
            let Err(Failure { may_pass, problem }) = self.try_to_serve(&name, &request).await else { break };
            if !may_pass || attempt >= TRIES {
                return Err(NotBrought { model: name, from: request.to_string(), problem });
            }
            let seconds = delay.as_secs();
            tracing::warn!(
                model = %name, from = %request, attempt, retry_after_s = seconds, error = problem,
                "a model that the server is to start with was not got; it is tried again"
            );
            let why = format!("try {attempt} of {TRIES} failed, the next one follows within {seconds} s: {problem}");
            self.0.models.await_model(&name, why);
            tokio::time::sleep(delay).await;
            delay *= 2;
        }
        tracing::info!(model = %name, from = %request, "a model that the server is to start with serves");
        self.0.models.arrived(&name);
        Ok(())
    }

    async fn try_to_serve(&self, name: &ModelName, request: &FetchRequest) -> Result<(), Failure> {
        let models = &self.0.models;
        // Let go of before anything is done: whoever holds what is loaded holds up its unload.
        let has = Has::of(models.status(name).ok().as_ref(), request);
        match has {
            Has::Nothing => self.get_to_serve(name, Place::NewModel, request).await,
            Has::Another => self.get_to_serve(name, Place::NextVersion, request).await,
            Has::This(version) if !request.may_move() => self.serve_what_is_there(name, version).await,
            Has::This(version) => {
                models.await_model(name, "its source is asked whether there is a newer one".to_owned());
                let got = match self.is_newer(name, version, request).await {
                    Ok(false) => return self.serve_what_is_there(name, version).await,
                    Ok(true) => self.get_to_serve(name, Place::NextVersion, request).await,
                    Err(error) => Err(error.into()),
                };
                let Err(Failure { problem, .. }) = got else { return Ok(()) };
                tracing::warn!(
                    model = %name, from = %request, %version, error = problem,
                    "whether there is a newer version of a model could not be found out, or it was not got; the one that is there serves"
                );
                self.serve_what_is_there(name, version).await
            }
        }
    }

    /// Whether the source has moved on since it gave this version.
    async fn is_newer(
        &self,
        name: &ModelName,
        version: Version,
        request: &FetchRequest,
    ) -> Result<bool, DownloadError> {
        let listing = tokio::time::timeout(ANSWER_MAX, self.check(request)).await.map_err(|_| {
            HubError::Unreachable(format!("{request} did not answer within {} s", ANSWER_MAX.as_secs()))
        })??;
        let status = self.0.models.status(name)?;
        let known = status.versions.into_iter().find(|known| known.version == version);
        Ok(known.and_then(|known| known.origin).is_none_or(|known| known.revision != listing.revision))
    }

    /// Lets a version answer that the store has, or what was made of it here.
    async fn serve_what_is_there(&self, name: &ModelName, version: Version) -> Result<(), Failure> {
        let models = &self.0.models;
        models.await_model(name, "is being loaded".to_owned());
        let answers = answering(&models.status(name).map_err(DownloadError::from)?);
        let result = match answers {
            Some(present) if present == version => models.load(name, LoadOverrides::default()).await,
            Some(_) | None => models.choose(name, Some(version)).await,
        };
        result.map_err(|error| DownloadError::from(error).into())
    }

    async fn get_to_serve(&self, name: &ModelName, place: Place, request: &FetchRequest) -> Result<(), Failure> {
        let order = Order { name: name.clone(), place, request: request.clone(), load: true, model_toml: None };
        let id = self.order(order).await?.id;
        let ended = loop {
            let now = self.get(id)?;
            if now.state.is_final() {
                break now;
            }
            self.0.models.await_model(name, how_far(&now));
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        match (ended.state, ended.error) {
            (State::Done, _) => Ok(()),
            (_, Some((_, problem))) => Err(Failure { may_pass: ended.may_pass, problem }),
            (_, None) => Err(DownloadError::Cancelled.into()),
        }
    }
}

fn how_far(download: &Download) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let doing = match download.state {
        State::Queued => "waits for its download",
        State::Downloading => "is being downloaded",
        State::Verifying => "is being verified",
        State::Converting => "is being converted",
        State::Loading | State::Done | State::Failed | State::Cancelled => "is being loaded",
    };
    let done = megabytes(download.progress.bytes_done);
    match download.progress.bytes_total {
        Some(total) => format!("{doing}, {done} of {} MB", megabytes(total)),
        None => doing.to_owned(),
    }
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Failure {
        Failure { may_pass: error.may_pass(), problem: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_a_name_and_a_source() {
        for (text, shown) in [
            ("hf://org/minilm", "minilm=hf://org/minilm"),
            ("m=hf://org/minilm@v1", "m=hf://org/minilm@v1"),
            ("https://a.example/x.onnx?a=b", "x=https://a.example/x.onnx"),
            ("m=https://a.example/x?a=b", "m=https://a.example/x"),
            ("m=file:///models/x=1.onnx", "m=/models/x=1.onnx"),
            ("./x=1.onnx", "x-1=./x=1.onnx"),
            ("m=./x.onnx", "m=./x.onnx"),
        ] {
            let model = StartModel::parse(text).unwrap();
            assert_eq!(model.to_string(), shown);
            assert_eq!(StartModel::parse(shown).unwrap().to_string(), shown);
        }
        for bad in ["", "=hf://org/x", "a b=hf://org/x", "..=./x", "m=", "m=hf://x/y/z", "hf://org/x@", "m=http:"] {
            assert!(StartModel::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_nobody_can_mend_by_waiting_ends_the_start() {
        for (error, may_pass) in [
            (HubError::Unreachable(String::new()), true),
            (HubError::RateLimited(String::new()), true),
            (HubError::Corrupt(String::new()), true),
            (HubError::NotFound(String::new()), false),
            (HubError::Denied(String::new()), false),
            (HubError::Refused(String::new()), false),
        ] {
            assert_eq!(DownloadError::from(error.clone()).may_pass(), may_pass, "{error:?}");
        }
    }

    fn status(versions: &[(u64, Option<(&str, &str)>)], default: u64) -> ModelStatus {
        let provenance = |(source, request): &(&str, &str)| {
            let (source, request) = ((*source).to_owned(), (*request).to_owned());
            Arc::new(Provenance { source, request, ..Provenance::default() })
        };
        let version = |(version, origin): &(u64, Option<(&str, &str)>)| crate::models::VersionStatus {
            version: Version(*version),
            state: crate::models::ModelState::Unloaded,
            reason: None,
            loaded: None,
            origin: origin.as_ref().map(provenance),
        };
        ModelStatus {
            name: ModelName::parse("m").unwrap(),
            state: crate::models::ModelState::Unloaded,
            versions: versions.iter().map(version).collect(),
            default_version: Some(Version(default)),
            chosen_version: None,
            manifest: Arc::default(),
            set_by: Arc::default(),
            last_error: None,
        }
    }

    #[test]
    fn what_the_store_has_is_found_by_what_was_asked_for() {
        let request = FetchRequest::parse("hf://org/x@v1").unwrap();
        let key = request.key();
        let same = Some(("huggingface", key.as_str()));
        let (other, made) = (Some(("huggingface", "other")), Some(("optimize", "")));
        for (versions, default, expected) in [
            (&[][..], 1, "nothing"),
            (&[(1, None)], 1, "another"),
            (&[(1, other)], 1, "another"),
            (&[(1, same)], 1, "1"),
            (&[(1, same), (2, other)], 2, "1"),
            // What was made of it here counts as it.
            (&[(1, same), (2, made)], 2, "1"),
            (&[(1, same), (2, other), (3, made)], 3, "1"),
            // The one that answers comes before a newer one that is the same.
            (&[(1, same), (2, same)], 1, "1"),
            (&[(1, same), (2, same), (3, other)], 3, "2"),
        ] {
            let found = match Has::of(Some(&status(versions, default)), &request) {
                Has::Nothing => "nothing".to_owned(),
                Has::Another => "another".to_owned(),
                Has::This(version) => version.to_string(),
            };
            assert_eq!(found, expected, "{versions:?}");
        }
        assert!(matches!(Has::of(None, &request), Has::Nothing));
    }

    #[test]
    fn a_version_made_here_comes_from_the_one_below_it() {
        let at = |status: &ModelStatus, at| origin(status, Version(at)).map(|(version, _)| version.0);
        let known = status(&[(1, Some(("url", ""))), (2, Some(("optimize", ""))), (3, None)], 3);
        assert_eq!((at(&known, 1), at(&known, 2), at(&known, 3)), (Some(1), Some(1), None));
    }
}
