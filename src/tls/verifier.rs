//! Decides about the server's certificate.

use super::certificate::Certificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Verifies as libpq does. Webpki builds the chain; where it is stricter than OpenSSL in ways that
/// shut out the certificates of small installations, this goes on: a certificate that is itself
/// among the roots, one of the first version of the format, a host that only the common name
/// names.
#[derive(Debug)]
pub(super) struct Verifier {
    /// None if none of the roots may issue certificates.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Empty if the certificate is not verified.
    roots: Vec<CertificateDer<'static>>,
    /// The host that the certificate must name.
    host: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
    has_revocations: bool,
}

impl Verifier {
    pub fn new(
        provider: &Arc<CryptoProvider>,
        roots: Vec<CertificateDer<'static>>,
        revoked: Vec<CertificateRevocationListDer<'static>>,
        host: Option<&str>,
    ) -> Result<Verifier, String> {
        let has_revocations = !revoked.is_empty();
        let now = UnixTime::now();
        let issuers = roots
            .iter()
            .filter(|root| Certificate::read(root).is_ok_and(|read| read.may_issue(now)));
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(issuers.cloned());
        let chain = match store.is_empty() {
            true => None,
            false => {
                let builder = WebPkiServerVerifier::builder_with_provider(
                    Arc::new(store),
                    Arc::clone(provider),
                );
                let built = builder
                    .with_crls(revoked)
                    .enforce_revocation_expiration()
                    .build();
                Some(
                    built
                        .map_err(|e| format!("the lists of revoked certificates (sslcrl) cannot be read: {e}; a list of the first version, without a number, is not taken (openssl ca: crlnumber)"))?,
                )
            }
        };
        Ok(Verifier {
            chain,
            roots,
            host: host.map(str::to_owned),
            algorithms: provider.signature_verification_algorithms,
            has_revocations,
        })
    }

    fn check_issuer(
        &self,
        certificate: &Certificate,
        (end_entity, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        certificate.check_dates(now)?;
        if certificate.is_self_issued() && self.roots.iter().any(|root| root == end_entity) {
            return Ok(());
        }
        let Some(chain) = &self.chain else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        if certificate.is_first_version() {
            return self.check_direct_issuer(certificate, now);
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, &[], now) {
            // One that may itself issue certificates.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) => {
                self.check_direct_issuer(certificate, now)
            }
            // Names are compared last, and here by libpq's rules.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Checks that one of the roots issued the certificate itself. Lists of revoked certificates are
    /// not read here, so with such a list it is refused.
    fn check_direct_issuer(&self, certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
        if self.has_revocations {
            return Err(CertificateError::UnknownRevocationStatus.into());
        }
        let roots = self
            .roots
            .iter()
            .filter_map(|root| Certificate::read(root).ok());
        let mut issuers = roots.filter(|root| root.may_issue(now));
        match issuers.any(|root| certificate.is_issued_by(&root, &self.algorithms)) {
            true => Ok(()),
            false => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    /// Checks the signature of the handshake: by `webpki`, unless it does not take the certificate.
    fn check_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        webpki: WebpkiCheck,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = Certificate::read(cert)?;
        if !certificate.is_first_version() {
            return webpki(message, cert, signed, &self.algorithms);
        }
        match certificate.has_signed(message, signed.scheme, signed.signature(), &self.algorithms) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }
}

type WebpkiCheck = fn(
    &[u8],
    &CertificateDer<'_>,
    &DigitallySignedStruct,
    &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error>;

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.roots.is_empty() {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = Certificate::read(end_entity)?;
        let both = (end_entity, intermediates);
        self.check_issuer(&certificate, both, server_name, now)?;
        match &self.host {
            Some(host) if !certificate.names(host) => {
                Err(CertificateError::NotValidForNameContext {
                    expected: server_name.to_owned(),
                    presented: certificate.all_names(),
                }
                .into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, signed, verify_tls12_signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, signed, verify_tls13_signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
