//! From when until when a certificate is valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The time of a certificate's validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Valid from then.
    pub not_before: SystemTime,
    /// Valid until then.
    pub not_after: SystemTime,
}

impl Lifetime {
    /// Of the first certificate in a PEM; nothing where there is none.
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        let leaf = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
        let (_, parsed) = X509Certificate::from_der(&leaf).ok()?;
        let at = |seconds: i64| {
            let seconds = u64::try_from(seconds).ok()?;
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        Some(Self {
            not_before: at(parsed.validity().not_before.timestamp())?,
            not_after: at(parsed.validity().not_after.timestamp())?,
        })
    }

    /// How long it is valid in all.
    pub fn span(&self) -> Duration {
        self.not_after
            .duration_since(self.not_before)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, Leaf};
    use crate::identity::Identity;

    #[test]
    fn lifetime_of_a_certificate_is_what_was_asked_for() {
        let authority = Authority::new(Duration::from_hours(24)).unwrap();
        let (from, until) = (
            UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            UNIX_EPOCH + Duration::from_secs(1_700_003_600),
        );
        let leaf = Leaf::new(&Identity::gateway("g"), Duration::ZERO).valid(from, until);

        let issued = authority.issue(&leaf).unwrap();

        let lifetime = Lifetime::of_pem(issued.certificate.as_bytes()).unwrap();
        assert_eq!((lifetime.not_before, lifetime.not_after), (from, until));
        assert_eq!(lifetime.span(), Duration::from_hours(1));
        assert_eq!(Lifetime::of_pem(b"nothing"), None);
    }
}
