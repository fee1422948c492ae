//! The client behind a proxy. Pure.

use ipnet::IpNet;
use std::net::IpAddr;

/// The address in one element of `Forwarded` (RFC 7239), if it holds one.
pub(super) fn element(element: &str) -> Option<IpAddr> {
    element
        .split(';')
        .find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case("for")
                .then_some(value.trim().trim_matches('"'))
        })
        .and_then(address)
}

/// An address, with or without brackets and port.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next()?.parse().ok();
    }
    text.parse()
        .ok()
        .or_else(|| text.rsplit_once(':')?.0.parse().ok())
}

/// The client: the peer or, as long as that is a trusted proxy, the address that it names. `named`
/// holds the addresses in the headers, the nearest last. What an untrusted client claims about
/// others is ignored.
pub(super) fn client(peer: IpAddr, named: &[Option<IpAddr>], trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    for next in named.iter().rev() {
        if !trusted.iter().any(|network| network.contains(&client)) {
            break;
        }
        match next {
            Some(address) => client = address.to_canonical(),
            None => break,
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_their_forms() {
        let text = |found: Option<IpAddr>| found.map_or("-".to_owned(), |a| a.to_string());
        for (given, read) in [
            (" 1.2.3.4 ", "1.2.3.4"),
            ("1.2.3.4:80", "1.2.3.4"),
            ("::1", "::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("unknown", "-"),
            ("", "-"),
        ] {
            assert_eq!(text(address(given)), read, "{given}");
        }
        for (given, read) in [
            ("for=1.2.3.4;proto=http", "1.2.3.4"),
            ("proto=http; For=\"[2001:db8::1]:80\"", "2001:db8::1"),
            ("for=_hidden", "-"),
            ("by=1.2.3.4", "-"),
        ] {
            assert_eq!(text(element(given)), read, "{given}");
        }
    }

    #[test]
    fn only_who_is_trusted_is_believed() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "127.0.0.1/32"]
            .map(|n| n.parse().unwrap())
            .to_vec();
        for (peer, named, client_is) in [
            ("127.0.0.1", vec![], "127.0.0.1"),
            ("8.8.8.8", vec![Some("1.1.1.1")], "8.8.8.8"),
            ("127.0.0.1", vec![Some("1.1.1.1")], "1.1.1.1"),
            ("::ffff:127.0.0.1", vec![Some("1.1.1.1")], "1.1.1.1"),
            (
                "127.0.0.1",
                vec![Some("6.6.6.6"), Some("1.1.1.1"), Some("10.1.2.3")],
                "1.1.1.1",
            ),
            ("127.0.0.1", vec![Some("6.6.6.6"), None], "127.0.0.1"),
            ("10.0.0.1", vec![Some("10.0.0.2")], "10.0.0.2"),
        ] {
            let named: Vec<_> = named.into_iter().map(|n| n.map(ip)).collect();
            assert_eq!(
                client(ip(peer), &named, &trusted),
                ip(client_is),
                "{peer} {named:?}"
            );
        }
        assert_eq!(
            client(ip("127.0.0.1"), &[Some(ip("1.1.1.1"))], &[]),
            ip("127.0.0.1")
        );
    }
}
