//! Servers against clients over real sockets: who gets in, what becomes of calls.

// Said so that lints see helpers here as what they are, too: test code.
#[cfg(test)]
mod calls;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod site;
