//! Where to put a breakpoint: a function of an ELF file, and in its first instructions one that
//! the kernel emulates.
//!
//! A breakpoint costs 0.5 to 1.2 µs where the kernel emulates the instruction under it, and 20 to
//! 30 µs where it must be single-stepped (measured in a virtual machine). Emulated are, by
//! `arch/x86/kernel/uprobes.c`: `push` of a register, `nop`, and direct `jmp`, `jcc` and `call`;
//! long `nop`s since 6.18 only. The choice must be executed exactly once a call: so it stands
//! before any branch, and nothing jumps between the function's start and it.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, ReadCache, SectionIndex, SymbolFlags,
    SymbolIndex, SymbolKind,
};
use serde::{Deserialize, Serialize};

use super::alike::{near, suggestion};

/// Code beyond this is not looked at for jumps back.
const CODE: u64 = 256 * 1024;
/// Code that is looked at where the symbol does not say how long the function is.
const CODE_OF_UNKNOWN: u64 = 64;
/// Instructions tried from the start.
const TRIED: usize = 16;

/// What a breakpoint at a place costs its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stepping {
    /// The kernel emulates the instruction.
    Emulated,
    /// It does so since 6.18.
    EmulatedLately,
    /// It single-steps the instruction: some twenty times dearer.
    Single,
}

/// Where a breakpoint goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// In the file.
    pub offset: u64,
    /// Bytes from the function's start.
    pub skipped: u64,
    /// The instruction there.
    pub instruction: String,
    /// What that means.
    pub stepping: Stepping,
}

/// A function of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// Its code, or the beginning of it.
    pub(super) code: Vec<u8>,
    /// Whether its runtime moves stacks, and so must find every return address as it left it.
    pub(super) moves_stacks: bool,
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file cannot be read.
    #[error("cannot read {file}: {why}")]
    Read {
        /// The file.
        file: String,
        /// The reason.
        why: String,
    },
    /// It is of another kind.
    #[error("{file} is no x86-64 program or library: {why} (of a script, trace its interpreter)")]
    Kind {
        /// The file.
        file: String,
        /// What it is.
        why: String,
    },
    /// It has no such function.
    #[error("no such function: {file} has no `{function}`{}", suggestion(.near, *.all))]
    NoFunction {
        /// The file.
        file: String,
        /// The function.
        function: String,
        /// Names like it.
        near: Vec<String>,
        /// How many functions the file names.
        all: usize,
    },
    /// It has several.
    #[error("{file} has {n} functions called `{function}`: none can be traced by that name")]
    Ambiguous {
        /// The file.
        file: String,
        /// The function.
        function: String,
        /// How many.
        n: usize,
    },
    /// The name stands for a choice.
    #[error(
        "`{0}` is chosen among several functions when the program starts (ifunc): trace the one that is used"
    )]
    Chosen(String),
    /// Its return address is not for us.
    #[error(
        "calls of `{0}` cannot be timed: this is a Go program, whose runtime moves stacks and would find a return address that is not its own; leave --returns out"
    )]
    MovesStacks(String),
    /// No instruction is emulated.
    #[error(
        "none of the first instructions of `{function}` ({first} …) is one that the kernel emulates: each call would cost 20 to 30 µs; --single-step does it all the same"
    )]
    SingleStep {
        /// The function.
        function: String,
        /// Its first instructions.
        first: String,
    },
}

/// Opens a plain file, and nothing else: a pipe would wait, and a device may act when it is opened.
fn open(file: &Path) -> io::Result<File> {
    let plain = |meta: &Metadata| {
        let no = || io::Error::other("it is no plain file");
        meta.is_file().then_some(()).ok_or_else(no)
    };
    plain(&fs::metadata(file)?)?;
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(file)?;
    // It may be another one by now.
    plain(&opened.metadata()?)?;
    Ok(opened)
}

/// Sections by which a program of Go is known: its runtime moves stacks.
const GO: [&str; 3] = [".gopclntab", ".go.buildinfo", ".note.go.buildid"];

/// Whether a program that has such sections is one of Go.
pub(super) fn is_go(has: impl Fn(&str) -> bool) -> bool {
    GO.iter().any(|name| has(name))
}

