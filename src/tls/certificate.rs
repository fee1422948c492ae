//! What is read of the server's certificate: whether it is in force, whom it names, and who issued
//! it.

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, SignatureScheme};
use std::net::IpAddr;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectAltName};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

pub(super) struct Certificate(x509_cert::Certificate);

impl Certificate {
    pub fn read(der: &CertificateDer<'_>) -> Result<Certificate, CertificateError> {
        let read = x509_cert::Certificate::from_der(der);
        read.map(Certificate)
            .map_err(|_| CertificateError::BadEncoding)
    }

    /// Returns whether it is of the first version of the format, which has no extensions. A
    /// certificate made as PostgreSQL's manual shows is one, and webpki refuses it.
    pub fn is_first_version(&self) -> bool {
        self.0.tbs_certificate.version == Version::V1
    }

    pub fn check_dates(&self, now: UnixTime) -> Result<(), CertificateError> {
        let validity = &self.0.tbs_certificate.validity;
        let time =
            |time: &x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
        let (not_before, not_after) = (time(&validity.not_before), time(&validity.not_after));
        if now.as_secs() < not_before.as_secs() {
            return Err(CertificateError::NotValidYetContext {
                time: now,
                not_before,
            });
        }
        if now.as_secs() > not_after.as_secs() {
            return Err(CertificateError::ExpiredContext {
                time: now,
                not_after,
            });
        }
        Ok(())
    }

    pub fn is_self_issued(&self) -> bool {
        let own = &self.0.tbs_certificate;
        own.issuer == own.subject
    }

    /// Returns whether it is an authority's own certificate, and in force. Webpki takes any anchor
    /// that it is given; OpenSSL wants such a one.
    pub fn may_issue(&self, now: UnixTime) -> bool {
        let own = &self.0.tbs_certificate;
        let is_authority = || {
            let constraints = own.get::<BasicConstraints>();
            let usage = own.get::<KeyUsage>();
            matches!(
                constraints,
                Ok(Some((_, BasicConstraints { ca: true, .. })))
            ) && match usage {
                Ok(None) => true,
                Ok(Some((_, usage))) => usage.key_cert_sign(),
                Err(_) => false,
            }
        };
        self.is_self_issued()
            && self.check_dates(now).is_ok()
            && (self.is_first_version() || is_authority())
    }

