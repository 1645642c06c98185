//! Makes other forms of a model's graph, measures each beside the original, and adopts the best of those that are better.
//!
//! `request` is what may be asked, `inputs` what the forms are run on, `variant` makes one in a folder of work, `optimizer` does
//! it all ([`Optimizer`]), `report` says what came of it. Invariants: one at a time; the store changes by an adoption alone,
//! which is an install like any other; nothing is left in the store's `.ortus/optimizing` when the work ends, however it
//! ends, and what a killed process left goes at the next start. Knows no protocol.

mod error;
mod inputs;
mod optimizer;
mod report;
mod request;
mod variant;

pub use error::OptimizeError;
pub use inputs::{Origin, is_free, repeat};
pub use optimizer::Optimizer;
pub use report::{Adopted, Figures, InputsUsed, Report, Time, TuneReport, VariantReport};
pub use request::{OptimizeRequest, Precision};

pub use crate::rewrite::{Bounds, Drift, Objective, Verdict};
