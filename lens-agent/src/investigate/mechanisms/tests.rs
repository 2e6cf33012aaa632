//! Each mechanism is shown a case that is its own, and one in which its claim is false.

use super::*;
use crate::investigate::{
    insight::{Status, Verdict},
    offline::Answer,
    world::World,
};

const WAIT: &str = "runq_wait_others_ms_per_sec";

/// The category and culprit that a mechanism finds.
#[track_caller]
fn finds(mechanism: &dyn Mechanism, world: &World, culprit: &str) -> Answer {
    let answer = world.ask(mechanism).expect("an incident");
    assert_eq!(answer.verdict, Verdict::Cause, "{:?}", answer.hypotheses);
    assert_eq!(answer.category, mechanism.category());
    assert_eq!(answer.culprit, Some(Scope::cgroup(culprit)));
    assert!(
        answer
            .claims
            .iter()
            .all(crate::investigate::claim::Claim::holds)
    );
    answer
}

/// A mechanism proposes, and code strikes it out.
#[track_caller]
fn struck_out(mechanism: &dyn Mechanism, world: &World) {
    let answer = world.ask(mechanism).expect("an incident");
    assert_eq!(answer.verdict, Verdict::Inconclusive, "{:?}", answer.claims);
    let rejected = answer
        .hypotheses
        .iter()
        .filter(|h| h.status == Status::Rejected)
        .count();
    assert!(
        rejected >= 1,
        "nothing was proposed, so nothing was struck out"
    );
    assert!(answer.claims.is_empty() && answer.culprit.is_none());
}

/// A mechanism has nothing to say.
#[track_caller]
fn silent(mechanism: &dyn Mechanism, world: &World) {
    if let Some(answer) = world.ask(mechanism) {
        assert_ne!(answer.verdict, Verdict::Cause, "{:?}", answer.claims);
    }
}

fn neighbour(held_before: f64) -> World {
    World::new()
        .set("/shop", WAIT, 5.0, 800.0)
        .pair("/shop", WAIT, "/batch", held_before, 700.0)
        .set("/shop", "runq_wait_quota_ms_per_sec", 0.0, 0.0)
        .set("/batch", "cpu_ms_per_sec", 10.0, 1900.0)
        .set("host", "cpu_ms_per_sec", 100.0, 2000.0)
}

#[test]
fn cpu_contention() {
    let answer = finds(&cpu_contention::CpuContention, &neighbour(1.0), "/batch");
    assert_eq!(answer.victims, [Scope::cgroup("/shop")]);
    assert!(answer.confidence > 0.8, "{}", answer.confidence);
    // The one that held the CPU all along has done nothing new.
    struck_out(&cpu_contention::CpuContention, &neighbour(700.0));
    // Who begins to burn CPU beside one that was busy already has nobody to blame.
    let newcomer = World::new()
        .set("/shop", WAIT, 5.0, 800.0)
        .pair("/shop", WAIT, "/batch", 1.0, 700.0)
        .set("/shop", "cpu_ms_per_sec", 20.0, 900.0)
        .set("/batch", "cpu_ms_per_sec", 1000.0, 1000.0);
    struck_out(&cpu_contention::CpuContention, &newcomer);
}

#[test]
fn cpu_throttling() {
    let world = |quota: f64| {
        World::new()
            .set("/shop", "runq_wait_quota_ms_per_sec", 0.0, quota)
            .set("/shop", "runq_wait_ms_per_sec", 5.0, 1000.0)
            .set("/shop", WAIT, 2.0, 4.0)
            .set("/shop", "throttled_periods_percent", 0.0, 90.0)
    };
    finds(&cpu_throttling::CpuThrottling, &world(900.0), "/shop");
    // Its quota holds it back, but that is not what it waits for.
    struck_out(&cpu_throttling::CpuThrottling, &world(200.0));
}

#[test]
fn cpu_saturation() {
    let world = |others: f64, age: f64| {
        World::new()
            .set("/job", "cpu_ms_per_sec", 20.0, 990.0)
            .set("/job", "busiest_process_cpu_ms_per_sec", 15.0, 980.0)
            .set("/job", "busiest_process_age_seconds", 300.0, age)
            .set("host", "cpu_ms_per_sec", 100.0, 1100.0)
            .set("/shop", WAIT, 5.0, others)
            .pair("/shop", WAIT, "/job", 1.0, others * 0.9)
    };
    finds(&cpu_saturation::CpuSaturation, &world(6.0, 300.0), "/job");
    // Somebody waits for it.
    struck_out(&cpu_saturation::CpuSaturation, &world(800.0, 300.0));
    // A job that was started to burn CPU.
    silent(&cpu_saturation::CpuSaturation, &world(6.0, 5.0));
}

