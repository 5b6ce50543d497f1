//! Under construction of its first modules.
