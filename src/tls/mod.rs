//! TLS for the doors: a certificate with its key, read from files and read again on demand, and what connections are accepted with.
//!
//! One [`Certificate`] serves all doors: each makes an [`Acceptor`] of it, for the protocols that it speaks. Knows no protocol
//! above TLS. Certificates of clients are not asked for.

mod certificate;
mod expiry;
mod settings;

pub use certificate::{Acceptor, Certificate, TlsError};
pub use expiry::Expiry;
pub use settings::TlsSettings;

pub use tokio_rustls::server::TlsStream;
