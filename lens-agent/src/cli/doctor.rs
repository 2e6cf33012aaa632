//! `lens doctor`: what works on this kernel.

use super::{Outcome, Trouble, chosen::Chosen, out::Out, run::need_root};
use crate::{
    agent,
    config::{ConfigError, Settings},
    host::{self, HostReader, Root},
    probes::{self, Means, Probes, ledger::Costs},
};

#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    chosen: Box<Chosen>,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Debug, serde::Serialize)]
struct Check {
    /// What.
    name: String,
    /// Whether it is as it should be.
    ok: bool,
    /// What was found.
    found: String,
    /// What cannot be diagnosed without it; of what is as it should be, nothing, unless this kernel
    /// lacks it and nothing that always runs needs it.
    costs: Option<String>,
}

impl Check {
    fn new(name: &str, found: Result<String, String>, costs: &str) -> Self {
        let ok = found.is_ok();
        let costs = (!ok).then(|| costs.to_owned());
        let found = match found {
            Ok(found) | Err(found) => found,
        };
        Self {
            name: name.to_owned(),
            ok,
            found,
            costs,
        }
    }
}

impl Check {
    /// Of what is used on demand only: a kernel may lack it.
    fn on_demand(name: &str, found: Result<String, String>, costs: &str) -> Self {
        Self {
            ok: true,
            ..Self::new(name, found, costs)
        }
    }
}

impl Doctor {
    pub(super) fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let settings = self.chosen.settings().and_then(Settings::resolve);
        let checks = checks(settings.map(|_| ()));
        if self.json {
            out.json(&checks)?;
        } else {
            for check in &checks {
                let mark = match (check.ok, &check.costs) {
                    (true, None) => "ok    ",
                    (true, Some(_)) => "lacks ",
                    (false, _) => "FAILED",
                };
                out.line(format!("{mark}  {}: {}", check.name, check.found))?;
                if let Some(costs) = &check.costs {
                    out.line(format!("        without it: {costs}"))?;
                }
            }
        }
        let fine = checks.iter().all(|c| c.ok);
        Ok(if fine {
            Outcome::Fine
        } else {
            Outcome::Finding
        })
    }
}

fn checks(settings: Result<(), ConfigError>) -> Vec<Check> {
    let config = settings
        .map(|()| "valid, or absent".to_owned())
        .map_err(|why| why.to_string());
    let mut checks = vec![Check::new(
        "configuration",
        config,
        "`lens run` does not start",
    )];
    let root = need_root()
        .map(|()| "yes".to_owned())
        .map_err(|why| why.to_string());
    let is_root = root.is_ok();
    checks.push(Check::new(
        "root",
        root,
        "everything that is counted in the kernel",
    ));
    let reader = HostReader::new(Root::default());
    let watched = reader.map_err(|why| why.to_string()).and_then(|reader| {
        let watched = agent::watched(&reader).map_err(|why| why.to_string())?;
        Ok((watched, describe(&reader)))
    });
    let found = watched
        .as_ref()
        .map(|(_, text)| text.clone())
        .map_err(Clone::clone);
    checks.push(Check::new("cgroups", found, "whose waiting it is"));
    if let (Ok((watched, _)), true) = (watched, is_root) {
        programs(&watched, &mut checks);
        traces(&watched, &mut checks);
    }
    checks
}

fn describe(reader: &HostReader) -> String {
    let Some(hierarchy) = reader.hierarchy() else {
        return "none".to_owned();
    };
    let v1: Vec<&str> = hierarchy.v1.keys().map(String::as_str).collect();
    let watched = match &hierarchy.watched {
        host::Watched::V2 => "v2".to_owned(),
        host::Watched::V1(controller) => format!("v1 {controller}"),
    };
    if v1.is_empty() {
        format!("watching {watched}")
    } else {
        format!("watching {watched}; on v1: {}", v1.join(", "))
    }
}

fn programs(watched: &probes::Watched, checks: &mut Vec<Check>) {
    let config = probes::Config::default();
    let mut probes = match Probes::start(watched, &config) {
        Ok(probes) => probes,
        Err(why) => {
            let blind = "everything that is counted in the kernel";
            checks.push(Check::new("kernel programs", Err(why.to_string()), blind));
            return;
        }
    };
    let costs = probes.costs();
    for definition in probes::REGISTRY {
        let refused = probes.refused().iter().find(|r| r.probe == definition.name);
        let found = match refused {
            Some(refusal) => Err(refusal.why.to_string()),
            None => Ok(attached(&probes, definition.name, &costs)),
        };
        checks.push(Check::new(
            &format!("probe {}", definition.name),
            found,
            definition.blind,
        ));
    }
    let memory = probes.map_memory().formula();
    checks.push(Check::new("memory of maps", Ok(memory), "nothing"));
    // What runs may still see only a part.
    for part in probes.read().quality.missing {
        let of_probe = |d: &&probes::Definition| part.probe.starts_with(&format!("{}.", d.name));
        if let Some(definition) = probes::REGISTRY.iter().find(of_probe) {
            let blind = format!("a part of: {}", definition.blind);
            let name = format!("probe {}", part.probe);
            checks.push(Check::new(&name, Err(part.why), &blind));
        }
    }
}

/// What of functions can be traced, on demand.
fn traces(watched: &probes::Watched, checks: &mut Vec<Check>) {
    const OF_PROGRAMS: (&str, &str) = (
        "traces of programs' functions",
        "how often a program's function is called, and how long it takes (`lens trace FILE:FUNCTION`)",
    );
    const OF_ALLOCATIONS: (&str, &str) = (
        "traces of programs' allocations",
        "where a program allocates memory that it does not free (`lens heap PID`)",
    );
    const OF_KERNEL: (&str, &str) = (
        "traces of the kernel's functions",
        "how often a function of the kernel is called, by whom, and how long it takes (`lens trace kernel:FUNCTION`)",
    );
    let (of_programs, of_kernel) = match probes::traceable(watched) {
        Ok(found) => {
            let by = |means: Vec<Means>| {
                let by = means.into_iter().map(|means| match means {
                    Means::Fentry => "fentry",
                    Means::Kprobe => "kprobes",
                    Means::Uprobe => "uprobes",
                });
                format!("yes, by {}", by.collect::<Vec<_>>().join(" and "))
            };
            (
                found.programs.map(|()| by(vec![Means::Uprobe])),
                found.kernel.map(by).map_err(|why| why.to_string()),
            )
        }
        Err(why) => (Err(why.to_string()), Err(why.to_string())),
    };
    let allocations = match &of_programs {
        Ok(by) => probes::heap::possible()
            .map(|()| by.clone())
            .map_err(|why| why.to_string()),
        Err(why) => Err(why.clone()),
    };
    for ((name, blind), found) in [
        (OF_PROGRAMS, of_programs),
        (OF_ALLOCATIONS, allocations),
        (OF_KERNEL, of_kernel),
    ] {
        checks.push(Check::on_demand(name, found, blind));
    }
}

fn attached(probes: &Probes, probe: &str, costs: &Costs) -> String {
    let mut programs: Vec<_> = costs.get(probe).into_iter().flatten().collect();
    programs.sort_by(|a, b| a.program.cmp(&b.program));
    let programs = programs.into_iter();
    let told: Vec<String> = programs
        .filter_map(|p| {
            Some(format!(
                "{} ({} instructions verified)",
                p.program, p.verified?
            ))
        })
        .collect();
    let kib = probes.map_bytes(probe) / 1024;
    format!("attached: {}; {kib} KiB of maps", told.join(", "))
}
