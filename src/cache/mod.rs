//! What a model has answered and prepared before, so that equal requests need not be run again.
//!
//! `key` turns a request into 128 bits, `store` keeps values bounded in bytes, `answer` and `weight` are what is kept and what
//! it weighs, `flight` lets equal requests in flight wait for one run, `recorder` keeps a sample of inputs. A loaded model owns its [`Caches`]: they go when it
//! goes, and their keys are made with its own secret, so no version can ever give an answer of another.
//!
//! Off unless the settings say otherwise. Knows no engine, queue or protocol.

mod answer;
mod caches;
mod flight;
mod key;
mod recorder;
mod settings;
mod store;
mod weight;

pub use answer::Answer;
pub use caches::{Caches, CachesUsage};
pub use flight::{Flights, Follow, Landing, Lead, Turn};
pub use key::{Key, KeyMaker, Wanted};
pub use recorder::Recorder;
pub use settings::CacheSettings;
pub use store::{Store, Usage};
pub use weight::value_bytes;
