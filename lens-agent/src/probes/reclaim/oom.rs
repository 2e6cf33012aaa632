//! Processes killed for want of memory, as they come out of the kernel's ring.

use lens_common::reclaim::{FOR_HOST, FOR_LIMIT, LEVELS, NAME, OomEvent};
use serde::{Deserialize, Serialize};

use crate::base::text;

/// Why there was no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortage {
    /// The host had none left, or those of its nodes that could be used.
    Host,
    /// A cgroup was at its limit; which one, if that is known.
    Limit(Option<HitLimit>),
    /// Not known.
    #[default]
    Unknown,
}

/// A memory limit that was hit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HitLimit {
    /// The id of the cgroup that has it, in the hierarchy of the memory controller.
    pub cgroup: u64,
    /// Its path there; `None` if that is too long.
    pub path: Option<String>,
    /// Whether that hierarchy is a v1 one, whose cgroups are others than the watched ones.
    pub is_v1: bool,
    /// The limit.
    pub bytes: u64,
}

/// A process was killed for want of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomKill {
    /// When, on the kernel's monotonic clock.
    pub at_ns: u64,
    /// The victim's cgroup.
    pub cgroup: u64,
    /// The victim.
    pub tgid: u32,
    /// Its name.
    pub comm: String,
    /// What it had resident.
    pub resident_bytes: u64,
    /// What there was none of.
    pub shortage: Shortage,
    /// The cgroup of the task that wanted memory.
    pub by_cgroup: u64,
    /// That task's process.
    pub by_tgid: u32,
    /// Its name.
    pub by_comm: String,
    /// Cgroups by how much more they had resident than at the reading before, what was killed
    /// included; the most first. Empty where that is not counted.
    pub grew: Vec<(u64, u64)>,
}

/// Pages are 4 KiB on the one architecture that is supported.
pub(super) const PAGE: u64 = 4096;

impl From<&OomEvent> for OomKill {
    fn from(event: &OomEvent) -> Self {
        let hit = || HitLimit {
            cgroup: event.limit_cgroup,
            path: path(event.names.as_flattened(), event.levels as usize),
            is_v1: event.is_v1 != 0,
            bytes: event.limit_pages * PAGE,
        };
        Self {
            at_ns: event.at_ns,
            cgroup: event.cgroup,
            tgid: event.tgid,
            comm: text::clean_bytes(&event.comm),
            resident_bytes: event.pages * PAGE,
            shortage: match event.why {
                FOR_HOST => Shortage::Host,
                FOR_LIMIT => Shortage::Limit((event.limit_cgroup != 0).then(hit)),
                _ => Shortage::Unknown,
            },
            by_cgroup: event.by_cgroup,
            by_tgid: event.by_tgid,
            by_comm: text::clean_bytes(&event.by_comm),
            grew: Vec::new(),
        }
    }
}

/// The path of which each level's name is given, the innermost first.
fn path(names: &[u8], levels: usize) -> Option<String> {
    if levels > LEVELS {
        return None;
    }
    let mut path = String::new();
    for name in names.chunks_exact(NAME).take(levels).rev() {
        // One that fills its place has been cut.
        let end = name
            .iter()
            .position(|b| *b == 0)
            .filter(|n| *n < NAME - 1)?;
        path.push('/');
        path.push_str(&text::clean_bytes(&name[..end]));
    }
    Some(if path.is_empty() { "/".into() } else { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_together_from_its_end() {
        let mut names = vec![0; NAME * LEVELS];
        names[..4].copy_from_slice(b"cart");
        names[NAME..NAME + 4].copy_from_slice(b"shop");
        assert_eq!(path(&names, 2).as_deref(), Some("/shop/cart"));
        assert_eq!(path(&names, 0).as_deref(), Some("/"));
        assert_eq!(path(&names, LEVELS + 1), None, "deeper than is told");
        names[..NAME - 1].fill(b'x');
        assert_eq!(path(&names, 2), None, "a name that was cut");
    }
}