fn storm(metric: &'static str, usual: f64, now: f64, of_host: f64) -> World {
    World::new()
        .set("/job", metric, usual, now)
        .set("host", metric, usual, of_host)
        .set("/job", "cpu_system_ms_per_sec", 10.0, 900.0)
}

#[test]
fn syscall_storm() {
    let mechanism = &syscall_storm::SyscallStorm;
    finds(
        mechanism,
        &storm("syscalls_per_sec", 1000.0, 900_000.0, 1_000_000.0),
        "/job",
    );
    // Others make most of them.
    struck_out(
        mechanism,
        &storm("syscalls_per_sec", 1000.0, 200_000.0, 1_000_000.0),
    );
    // Processes that start make them.
    let starts = storm("syscalls_per_sec", 1000.0, 400_000.0, 500_000.0);
    struck_out(mechanism, &starts.set("/job", "forks_per_sec", 1.0, 2000.0));
}

#[test]
fn process_churn() {
    let mechanism = &process_churn::ProcessChurn;
    finds(
        mechanism,
        &storm("forks_per_sec", 1.0, 900.0, 950.0),
        "/job",
    );
    struck_out(mechanism, &storm("forks_per_sec", 1.0, 300.0, 2000.0));
}

#[test]
fn crash_loop() {
    let mechanism = &crash_loop::CrashLoop;
    finds(mechanism, &storm("crashes_count", 0.0, 6.0, 6.0), "/job");
    struck_out(mechanism, &storm("crashes_count", 0.0, 4.0, 20.0));
}

#[test]
fn page_fault_storm() {
    let world = |grown: f64, of_host: f64| {
        storm("page_faults_per_sec", 500.0, 300_000.0, of_host).set(
            "/job",
            "rss_growth_bytes_per_sec",
            0.0,
            grown,
        )
    };
    finds(
        &page_fault_storm::PageFaultStorm,
        &world(0.0, 310_000.0),
        "/job",
    );
    struck_out(&page_fault_storm::PageFaultStorm, &world(0.0, 2_000_000.0));
    // Processes that start fault their pages in: what there is too much of is starts.
    let starts = |forks: f64| world(0.0, 310_000.0).set("/job", "forks_per_sec", 1.0, forks);
    struck_out(&page_fault_storm::PageFaultStorm, &starts(2000.0));
    finds(&page_fault_storm::PageFaultStorm, &starts(20.0), "/job");
    // It keeps what it faults in: growth.
    silent(&page_fault_storm::PageFaultStorm, &world(1.1e9, 310_000.0));
}

#[test]
fn memory_leak() {
    let world = |level: fn(u64) -> f64, growth: f64, of_host: f64| {
        World::new()
            .moving("/job", "rss_bytes", 50e6, level)
            .set("/job", "rss_growth_bytes_per_sec", 0.0, growth)
            .set("host", "rss_growth_bytes_per_sec", 0.0, of_host)
            .set("/job", "page_allocs_bytes_per_sec", 1e6, 70e6)
            .set("host", "page_allocs_bytes_per_sec", 3e6, 75e6)
    };
    let leaking = |i: u64| 120e6 + 60e6 * i as f64;
    let mechanism = &memory_leak::MemoryLeak;
    finds(mechanism, &world(leaking, 60e6, 61e6), "/job");
    // It grows by what others give back: the host's growth is none of it.
    struck_out(mechanism, &world(leaking, 60e6, 500e6));
    // A cache has reached its new level.
    silent(mechanism, &world(|_| 900e6, 0.0, 0.0));
}

#[test]
fn loss_caps_what_can_be_said() {
    let mut world = neighbour(1.0);
    world.quality.lost.insert("sched.tasks".to_owned(), 100);
    let answer = finds(&cpu_contention::CpuContention, &world, "/batch");
    assert!(answer.confidence <= 0.7, "{}", answer.confidence);
}

#[test]
fn every_mechanism_has_a_category_of_its_own() {
    let mut categories: Vec<_> = REGISTRY.iter().map(|m| m.category()).collect();
    categories.sort();
    categories.dedup();
    assert_eq!(categories.len(), REGISTRY.len());
}
