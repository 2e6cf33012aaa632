//! Names of addresses: in the kernel ([`kernel`]), and in processes ([`stack`]) by their mappings
//! ([`process`]), the symbols and debug information of their files, and what a compiler at run time
//! tells in its perf map ([`perf_map`]).
//!
//! An address that has no name is told by file and offset, never by the name of what happens to lie
//! before it.

mod call;
mod kernel;
mod perf_map;
mod process;
mod stack;

/// Names the stacks of these samples, one by one, without source files and lines. Takes tens of
/// megabytes for a moment.
pub fn name_stacks(samples: &[super::StackSample]) -> Vec<NamedStack> {
    let mut symbols = Symbols::default();
    symbols.meet(samples, true);
    symbols.name(samples)
}

pub(super) use kernel::KernelSymbols;
pub(super) use process::start_stack;
pub(super) use stack::Symbols;
pub use stack::{Frame, NamedStack};
