//! A network namespace with one address, which this host reaches and nobody else.

use std::{net::Ipv4Addr, path::PathBuf, process, process::Command};

use anyhow::Result;

use super::tools;

/// The namespace and the pair of devices that leads into it; both are gone with this value.
#[derive(Debug)]
pub(crate) struct Network {
    ip: PathBuf,
    name: String,
    /// The address in it.
    pub(crate) inside: Ipv4Addr,
}

impl Network {
    pub(crate) fn new(ip: PathBuf) -> Result<Self> {
        let pid = process::id();
        let [.., high, low] = pid.to_be_bytes();
        // Four addresses in 10.91.0.0/16, by the pid: .1 is the host's, .2 the pod's.
        let address = |last: u8| Ipv4Addr::new(10, 91, high ^ low, (low & 0xfc) | last);
        let (outside, inside) = (address(1), address(2));
        let network = Self {
            ip,
            name: format!("lens-{pid}"),
            inside,
        };
        let name = network.name.as_str();
        network.run(&format!("netns add {name}"))?;
        network.run(&format!(
            "link add {name} type veth peer name eth0 netns {name}"
        ))?;
        network.run(&format!("address add {outside}/30 dev {name}"))?;
        network.run(&format!("link set {name} up"))?;
        network.run(&format!("-netns {name} address add {inside}/30 dev eth0"))?;
        network.run(&format!("-netns {name} link set lo up"))?;
        network.run(&format!("-netns {name} link set eth0 up"))?;
        Ok(network)
    }

    /// The file by which it is entered.
    pub(crate) fn file(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    fn run(&self, line: &str) -> Result<()> {
        tools::run(&self.ip, line.split(' ')).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Of what was not made, nothing is left.
        for line in ["link delete", "netns delete"] {
            let mut command = Command::new(&self.ip);
            let _ = command.args(line.split(' ')).arg(&self.name).output();
        }
    }
}
