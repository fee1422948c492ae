//! What binds a login by SCRAM to the TLS connection: a hash of the server's certificate
//! (`tls-server-end-point`, RFC 5929). A man in the middle has another certificate.

use postgres::tls::ChannelBinding;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, SHA_1_WITH_RSA_ENCRYPTION,
    SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};

/// Returns the binding to this certificate of the server. A signature without a hash of its own, as
/// with Ed25519, gives none; libpq refuses it there, too.
pub(super) fn channel_binding(certificate: &CertificateDer<'_>) -> ChannelBinding {
    let Ok(read) = Certificate::from_der(certificate) else {
        return ChannelBinding::none();
    };
    let hash = match read.signature_algorithm.oid {
        // In place of the weak hash, this one is used.
        SHA_1_WITH_RSA_ENCRYPTION | SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => {
            Sha256::digest(certificate).to_vec()
        }
        SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => Sha384::digest(certificate).to_vec(),
        SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => Sha512::digest(certificate).to_vec(),
        _ => return ChannelBinding::none(),
    };
    ChannelBinding::tls_server_end_point(hash)
}
