//! Models on their way into the store: which there are, how far each is, and what became of it ([`Downloads`]).
//!
//! `table` is what is known of each (pure: bounds, order, forgetting), `handle` what doors call, `run` takes one from its
//! source into service: fetch → try out → install → load. `at_start` brings what the server is to be ready with. A version is in the store only when it is complete and was
//! tried out; what was fetched of one that failed stays for the next try. `upload` and `adopt` take what was not fetched the
//! same way. Knows no protocol.

mod adopt;
mod at_start;
mod error;
mod handle;
mod run;
mod table;
mod upload;

#[cfg(test)]
pub(crate) mod testing;

pub use adopt::Adoption;
pub use at_start::{NotBrought, StartModel};
pub use error::DownloadError;
pub use handle::{Downloads, Order, Place};
pub use table::{Download, Report, State};
pub use upload::{Upload, UploadFile, UploadOptions, Uploaded};
