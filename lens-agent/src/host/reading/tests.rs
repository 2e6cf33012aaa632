//! Whole readings: of trees that look like the three kinds of hosts, and of this machine.

use super::*;
use crate::{
    base::clock::{Clock, SystemClock},
    host::{
        cgroup::{CgroupCpu, CgroupPids, CpuQuota, Place},
        text::tests::root_with,
    },
};

const NO_LIMIT: &str = "9223372036854771712\n";
const PRESSURE: &str = "some avg10=1.00 avg60=0.00 avg300=0.00 total=77\n";

const HOST: &[(&str, &str)] = &[
    (
        "proc/meminfo",
        "MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\n",
    ),
    ("proc/vmstat", "pgfault 5\n"),
    ("proc/loadavg", "0.00 0.00 0.00 1/2 3\n"),
    ("proc/diskstats", ""),
    (
        "proc/10/stat",
        "10 (web) S 1 0 0 0 -1 0 10 0 2 0 5 0 0 0 20 0 3 0 1 5000 7 0",
    ),
];

/// A reading of all cgroups of a tree that has these files.
fn read(files: &[&[(&str, &str)]]) -> HostReading {
    let (_dir, root) = root_with(&files.concat());
    let mut reader = HostReader::new(root.clone()).unwrap();
    let targets = reader
        .hierarchy()
        .unwrap()
        .cgroups(&root, 100)
        .unwrap()
        .cgroups;
    reader.read(&targets, SystemClock.now())
}

