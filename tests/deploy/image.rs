//! The image: built from the binary that was built, and `lens doctor` in it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{container::Container, tools};

const NAME: &str = "lens-test";

/// An image in a storage of its own, which is gone with it.
#[derive(Debug)]
pub(crate) struct Image {
    buildah: PathBuf,
    storage: TempDir,
}

impl Image {
    /// Builds it as the first lines of its Containerfile say.
    pub(crate) fn build(buildah: &Path) -> Result<Self> {
        let image = Self {
            buildah: buildah.to_owned(),
            storage: TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?,
        };
        let binary = lens_tests::lens()?;
        let folder = Path::new(binary.get_program()).parent();
        let folder = folder.context("the binary is in no folder")?;
        let deploy = tools::deploy();
        let mut build = image.command(&["bud", "--isolation", "chroot", "--quiet", "-t", NAME]);
        build.arg("-f").arg(deploy.join("image/Containerfile"));
        build.arg(format!("--build-context=binary={}", folder.display()));
        build.arg("--build-context=certificates=/etc/ssl/certs");
        tools::said(build.arg(deploy))?;
        Ok(image)
    }

    /// The root of a container made from it.
    pub(crate) fn mount(&self) -> Result<PathBuf> {
        let from = self.run(&["from", "--pull-never", NAME])?;
        let root = self.run(&["mount", from.trim()])?;
        Ok(PathBuf::from(root.trim()))
    }

    /// What it says of itself.
    fn config(&self) -> Result<Value> {
        let said = self.run(&["inspect", "--type", "image", NAME])?;
        let said: Value = serde_json::from_str(&said)?;
        Ok(said["OCIv1"]["config"].clone())
    }

    /// Its program, with `arguments`, or with its own if there are none.
    pub(crate) fn program(&self, arguments: Vec<String>) -> Result<Vec<String>> {
        let config = self.config()?;
        let words = |key: &str| serde_json::from_value::<Vec<String>>(config[key].clone());
        let mut command = words("Entrypoint").context("the image has no entry point")?;
        command.extend(if arguments.is_empty() {
            words("Cmd").context("the image has no command")?
        } else {
            arguments
        });
        Ok(command)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.buildah);
        command.args(["--storage-driver", "vfs", "--root"]);
        command.arg(self.storage.path().join("root"));
        command
            .arg("--runroot")
            .arg(self.storage.path().join("run"));
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = tools::said(&mut self.command(arguments))?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The folder goes in any case; what is still mounted in it would hold it up.
        let _ = self.command(&["umount", "--all"]).output();
    }
}

/// Starts a container in mount and cgroup namespaces of its own; `before` are programs that become
/// it, such as `nsenter`.
pub(crate) fn start(container: &Container, before: &[&OsStr]) -> Result<Command> {
    let unshare = ["unshare", "--mount", "--cgroup", "--propagation", "slave"];
    let mut words = before.to_vec();
    words.extend(unshare.map(OsStr::new));
    let (first, others) = words.split_first().context("no program")?;
    let mut command = Command::new(first);
    command.args(others);
    command.arg(env!("CARGO_BIN_EXE_enter_container"));
    command.arg(serde_json::to_string(container)?);
    Ok(command)
}

#[test]
fn the_image_holds_what_it_should_and_doctor_runs_in_it() -> Result<()> {
    if !lens_tests::root_or_say_not_run()? {
        return Ok(());
    }
    let Some([buildah, _]) = tools::need(["buildah", "unshare"])? else {
        return Ok(());
    };
    let image = Image::build(&buildah)?;
    let root = image.mount()?;
    assert_eq!(image.program(Vec::new())?, ["/lens", "run"]);
    assert_eq!(
        image.config()?["Volumes"],
        serde_json::json!({"/var/lib/lens": {}})
    );
    for file in ["etc/lens/lens.toml", "etc/ssl/certs/ca-certificates.crt"] {
        ensure!(root.join(file).is_file(), "the image has no {file}");
    }
    let container = Container {
        mounts: vec![super::container::Mount {
            from: "/sys".into(),
            at: "/sys".into(),
            read_only: true,
            host_to_container: true,
        }],
        read_only: true,
        command: image.program(vec!["doctor".to_owned(), "--json".to_owned()])?,
        root,
        ..Container::default()
    };
    let mut doctor = start(
        &container,
        &[OsStr::new("timeout"), OsStr::new(DOCTOR_SECONDS)],
    )?;
    let output = doctor.output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    // 1: a kernel may lack what a probe needs.
    ensure!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).context(words.into_owned())?;
    let outcome = |name: &str| checks.iter().find(|c| c["name"] == name).map(|c| &c["ok"]);
    for name in ["configuration", "root", "cgroups", "probe sched"] {
        ensure!(
            outcome(name) == Some(&Value::Bool(true)),
            "{name}: {checks:#?}"
        );
    }
    Ok(())
}

/// Loading everything takes a second or two where nothing else runs.
const DOCTOR_SECONDS: &str = "120";

/// How long a busy machine may take for an agent to start.
pub(crate) const START: Duration = Duration::from_mins(2);
