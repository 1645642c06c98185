//! Parses, dispatches and prints.

use super::args::{Cli, Command, ConfigCommand};
use super::error::{CliError, one_line};
use super::{bench, configuration, health, inspect, key, list, optimize, predict, pull, remove, serve};
use crate::http;
use crate::telemetry::printable;
use clap::Parser;
use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

/// Does what `arguments` (the program's name first) ask for, and prints the result or the error.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            print_error(&usage_error(&error));
            return ExitCode::from(2);
        }
        // Help and version: clap knows whether the terminal has colours.
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match dispatch(cli.command).and_then(|text| print(&text).map_err(CliError::Output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<String, CliError> {
    match command {
        Command::Serve(args) => serve::serve(args).map(|()| String::new()),
        Command::Pull(args) => pull::pull(args),
        Command::Rm(args) => remove::remove(args),
        Command::Health(args) => health::health(args),
        Command::List(args) => list::list(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Predict(args) => predict::predict(args),
        Command::Bench(args) => bench::bench(args),
        Command::Optimize(args) => optimize::optimize(args),
        Command::Key(command) => key::key(command),
        Command::TryLoad => Ok(crate::app::try_load().map(|()| String::new())?),
        Command::Openapi(args) => Ok(if args.json { http::document_json() } else { http::document_yaml() }),
        Command::Config(ConfigCommand::Check(args)) => configuration::check(args),
        Command::Config(ConfigCommand::Show(args)) => configuration::show(args),
    }
}

/// Prints `text` with a line's end. A reader that has gone away (`| head`) has what it wanted.
fn print(text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(end.as_bytes())).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Tells a person at a terminal what is going on; programs have no use for it.
pub(super) fn note(text: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        let _ = writeln!(stderr, "{}", printable(text));
    }
}

fn print_error(text: &str) {
    // Where standard error is closed, there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "error: {text}");
}

/// The parser's several lines in one, without the usage.
fn usage_error(error: &clap::Error) -> String {
    // For this one the parser would print the whole help.
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing; try --help".to_owned();
    }
    let rendered = error.render().to_string();
    let mut text = String::new();
    let lines = rendered.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")) {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        let between = match text.chars().last() {
            None => "",
            Some(':' | ',') => " ",
            Some(_) => "; ",
        };
        text.push_str(between);
        text.push_str(line);
    }
    format!("{}; try --help", printable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("ortus "), "{}", command.get_name());
            assert!(command.get_about().is_some(), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        let command = Cli::command();
        check(&command);
        assert_eq!(command.get_subcommands().count(), 13);
    }

    #[test]
    fn a_wrong_argument_is_one_line_that_says_what_to_do() {
        let check = |arguments: &[&str], parts: &[&str]| {
            let arguments = std::iter::once(&"ortus").chain(arguments);
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert!(error.use_stderr());
            let line = usage_error(&error);
            assert!(!line.contains('\n') && line.ends_with("; try --help"), "{line}");
            for part in parts {
                assert!(line.contains(part), "{line}");
            }
        };
        check(&["serve", "--lisen", "x"], &["--lisen", "--listen"]);
        check(&["inspect"], &["required", "<NAME|FILE>"]);
        check(&["liste"], &["liste", "list"]);
        check(&[], &["subcommand"]);
        check(&["config"], &["a command is missing"]);
        check(&["predict", "m", "--top-k", "0"], &["--top-k", "0"]);
        check(&["predict", "m", "a.jpg", "--json", "1"], &["cannot be used with"]);
        check(&["bench", "m", "--concurrency", "1,0"], &["--concurrency", "0"]);
        check(&["bench", "m", "--seconds", "nan"], &["--seconds", "0.01 to 600"]);
        check(&["bench", "m", "--batch", "2", "--input", "x.npy"], &["cannot be used with"]);
        check(&["serve", "\u{1b}[2J\nx"], &["unexpected"]);
    }

    #[test]
    fn help_and_version_are_not_errors() {
        for arguments in [&["ortus", "--version"][..], &["ortus", "--help"], &["ortus", "predict", "--help"]] {
            assert!(!Cli::try_parse_from(arguments).unwrap_err().use_stderr());
        }
    }
}
