//! Kernel arrays mapped into the agent: reading them costs no system call.

use std::{marker::PhantomData, os::fd::AsFd as _, ptr::NonNull};

use aya::maps::{Map, MapData};
use lens_common::Plain;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Why a map cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappedError {
    /// The object has no such map.
    #[error("the object has no map `{0}`")]
    Absent(&'static str),
    /// It has, but as another type.
    #[error("the map `{0}` is not an array")]
    NotAnArray(&'static str),
    /// The kernel refused.
    #[error("cannot map `{name}` ({bytes} bytes) into memory: {why}")]
    Refused {
        /// The map's name.
        name: &'static str,
        /// Its size.
        bytes: usize,
        /// The kernel's answer.
        why: std::io::Error,
    },
}

/// An array with one block of `block` entries a CPU.
#[derive(Debug)]
pub struct Mapped<T> {
    start: NonNull<u8>,
    bytes: usize,
    block: usize,
    cpus: usize,
    of: PhantomData<T>,
}

// SAFETY: shared memory that is read and written by single volatile or atomic accesses only.
#[expect(unsafe_code, reason = "the memory is not bound to a thread")]
unsafe impl<T> Send for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    /// Maps `name` of `object`, which keeps the map: programs loaded later refer to it.
    pub fn of(
        object: &aya::Ebpf,
        name: &'static str,
        block: u32,
        cpus: usize,
    ) -> Result<Self, MappedError> {
        let map = object.map(name).ok_or(MappedError::Absent(name))?;
        let Map::Array(array) = map else {
            return Err(MappedError::NotAnArray(name));
        };
        Self::map(array, name, block as usize, cpus)
    }

    fn map(
        array: &MapData,
        name: &'static str,
        block: usize,
        cpus: usize,
    ) -> Result<Self, MappedError> {
        let bytes = (size_of::<T>() * block * cpus).next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping of a file that the kernel keeps at least this long.
        #[expect(unsafe_code, reason = "maps shared memory")]
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                array.fd().as_fd(),
                0,
            )
        };
        let start = start
            .map_err(|why| MappedError::Refused {
                name,
                bytes,
                why: why.into(),
            })
            .and_then(|p| NonNull::new(p.cast()).ok_or(MappedError::Absent(name)))?;
        Ok(Self {
            start,
            bytes,
            block,
            cpus,
            of: PhantomData,
        })
    }

    /// How many CPUs have a block.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// Entries of each block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// A copy of entry `i` of `cpu`'s block; `None` outside. Each number in it is whole; two of
    /// them may be from before and after one event.
    pub fn get(&self, cpu: usize, i: usize) -> Option<T> {
        let at = self.at(cpu, i)?;
        // SAFETY: inside the mapping, and every bit pattern is a `T`.
        #[expect(unsafe_code, reason = "reads shared memory")]
        Some(unsafe { at.read_volatile() })
    }

    /// Where entry `i` of `cpu`'s block lies.
    pub fn at(&self, cpu: usize, i: usize) -> Option<*mut T> {
        if cpu >= self.cpus || i >= self.block {
            return None;
        }
        Some(
            self.start
                .as_ptr()
                .cast::<T>()
                .wrapping_add(cpu * self.block + i),
        )
    }

    /// Overwrites entry `i` of `cpu`'s block, which no program may be counting in.
    pub fn set(&self, cpu: usize, i: usize, value: T) {
        if let Some(at) = self.at(cpu, i) {
            // SAFETY: inside the mapping.
            #[expect(unsafe_code, reason = "writes shared memory")]
            unsafe {
                at.write_volatile(value);
            }
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it is ever given out.
        #[expect(unsafe_code, reason = "unmaps what this value mapped")]
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}
