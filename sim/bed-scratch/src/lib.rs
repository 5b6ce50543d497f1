pub mod bed;
pub mod probe;
pub mod stream;
pub mod talk;
pub mod wire;
pub mod never_open;
pub mod random;
