//! The server's side of TLS, for a proxy that is to see what passes in plain text.

use super::authority::Files;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The request for TLS.
pub const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The first byte of a handshake.
const HANDSHAKE: u8 = 0x16;

/// Returns a stream over which the client's bytes come in plain text, and ours go to it. A client
/// that asks for no TLS is returned as it is.
pub fn terminate(client: TcpStream, files: &Files) -> std::io::Result<TcpStream> {
    terminate_for(client, files, &[b"postgresql"])
}

/// The same, as one who speaks these protocols, by their names in the handshake (ALPN).
pub fn terminate_for(
    mut client: TcpStream,
    files: &Files,
    protocols: &[&[u8]],
) -> std::io::Result<TcpStream> {
    let mut request = [0; 8];
    let found = client.peek(&mut request)?;
    if found == 8 && request == REQUEST {
        client.read_exact(&mut request)?;
        client.write_all(b"S")?;
    } else if found == 0 || request[0] != HANDSHAKE {
        return Ok(client);
    }
    client.set_nodelay(true)?;
    let session = ServerConnection::new(config(files, protocols));
    let mut session = session.expect("a session");
    session.set_buffer_limit(None);
    let session = Arc::new(Mutex::new(session));
    let (plain, ours) = pair()?;
    let (mut from_client, mut to_plain) = (client.try_clone()?, plain.try_clone()?);
    let reading = Arc::clone(&session);
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer) {
            let mut session = reading.lock().unwrap();
            let (mut bytes, mut text) = (&buffer[..count], Vec::new());
            while !bytes.is_empty() {
                let passed = session.read_tls(&mut bytes).is_ok();
                let Ok(state) = session.process_new_packets() else {
                    break;
                };
                let mut more = vec![0; state.plaintext_bytes_to_read()];
                if !passed || session.reader().read_exact(&mut more).is_err() {
                    break;
                }
                text.extend(more);
            }
            let sent = flush(&mut session, &mut from_client);
            drop(session);
            if !sent || to_plain.write_all(&text).is_err() {
                break;
            }
        }
        let _ = to_plain.shutdown(Shutdown::Write);
    });
    let (mut from_plain, mut to_client) = (plain, client);
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from_plain.read(&mut buffer) {
            let mut session = session.lock().unwrap();
            session
                .writer()
                .write_all(&buffer[..count])
                .expect("no limit");
            if !flush(&mut session, &mut to_client) {
                break;
            }
        }
        for socket in [from_plain, to_client] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    });
    Ok(ours)
}

fn flush(session: &mut ServerConnection, client: &mut TcpStream) -> bool {
    while session.wants_write() {
        if session.write_tls(client).is_err() {
            return false;
        }
    }
    true
}

fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    Ok((one, other))
}

fn config(files: &Files, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.certificate)
        .expect("a file")
        .collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("a certificate and its key");
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}
