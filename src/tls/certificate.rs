//! The certificate in force, and the handshakes that show it.
//!
//! Invariant: a pair that cannot be used changes nothing; the one before stays in force. Connections that are open keep what
//! they began with.

use super::expiry::{Expiry, end_of};
use super::settings::TlsSettings;
use crate::telemetry::{now_ms, rfc3339_of};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

/// Far more than a chain of certificates has.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why certificate and key cannot be used. Texts name the settings and no path: the log is shown to others, too.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("server.{key}: the file cannot be read: {source}")]
    Read { key: &'static str, source: io::Error },
    #[error("server.{key}: the file is not PEM: {source}")]
    Pem { key: &'static str, source: pem::Error },
    #[error("server.tls_cert: the file has no certificate; expected PEM with the line -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    #[error(
        "server.tls_key: the file has no private key that can be read; expected PEM with the line -----BEGIN PRIVATE KEY-----, \
         without a password"
    )]
    NoKey,
    #[error("server.tls_key does not belong to the first certificate of server.tls_cert; name the files of one pair")]
    Mismatch,
    #[error("server.tls_cert and server.tls_key cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// A certificate and its key. Clones are the same.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: TlsSettings,
    /// Held for a moment only: a handshake copies the pointer.
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads both files. Blocks.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn open(settings: TlsSettings) -> Result<Certificate, TlsError> {
        let current = RwLock::new(Arc::new(read(&settings)?));
        Ok(Certificate(Arc::new(Inner { settings, current })))
    }

    /// Reads both files again, for handshakes to come; gives whether they hold another certificate than before. Blocks.
    ///
    /// # Errors
    /// See [`TlsError`]; what was in force stays so then.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let read = Arc::new(read(&self.0.settings)?);
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let is_other = current.cert != read.cert;
        *current = read;
        Ok(is_other)
    }

    /// When the certificate in force ends; `None` where it does not say so in a form that can be read.
    pub fn ends_at(&self) -> Option<SystemTime> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        UNIX_EPOCH.checked_add(current.cert.first().and_then(end_of)?)
    }

    /// How near that is.
    pub fn expiry(&self) -> Option<Expiry> {
        let end = self.ends_at()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Expiry::of(end, Duration::from_millis(now_ms())))
    }

    /// Writes a line where the certificate ends soon, or has ended. It is shown all the same: clients say what they make of it.
    pub fn warn_of_expiry(&self) {
        let warning = self.expiry().and_then(|expiry| expiry.warning());
        if let Some((warning, end)) = warning.zip(self.ends_at()) {
            let end = rfc3339_of(end);
            tracing::warn!(end, "{warning}; put the next one in the place of server.tls_cert and send SIGHUP");
        }
    }

    /// Accepts connections with this certificate; `protocols` are those of the application, by their ALPN names, best first.
    ///
    /// # Errors
    /// Where the library offers no version of TLS.
    pub fn acceptor(&self, protocols: &[&str]) -> Result<Acceptor, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.0.clone());
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Acceptor(tokio_rustls::TlsAcceptor::from(Arc::new(config))))
    }
}

impl ResolvesServerCert for Inner {
    /// The same for every name: which names clients may use is the door's affair.
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Makes connections TLS connections. Clones are the same.
#[derive(Clone)]
pub struct Acceptor(tokio_rustls::TlsAcceptor);

impl Acceptor {
    /// The handshake. It has no time limit of its own: the caller bounds it.
    ///
    /// # Errors
    /// Where the peer speaks no TLS, or none that we speak, or goes away.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.0.accept(stream).await
    }
}

fn read(settings: &TlsSettings) -> Result<CertifiedKey, TlsError> {
    let chain = chain(&settings.cert)?;
    let key = key(&settings.key)?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        let is_mismatch = error == rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch);
        if is_mismatch { TlsError::Mismatch } else { TlsError::Unusable(error) }
    })
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read_file("tls_cert", path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|source| TlsError::Pem { key: "tls_cert", source })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(chain)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read_file("tls_key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::NoKey,
        source => TlsError::Pem { key: "tls_key", source },
    })
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|source| TlsError::Read { key, source })?;
    Ok(bytes)
}
