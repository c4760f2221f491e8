//! The command line: one file for each command (contract, section 7). Data goes to stdout, words to stderr.

/// Says something to a person, on stderr. A stderr that is closed is no reason to fail, let alone to panic.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod audit;
mod check;
mod confirm;
mod demo;
mod demo_erp;
mod entities;
mod exit;
mod fleet;
mod health;
mod keys;
mod logs;
mod output;
mod serve;
mod store;
mod when;

use crate::config::{Config, Purpose};
use crate::store::StoreError;
use clap::{Parser, Subcommand};
use output::Output;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The gateway that decides whether an integration may touch a company's ERP.
#[derive(Debug, Parser)]
#[command(name = "keygate", version, max_term_width = 100)]
struct Cli {
    /// The configuration file.
    #[arg(short, long, global = true, value_name = "FILE", env = "KEYGATE_CONFIG", default_value = "gateway.toml")]
    config: PathBuf,
    /// How data is shown.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground.
    Serve,
    /// Try keygate: a small ERP and the gateway in front of it, with curl lines that work.
    Demo(demo::Args),
    /// Look for mistakes in the configuration file, all at once.
    Check,
    /// Create, list, show, update, rotate, revoke and import keys.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Create, list and delete entities, the ERP's tenants.
    #[command(subcommand)]
    Entities(entities::Command),
    /// The gateways that follow the store.
    #[command(subcommand)]
    Fleet(fleet::Command),
    /// The key store itself: when it was restored, emptied or exchanged.
    #[command(subcommand)]
    Store(store::Command),
    /// Show what the gateway decided.
    Logs(logs::Args),
    /// Prove that the journal is whole, and export it.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Ask a running gateway whether it is ready: exit code 0 if it is.
    Health,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Serve => serve::run(&cli.config),
        Command::Demo(args) => demo::run(args, cli.output),
        Command::Check => check::run(&cli.config),
        Command::Keys(command) => with_config(&cli.config, |config| keys::run(command, config, cli.output)),
        Command::Entities(command) => with_config(&cli.config, |config| entities::run(command, config, cli.output)),
        Command::Fleet(command) => with_config(&cli.config, |config| fleet::run(command, config, cli.output)),
        Command::Store(command) => with_config(&cli.config, |config| store::run(command, config, cli.output)),
        Command::Logs(args) => with_config(&cli.config, |config| logs::run(args, config, cli.output)),
        Command::Audit(command) => audit::run(command, &cli.config, cli.output),
        Command::Health => with_config(&cli.config, health::run),
    }
}

/// Why a command failed.
type Failure = Box<dyn std::error::Error>;

fn with_config(path: &Path, run: impl FnOnce(&Config) -> Result<ExitCode, Failure>) -> ExitCode {
    match Config::load_for(Purpose::Command, path) {
        Ok(config) => run(&config).unwrap_or_else(|failure| report(failure.as_ref())),
        Err(errors) => {
            say!("{errors}");
            exit::config()
        }
    }
}

/// Tells a failure, and gives the exit code for its kind.
fn report(failure: &(dyn std::error::Error + 'static)) -> ExitCode {
    if output::is_closed_pipe(failure) {
        return exit::DONE;
    }
    say!("error: {failure}");
    match failure.downcast_ref::<crate::manage::ManageError>() {
        Some(crate::manage::ManageError::Store(error)) => store_code(error),
        Some(_) => exit::FAILED,
        None => failure.downcast_ref::<StoreError>().map_or(exit::FAILED, store_code),
    }
}

fn store_code(error: &StoreError) -> ExitCode {
    match error {
        StoreError::Unavailable(_) | StoreError::Refused(_) => exit::unavailable(),
        StoreError::Conflict(_) => exit::FAILED,
    }
}

/// Who is asking, for the change log.
fn actor() -> String {
    let uid = rustix::process::getuid().as_raw();
    let name = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let name = name.ok().filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
    format!("cli:{}", name.unwrap_or_else(|| uid.to_string()))
}
