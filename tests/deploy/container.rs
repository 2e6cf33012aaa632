//! A container, as it is told to the program that makes one.

use std::{collections::BTreeMap, path::PathBuf};

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
