//! The crate from outside: vectors of the vendor's SDKs, faults, replies, requests.

mod faults;
mod replies;
mod requests;
mod vectors;
