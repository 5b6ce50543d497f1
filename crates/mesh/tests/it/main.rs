//! Servers against clients over real sockets: who gets in, what becomes of calls.

mod calls;
mod gate;
mod handshake;
mod site;
