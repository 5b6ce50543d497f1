//! `terwayctl status`: is the installation healthy, and what is to be done if not?
//!
//! [`collect`] reads the API server (and through it the metrics of our services) into a [`picture`]; [`judge`] makes
//! lines of it, without asking anybody; [`advice`] knows what to do about each fault; [`print`] shows it. Nothing is
//! changed.

pub mod advice;
pub mod collect;
pub mod judge;
pub mod objects;
pub mod picture;
pub mod print;
pub mod run;
pub mod samples;
pub mod source;
