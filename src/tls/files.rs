//! The files of certificates and keys.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Returns the path of one of libpq's files in the user's home.
pub(super) fn in_home(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(".postgresql").join(name))
}

/// What shows that a file has changed: its size and its time. `None` if it is not there.
pub(super) type Stamp = Option<(u64, Option<SystemTime>)>;

pub(super) fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()))
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|e| unreadable("certificates", path, &e))?;
    match found.is_empty() {
        true => Err(format!("{} holds no certificate", path.display())),
        false => Ok(found),
    }
}

pub(super) fn revocations(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let read = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|e| unreadable("revoked certificates", path, &e))
}

/// Reads a private key, unless others than its owner may read it.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let found = fs::metadata(path).map_err(|e| format!("cannot read the key {shown}: {e}"))?;
    if !found.is_file() {
        return Err(format!("the key {shown} is not a regular file"));
    }
    if is_open_to_others(&found) {
        return Err(format!(
            "others may read the key {shown}: its mode must be 0600 or less, or 0640 if root owns it"
        ));
    }
    let text = fs::read(path).map_err(|e| format!("cannot read the key {shown}: {e}"))?;
    let is_encrypted = text.windows(9).any(|w| w == b"ENCRYPTED");
    if is_encrypted {
        return Err(format!(
            "the key {shown} is encrypted, which is not supported; takes one without a passphrase"
        ));
    }
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| format!("{shown} holds no private key in PEM form"))
}

#[cfg(unix)]
fn is_open_to_others(found: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let forbidden = if found.uid() == 0 { 0o037 } else { 0o077 };
    found.mode() & forbidden != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &Metadata) -> bool {
    false
}

fn unreadable(what: &str, path: &Path, error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    let path = path.display();
    match error {
        Error::Io(e) => format!("cannot read the {what} in {path}: {e}"),
        _ => format!("{path} holds no {what} in PEM form"),
    }
}
