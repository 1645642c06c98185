//! TensorRT's engines: built in the background while the model serves without them, and kept for the next load.
//!
//! A load looks for engines ([`Choice`]): where they fit, TensorRT serves from the first request. Where there are none and
//! this process may keep some, the load goes without TensorRT and leaves an [`Order`]; the manager has it built on a thread of
//! its own ([`build`], one for each GPU at a time, `run`) and loads the version anew when the engines are in their place.
//! Invariant: what serves goes on serving until its successor is ready, whatever becomes of a build.

mod build;
mod run;

pub(super) use build::{Order, Trials};
pub(super) use run::GpuTurns;

use super::state::{Engines, StatePlace};
use super::{ModelName, Version};
use crate::runtime::{DeviceSettings, EngineKey, Execution, GraphSource, MissingProvider, TENSORRT};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What became of the engines of a loaded version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// No TensorRT is asked for, or it does not work here, or it runs none of the graph's nodes.
    None,
    /// The version serves without TensorRT meanwhile.
    Building,
    /// TensorRT serves.
    Ready,
    /// The version goes on serving without TensorRT.
    Failed,
}

impl EngineState {
    pub const ALL: [EngineState; 4] =
        [EngineState::None, EngineState::Building, EngineState::Ready, EngineState::Failed];

    /// The word for it in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineState::None => "none",
            EngineState::Building => "building",
            EngineState::Ready => "ready",
            EngineState::Failed => "failed",
        }
    }
}

/// The engines of a loaded version at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStatus {
    pub state: EngineState,
    /// When it came to this state; for `ready`, when the engine was built. `None` where there is none.
    pub since: Option<SystemTime>,
    /// How long the build has taken so far, or took.
    pub seconds: Option<f64>,
    /// Why it failed, what it waits for, or why there is none.
    pub reason: Option<String>,
}

impl EngineStatus {
    fn none(reason: Option<String>) -> EngineStatus {
        EngineStatus { state: EngineState::None, since: None, seconds: None, reason }
    }
}

/// The state of a build, for those who look on.
#[derive(Debug)]
struct Progress(Mutex<EngineStatus>);

impl Progress {
    fn set(&self, change: impl FnOnce(&mut EngineStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn get(&self) -> EngineStatus {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if status.state == EngineState::Building {
            let so_far = status.since.and_then(|since| SystemTime::now().duration_since(since).ok());
            status.seconds = so_far.map(|time| time.as_secs_f64());
        }
        status
    }

    fn waits(&self, reason: Option<&str>) {
        self.set(|status| status.reason = reason.map(str::to_owned));
    }

    fn fails(&self, reason: String) {
        let seconds = self.get().seconds;
        self.set(|status| {
            *status = EngineStatus {
                state: EngineState::Failed,
                since: Some(SystemTime::now()),
                seconds,
                reason: Some(reason),
            };
        });
    }
}

/// The engines of a loaded version; a build of them is given up with it.
#[derive(Debug)]
pub struct EngineBuild {
    progress: Arc<Progress>,
    /// Taken by whoever has it built.
    order: Mutex<Option<Box<Order>>>,
    stop: CancellationToken,
    _stops: DropGuard,
}

impl Default for EngineBuild {
    fn default() -> EngineBuild {
        EngineBuild::new(EngineStatus::none(None), None)
    }
}

impl EngineBuild {
    fn new(status: EngineStatus, order: Option<Order>) -> EngineBuild {
        let stop = CancellationToken::new();
        EngineBuild {
            progress: Arc::new(Progress(Mutex::new(status))),
            order: Mutex::new(order.map(Box::new)),
            _stops: stop.clone().drop_guard(),
            stop,
        }
    }

    /// How they are at this moment.
    pub fn status(&self) -> EngineStatus {
        self.progress.get()
    }

    fn take_order(&self) -> Option<Box<Order>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What runs where, with what is not yet and what came to nothing.
    pub(super) fn seen_in(&self, execution: &Execution) -> Execution {
        let status = self.status();
        let mut execution = execution.clone();
        let reason = match (status.state, status.reason) {
            (EngineState::None | EngineState::Ready, _) => return execution,
            (EngineState::Building, _) => "its engine is being built; the others serve until it is ready".to_owned(),
            (EngineState::Failed, reason) => {
                execution.is_fallback = true;
                format!("its engine could not be built: {}", reason.unwrap_or_default())
            }
        };
        if execution.asked.iter().all(|provider| provider != TENSORRT) {
            execution.asked.insert(0, TENSORRT.to_owned());
        }
        execution.missing.insert(0, MissingProvider { provider: TENSORRT.to_owned(), reason });
        execution
    }
}

/// What a load may do where there are no engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineUse {
    /// Serve without TensorRT and leave an order.
    MayBuild,
    /// Fail: they were built for this very load.
    MustHave,
}

/// What a load does about engines.
#[derive(Debug)]
pub(super) enum Choice {
    /// No TensorRT is wanted or works here; or it is built within the load, since nothing may be kept.
    Plain,
    Kept(Engines),
    /// TensorRT is left out of this load.
    Order(EngineKey, StatePlace),
}

impl Choice {
    /// `key` is `None` where no engine can be built.
    pub(super) fn of(
        key: Option<EngineKey>,
        place: Option<&StatePlace>,
        of: (&ModelName, Version),
        source: &GraphSource,
    ) -> Choice {
        let (Some(key), Some(place)) = (key, place) else { return Choice::Plain };
        match place.engines(of, &key, source) {
            Some(engines) => Choice::Kept(engines),
            None if place.takes_engines() => Choice::Order(key, place.clone()),
            None => Choice::Plain,
        }
    }

    /// The device that the load uses.
    pub(super) fn device(&self, wanted: &DeviceSettings) -> DeviceSettings {
        match self {
            Choice::Plain => wanted.clone(),
            Choice::Kept(engines) => {
                let mut device = wanted.clone();
                device.tensorrt.engines = Some(engines.folder.clone());
                device
            }
            Choice::Order(..) => wanted.without_tensorrt(),
        }
    }

    /// What is told of it; `order` makes what is to be built.
    pub(super) fn told(
        self,
        execution: &Execution,
        took: Duration,
        order: impl FnOnce(EngineKey, StatePlace) -> Order,
    ) -> EngineBuild {
        let is_used = execution.registered.iter().any(|provider| provider == TENSORRT);
        match self {
            Choice::Kept(engines) if engines.count > 0 => EngineBuild::new(
                EngineStatus {
                    state: EngineState::Ready,
                    since: Some(engines.built_at),
                    seconds: Some(engines.built.as_secs_f64()),
                    reason: None,
                },
                None,
            ),
            Choice::Kept(_) => {
                EngineBuild::new(EngineStatus::none(Some("TensorRT runs none of the graph's nodes".to_owned())), None)
            }
            Choice::Plain if is_used => EngineBuild::new(
                EngineStatus {
                    state: EngineState::Ready,
                    since: Some(SystemTime::now()),
                    seconds: Some(took.as_secs_f64()),
                    reason: Some("it was built within the load, and is not kept".to_owned()),
                },
                None,
            ),
            Choice::Plain => EngineBuild::new(EngineStatus::none(None), None),
            Choice::Order(key, place) => EngineBuild::new(
                EngineStatus {
                    state: EngineState::Building,
                    since: Some(SystemTime::now()),
                    seconds: None,
                    reason: None,
                },
                Some(order(key, place)),
            ),
        }
    }
}
