//! Processes and connections in real namespaces: needs root, and fails without.

#[cfg(test)]
mod connections;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod processes;
