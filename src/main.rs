//! The binary `ortus`: hands its arguments to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ortus::cli::run(std::env::args_os())
}
