//! Debian's kernels: which is the newest of a series, and unpacking it. Nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{step::Step, workspace};

/// The series that are tested besides the one of the machine itself. From the oldest supported on.
pub(super) const SERIES: &[&str] = &["6.1", "6.12"];

/// How the packages' names begin and end; without the end there is a kernel for real hardware, which
/// is several times as big.
const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// The root of a file system that has its modules, and nothing else yet.
    pub(super) root: PathBuf,
}

impl Kernel {
    /// The newest of `series` that there is; unpacked below `folder`, which keeps it. `None` if
    /// there is none.
    pub(super) fn newest(series: &str, folder: &Path) -> Result<Option<Self>> {
        let known = || -> Result<Option<String>> {
            let listed = listed_packages()?;
            Ok(newest(series, listed.lines()).map(str::to_owned))
        };
        let mut package = known()?;
        if workspace::is_root() && !package.as_deref().is_some_and(|p| is_unpacked(folder, p)) {
            Step::new("update the list of packages")
                .run(workspace::program("apt-get").args(["update", "--quiet=2"]))?;
            package = known()?;
        }
        let Some(package) = package else {
            return Ok(None);
        };
        if !is_unpacked(folder, &package) {
            unpack(folder, &package)?;
        }
        Ok(Some(Self {
            release: release_of(&package).to_owned(),
            root: folder.join(&package),
        }))
    }

    /// What the machine boots.
    pub(super) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }
}

fn listed_packages() -> Result<String> {
    let listed = workspace::program("apt-cache")
        .args(["pkgnames", PREFIX])
        .output()
        .context("apt-cache cannot be started")?;
    Ok(String::from_utf8(listed.stdout)?)
}

/// The newest package of `series`. Its number is a part of its name.
fn newest<'a>(series: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .filter(|name| {
            let release = release_of(name);
            let own = release.strip_prefix(series);
            own.is_some_and(|rest| rest.starts_with('.')) && release.ends_with(FLAVOUR)
        })
        .max_by_key(|name| numbers(name))
}

fn release_of(package: &str) -> &str {
    package.strip_prefix(PREFIX).unwrap_or(package)
}

fn numbers(name: &str) -> Vec<u64> {
    let digits = name.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|number| number.parse().ok()).collect()
}

/// Written last.
fn is_unpacked(folder: &Path, package: &str) -> bool {
    folder
        .join(package)
        .join("lib/modules")
        .join(release_of(package))
        .join("modules.dep")
        .exists()
}

fn unpack(folder: &Path, package: &str) -> Result<()> {
    let root = folder.join(package);
    let download = folder.join("download");
    for fresh in [&root, &download] {
        if fresh.exists() {
            fs::remove_dir_all(fresh)?;
        }
        fs::create_dir_all(fresh).with_context(|| fresh.display().to_string())?;
    }
    Step::new("download a kernel").run(
        workspace::program("apt-get")
            .args(["download", "--quiet=2", package])
            .current_dir(&download),
    )?;
    let Some(file) = fs::read_dir(&download)?.next() else {
        bail!("apt-get has downloaded nothing");
    };
    let file = file?.path();
    Step::new("unpack it").run(
        workspace::program("dpkg-deb")
            .arg("--extract")
            .arg(&file)
            .arg(&root),
    )?;
    fs::remove_dir_all(&download)?;
    Step::new("list its modules").run(
        workspace::program("busybox")
            .args(["depmod", "-b"])
            .arg(&root)
            .arg(release_of(package)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: &str = "\
linux-image-6.1.0-9-cloud-amd64
linux-image-6.1.0-56-cloud-amd64-unsigned
linux-image-6.1.0-50-cloud-amd64
linux-image-6.1.0-57-amd64
linux-image-6.1.0-56-cloud-amd64-dbg
linux-image-6.1.0-56-rt-amd64
linux-image-6.12-cloud-amd64
linux-image-6.12.9+bpo-cloud-amd64
linux-image-6.12.101+deb12-cloud-amd64
linux-image-6.12.117+deb12-cloud-amd64
linux-image-cloud-amd64";

    #[test]
    fn the_newest_kernel_of_a_series_is_found_by_number() {
        for (series, found) in [
            ("6.1", Some("linux-image-6.1.0-50-cloud-amd64")),
            ("6.12", Some("linux-image-6.12.117+deb12-cloud-amd64")),
            ("6.18", None),
            ("6", Some("linux-image-6.12.117+deb12-cloud-amd64")),
        ] {
            assert_eq!(newest(series, OFFERED.lines()), found, "{series}");
        }
    }
}
