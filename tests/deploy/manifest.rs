//! The manifests: whether they are valid, and what the `DaemonSet` asks of a runtime.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    container::{Container, Mount},
    image::Image,
    tools,
};

/// Prints the documents of YAML files as one JSON list.
const TO_JSON: &str = "import json, sys, yaml; \
    print(json.dumps([d for f in sys.argv[1:] for d in yaml.safe_load_all(open(f))]))";

/// All manifests.
#[derive(Debug)]
pub(crate) struct Manifests(Vec<Value>);

impl Manifests {
    /// Reads them with the Python that the validator runs on.
    pub(crate) fn read() -> Result<Option<Self>> {
        let Some([validator]) = tools::need(["kubernetes-validate"])? else {
            return Ok(None);
        };
        let python = validator.with_file_name("python3");
        let mut command = Command::new(python);
        command.args(["-c", TO_JSON]).args(files()?);
        let text = tools::said(&mut command)?.stdout;
        Ok(Some(Self(serde_json::from_slice(&text)?)))
    }

    fn of_kind(&self, kind: &str) -> Result<&Value> {
        let mut found = self.0.iter().filter(|manifest| manifest["kind"] == kind);
        found.next().with_context(|| format!("there is no {kind}"))
    }

    /// The pod that runs on each node.
    pub(crate) fn pod(&self) -> Result<&Value> {
        Ok(&self.of_kind("DaemonSet")?["spec"]["template"]["spec"])
    }

    /// Where the kubelet asks whether the pod is ready: port and path.
    pub(crate) fn readiness(&self) -> Result<(u16, String)> {
        let container = &self.pod()?["containers"][0];
        let get = &container["readinessProbe"]["httpGet"];
        let ports = container["ports"].as_array().context("no ports")?;
        let port = ports.iter().find(|port| port["name"] == get["port"]);
        let port = port.and_then(|port| port["containerPort"].as_u64());
        let port = port.context("the probe names no port of the container")?;
        Ok((u16::try_from(port)?, text(&get["path"])?))
    }

    /// The container as a runtime is told to make it, on a node whose files are in `node` but for
    /// /sys, which is this machine's.
    pub(crate) fn container(&self, image: &Image, node: &Path, ip: &str) -> Result<Container> {
        let pod = self.pod()?;
        let container = &pod["containers"][0];
        let mut mounts = Vec::new();
        for mount in container["volumeMounts"].as_array().context("no mounts")? {
            let name = &mount["name"];
            let volumes = pod["volumes"].as_array().context("no volumes")?;
            let volume = volumes.iter().find(|volume| volume["name"] == *name);
            let volume = volume.with_context(|| format!("there is no volume {name}"))?;
            mounts.push(Mount {
                from: self.volume(volume, node)?,
                at: text(&mount["mountPath"])?.into(),
                read_only: mount["readOnly"] == true,
                host_to_container: mount["mountPropagation"] == "HostToContainer",
            });
        }
        // Runtimes mount what lies deeper later.
        mounts.sort_by_key(|mount| mount.at.components().count());
        let arguments = container["args"].as_array().into_iter().flatten();
        let arguments = arguments.map(text).collect::<Result<_>>()?;
        Ok(Container {
            root: image.mount()?,
            read_only: container["securityContext"]["readOnlyRootFilesystem"] == true,
            mounts,
            environment: environment(container, ip)?,
            command: image.program(arguments)?,
        })
    }

    fn volume(&self, volume: &Value, node: &Path) -> Result<std::path::PathBuf> {
        let name = text(&volume["name"])?;
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            if path.starts_with("/sys") {
                return Ok(path.into());
            }
            let made = volume["hostPath"]["type"] == "DirectoryOrCreate";
            ensure!(made, "volume {name}: {path} may not be there");
            let folder = node.join(path.trim_start_matches('/'));
            fs::create_dir_all(&folder)?;
            return Ok(folder);
        }
        let (owner, name_of, content) = if volume["configMap"].is_object() {
            ("ConfigMap", &volume["configMap"]["name"], "data")
        } else {
            ("Secret", &volume["secret"]["secretName"], "stringData")
        };
        let owner = self.of_kind(owner)?;
        ensure!(
            owner["metadata"]["name"] == *name_of,
            "volume {name}: no {name_of}"
        );
        let folder = node.join("volumes").join(name);
        fs::create_dir_all(&folder)?;
        for (file, content) in owner[content].as_object().context("no files")? {
            // An empty secret is to be filled in by whoever installs.
            let content = content.as_str().filter(|content| !content.is_empty());
            fs::write(folder.join(file), content.unwrap_or(TOKEN))?;
        }
        Ok(folder)
    }
}

/// What is filled in for the Secret.
pub(crate) const TOKEN: &str = "a-token-for-tests";

/// The variables, with `$(OTHER)` replaced by those that stand before.
fn environment(container: &Value, ip: &str) -> Result<BTreeMap<String, String>> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for variable in container["env"].as_array().context("no env")? {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = match field {
            Some("status.podIP") => ip.to_owned(),
            Some(other) => anyhow::bail!("this test does not know {other}"),
            None => {
                let mut value = text(&variable["value"])?;
                for (name, known) in &variables {
                    value = value.replace(&format!("$({name})"), known);
                }
                value
            }
        };
        variables.insert(text(&variable["name"])?, value);
    }
    Ok(variables)
}

fn text(value: &Value) -> Result<String> {
    let text = value.as_str();
    Ok(text
        .with_context(|| format!("no text: {value}"))?
        .to_owned())
}

/// The manifests, but for the one that lists them.
fn files() -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(tools::deploy().join("kubernetes"))? {
        let path = entry?.path();
        if !path.ends_with("kustomization.yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[test]
fn manifests_are_valid() -> Result<()> {
    let Some([validator]) = tools::need(["kubernetes-validate"])? else {
        return Ok(());
    };
    let mut command = Command::new(validator);
    tools::said(command.arg("--strict").args(files()?))?;
    Ok(())
}

#[test]
fn kustomize_renders_every_manifest_valid() -> Result<()> {
    let Some([kubectl, validator]) = tools::need(["kubectl", "kubernetes-validate"])? else {
        return Ok(());
    };
    let rendered = tools::run(
        &kubectl,
        [
            "kustomize".into(),
            tools::deploy().join("kubernetes").into_os_string(),
        ],
    )?;
    assert_eq!(rendered.matches("\nkind: ").count(), files()?.len());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rendered.yaml");
    fs::write(&file, rendered)?;
    tools::run(&validator, ["--strict".into(), file.into_os_string()])?;
    Ok(())
}

#[test]
fn the_containerfile_is_without_reproach() -> Result<()> {
    let Some([hadolint]) = tools::need(["hadolint"])? else {
        return Ok(());
    };
    tools::run(&hadolint, [tools::deploy().join("image/Containerfile")])?;
    Ok(())
}

#[test]
fn the_pod_sees_the_host_and_runs_everywhere() -> Result<()> {
    let Some(manifests) = Manifests::read()? else {
        return Ok(());
    };
    let pod = manifests.pod()?;
    assert_eq!(pod["hostPID"], true);
    assert_eq!(
        pod["tolerations"],
        serde_json::json!([{"operator": "Exists"}])
    );
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["privileged"], true);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = &container[probe]["httpGet"]["path"];
        assert!(path == "/readyz" || path == "/healthz", "{probe}: {path}");
    }
    // Whoever installs fills it in: a token in a repository would be none.
    assert_eq!(manifests.of_kind("Secret")?["stringData"]["token"], "");
    Ok(())
}
