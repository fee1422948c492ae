//! The client, by the PROXY protocol: HAProxy (`send-proxy`) and cloud balancers send it before a
//! connection's first request. Only trusted proxies are believed. Pure.

use ppp::{PartialResult, v1, v2};
use std::net::IpAddr;

/// The longest header that is accepted. Version 1 takes 107 bytes; version 2 has room for
/// extensions, which are ignored.
const LONGEST: usize = 2048;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const WORD: &[u8] = b"PROXY ";

/// What a connection begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Begin {
    /// A request.
    Request,
    /// Too few bytes to tell.
    Incomplete,
    /// A header with its length and the client; no client if the proxy speaks for itself.
    Header(usize, Option<IpAddr>),
    /// A malformed header.
    Bad,
}

pub fn begin(input: &[u8]) -> Begin {
    let begins = |with: &[u8]| {
        let both = with.len().min(input.len());
        input[..both] == with[..both]
    };
    let found = match () {
        () if input.is_empty() => return Begin::Incomplete,
        () if begins(SIGNATURE) => match v2::Header::try_from(input) {
            Ok(header) => {
                let client = match header.addresses {
                    _ if header.command == v2::Command::Local => None,
                    v2::Addresses::IPv4(ip) => Some(ip.source_address.into()),
                    v2::Addresses::IPv6(ip) => Some(ip.source_address.into()),
                    v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
                };
                Ok((header.len(), client))
            }
            Err(e) => Err(e.is_incomplete()),
        },
        // The parser takes a part of a line for a bad header.
        () if begins(WORD) && !input.contains(&b'\n') => Err(true),
        () if begins(WORD) => match v1::Header::try_from(input) {
            Ok(header) => {
                let client = match header.addresses {
                    v1::Addresses::Tcp4(ip) => Some(ip.source_address.into()),
                    v1::Addresses::Tcp6(ip) => Some(ip.source_address.into()),
                    v1::Addresses::Unknown => None,
                };
                Ok((header.header.len(), client))
            }
            Err(_) => Err(false),
        },
        () => return Begin::Request,
    };
    match found {
        Ok((length, client)) => Begin::Header(length, client),
        Err(true) if input.len() < LONGEST => Begin::Incomplete,
        Err(_) => Begin::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 2, for 192.0.2.1.
    fn binary() -> Vec<u8> {
        let mut bytes = [SIGNATURE, b"\x21\x11\0\x0c"].concat();
        bytes.extend([192, 0, 2, 1, 127, 0, 0, 1, 0x30, 0x39, 0, 80]);
        bytes
    }

    #[test]
    fn both_versions_tell_who_asks_in_pieces_of_any_size() {
        let one = b"PROXY TCP4 192.0.2.1 127.0.0.1 12345 80\r\n".to_vec();
        let six = b"PROXY TCP6 2001:db8::1 ::1 12345 80\r\n".to_vec();
        for (header, client) in [
            (one, "192.0.2.1"),
            (six, "2001:db8::1"),
            (binary(), "192.0.2.1"),
        ] {
            let client = Some(client.parse().unwrap());
            for end in 0..header.len() {
                assert_eq!(begin(&header[..end]), Begin::Incomplete, "{end}");
            }
            let whole = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(begin(&whole), Begin::Header(header.len(), client));
        }
        let local = [SIGNATURE, b"\x20\0\0\0"].concat();
        assert_eq!(begin(&local), Begin::Header(16, None));
        let unknown = b"PROXY UNKNOWN\r\nGET";
        assert_eq!(begin(unknown), Begin::Header(15, None));
    }

    #[test]
    fn what_is_none_is_a_request_or_refused() {
        for request in [
            "GET / HTTP/1.1\r\n",
            "PUT / ",
            "\r\nGET / HTTP",
            "\r\n\r\nGET",
        ] {
            assert_eq!(begin(request.as_bytes()), Begin::Request, "{request:?}");
        }
        for bad in [
            "PROXY TCP4 256.0.0.1 127.0.0.1 1 2\r\n",
            "PROXY TCP9 a b c d\r\n",
            &format!("PROXY {}", "x".repeat(LONGEST)),
        ] {
            assert_eq!(begin(bad.as_bytes()), Begin::Bad, "{bad:.40}");
        }
        let mut other_version = binary();
        other_version[12] = 0x31;
        assert_eq!(begin(&other_version), Begin::Bad);
    }
}
