//! Names of kernel addresses.

use std::{collections::BTreeMap, sync::Arc};

use blazesym::{
    MaybeDefault,
    symbolize::{
        Input, Symbolizer,
        source::{Kernel, Source},
    },
};

/// Addresses whose names are remembered; more than this are not met where tasks sleep.
const KEPT: usize = 4096;

/// Names of functions of the running kernel. The kernel's list of symbols takes tens of megabytes
/// while it is read, so it is given back at once, and the names that were asked for are remembered.
#[derive(Debug, Default)]
pub(in crate::probes) struct KernelSymbols(BTreeMap<u64, Arc<str>>);

impl KernelSymbols {
    /// The names of the functions of a stack, up to its first zero; an address where there is none.
    pub(in crate::probes) fn names(&mut self, stack: &[u64]) -> Vec<Arc<str>> {
        let stack: Vec<u64> = stack.iter().copied().take_while(|at| *at != 0).collect();
        let unknown = |at: &&u64| !self.0.contains_key(*at);
        let unknown: Vec<u64> = stack.iter().filter(unknown).copied().collect();
        if !unknown.is_empty() {
            self.look_up(&unknown);
        }
        let name = |at: &u64| {
            let known = self.0.get(at).cloned();
            known.unwrap_or_else(|| format!("{at:#x}").into())
        };
        stack.iter().map(name).collect()
    }

    fn look_up(&mut self, addresses: &[u64]) {
        if self.0.len() + addresses.len() > KEPT {
            self.0.clear();
        }
        let kernel = Kernel {
            vmlinux: MaybeDefault::None,
            ..Kernel::default()
        };
        let symbolizer = Symbolizer::new();
        let found = symbolizer.symbolize(&Source::Kernel(kernel), Input::AbsAddr(addresses));
        // Where nothing can be read the addresses stand for themselves, and are not asked again.
        let found = found.unwrap_or_default();
        for (i, at) in addresses.iter().enumerate() {
            let symbol = found.get(i).and_then(|symbolized| symbolized.as_sym());
            let name = symbol.map_or_else(|| format!("{at:#x}"), |symbol| symbol.name.to_string());
            self.0.insert(*at, name.into());
        }
        drop(found);
        drop(symbolizer);
        crate::probes::give_memory_back();
    }
}