/// Finds `name` in `file`.
pub(super) fn find(file: &Path, name: &str) -> Result<Function, PlaceError> {
    let shown = file.display().to_string();
    let opened = open(file).map_err(|why| PlaceError::Read {
        file: shown.clone(),
        why: why.to_string(),
    })?;
    find_in(opened, &shown, name)
}

/// Finds `name` in a file that is known as `file`.
pub(super) fn find_in(opened: File, file: &str, name: &str) -> Result<Function, PlaceError> {
    let shown = || file.to_owned();
    let unreadable = |why: &dyn std::fmt::Display| PlaceError::Read {
        file: shown(),
        why: why.to_string(),
    };
    let other = |why: String| PlaceError::Kind { file: shown(), why };
    let cache = ReadCache::new(opened);
    let elf = object::File::parse(&cache).map_err(|why| other(why.to_string()))?;
    if elf.architecture() != object::Architecture::X86_64 {
        return Err(other(format!("it is for {:?}", elf.architecture())));
    }
    let functions = || {
        let all = elf.symbols().chain(elf.dynamic_symbols());
        all.filter(|s| (s.kind() == SymbolKind::Text || is_choice(s.flags())) && !s.is_undefined())
    };
    let mut found: Vec<_> = functions().filter(|s| s.name() == Ok(name)).collect();
    found.sort_by_key(|s| (s.address(), std::cmp::Reverse(s.size())));
    found.dedup_by_key(|s| s.address());
    let Some(symbol) = found.first() else {
        let names: Vec<&str> = functions().filter_map(|s| s.name().ok()).collect();
        return Err(PlaceError::NoFunction {
            file: shown(),
            function: name.to_owned(),
            near: near(name, &names),
            all: names.len(),
        });
    };
    if found.iter().any(|s| is_choice(s.flags())) {
        return Err(PlaceError::Chosen(name.to_owned()));
    }
    if found.len() > 1 {
        return Err(PlaceError::Ambiguous {
            file: shown(),
            function: name.to_owned(),
            n: found.len(),
        });
    }
    let section = symbol
        .section_index()
        .and_then(|index| elf.section_by_index(index).ok())
        .ok_or_else(|| other(format!("`{name}` lies in no section")))?;
    let (in_file, _) = section
        .file_range()
        .ok_or_else(|| other(format!("`{name}` has no code in it")))?;
    let into = symbol
        .address()
        .checked_sub(section.address())
        .ok_or_else(|| other(format!("`{name}` lies before its section")))?;
    let size = match symbol.size() {
        0 => CODE_OF_UNKNOWN,
        size => size.min(CODE),
    };
    let size = size.min(section.size().saturating_sub(into));
    let code = section
        .data_range(symbol.address(), size)
        .map_err(|why| unreadable(&why))?
        .ok_or_else(|| other(format!("`{name}` has no code in it")))?;
    Ok(Function {
        offset: in_file + into,
        code: code.to_vec(),
        moves_stacks: is_go(|name| elf.section_by_name(name).is_some()),
    })
}

/// Whether the symbol stands for a choice that is made when the program starts.
fn is_choice(flags: SymbolFlags<SectionIndex, SymbolIndex>) -> bool {
    matches!(flags, SymbolFlags::Elf { st_info, .. }
        if st_info & 0xf == object::elf::STT_GNU_IFUNC)
}

/// Chooses the place in `function` to stop at; with `returns`, one where the return address is
/// the last thing on the stack. `Err` has the first instructions.
pub(super) fn choose(function: &Function, returns: bool) -> Result<Place, String> {
    let decode = || Decoder::with_ip(64, &function.code, 0, DecoderOptions::NONE);
    let targets: Vec<u64> = decode()
        .iter()
        .filter(|i| {
            matches!(
                i.flow_control(),
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            )
        })
        .map(|i| i.near_branch_target())
        .collect();
    let mut lately = None;
    let mut seen = Vec::new();
    for instruction in decode().iter().take(TRIED) {
        let at = instruction.ip();
        // From the start again is another call, by a function that ends in calling itself.
        if instruction.is_invalid() || targets.iter().any(|t| (1..=at).contains(t)) {
            break;
        }
        seen.push(word(&instruction));
        let length = instruction.len();
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = function.code.get(from..from + length).unwrap_or_default();
        let place = |stepping| Place {
            offset: function.offset + at,
            skipped: at,
            instruction: word(&instruction),
            stepping,
        };
        match stepping(&instruction, bytes) {
            Stepping::Emulated => return Ok(place(Stepping::Emulated)),
            Stepping::EmulatedLately if lately.is_none() => {
                lately = Some(place(Stepping::EmulatedLately));
            }
            _ => {}
        }
        let goes_on = instruction.flow_control() == FlowControl::Next;
        if !goes_on || (returns && moves_stack(&instruction)) {
            break;
        }
    }
    lately.ok_or_else(|| seen.join(", "))
}

