//! The agent as the `DaemonSet` starts it: in the image's root, with the manifest's mounts, in mount,
//! cgroup and network namespaces of its own, and in a cgroup as the kubelet makes one.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use lens_tests::{cgroup::Cgroup, http, until};
use serde_json::Value;

use super::{
    container::Container,
    image::{Image, START, start},
    manifest::{Manifests, TOKEN},
    network::Network,
    process::Process,
    tools,
};

/// The agent in its pod.
#[derive(Debug)]
struct Agent {
    process: Process,
    log: PathBuf,
    address: SocketAddr,
}

impl Agent {
    fn start(
        container: &Container,
        cgroup: &Cgroup,
        network: &Network,
        port: u16,
        log: &Path,
    ) -> Result<Self> {
        let mut net = OsString::from("--net=");
        net.push(network.file());
        let mut command = start(container, &["nsenter".as_ref(), net.as_ref()])?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(log)?);
        Ok(Self {
            process: Process(cgroup.spawn(&mut command)?),
            log: log.to_owned(),
            address: SocketAddr::from((network.inside, port)),
        })
    }

    /// Waits until `look` gives something.
    fn wait<T>(&mut self, what: &str, mut look: impl FnMut(SocketAddr) -> Option<T>) -> Result<T> {
        let (mut found, address) = (None, self.address);
        let child = &mut self.process.0;
        let came = until(what, START, || {
            found = look(address);
            found.is_some() || matches!(child.try_wait(), Ok(Some(_)))
        });
        match (came, found) {
            (Ok(()), Some(found)) => Ok(found),
            (came, _) => {
                let why = came
                    .err()
                    .map_or("the agent has ended".to_owned(), |e| e.to_string());
                bail!("{what}: {why}; {}", fs::read_to_string(&self.log)?)
            }
        }
    }
}

/// What the agent answers to somebody who shows the token.
fn ask(address: SocketAddr, path: &str) -> Option<Value> {
    let host = address.to_string();
    let token = format!("Bearer {TOKEN}");
    let headers = [("Host", host.as_str()), ("Authorization", token.as_str())];
    let answer = http::get(address, path, &headers).ok()?;
    (answer.status == 200).then(|| answer.json().ok())?
}

fn named<'a>(list: &'a Value, key: &str, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|entry| entry[key] == name)
}

/// One at which nobody listens.
const PROVIDER: &str = r#"
[[provider]]
name = "nobody"
kind = "openai-compatible"
base_url = "https://127.0.0.1:1/v1/"
model = "none"
"#;

#[test]
fn a_pod_is_ready_by_its_address_and_names_cgroups_as_the_host_does() -> Result<()> {
    if !lens_tests::root_or_say_not_run()? {
        return Ok(());
    }
    let tools = tools::need(["buildah", "ip", "unshare", "nsenter"])?;
    let (Some([buildah, ip, ..]), Some(manifests)) = (tools, Manifests::read()?) else {
        return Ok(());
    };
    let node = tempfile::tempdir()?;
    let image = Image::build(&buildah)?;
    let network = Network::new(ip)?;
    let inside = network.inside.to_string();
    let mut container = manifests.container(&image, node.path(), &inside)?;
    let interval = ("LENS_INTERVAL".to_owned(), "500ms".to_owned());
    container.environment.extend([interval]);
    // Without certificates in the image the agent does not start with it.
    let settings = node.path().join("volumes/config/lens.toml");
    let mut settings = File::options().append(true).open(settings)?;
    settings.write_all(PROVIDER.as_bytes())?;
    let (port, readiness) = manifests.readiness()?;

    let pods = Cgroup::new("kubepods")?;
    let pod = pods.child("pod-1")?;
    let own = pod.child("lens")?;
    let log = node.path().join("log");
    let mut agent = Agent::start(&container, &own, &network, port, &log)?;
    agent.wait("ready by the pod's address", |address| {
        let answer = http::ask(address, &readiness).ok()?;
        (answer.status == 200).then_some(())
    })?;
    let refused = http::ask(agent.address, "/api/v1/targets")?;
    assert_eq!(refused.status, 401, "the pod's address wants the token");

    // Not below the pod: seen from its cgroup, this one is at `/../../../...`.
    let shop = Cgroup::new("shop")?;
    let cart = shop.child("cart")?;
    let sleep = Process(cart.spawn(Command::new("sleep").arg("600"))?);
    let targets = agent.wait("a cgroup of the host as a target", |address| {
        let targets = ask(address, "/api/v1/targets")?;
        named(&targets, "path", cart.path())?;
        Some(targets)
    })?;
    let target = named(&targets, "path", cart.path()).context("no target")?;
    assert_eq!(target["id"], cart.id()?, "{target}");
    assert!(named(&targets, "path", own.path()).is_some(), "{targets:#}");
    assert!(!targets.to_string().contains(".."), "{targets:#}");

    // Its processes are found by what /proc says of them, which a cgroup namespace changes.
    // Ours are the agent, the child that attaches for it, and, because a provider is configured, the
    // one that names stacks.
    for (cgroup, count) in [(&cart, 1.0), (&own, 3.0)] {
        let path = format!("/api/v1/snapshots?scope={}", cgroup.path());
        agent.wait(&format!("the process in {}", cgroup.path()), |address| {
            let snapshots = ask(address, &path)?;
            let processes = named(&snapshots, "skill", "processes")?;
            (processes["metrics"]["processes_count"] == count).then_some(())
        })?;
    }
    drop(sleep);
    // What it has learned is on the node, not in the pod.
    let state = node.path().join("var/lib/lens");
    assert!(
        fs::read_dir(state)?.next().is_some(),
        "nothing is remembered"
    );
    Ok(())
}
