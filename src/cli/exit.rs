//! Exit codes (contract, section 7).

use std::process::ExitCode;

/// Done.
pub const DONE: ExitCode = ExitCode::SUCCESS;
/// Failed; the message says why.
pub const FAILED: ExitCode = ExitCode::FAILURE;

/// The command line does not make sense.
pub fn usage() -> ExitCode {
    ExitCode::from(2)
}

/// The store cannot be asked.
pub fn unavailable() -> ExitCode {
    ExitCode::from(69)
}

/// Done, but not confirmed by every gateway.
pub fn unconfirmed() -> ExitCode {
    ExitCode::from(75)
}

/// gateway.toml has mistakes.
pub fn config() -> ExitCode {
    ExitCode::from(78)
}
