//! Who a cgroup is to a person: its process that stands out, its container, pod or unit.

use super::{category::Category, insight::Actor};
use crate::{base::scope::Scope, skills::Sample};

/// The actor in `scope`; `None` for the host.
pub(super) fn actor(scope: &Scope, category: Category, sample: &Sample) -> Option<Actor> {
    let path = scope.path()?;
    let processes = sample
        .host
        .cgroups
        .get(path)
        .and_then(|c| c.processes.as_ref());
    let process = processes.and_then(|p| match category {
        Category::MemoryLeak => p.most_memory.first(),
        _ => p.most_cpu.iter().max_by_key(|p| p.ran_ms),
    });
    Some(Actor {
        cgroup: path.into(),
        comm: process.map(|p| p.comm.clone()),
        pid: process.map(|p| p.pid),
        container: container(path),
        pod: pod(path),
        unit: unit(path),
    })
}

/// 64 hexadecimal digits, as Docker, containerd and CRI-O name the cgroups of containers, with or
/// without `docker-`, `cri-containerd-`, `crio-` and `.scope`.
fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|segment| {
        let name = segment.strip_suffix(".scope").unwrap_or(segment);
        let id = name.rsplit('-').next()?;
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| id.to_owned())
    })
}

/// `kubepods-burstable-podUID.slice` (systemd, with `_` for `-`) or `podUID`.
fn pod(path: &str) -> Option<String> {
    if !path.contains("kubepods") {
        return None;
    }
    path.split('/').find_map(|segment| {
        let name = segment.strip_suffix(".slice").unwrap_or(segment);
        let at = name
            .rfind("pod")
            .filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'-')?;
        let uid = name[at + 3..].replace('_', "-");
        (uid.len() >= 32).then_some(uid)
    })
}

/// The innermost service or scope.
fn unit(path: &str) -> Option<String> {
    let is_unit = |s: &&str| matches!(s.rsplit_once('.'), Some((_, "service" | "scope")));
    path.rsplit('/').find(is_unit).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_path() {
        let id = "0123456789abcdef".repeat(4);
        let docker = format!("/system.slice/docker-{id}.scope");
        assert_eq!(container(&docker), Some(id.clone()));
        assert_eq!(
            unit("/system.slice/nginx.service"),
            Some("nginx.service".to_owned())
        );
        let pod_path = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b2c3d4e_0000_1111_2222_333344445555.slice/cri-containerd-{id}.scope"
        );
        assert_eq!(
            pod(&pod_path).as_deref(),
            Some("1b2c3d4e-0000-1111-2222-333344445555")
        );
        assert_eq!(container(&pod_path), Some(id));
        assert_eq!(
            (
                container("/shop/cart"),
                pod("/shop/cart"),
                unit("/shop/cart")
            ),
            (None, None, None)
        );
    }
}
