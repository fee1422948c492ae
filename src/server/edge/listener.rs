//! The public listener: opened here, or inherited from the process before.

use super::newcomers;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockRef, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// The most clients that connect in one moment; the system lowers it to its own limit.
const BACKLOG: i32 = 4096;

pub(super) struct Listener {
    socket: TcpListener,
    /// Other processes hold it too: it goes on when this server ends.
    is_inherited: bool,
    /// What it accepts has inherited from it that nothing is heard.
    lets_in: bool,
}

impl Listener {
    /// Takes the inherited listener, or else binds `addr`, and registers it as `token`.
    pub fn new(
        inherited: Option<std::net::TcpListener>,
        addr: SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Listener> {
        let is_inherited = inherited.is_some();
        let mut socket = match inherited {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            }
            None => listen(addr)?,
        };
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(Listener {
            socket,
            is_inherited,
            lets_in: false,
        })
    }

    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Clients that connect from now on may be left to the next server.
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let accepted = self.socket.accept()?;
        if self.lets_in {
            newcomers::let_in(&accepted.0);
        }
        Ok(accepted)
    }

    /// Before the listener closes: new clients are kept out, unless the next server takes them.
    pub fn keep_newcomers_out(&mut self) {
        if !self.is_inherited {
            self.lets_in = newcomers::keep_out(&self.socket);
        }
    }

    /// Clients whose handshake has begun, which would be reset if the listener closed now. Takes no
    /// longer than `until` to find out.
    pub fn has_newcomers(&self, until: Instant) -> bool {
        let on_the_way = |addr: SocketAddr| newcomers::are_on_the_way(addr.port(), until);
        !self.is_inherited && self.addr().is_ok_and(on_the_way)
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A port that was in use a moment ago can be bound again.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    // Accepted sockets inherit it: an answer is one write, which must not wait for the
    // acknowledgement of the last one.
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok(TcpListener::from_std(socket.into()))
}