/// Whether the registers of the first three arguments are at `place` as the caller left them.
pub(super) fn keeps_arguments(function: &Function, place: &Place) -> bool {
    const ARGUMENTS: [Register; 3] = [Register::RDI, Register::RSI, Register::RDX];
    let mut factory = InstructionInfoFactory::new();
    let mut decoder = Decoder::with_ip(64, &function.code, 0, DecoderOptions::NONE);
    let mut before = decoder.iter().take_while(|i| i.ip() < place.skipped);
    let writes = |instruction: Instruction| {
        let used = factory.info(&instruction).used_registers();
        used.iter().any(|register| {
            !matches!(register.access(), OpAccess::Read | OpAccess::CondRead)
                && ARGUMENTS.contains(&register.register().full_register())
        })
    };
    !before.any(writes)
}

/// The function's first instruction, whatever it is.
pub(super) fn first(function: &Function) -> Place {
    let mut decoder = Decoder::with_ip(64, &function.code, 0, DecoderOptions::NONE);
    Place {
        offset: function.offset,
        skipped: 0,
        instruction: word(&decoder.decode()),
        stepping: Stepping::Single,
    }
}

fn word(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
}

fn stepping(instruction: &Instruction, bytes: &[u8]) -> Stepping {
    let emulated = match instruction.mnemonic() {
        Mnemonic::Push => match bytes {
            [opcode] | [0x41, opcode] => (0x50..=0x57).contains(opcode),
            _ => false,
        },
        Mnemonic::Nop => match bytes {
            [0x90] | [0x66, 0x90] => true,
            _ => return Stepping::EmulatedLately,
        },
        // Not those with a prefix: the kernel refuses some of them.
        _ => match bytes {
            [0xeb | 0x70..=0x7f, _] | [0xe9 | 0xe8, _, _, _, _] => true,
            [0x0f, opcode, _, _, _, _] => (0x80..=0x8f).contains(opcode),
            _ => false,
        },
    };
    if emulated {
        Stepping::Emulated
    } else {
        Stepping::Single
    }
}

