//! The `lens` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    lens_agent::cli::main()
}
