//! Calico's selector language.
