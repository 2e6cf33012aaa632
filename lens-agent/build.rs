//! Builds the kernel programs and hands them to the agent as bytes. The only place that knows how.
//!
//! With Debian's `libstd-rust-web-dev-bpf` the prebuilt `core` is used; with a rustup nightly and
//! `rust-src`, `core` is built. With neither, the agent is built without kernel programs, which
//! `lens doctor` and a compiler warning say: `cargo xtask setup` installs what is needed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One ELF each; the names of the binaries in lens-ebpf/src/bin.
const OBJECTS: &[&str] = &[
    "targets",
    "sched",
    "syscalls",
    "memory",
    "faultstacks",
    "lifecycle",
    "interrupts",
    "block",
    "files",
    "reclaim",
    "locks",
    "net",
    "function",
    "heap",
    "profile",
    "offcpu",
];

/// Arguments of each build, and how its objects' names end. What the programs say of themselves is
/// left out of the plain ones altogether. Those come last: other builds then find them.
const VARIANTS: &[(&[&str], &str)] = &[(&["--features", "log"], ".log"), (&[], "")];

const TARGET: &str = "bpfel-unknown-none";
const RUSTFLAGS: &[&str] = &[
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Ctarget-cpu=v3",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
];

enum Toolchain {
    Debian,
    Nightly,
}

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = manifest.parent().map(Path::to_path_buf).unwrap_or_default();
    for path in ["lens-ebpf", "lens-common", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=LENS_WITHOUT_EBPF");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let built = if env::var_os("LENS_WITHOUT_EBPF").is_some() {
        None
    } else if let Some(toolchain) = find_toolchain() {
        match build(&toolchain, &root, &out) {
            Ok(()) => Some(()),
            Err(why) => {
                println!("cargo::error=the kernel programs do not build: {why}");
                return;
            }
        }
    } else {
        println!(
            "cargo::warning=no toolchain for {TARGET}: this lens is built without kernel programs; run `cargo xtask setup`"
        );
        None
    };
    if built.is_none() {
        for object in OBJECTS {
            for (_, end) in VARIANTS {
                let to = out.join(format!("{object}{end}"));
                if let Err(why) = fs::write(&to, []) {
                    println!("cargo::error=cannot write {}: {why}", to.display());
                }
            }
        }
    }
}

/// Builds all objects in each of their variants, and puts them into `out`.
fn build(toolchain: &Toolchain, root: &Path, out: &Path) -> Result<(), String> {
    for (features, end) in VARIANTS {
        let built = build_with(toolchain, root, features)?;
        for object in OBJECTS {
            let to = out.join(format!("{object}{end}"));
            fs::copy(built.join(object), &to).map_err(|why| format!("{}: {why}", to.display()))?;
        }
    }
    Ok(())
}

fn find_toolchain() -> Option<Toolchain> {
    let has_linker = Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    if !has_linker {
        return None;
    }
    if Path::new("/usr/lib/rustlib").join(TARGET).exists() {
        return Some(Toolchain::Debian);
    }
    let sysroot = Command::new("rustc")
        .args(["+nightly", "--print", "sysroot"])
        .output()
        .ok()?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    sysroot
        .join("lib/rustlib/src/rust/library/Cargo.lock")
        .exists()
        .then_some(Toolchain::Nightly)
}

/// Builds all objects in a target folder of their own (the outer cargo holds the lock of its own
/// one) and returns where they lie.
fn build_with(toolchain: &Toolchain, root: &Path, features: &[&str]) -> Result<PathBuf, String> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = target.join("ebpf");
    let mut cargo = match toolchain {
        Toolchain::Debian => {
            let mut cargo = Command::new("/usr/bin/cargo");
            cargo
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo"]);
            cargo
        }
    };
    cargo.args([
        "build",
        "--locked",
        "--package",
        "lens-ebpf",
        "--profile",
        "bpf",
        "--target",
        TARGET,
    ]);
    cargo.args(features);
    if matches!(toolchain, Toolchain::Nightly) {
        cargo.arg("-Zbuild-std=core");
    }
    cargo.current_dir(root).env("CARGO_TARGET_DIR", &target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    // What the outer cargo (or clippy) set for itself does not hold for the inner one.
    for name in [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "CARGO",
        "RUSTDOC",
    ] {
        cargo.env_remove(name);
    }
    if matches!(toolchain, Toolchain::Nightly) {
        cargo.env_remove("RUSTC");
    }
    let done = cargo.output().map_err(|why| format!("{cargo:?}: {why}"))?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).replace('\n', "\ncargo::error="));
    }
    Ok(target.join(TARGET).join("bpf"))
}