    /// Returns whether `issuer` issued it: by name and by signature.
    pub fn is_issued_by(
        &self,
        issuer: &Certificate,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> bool {
        let (own, theirs) = (&self.0.tbs_certificate, &issuer.0.tbs_certificate);
        let (Ok(signed), Ok(with), Some(signature)) = (
            own.to_der(),
            self.0.signature_algorithm.to_der(),
            self.0.signature.as_bytes(),
        ) else {
            return false;
        };
        let Some((key, key_algorithm)) = issuer.public_key() else {
            return false;
        };
        own.issuer == theirs.subject
            && algorithms.all.iter().any(|algorithm| {
                is_sequence(&with, algorithm.signature_alg_id().as_ref())
                    && is_sequence(&key_algorithm, algorithm.public_key_alg_id().as_ref())
                    && algorithm.verify_signature(&key, &signed, signature).is_ok()
            })
    }

    /// Returns whether the holder of the certificate's key signed a part of the handshake.
    pub fn has_signed(
        &self,
        message: &[u8],
        scheme: SignatureScheme,
        signature: &[u8],
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> bool {
        let Some((key, key_algorithm)) = self.public_key() else {
            return false;
        };
        let of_scheme = algorithms.mapping.iter().filter(|(one, _)| *one == scheme);
        of_scheme.flat_map(|(_, all)| *all).any(|algorithm| {
            is_sequence(&key_algorithm, algorithm.public_key_alg_id().as_ref())
                && algorithm.verify_signature(&key, message, signature).is_ok()
        })
    }

    /// Returns whether this is the certificate's public key.
    pub fn has_public_key(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let own = self.0.tbs_certificate.subject_public_key_info.to_der();
        own.is_ok_and(|own| own == key.as_ref())
    }

    /// Returns the public key and its algorithm.
    fn public_key(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let info = &self.0.tbs_certificate.subject_public_key_info;
        let key = info.subject_public_key.as_bytes()?.to_owned();
        Some((key, info.algorithm.to_der().ok()?))
    }

    /// Returns whether it was issued for this host, by libpq's rules: by a name or an address of
    /// the alternative names, or by its common name if there is none of the host's kind.
    pub fn names(&self, host: &str) -> bool {
        let alternatives = self.alternative_names();
        let address = host.parse::<IpAddr>().ok();
        let mut of_its_kind = false;
        for name in &alternatives {
            let fits = match name {
                Name::Dns(pattern) => {
                    of_its_kind |= address.is_none();
                    is_match(pattern, host)
                }
                Name::Address(bytes) => {
                    of_its_kind |= address.is_some();
                    address.is_some_and(|address| match address {
                        IpAddr::V4(v4) => bytes == &v4.octets(),
                        IpAddr::V6(v6) => bytes == &v6.octets(),
                    })
                }
            };
            if fits {
                return true;
            }
        }
        !of_its_kind && self.common_name().is_some_and(|name| is_match(&name, host))
    }

    /// Returns whom it names, as text for people.
    pub fn all_names(&self) -> Vec<String> {
        let alternatives = self.alternative_names();
        let named = alternatives.iter().map(|name| match name {
            Name::Dns(name) => name.clone(),
            Name::Address(bytes) => match <[u8; 4]>::try_from(&bytes[..]) {
                Ok(v4) => IpAddr::from(v4).to_string(),
                Err(_) => <[u8; 16]>::try_from(&bytes[..])
                    .map_or_else(|_| String::new(), |v6| IpAddr::from(v6).to_string()),
            },
        });
        let mut all: Vec<_> = named.collect();
        if all.is_empty() {
            all.extend(self.common_name());
        }
        all
    }

    fn alternative_names(&self) -> Vec<Name> {
        let found = self.0.tbs_certificate.get::<SubjectAltName>();
        let Ok(Some((_, SubjectAltName(names)))) = found else {
            return Vec::new();
        };
        let kept = names.into_iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(Name::Dns(name.to_string())),
            GeneralName::IpAddress(bytes) => Some(Name::Address(bytes.as_bytes().to_owned())),
            _ => None,
        });
        kept.collect()
    }

    fn common_name(&self) -> Option<String> {
        let all = self.0.tbs_certificate.subject.0.iter();
        let named = all.flat_map(|part| part.0.iter());
        let last = named.rev().find(|part| part.oid == COMMON_NAME)?;
        let value = &last.value;
        let text = value
            .decode_as::<Utf8StringRef<'_>>()
            .map(|text| text.as_str().to_owned())
            .or_else(|_| {
                value
                    .decode_as::<PrintableStringRef<'_>>()
                    .map(|text| text.as_str().to_owned())
            })
            .or_else(|_| {
                value
                    .decode_as::<TeletexStringRef<'_>>()
                    .map(|text| text.as_str().to_owned())
            });
        text.ok()
    }
}

/// An alternative name of a kind that a host can have.
enum Name {
    Dns(String),
    Address(Vec<u8>),
}

/// Compares an encoded sequence with the content of one, which is how webpki keeps identifiers.
fn is_sequence(encoded: &[u8], content: &[u8]) -> bool {
    // Both are shorter than 128 bytes, so the length takes one byte.
    encoded.len() == content.len() + 2 && encoded.ends_with(content)
}

/// Compares a name of a certificate with a host's. A `*` stands for the whole first label.
fn is_match(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(suffix), Some((first, rest))) = (pattern.strip_prefix("*."), host.split_once('.'))
    else {
        return false;
    };
    !first.is_empty() && suffix.contains('.') && rest.eq_ignore_ascii_case(suffix)
}

#[cfg(test)]
mod tests {
    use super::is_match;

    #[test]
    fn a_name_fits_as_libpq_compares_it() {
        for (pattern, host, fits) in [
            ("db.example.com", "db.example.com", true),
            ("DB.Example.com", "db.example.COM", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*", "db", false),
            ("db.example.com\0.evil.com", "db.example.com", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("", "db", false),
        ] {
            assert_eq!(is_match(pattern, host), fits, "{pattern:?} {host:?}");
        }
    }
}
