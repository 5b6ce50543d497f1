//! The words of the OpenAPI: parameters read into commands, results written as replies.

pub mod command;
pub mod known;
pub mod page;
pub mod parameters;
pub mod render;
