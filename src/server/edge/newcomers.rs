//! Clients that connect while the listener closes. When it closes, the system resets every
//! connection in its backlog, and every one whose handshake has begun and not ended; across a
//! network, a handshake takes a whole round trip. So new clients are kept out first, and the
//! handshakes that have begun are waited for.

use mio::net::{TcpListener, TcpStream};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Instant;

/// Makes the system drop each SYN to the listener, where it can. A client that connects now sends
/// its SYN again, and finds the port closed, or the next server. True if the clients that are still
/// accepted are to be [let in](let_in).
pub(super) fn keep_out(listener: &TcpListener) -> bool {
    #[cfg(target_os = "linux")]
    match linux::drop_syns(listener) {
        Ok(()) => return false,
        Err(e) => log::debug!("cannot filter out new connections: {e}"),
    }
    #[cfg(target_os = "linux")]
    return linux::require_hops(listener, u8::MAX);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = listener;
        false
    }
}

/// Takes back what a socket has inherited from a listener that keeps newcomers out.
pub(super) fn let_in(client: &TcpStream) {
    #[cfg(target_os = "linux")]
    linux::require_hops(client, 0);
    #[cfg(not(target_os = "linux"))]
    let _ = client;
}

#[cfg(target_os = "linux")]
mod linux {
    use mio::net::TcpListener;
    use nix::libc::{self, c_int};
    use nix::sys::socket::setsockopt;
    use nix::{setsockopt_impl, sockopt_impl};
    use socket2::{SockFilter, SockRef};
    use std::io;
    use std::os::fd::AsFd;

    /// By a filter, which newer systems grant to administrators alone (for TCP, CAP_NET_ADMIN).
    pub fn drop_syns(listener: &TcpListener) -> io::Result<()> {
        const LOAD_BYTE: u16 = 0x30;
        const AND: u16 = 0x54;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        const SYN: u32 = 0x02;
        const SYN_OR_ACK: u32 = 0x12;
        let filter = [
            // The flags of a TCP header.
            SockFilter::new(LOAD_BYTE, 0, 0, 13),
            SockFilter::new(AND, 0, 0, SYN_OR_ACK),
            SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ];
        SockRef::from(listener).attach_filter(&filter)
    }

    /// Has the system drop what comes with fewer hops left than these, as a guard against distant
    /// senders would (RFC 5082). Hosts send with 64 or 128, so that 255 keeps everybody out; and
    /// the system looks at a SYN, but not at the last packet of a handshake. The connection
    /// inherits it. True if at least one of IPv4 and IPv6 is guarded.
    pub fn require_hops(socket: &impl AsFd, least: u8) -> bool {
        sockopt_impl!(MinTtl, SetOnly, libc::IPPROTO_IP, libc::IP_MINTTL, c_int);
        sockopt_impl!(
            MinHopCount,
            SetOnly,
            libc::IPPROTO_IPV6,
            libc::IPV6_MINHOPCOUNT,
            c_int
        );
        let least = c_int::from(least);
        let four = setsockopt(socket, MinTtl, &least);
        let six = setsockopt(socket, MinHopCount, &least);
        four.is_ok() || six.is_ok()
    }
}

/// Whether a handshake with this local port has begun and not ended, as far as the system tells. If
/// that is not known by `until`, it is assumed. The system's tables have a line for every
/// connection of the machine, of which a hundred thousand may just have ended.
pub(super) fn are_on_the_way(port: u16, until: Instant) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| File::open(table).ok())
        .flat_map(|table| BufReader::new(table).lines().map_while(Result::ok))
        .any(|line| is_handshake(&line, port) || Instant::now() >= until)
}

/// A line is `sl local_address rem_address st ..`, an address is `0100007F:0BB8`, and the state
/// after a SYN is 03.
fn is_handshake(line: &str, port: u16) -> bool {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let local = columns.next().and_then(|local| local.rsplit_once(':'));
    local.is_some_and(|(_, of)| u16::from_str_radix(of, 16) == Ok(port))
        && columns.nth(1) == Some("03")
}

#[cfg(test)]
mod tests {
    use super::{are_on_the_way, is_handshake};
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    #[test]
    #[cfg(target_os = "linux")]
    fn the_last_look_ends_in_time_however_many_connections_the_machine_has() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = Instant::now();
        assert!(!are_on_the_way(port, now + Duration::from_secs(60)));
        assert!(are_on_the_way(port, now));
    }

    #[test]
    fn a_handshake_is_told_from_a_connection() {
        let line = |port, state| {
            format!(
                "   5: 0100007F:{port} 0100007F:D2E6 {state} 00000000:00000000 01:00000014 00000000     0        0 0 1 0"
            )
        };
        assert!(is_handshake(&line("0BB8", "03"), 3000));
        assert!(!is_handshake(&line("0BB9", "03"), 3000));
        assert!(!is_handshake(&line("0BB8", "01"), 3000));
        assert!(!is_handshake(
            "  sl  local_address rem_address   st tx_queue",
            3000
        ));
        assert!(!is_handshake("", 3000));
    }
}