/// Whether something else may be the last thing on the stack afterwards.
fn moves_stack(instruction: &Instruction) -> bool {
    let is_stack = |i: u32| {
        instruction.op_kind(i) == OpKind::Register
            && instruction.op_register(i).full_register() == Register::RSP
    };
    let by_itself = matches!(
        instruction.mnemonic(),
        Mnemonic::Push
            | Mnemonic::Pushf
            | Mnemonic::Pushfq
            | Mnemonic::Pop
            | Mnemonic::Popf
            | Mnemonic::Popfq
            | Mnemonic::Enter
            | Mnemonic::Leave
    );
    let only_reads = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
    let second = matches!(instruction.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd);
    by_itself
        || instruction.code() == Code::INVALID
        || (instruction.op_count() > 0 && is_stack(0) && !only_reads)
        || (second && is_stack(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(code: &[u8]) -> Function {
        Function {
            offset: 0x1000,
            code: code.to_vec(),
            moves_stacks: false,
        }
    }

    /// Bytes past the start and instruction chosen without and with returns.
    fn check(code: &[u8], entry: Option<(u64, &str)>, with_returns: Option<(u64, &str)>) {
        for (returns, wanted) in [(false, entry), (true, with_returns)] {
            let chosen = choose(&function(code), returns).ok();
            let found = chosen.as_ref().map(|p| (p.skipped, &*p.instruction));
            assert_eq!(found, wanted, "{code:x?}, returns: {returns}");
        }
    }

    #[test]
    fn the_first_push_is_taken() {
        // push rbp; mov rbp, rsp
        check(
            &[0x55, 0x48, 0x89, 0xe5],
            Some((0, "push")),
            Some((0, "push")),
        );
        // push r12
        check(&[0x41, 0x54], Some((0, "push")), Some((0, "push")));
        // endbr64; push rbx
        let endbr = [0xf3, 0x0f, 0x1e, 0xfa, 0x53];
        check(&endbr, Some((4, "push")), Some((4, "push")));
        // xor eax, eax; mov [rsp-8], rdi; push rbx
        let moves = [0x31, 0xc0, 0x48, 0x89, 0x7c, 0x24, 0xf8, 0x53];
        check(&moves, Some((7, "push")), Some((7, "push")));
    }

    #[test]
    fn for_a_return_the_stack_must_not_have_moved() {
        // sub rsp, 24; mov edi, eax; call
        let sub = [0x48, 0x83, 0xec, 0x18, 0x89, 0xc7, 0xe8, 0, 0, 0, 0];
        check(&sub, Some((6, "call")), None);
        // push 7, which is not emulated; push rbp
        check(&[0x6a, 0x07, 0x55], Some((2, "push")), None);
        // cmp rsp, [r14+16], as Go begins; jbe forward
        let go = [0x49, 0x3b, 0x66, 0x10, 0x76, 0x10, 0x55];
        check(&go, Some((4, "jbe")), Some((4, "jbe")));
    }

    #[test]
    fn a_place_behind_a_change_of_an_argument_is_known() {
        for (code, keeps) in [
            // mov r12, rdx; push rbp
            (&[0x49, 0x89, 0xd4, 0x55][..], true),
            // mov edi, eax; push rbp
            (&[0x89, 0xc7, 0x55], false),
            // test rdi, rdi; push rbp
            (&[0x48, 0x85, 0xff, 0x55], true),
        ] {
            let function = function(code);
            let place = choose(&function, true).unwrap();
            assert_eq!(keeps_arguments(&function, &place), keeps, "{code:x?}");
        }
    }

    #[test]
    fn nothing_behind_a_branch_is_taken() {
        // test rdi, rdi; je +5; push rbp: the branch itself is emulated.
        check(
            &[0x48, 0x85, 0xff, 0x74, 0x05, 0x55],
            Some((3, "je")),
            Some((3, "je")),
        );
        // mov eax, edi; ret; push rbp (of the next function)
        check(&[0x89, 0xf8, 0xc3, 0x55], None, None);
        // jmp [rax]: not emulated, and no way past it; push rbp
        check(&[0xff, 0x20, 0x55], None, None);
    }

    #[test]
    fn a_loop_that_comes_back_is_not_counted_as_calls() {
        // xor eax, eax; (loop) call +0; dec edi; jne loop; ret
        let looped = [0x31, 0xc0, 0xe8, 0, 0, 0, 0, 0xff, 0xcf, 0x75, 0xf7, 0xc3];
        check(&looped, None, None);
        // The same with nothing jumping back.
        let straight = [0x31, 0xc0, 0xe8, 0, 0, 0, 0, 0xff, 0xcf, 0xc3];
        check(&straight, Some((2, "call")), Some((2, "call")));
        // push rbx; dec edi; jne start: calling itself as the last thing is another call.
        check(
            &[0x53, 0xff, 0xcf, 0x75, 0xfb, 0xc3],
            Some((0, "push")),
            Some((0, "push")),
        );
    }

    #[test]
    fn nops_are_known_by_their_length() {
        check(&[0x90, 0xc3], Some((0, "nop")), Some((0, "nop")));
        check(&[0x66, 0x90, 0xc3], Some((0, "nop")), Some((0, "nop")));
        // nopl 0(rax,rax,1); push rbp: what every kernel emulates is better.
        let nop5 = [0x0f, 0x1f, 0x44, 0, 0, 0x55];
        check(&nop5, Some((5, "push")), Some((5, "push")));
        let alone = choose(&function(&[0x0f, 0x1f, 0x44, 0, 0, 0xc3]), true).unwrap();
        assert_eq!(
            (alone.skipped, alone.stepping),
            (0, Stepping::EmulatedLately)
        );
        // xchg r8d, eax has the opcode of a nop.
        check(&[0x41, 0x90, 0xc3], None, None);
    }

    #[test]
    fn what_is_refused_is_named() {
        let refused = choose(&function(&[0x48, 0x8d, 0x47, 0x01, 0xc3]), false);
        assert_eq!(refused, Err("lea, ret".to_owned()));
        let first = first(&function(&[0x48, 0x8d, 0x47, 0x01, 0xc3]));
        assert_eq!((first.offset, first.stepping), (0x1000, Stepping::Single));
    }
}
