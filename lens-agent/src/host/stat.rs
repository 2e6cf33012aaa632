//! `/proc/stat`: what the CPUs did, and how much happened.

use serde::{Deserialize, Serialize};

use super::{ReadError, Root, text::Fields, ticks_to_ms};

/// Where CPU time went, in milliseconds since boot, at a resolution of 10 ms.
///
/// The fields and their pitfalls: proc(5), and Documentation/filesystems/proc.rst, 1.8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTimes {
    /// In user mode, guests included, not nice.
    pub user_ms: u64,
    /// In user mode at low priority.
    pub nice_ms: u64,
    /// In the kernel for a task.
    pub system_ms: u64,
    /// Idle.
    pub idle_ms: u64,
    /// Idle while a task that ran here last waits for I/O. May fall; a lower bound at best.
    pub iowait_ms: u64,
    /// In hardware interrupts.
    pub irq_ms: u64,
    /// In soft interrupts.
    pub softirq_ms: u64,
    /// Taken by the hypervisor.
    pub steal_ms: u64,
}

impl CpuTimes {
    /// Not idle: somebody's work, or time that was taken away.
    pub fn busy_ms(&self) -> u64 {
        self.user_ms + self.nice_ms + self.system_ms + self.irq_ms + self.softirq_ms + self.steal_ms
    }

    /// All of it.
    pub fn total_ms(&self) -> u64 {
        self.busy_ms() + self.idle_ms + self.iowait_ms
    }
}

/// `/proc/stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStat {
    /// All CPUs together.
    pub cpu: CpuTimes,
    /// Each CPU that is online, in order of its number.
    pub per_cpu: Vec<CpuTimes>,
    /// Context switches since boot.
    pub context_switches: u64,
    /// Forks (and new threads) since boot.
    pub forks: u64,
    /// Hardware interrupts since boot.
    pub interrupts: Option<u64>,
    /// Soft interrupts since boot.
    pub softirqs: Option<u64>,
    /// Threads that run or wait for a CPU at this moment.
    pub running: u64,
    /// Threads that wait for I/O at this moment. Blind to some waits in state D.
    pub blocked: u64,
    /// When the machine was booted, seconds since 1970.
    pub boot_time_s: u64,
}

/// Reads it.
pub fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<HostStat, ReadError> {
    let text = root.read("proc/stat", buffer)?;
    let mut stat = HostStat::default();
    let (mut cpu, mut context_switches, mut forks, mut running, mut blocked, mut boot) =
        (None, None, None, None, None, None);
    for line in text.lines() {
        let mut fields = line.fields();
        let Ok(key) = fields.word("key") else {
            continue;
        };
        match key {
            "cpu" => cpu = Some(times(&mut fields)?),
            "ctxt" => context_switches = Some(fields.number(key)?),
            "processes" => forks = Some(fields.number(key)?),
            "procs_running" => running = Some(fields.number(key)?),
            "procs_blocked" => blocked = Some(fields.number(key)?),
            "btime" => boot = Some(fields.number(key)?),
            "intr" => stat.interrupts = Some(fields.number(key)?),
            "softirq" => stat.softirqs = Some(fields.number(key)?),
            _ if key.starts_with("cpu") => stat.per_cpu.push(times(&mut fields)?),
            _ => {}
        }
    }
    stat.cpu = text.required("cpu", cpu)?;
    stat.context_switches = text.required("ctxt", context_switches)?;
    stat.forks = text.required("processes", forks)?;
    stat.running = text.required("procs_running", running)?;
    stat.blocked = text.required("procs_blocked", blocked)?;
    stat.boot_time_s = text.required("btime", boot)?;
    Ok(stat)
}

fn times(fields: &mut Fields<'_>) -> Result<CpuTimes, ReadError> {
    let mut next = |name| fields.number(name).map(ticks_to_ms);
    Ok(CpuTimes {
        user_ms: next("user")?,
        nice_ms: next("nice")?,
        system_ms: next("system")?,
        idle_ms: next("idle")?,
        iowait_ms: next("iowait")?,
        irq_ms: next("irq")?,
        softirq_ms: next("softirq")?,
        steal_ms: next("steal")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    const STAT: &str = "cpu  100 1 20 300 4 5 6 7 0 0\ncpu0 60 0 10 150 2 3 3 4 0 0\n\
        cpu1 40 1 10 150 2 2 3 3 0 0\nintr 185680 0 0 34\nctxt 375427\nbtime 1795560836\n\
        processes 6874\nprocs_running 3\nprocs_blocked 1\nsoftirq 109799 0 14374\n";

    #[test]
    fn ticks_become_milliseconds() {
        let (_dir, root) = root_with(&[("proc/stat", STAT)]);
        let stat = read(&root, &mut Vec::new()).unwrap();
        assert_eq!((stat.cpu.user_ms, stat.cpu.steal_ms), (1000, 70));
        assert_eq!((stat.cpu.busy_ms(), stat.cpu.total_ms()), (1390, 4430));
        assert_eq!(stat.per_cpu.len(), 2);
        assert_eq!((stat.context_switches, stat.forks), (375_427, 6874));
        assert_eq!((stat.running, stat.blocked), (3, 1));
        assert_eq!(
            (stat.interrupts, stat.softirqs),
            (Some(185_680), Some(109_799))
        );
    }

    #[test]
    fn an_error_says_where_it_is() {
        let (_dir, root) = root_with(&[("proc/stat", &STAT.replace("40 1 10", "40 one 10"))]);
        let error = read(&root, &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.ends_with("proc/stat:3: nice: `one` is not a number"),
            "{error}"
        );
        let (_dir, root) = root_with(&[("proc/stat", &STAT.replace("ctxt", "cxtt"))]);
        let error = read(&root, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.ends_with("proc/stat: there is no ctxt"), "{error}");
    }
}