const V2_TREE: &[(&str, &str)] = &[
    (
        "proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    ),
    ("proc/10/cgroup", "0::/shop\n"),
    (
        "sys/fs/cgroup/shop/cpu.stat",
        "usage_usec 9\nuser_usec 4\nsystem_usec 5\nnr_periods 3\nnr_throttled 2\n\
                 throttled_usec 1\n",
    ),
    ("sys/fs/cgroup/shop/cpu.max", "20000 100000\n"),
    ("sys/fs/cgroup/shop/memory.current", "4096\n"),
    ("sys/fs/cgroup/shop/memory.max", "max\n"),
    (
        "sys/fs/cgroup/shop/memory.stat",
        "anon 10\nfile 20\npgfault 3\nworkingset_refault_anon 1\nworkingset_refault_file 2\n",
    ),
    (
        "sys/fs/cgroup/shop/memory.events",
        "low 0\nmax 7\noom 2\noom_kill 1\n",
    ),
    ("sys/fs/cgroup/shop/pids.current", "5\n"),
    ("sys/fs/cgroup/shop/pids.max", "100\n"),
    ("sys/fs/cgroup/shop/pids.events", "max 4\n"),
    ("sys/fs/cgroup/shop/cpu.pressure", PRESSURE),
    (
        "sys/fs/cgroup/shop/cgroup.events",
        "populated 1\nfrozen 0\n",
    ),
];

#[test]
fn v2_alone() {
    let reading = read(&[HOST, V2_TREE]);
    let shop = &reading.cgroups["/shop"];
    let files = &shop.files;
    let place = Place {
        path: "/shop".into(),
        shared_with: 0,
    };
    assert_eq!(
        files.cpu,
        Some(CgroupCpu {
            usage_us: 9,
            user_us: Some(4),
            system_us: Some(5)
        })
    );
    assert_eq!(
        files.quota,
        Some(CpuQuota {
            place: place.clone(),
            quota_us: Some(20_000),
            period_us: Some(100_000),
            periods: 3,
            throttled_periods: 2,
            throttled_us: 1
        })
    );
    let memory = files.memory.as_ref().unwrap();
    assert_eq!((memory.current_bytes, memory.limit_bytes), (4096, None));
    assert_eq!(
        (memory.anon_bytes, memory.refaulted_pages),
        (Some(10), Some(3))
    );
    assert_eq!(
        (memory.limit_hits, memory.ooms, memory.oom_kills),
        (Some(7), Some(2), Some(1))
    );
    assert_eq!(memory.major_faults, None, "what is not there is not 0");
    assert_eq!(
        files.pids,
        Some(CgroupPids {
            place,
            current: 5,
            limit: Some(100),
            refused: Some(4)
        })
    );
    assert_eq!(files.cpu_pressure.unwrap().some.total_us, 77);
    assert_eq!(
        (files.io_pressure, files.populated, files.frozen),
        (None, Some(true), Some(false))
    );
    assert_eq!(shop.processes.as_ref().unwrap().processes, 1);
    assert_eq!(reading.cgroups["/"].files.memory, None);

    assert_eq!(reading.host.memory.unwrap().total_bytes, 102_400);
    assert_eq!(reading.host.stat, None);
    let missing: Vec<_> = reading
        .quality
        .missing
        .iter()
        .map(|m| m.probe.as_str())
        .collect();
    assert_eq!(missing, ["/proc/pressure", "/proc/stat"]);
}

const HYBRID: &str = "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
    35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n\
    36 31 0:32 / /cg/freezer rw - cgroup cgroup rw,freezer\n\
    41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";

const V1_FILES: &[(&str, &str)] = &[
    (
        "cg/cpu/c/cpu.stat",
        "nr_periods 3\nnr_throttled 2\nthrottled_time 5000\n",
    ),
    ("cg/cpu/c/cpu.cfs_quota_us", "-1\n"),
    ("cg/cpu/c/cpu.cfs_period_us", "100000\n"),
    ("cg/cpu/c/cpuacct.usage", "7000\n"),
    ("cg/memory/m/memory.usage_in_bytes", "4096\n"),
    ("cg/memory/m/memory.limit_in_bytes", "8192\n"),
    ("cg/memory/m/memory.failcnt", "6\n"),
    (
        "cg/memory/m/memory.stat",
        "rss 1\ntotal_rss 10\ntotal_pgmajfault 3\n",
    ),
    (
        "cg/memory/m/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    ),
    ("cg/memory/memory.usage_in_bytes", "999999\n"),
    ("cg/memory/memory.limit_in_bytes", NO_LIMIT),
    ("cg/freezer/f/freezer.state", "FROZEN\n"),
];

const HYBRID_TREE: &[(&str, &str)] = &[
    ("proc/self/mountinfo", HYBRID),
    (
        "proc/10/cgroup",
        "5:freezer:/f\n4:memory:/m\n1:cpu,cpuacct:/c\n0::/shop\n",
    ),
    (
        "proc/11/stat",
        "11 (db) S 1 0 0 0 -1 0 10 0 2 0 5 0 0 0 20 0 3 0 1 5000 7 0",
    ),
    (
        "proc/11/cgroup",
        "5:freezer:/\n4:memory:/m\n1:cpu,cpuacct:/\n0::/db\n",
    ),
    (
        "proc/12/stat",
        "12 (sh) S 1 0 0 0 -1 0 10 0 2 0 5 0 0 0 20 0 3 0 1 5000 7 0",
    ),
    (
        "proc/12/cgroup",
        "5:freezer:/\n4:memory:/\n1:cpu,cpuacct:/\n0::/free\n",
    ),
    (
        "cg/unified/shop/cpu.stat",
        "usage_usec 9\nuser_usec 4\nsystem_usec 5\n",
    ),
    ("cg/unified/shop/cgroup.events", "populated 1\nfrozen 0\n"),
    ("cg/unified/shop/io.pressure", PRESSURE),
    ("cg/unified/db/cgroup.procs", "11\n"),
    ("cg/unified/free/cgroup.procs", "12\n"),
    ("cg/unified/empty/cgroup.procs", ""),
];

#[test]
fn hybrid_controllers_are_where_the_processes_are() {
    let reading = read(&[HOST, V1_FILES, HYBRID_TREE]);
    let shop = &reading.cgroups["/shop"].files;
    assert_eq!(
        shop.cpu.unwrap().usage_us,
        9,
        "v2 counts CPU time without a controller"
    );
    let quota = shop.quota.as_ref().unwrap();
    assert_eq!(
        (quota.quota_us, quota.period_us, quota.throttled_us),
        (None, Some(100_000), 5)
    );
    assert_eq!(
        quota.place,
        Place {
            path: "/c".into(),
            shared_with: 0
        }
    );
    let memory = shop.memory.as_ref().unwrap();
    assert_eq!(
        (memory.current_bytes, memory.limit_bytes),
        (4096, Some(8192))
    );
    assert_eq!(
        (memory.anon_bytes, memory.major_faults),
        (Some(10), Some(3))
    );
    assert_eq!((memory.limit_hits, memory.oom_kills), (Some(6), Some(2)));
    assert_eq!(
        memory.place,
        Place {
            path: "/m".into(),
            shared_with: 1
        }
    );
    assert_eq!((shop.frozen, shop.populated), (Some(true), Some(true)));
    assert_eq!(shop.io_pressure.unwrap().some.total_us, 77);

    let db = &reading.cgroups["/db"].files;
    assert_eq!(db.memory.as_ref().unwrap().place.shared_with, 1);
    assert_eq!(db.quota, None, "the root of a controller is nobody's own");
    assert_eq!(reading.cgroups["/free"].files.memory, None);
    assert_eq!(reading.cgroups["/empty"].files.memory, None);
    assert_eq!(
        reading.cgroups["/empty"]
            .processes
            .as_ref()
            .unwrap()
            .processes,
        0
    );
}

#[test]
fn v1_alone() {
    let reading = read(&[
        HOST,
        V1_FILES,
        &[
            (
                "proc/self/mountinfo",
                "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                 35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n",
            ),
            ("proc/10/cgroup", "4:memory:/m\n1:cpu,cpuacct:/c\n"),
        ],
    ]);
    assert_eq!(
        reading
            .cgroups
            .keys()
            .map(|path| &**path)
            .collect::<Vec<_>>(),
        ["/", "/m"]
    );
    let files = &reading.cgroups["/m"].files;
    assert_eq!(files.cpu.unwrap().usage_us, 7);
    assert_eq!(files.quota.as_ref().unwrap().throttled_periods, 2);
    assert_eq!(files.memory.as_ref().unwrap().place.path.as_ref(), "/m");
    assert_eq!(reading.cgroups["/"].files.memory, None);
    assert_eq!(
        reading.cgroups["/m"].processes.as_ref().unwrap().processes,
        1
    );
}

#[test]
fn a_faulty_file_costs_its_own_number_and_is_noted() {
    let reading = read(&[
        HOST,
        &[
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
            ),
            ("cg/shop/cpu.stat", "usage_usec 9\n"),
            ("cg/shop/pids.current", "many\n"),
        ],
    ]);
    let files = &reading.cgroups["/shop"].files;
    assert_eq!(
        (files.pids.as_ref(), files.cpu.unwrap().usage_us),
        (None, 9)
    );
    let noted = reading
        .quality
        .missing
        .iter()
        .find(|m| m.probe == "cgroup pids.current")
        .unwrap();
    assert!(
        noted
            .why
            .ends_with("cg/shop/pids.current:1: pids.current: `many` is not a number"),
        "{}",
        noted.why
    );
    let unread = reading
        .quality
        .missing
        .iter()
        .find(|m| m.probe == "/proc/PID");
    assert_eq!(
        unread, None,
        "a process without a cgroup file has just ended"
    );
}

#[test]
fn a_path_made_again_is_another_cgroup() {
    let (dir, root) = root_with(&[
        (
            "proc/self/mountinfo",
            "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
        ),
        ("cg/shop/cpu.stat", "usage_usec 9\n"),
    ]);
    let mut reader = HostReader::new(root.clone()).unwrap();
    let targets = reader
        .hierarchy()
        .unwrap()
        .cgroups(&root, 100)
        .unwrap()
        .cgroups;
    // The old directory stays, so that the new one cannot get its inode.
    fs::rename(dir.path().join("cg/shop"), dir.path().join("gone")).unwrap();
    fs::create_dir(dir.path().join("cg/shop")).unwrap();
    let reading = reader.read(&targets, SystemClock.now());
    assert!(!reading.cgroups.contains_key("/shop"));
}

#[test]
fn this_machine() {
    let root = Root::default();
    let mut reader = HostReader::new(root.clone()).unwrap();
    let Some(hierarchy) = reader.hierarchy() else {
        eprintln!("SKIPPED: no cgroups are mounted here");
        return;
    };
    let targets = hierarchy.cgroups(&root, 1000).unwrap().cgroups;
    let first = reader.read(&targets, SystemClock.now());
    let second = reader.read(&targets, SystemClock.now());
    let host = &second.host;
    assert!(host.stat.as_ref().unwrap().cpu.total_ms() >= first.host.stat.unwrap().cpu.total_ms());
    assert!(host.processes.as_ref().unwrap().processes > 0);
    assert!(host.memory.as_ref().unwrap().available_bytes > 0);
    assert!(second.cgroups.contains_key("/"));
    let text = serde_json::to_string(&second).unwrap();
    assert_eq!(serde_json::from_str::<HostReading>(&text).unwrap(), second);
}
