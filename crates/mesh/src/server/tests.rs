//! Servers against clients, over real sockets.
