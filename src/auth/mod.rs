//! Who may do what: keys and their roles, how often they may call, who is signed in, and what was done.
//!
//! `key` is one key, `file` the keys on disk, `gate` the table in force and every decision, `limiter` counts (pure), `sessions`
//! has who signed in to the dashboard, `audit` writes down what was done. Invariants: a secret is nowhere but in the answer of
//! `ortus key create` and in what clients send; what is kept of it is a hash; every table is bounded. Knows no protocol: a door
//! finds the key in its requests and says who asks from where.

mod audit;
mod file;
mod gate;
mod key;
mod limiter;
mod sessions;
mod settings;

pub use audit::{AuditEntry, AuditLog, Audited, Who};
pub use file::{KeyFile, KeyFileError};
pub use gate::{Caller, Denied, Gate};
pub use key::{KeyId, KeyRecord, NewKey, Role, Terms};
pub use limiter::network_of;
pub use settings::AuthSettings;
