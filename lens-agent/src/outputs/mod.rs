//! Everything that shows the agent to the outside.

pub mod http;
pub mod prometheus;
