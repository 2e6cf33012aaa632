//! What the running kernel's structures look like, from its own BTF.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::Path,
};

use btf_rs::{Backend, Btf, Type};
use rustix::fs::{MemfdFlags, memfd_create};

/// The BTF of the running kernel.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the kernel's types cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KernelTypesError {
    /// No BTF.
    #[error(
        "this kernel has no BTF ({VMLINUX}): lens needs a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    Absent,
    /// BTF that cannot be understood.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The kernel's types, as long as objects are being loaded; several MB, so not longer.
pub struct KernelTypes {
    types: Btf,
    /// Types that were asked for, by name: looking one up means to look at all of them.
    ids: RefCell<HashMap<String, Vec<u32>>>,
    aya: aya::Btf,
}

impl fmt::Debug for KernelTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelTypes").finish_non_exhaustive()
    }
}

impl KernelTypes {
    /// Reads the running kernel's BTF.
    pub fn of_running_kernel() -> Result<Self, KernelTypesError> {
        if !Path::new(VMLINUX).exists() {
            return Err(KernelTypesError::Absent);
        }
        let malformed = |why: String| KernelTypesError::Malformed {
            path: VMLINUX.to_owned(),
            why,
        };
        Ok(Self {
            types: mapped().map_err(malformed)?,
            ids: RefCell::default(),
            aya: aya::Btf::from_sys_fs().map_err(|why| malformed(why.to_string()))?,
        })
    }

    /// All types called `name`.
    fn called(&self, name: &str) -> Vec<Type> {
        let mut known = self.ids.borrow_mut();
        let ids = known
            .entry(name.to_owned())
            .or_insert_with(|| self.types.resolve_ids_by_name(name).unwrap_or_default());
        let found = ids.iter();
        found
            .filter_map(|id| self.types.resolve_type_by_id(*id).ok())
            .collect()
    }

    /// The same, as aya wants it.
    pub(super) fn aya(&self) -> &aya::Btf {
        &self.aya
    }

    /// Byte offset of the member at `path` (`se.cfs_rq`) in `structure`; members of anonymous
    /// structures and unions are found where C finds them.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut here = self.structure(structure)?;
        let mut bits = 0;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let (offset, of) = self.member(&here, name)?;
            bits += offset;
            if names.peek().is_some() {
                here = as_structure(self.bare(of)?)?;
            }
        }
        Some(bits / 8)
    }

    /// The first of several members that exists.
    pub fn any_offset(&self, structure: &str, paths: &[&str]) -> Option<u32> {
        paths.iter().find_map(|path| self.offset(structure, path))
    }

    /// The size of `structure` in bytes.
    pub fn size(&self, structure: &str) -> Option<u32> {
        u32::try_from(self.structure(structure)?.size()).ok()
    }

    /// The value of `name` in the enumeration `of`.
    pub fn enum_value(&self, of: &str, name: &str) -> Option<u32> {
        self.called(of).into_iter().find_map(|found| {
            let Type::Enum(found) = found else {
                return None;
            };
            let member = found
                .members
                .iter()
                .find(|m| self.types.resolve_name(*m).is_ok_and(|n| n == name))?;
            Some(member.val())
        })
    }

    /// The names of the enumeration `of`, by value; empty if there is none.
    pub fn enum_names(&self, of: &str) -> BTreeMap<u32, String> {
        let found = self.called(of).into_iter().find_map(|found| match found {
            Type::Enum(found) => Some(found),
            _ => None,
        });
        let members = found.iter().flat_map(|found| &found.members);
        members
            .filter_map(|member| Some((member.val(), self.types.resolve_name(member).ok()?)))
            .collect()
    }

    /// How many arguments the tracepoint `name` hands to a `tp_btf` program, if it exists.
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        let types = self.called(&format!("btf_trace_{name}"));
        let typedef = types.into_iter().find(|t| matches!(t, Type::Typedef(_)))?;
        let pointer = self
            .types
            .resolve_chained_type(typedef.as_btf_type()?)
            .ok()?;
        let Type::FuncProto(prototype) = self
            .types
            .resolve_chained_type(pointer.as_btf_type()?)
            .ok()?
        else {
            return None;
        };
        // The first is the registration's own `void *`.
        prototype.parameters.len().checked_sub(1)
    }

    fn structure(&self, name: &str) -> Option<btf_rs::Struct> {
        self.called(name).into_iter().find_map(as_structure)
    }

    fn member(&self, of: &btf_rs::Struct, name: &str) -> Option<(u32, Type)> {
        for member in &of.members {
            let own = self.types.resolve_name(member).unwrap_or_default();
            if own == name {
                return Some((
                    member.bit_offset(),
                    self.types.resolve_chained_type(member).ok()?,
                ));
            }
            if own.is_empty()
                && let Ok(inner) = self.types.resolve_chained_type(member)
                && let Some(inner) = self.bare(inner).and_then(as_structure)
                && let Some((offset, found)) = self.member(&inner, name)
            {
                return Some((member.bit_offset() + offset, found));
            }
        }
        None
    }

    /// Without `typedef`, `const`, `volatile` and the like.
    fn bare(&self, mut of: Type) -> Option<Type> {
        while matches!(
            of,
            Type::Typedef(_)
                | Type::Const(_)
                | Type::Volatile(_)
                | Type::Restrict(_)
                | Type::TypeTag(_)
        ) {
            of = self.types.resolve_chained_type(of.as_btf_type()?).ok()?;
        }
        Some(of)
    }
}

/// The types, read in place: parsed, they take tens of megabytes. They are copied first, because the
/// file itself can be mapped since 6.16 only.
fn mapped() -> Result<Btf, String> {
    let copied = || -> io::Result<File> {
        let mut copy = File::from(memfd_create("btf", MemfdFlags::CLOEXEC)?);
        io::copy(&mut File::open(VMLINUX)?, &mut copy)?;
        Ok(copy)
    };
    let copy = copied().map_err(|why| why.to_string())?;
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Btf::from_file_with_backend(path, Backend::Mmap).map_err(|why| why.to_string())
}

fn as_structure(of: Type) -> Option<btf_rs::Struct> {
    match of {
        Type::Struct(found) | Type::Union(found) => Some(found),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_the_running_kernel() {
        let Ok(types) = KernelTypes::of_running_kernel() else {
            eprintln!("NOT RUN: this kernel has no BTF");
            return;
        };
        // A nested path is the sum of its parts, and an anonymous union is seen through.
        let se = types.offset("task_struct", "se").unwrap();
        let nested = types.offset("task_struct", "se.vruntime").unwrap();
        assert_eq!(
            nested,
            se + types.offset("sched_entity", "vruntime").unwrap()
        );
        assert!(types.offset("page", "mapping").is_some());
        assert_eq!(types.offset("task_struct", "no_such_member"), None);
        assert_eq!(types.offset("no_such_struct", "x"), None);
        assert!(types.tracepoint_args("sched_switch").unwrap() >= 3);
        assert_eq!(types.tracepoint_args("no_such_tracepoint"), None);
    }
}
