//! `keygate audit verify` names every fault a journal can have, and nothing else; `audit export` hands records over as
//! they are.

mod bits;
mod commands;
mod faults;
mod journals;
