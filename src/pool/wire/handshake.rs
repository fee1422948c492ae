//! The handshake of TLS, as PostgreSQL does it: the client asks whether the server offers TLS, and
//! the server answers with one byte (manual, section 55.2.11).

use super::failure::Failure;
use super::stream::{Stream, Wire};
#[cfg(feature = "tls")]
use rustls::pki_types::ServerName;
#[cfg(feature = "tls")]
use rustls::{AlertDescription, CertificateError, ClientConfig, Error};
#[cfg(feature = "tls")]
use std::io;
#[cfg(feature = "tls")]
use std::sync::Arc;
#[cfg(feature = "tls")]
use std::sync::atomic::Ordering;
#[cfg(feature = "tls")]
use tokio::io::{AsyncReadExt, AsyncWriteExt};
#[cfg(feature = "tls")]
use tokio_rustls::TlsConnector;

/// The request for TLS: its length, and a number that is no version of the protocol.
#[cfg(feature = "tls")]
pub(super) const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A handshake to be done. Without the feature `tls` there is none.
#[cfg(not(feature = "tls"))]
#[derive(Clone)]
pub(crate) enum Handshake {}

#[cfg(feature = "tls")]
#[derive(Clone)]
pub(crate) struct Handshake {
    pub config: Arc<ClientConfig>,
    /// The host's.
    pub name: ServerName<'static>,
    /// The handshake begins at once.
    pub direct: bool,
    /// A server that offers no TLS is refused, as this value of `sslmode` demands.
    pub required: Option<String>,
}

#[cfg(not(feature = "tls"))]
pub(super) async fn encrypt(_: Wire, handshake: &Handshake) -> Result<Stream, Failure> {
    match *handshake {}
}

#[cfg(feature = "tls")]
pub(super) async fn encrypt(mut wire: Wire, tls: &Handshake) -> Result<Stream, Failure> {
    if !tls.direct {
        wire.write_all(&REQUEST).await.map_err(Failure::Io)?;
        wire.flush().await.map_err(Failure::Io)?;
        // Not a byte more: what follows the answer in the clear may come from another.
        let mut answer = [0];
        wire.read_exact(&mut answer).await.map_err(Failure::Io)?;
        if !tls.is_offered(answer[0])? {
            return Ok(Stream::Plain(wire));
        }
    }
    wire.handle.encrypted.store(true, Ordering::Relaxed);
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let connecting = connector.connect(tls.name.clone(), wire);
    let above = connecting.await.map_err(|e| tls.explain(e))?;
    // Asked without the request before it, another kind of server may have answered.
    if tls.direct && above.get_ref().1.alpn_protocol().is_none() {
        return Err(tls.explain(io::Error::other(Error::NoApplicationProtocol)));
    }
    Ok(Stream::Encrypted(Box::new(above)))
}

#[cfg(feature = "tls")]
impl Handshake {
    /// Reads the server's answer to the request for TLS. Returns false if the connection goes on in
    /// the clear.
    pub(super) fn is_offered(&self, answer: u8) -> Result<bool, Failure> {
        match (answer, &self.required) {
            (b'S', _) => Ok(true),
            (b'N', None) => Ok(false),
            (b'N', Some(mode)) => Err(Failure::Tls(format!(
                "sslmode={mode} asks for TLS, but the server does not offer it"
            ))),
            // A server that cannot start a process answers so. Its text may come from anyone.
            (b'E', _) => Err(Failure::Io(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server answered the request for TLS with an error",
            ))),
            _ => Err(Failure::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                "what answered the request for TLS is not PostgreSQL",
            ))),
        }
    }

    /// Says what was expected and what came.
    pub(super) fn explain(&self, error: io::Error) -> Failure {
        let host = self.name.to_str();
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        let Some(cause) = cause else {
            let closed = error.kind() == io::ErrorKind::UnexpectedEof && self.direct;
            return Failure::Io(match closed {
                true => io::Error::new(
                    error.kind(),
                    "the server closed the connection in the handshake; it knows sslnegotiation=direct if it is PostgreSQL 17 or newer",
                ),
                false => error,
            });
        };
        let what = match cause {
            Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            }) => format!(
                "the server's certificate is for {}, not for the host {host:?}",
                match &presented[..] {
                    [] => "no host".to_owned(),
                    names => names.join(", "),
                }
            ),
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => format!(
                "the server's certificate for {host:?} was not issued by an authority in the file of roots (sslrootcert)"
            ),
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => format!("the server's certificate for {host:?} is not valid now: {cause}"),
            Error::InvalidCertificate(CertificateError::Revoked) => {
                format!("the server's certificate for {host:?} was revoked (sslcrl)")
            }
            Error::InvalidCertificate(CertificateError::UnknownRevocationStatus) => format!(
                "no list of revoked certificates (sslcrl) is of the authority that issued the server's certificate for {host:?}"
            ),
            Error::AlertReceived(AlertDescription::ProtocolVersion)
            | Error::PeerIncompatible(_) => format!(
                "the server and this client have no version or method of TLS in common: {cause}"
            ),
            Error::NoApplicationProtocol
            | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                "the server does not speak PostgreSQL over this connection (ALPN)".to_owned()
            }
            _ => format!("the TLS handshake with {host:?} failed: {cause}"),
        };
        Failure::Tls(what)
    }
}
