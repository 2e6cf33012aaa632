//! `enter_container SPEC` does what a container runtime does with an image's root: mounts, a new root,
//! and the image's program. SPEC is a `Container` as JSON; the namespaces are made already.

mod container;

use std::{
    convert::Infallible,
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use self::container::{Container, Mount};

fn main() -> Result<()> {
    let spec = env::args().nth(1).context("no container is named")?;
    let container = serde_json::from_str(&spec)?;
    match enter(&container)? {}
}

/// Becomes the container's program. The process has namespaces of its own already.
fn enter(container: &Container) -> Result<Infallible> {
    let root = &container.root;
    // A new root has to be a mount.
    mount_bind_recursive(root, root).context("the image's root")?;
    let proc = place(root, Path::new("/proc"))?;
    rustix::mount::mount("proc", &proc, "proc", MountFlags::empty(), None).context("/proc")?;
    mount_bind_recursive("/dev", place(root, Path::new("/dev"))?).context("/dev")?;
    for mount in &container.mounts {
        bind(root, mount).with_context(|| mount.at.display().to_string())?;
    }
    if container.read_only {
        mount_remount(root, MountFlags::BIND | MountFlags::RDONLY, "")
            .context("a read-only root")?;
    }
    env::set_current_dir(root)?;
    // The old root comes to lie on the new one, and is taken away.
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    unmount(".", UnmountFlags::DETACH).context("the old root")?;
    env::set_current_dir("/")?;
    let (program, arguments) = container.command.split_first().context("no program")?;
    let why = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&container.environment)
        .exec();
    Err(why).with_context(|| program.clone())
}

fn bind(root: &Path, mount: &Mount) -> Result<()> {
    let at = place(root, &mount.at)?;
    mount_bind_recursive(&mount.from, &at)?;
    let propagation = if mount.host_to_container {
        MountPropagationFlags::DOWNSTREAM
    } else {
        MountPropagationFlags::PRIVATE
    };
    mount_change(&at, propagation | MountPropagationFlags::REC)?;
    if mount.read_only {
        mount_remount(&at, MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    Ok(())
}

/// The folder for a mount at `path`, made as a runtime does.
fn place(root: &Path, path: &Path) -> Result<PathBuf> {
    let place = root.join(path.strip_prefix("/").unwrap_or(path));
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    Ok(place)
}
