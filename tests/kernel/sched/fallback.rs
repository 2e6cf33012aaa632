//! What runs on a kernel that keeps no books of waits.

use anyhow::Result;
use lens_tests::{cgroup::Cgroup, root_or_say_not_run};

use super::{between, close, ready, run, watch, watch_as};

#[test]
fn without_the_kernels_books_the_totals_are_the_same() -> Result<()> {
    if !root_or_say_not_run()? {
        return Ok(());
    }
    let cgroup = Cgroup::new("both")?;
    let mut normal = watch(&[])?;
    let mut fallback = watch_as(&[], true)?;
    for load in [
        "sleeper --for 1500 --cpu 1 --threads 6 --burn 500 --sleep 500",
        "sleeper --for 1500 --threads 12 --burn 500 --sleep 500",
    ] {
        let mut load = ready(&cgroup, load)?;
        let before = (normal.read(), fallback.read());
        run(&mut [&mut load])?;
        let after = (normal.read(), fallback.read());
        let truth = between(&before.0, &after.0, &cgroup)?;
        let seen = between(&before.1, &after.1, &cgroup)?;
        truth.show("normal");
        seen.show("fallback");
        // A switch that the tracepoint does not tell costs it the wait of the task that comes,
        // and where the task that leaves was preempted also that one's next.
        let waits = truth.waits / 100 + 2 * truth.unseen;
        assert!(seen.waits.abs_diff(truth.waits) <= waits);
        assert!(seen.preempted.abs_diff(truth.preempted) <= waits);
        let ns = truth.wait_ns / 100 + 2 * truth.unseen_ns;
        assert!(seen.wait_ns.abs_diff(truth.wait_ns) <= ns);
        close("row", seen.row(), seen.wait_ns as f64, 1.0);
        let missing = &after.1.quality.missing;
        for part in ["sched.waiting", "sched.quota"] {
            assert!(missing.iter().any(|m| m.probe == part), "{missing:?}");
        }
    }
    Ok(())
}
