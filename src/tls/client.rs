//! The settings of a handshake, made from the user's.

use super::certificate::Certificate;
use super::files::{self, Stamp};
use super::verifier::Verifier;
use crate::config::{Roots, SslMode, TlsSettings, TlsVersion};
use crate::sync::unpoison;
use log::warn;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, SupportedProtocolVersion, version};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What the server may ask for in the handshake, so that another service behind the same address
/// cannot be taken for a database.
const PROTOCOL: &[u8] = b"postgresql";

/// The settings of the handshakes with one host.
#[derive(Clone)]
pub(crate) struct Client {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

/// Keeps the settings for each host until one of the files changes.
#[derive(Default)]
pub(crate) struct ClientCache(Mutex<HashMap<String, (Key, Client)>>);

#[derive(PartialEq)]
struct Key {
    settings: TlsSettings,
    stamps: Vec<Stamp>,
    /// Authorities that have expired meanwhile are left out the next day.
    day: u64,
}

impl ClientCache {
    /// Returns the settings for this host. An error says what is wrong with which file.
    pub fn client(&self, settings: &TlsSettings, host: &str) -> Result<Client, String> {
        let files = Files::of(settings);
        let key = Key {
            settings: settings.clone(),
            day: UnixTime::now().as_secs() / (24 * 60 * 60),
            stamps: files.all().map(|path| files::stamp(path)).collect(),
        };
        if let Some((known, client)) = unpoison(self.0.lock()).get(host)
            && *known == key
        {
            return Ok(client.clone());
        }
        let client = make(settings, &files, host)?;
        let entry = (key, client.clone());
        unpoison(self.0.lock()).insert(host.to_owned(), entry);
        Ok(client)
    }
}

/// The files in question, which need not exist.
struct Files {
    roots: Option<PathBuf>,
    revoked: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Files {
    fn of(settings: &TlsSettings) -> Files {
        let or_default =
            |given: &Option<PathBuf>, name: &str| given.clone().or_else(|| files::in_home(name));
        Files {
            roots: match &settings.roots {
                Roots::System => None,
                Roots::File(path) => Some(path.clone()),
                Roots::Default => files::in_home("root.crt"),
            },
            revoked: or_default(&settings.revoked, "root.crl"),
            certificate: or_default(&settings.certificate, "postgresql.crt"),
            key: or_default(&settings.key, "postgresql.key"),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        let all = [&self.roots, &self.revoked, &self.certificate, &self.key];
        all.into_iter().flatten()
    }
}

fn make(settings: &TlsSettings, files: &Files, host: &str) -> Result<Client, String> {
    // A process that has chosen a provider keeps it for its own connections.
    let provider = Arc::new(ring::default_provider());
    let versions = versions(settings);
    let roots = roots(settings, files)?;
    let revoked = match files.revoked.as_ref().filter(|path| path.exists()) {
        Some(path) if !roots.is_empty() => files::revocations(path)?,
        _ => Vec::new(),
    };
    let full = (settings.mode == SslMode::VerifyFull).then_some(host);
    let verifier = Verifier::new(&provider, roots, revoked, full)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is neither a host name nor an address"))?;
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own_certificate(settings, files)? {
        Some((chain, key)) => {
            let own = certified(&provider, chain, key)?;
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        None => config.with_no_client_auth(),
    };
    config.enable_sni = settings.sends_host_name;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A session that is resumed would skip the look at the certificate, and its files may have
    // changed since.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Client {
        config: Arc::new(config),
        name,
    })
}

fn versions(settings: &TlsSettings) -> Vec<&'static SupportedProtocolVersion> {
    let all = [
        (TlsVersion::Tls13, &version::TLS13),
        (TlsVersion::Tls12, &version::TLS12),
    ];
    let wanted = settings.least..=settings.most;
    let found = all
        .into_iter()
        .filter(|(version, _)| wanted.contains(version));
    found.map(|(_, version)| version).collect()
}

/// Returns whether there are trusted certificates, so that the server's is verified.
#[cfg(feature = "cli")]
pub(crate) fn has_roots(settings: &TlsSettings) -> bool {
    let file = Files::of(settings).roots;
    settings.roots == Roots::System || file.is_some_and(|path| path.exists())
}

/// Returns the trusted certificates; none if the server's is not verified.
fn roots(settings: &TlsSettings, files: &Files) -> Result<Vec<CertificateDer<'static>>, String> {
    if settings.roots == Roots::System {
        let found = rustls_native_certs::load_native_certs();
        return match found.certs.is_empty() {
            true => Err("sslrootcert=system: the operating system has no trusted certificates; install them (ca-certificates), or name a file".into()),
            false => Ok(found.certs),
        };
    }
    match &files.roots {
        Some(path) if path.exists() => files::certificates(path),
        missing if settings.mode >= SslMode::VerifyCa => {
            let shown = missing.as_ref().map_or_else(
                || "~/.postgresql/root.crt".to_owned(),
                |path| path.display().to_string(),
            );
            Err(format!(
                "sslmode={} needs the file of roots {shown}, which does not exist; provide it, name another with sslrootcert, or use sslrootcert=system",
                settings.mode
            ))
        }
        missing => {
            if let (Roots::File(_), Some(path)) = (&settings.roots, missing) {
                let shown = path.display();
                warn!(
                    "sslrootcert: {shown} does not exist, so the server's certificate is not verified"
                );
            }
            Ok(Vec::new())
        }
    }
}

/// Joins a certificate and its key. Rustls would do it as well, but takes no certificate of the
/// first version of the format.
fn certified(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|e| format!("the key of sslkey cannot be used: {e}"))?;
    let certificate = chain
        .first()
        .and_then(|first| Certificate::read(first).ok());
    let certificate = certificate.ok_or("the certificate of sslcert cannot be read")?;
    match key.public_key() {
        Some(public) if !certificate.has_public_key(&public) => {
            Err("the key of sslkey is not that of the certificate of sslcert".into())
        }
        _ => Ok(CertifiedKey::new(chain, key)),
    }
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Returns the certificate that the server may ask for, if there is one.
fn own_certificate(settings: &TlsSettings, files: &Files) -> Result<Option<Chain>, String> {
    let Some(path) = files.certificate.as_ref().filter(|path| path.exists()) else {
        return Ok(None);
    };
    if !settings.sends_certificate {
        return Ok(None);
    }
    let chain = files::certificates(path)?;
    match &files.key {
        Some(key) if key.exists() => Ok(Some((chain, files::key(key)?))),
        key => Err(format!(
            "there is the certificate {}, but not its key {}",
            path.display(),
            key.as_ref()
                .map_or_else(String::new, |key| key.display().to_string())
        )),
    }
}
