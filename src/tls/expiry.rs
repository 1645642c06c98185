//! Until when a certificate holds, and what to say of it: pure, the caller says the time.

use rustls::pki_types::CertificateDer;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Time in which a renewal should have come: those who renew by themselves do it a month before the end.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What is to be said of a certificate that ends soon, or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expiry {
    /// It ended so long ago.
    Over(Duration),
    /// It ends within [`SOON`].
    Soon(Duration),
    /// It holds for longer.
    Far(Duration),
}

impl Expiry {
    /// Of one that ends at `end`, seen at `now`: both since 1970.
    pub(super) fn of(end: Duration, now: Duration) -> Expiry {
        match end.checked_sub(now).filter(|left| !left.is_zero()) {
            None => Expiry::Over(now.saturating_sub(end)),
            Some(left) if left < SOON => Expiry::Soon(left),
            Some(left) => Expiry::Far(left),
        }
    }

    /// The warning, where there is one.
    pub(super) fn warning(&self) -> Option<String> {
        let days = |time: &Duration| time.as_secs() / DAY.as_secs();
        match self {
            Expiry::Over(since) => {
                Some(format!("the certificate has expired, {} days ago: clients refuse it", days(since)))
            }
            Expiry::Soon(left) => Some(format!("the certificate expires in {} days", days(left))),
            Expiry::Far(_) => None,
        }
    }
}

/// When a certificate ends, since 1970; `None` where it cannot be read, or ended before that.
pub(super) fn end_of(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_ends_within_two_weeks_or_has_ended_is_warned_of() {
        let now = DAY * 20_000;
        let check = |end: Duration, expected: Option<&str>| {
            assert_eq!(Expiry::of(end, now).warning().as_deref(), expected);
        };
        check(now + DAY * 14, None);
        check(now + DAY * 14 - Duration::from_secs(1), Some("the certificate expires in 13 days"));
        check(now + Duration::from_secs(1), Some("the certificate expires in 0 days"));
        check(now, Some("the certificate has expired, 0 days ago: clients refuse it"));
        check(now - DAY * 3, Some("the certificate has expired, 3 days ago: clients refuse it"));
    }

    #[test]
    fn the_end_is_that_of_the_certificate() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 3, 4);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let expected = Duration::from_secs(params.not_after.unix_timestamp() as u64);
        assert_eq!(end_of(certificate.der()), Some(expected));
        assert_eq!(end_of(&CertificateDer::from_slice(b"none")), None);
    }
}
