//! lens: a host's flight recorder that diagnoses it.
//!
//! Data goes one way, and the modules are named in the order in which it does:
//!
//! ```text
//! probes, host -> skills -> anomaly -> investigate -> api -> outputs
//! ```
//!
//! `base` holds the words that all of them share, `telemetry` what the agent says of itself,
//! `supervise` and `store` what keeps it running and remembering; `agent` wires it all.
//! A module imports only from modules above it in `xtask/src/layers.rs`, which checks it.

#![cfg_attr(
    test,
    allow(
        clippy::float_cmp,
        reason = "tests compute the very numbers that they expect"
    )
)]

pub mod agent;
pub mod anomaly;
pub mod api;
pub mod base;
pub mod cli;
pub mod config;
pub mod history;
pub mod host;
pub mod investigate;
pub mod llm;
pub mod outputs;
pub mod probes;
pub mod sandbox;
pub mod skills;
pub mod store;
pub mod supervise;
pub mod telemetry;
