//! Newtypes at the ground floor: ids, addresses, pods, quotas, time.
//!
//! Strings become these types at the edge; inside, a value that exists is valid. No I/O, no
//! runtime, no wire format of anybody else.

pub mod address;
pub mod cloud;
pub mod journal;
pub mod node;
pub mod op;
pub mod pod;
pub mod quota;
pub mod time;
