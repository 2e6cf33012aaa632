//! Sets up, builds, runs, tests and lints lens.
fn main() {}
