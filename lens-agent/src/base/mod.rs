//! The words that every room shares. No module here does I/O, except that [`clock`] reads the time.

pub mod clock;
pub mod metric;
pub mod names;
pub mod quality;
pub mod ring;
pub mod scope;
pub mod snapshot;
pub mod text;
