//! What a container runtime does with an image's root: mounts, a new root, and the image's program.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use serde::{Deserialize, Serialize};

/// A container, as the program `enter_container` takes it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Container {
    /// The root of its files.
    pub(crate) root: PathBuf,
    /// Whether that is read-only.
    pub(crate) read_only: bool,
    /// In the order in which they are made.
    pub(crate) mounts: Vec<Mount>,
    /// All of its environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Its program, with arguments.
    pub(crate) command: Vec<String>,
}

/// A folder of the host in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// On the host.
    pub(crate) from: PathBuf,
    /// In the container.
    pub(crate) at: PathBuf,
    /// Whether the container cannot write there. Mounts below are not included, as in Kubernetes.
    pub(crate) read_only: bool,
    /// Whether what the host mounts there later shows.
    pub(crate) host_to_container: bool,
}

impl Container {
    /// Becomes the container's program. The process has namespaces of its own already.
    pub(crate) fn enter(&self) -> Result<Infallible> {
        // A new root has to be a mount.
        mount_bind_recursive(&self.root, &self.root).context("the image's root")?;
        let proc = self.place(Path::new("/proc"))?;
        mount("proc", &proc, "proc", MountFlags::empty(), None).context("/proc")?;
        mount_bind_recursive("/dev", self.place(Path::new("/dev"))?).context("/dev")?;
        for mount in &self.mounts {
            self.mount(mount)
                .with_context(|| mount.at.display().to_string())?;
        }
        if self.read_only {
            mount_remount(&self.root, MountFlags::BIND | MountFlags::RDONLY, "")
                .context("a read-only root")?;
        }
        env::set_current_dir(&self.root)?;
        // The old root comes to lie on the new one, and is taken away.
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        unmount(".", UnmountFlags::DETACH).context("the old root")?;
        env::set_current_dir("/")?;
        let (program, arguments) = self.command.split_first().context("no program")?;
        let why = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(&self.environment)
            .exec();
        Err(why).with_context(|| program.clone())
    }

    fn mount(&self, mount: &Mount) -> Result<()> {
        let at = self.place(&mount.at)?;
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
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.root.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        Ok(place)
    }
}
