//! The promises of the room, on paused time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    base::clock::ManualClock,
    telemetry::{Event, Telemetry},
};

type Outcome = Result<(), String>;

fn root() -> (Supervisor, Telemetry) {
    let telemetry = Telemetry::new();
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
    (
        Supervisor::new("agent", telemetry.clone(), clock),
        telemetry,
    )
}

async fn until_cancelled(token: CancellationToken) -> Outcome {
    token.cancelled().await;
    Ok(())
}

fn node(supervisor: &Supervisor, path: &str) -> Node {
    supervisor.tree().find(path).unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_child_and_it_comes_back() {
    let (root, telemetry) = root();
    let mut events = telemetry.subscribe();
    let starts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&starts);
    root.child(Spec::permanent("fragile"), move |token| {
        counted.fetch_add(1, Ordering::SeqCst);
        until_cancelled(token)
    });
    root.child(Spec::permanent("calm"), until_cancelled);
    sleep(Duration::from_secs(1)).await;

    assert!(root.inject_panic("agent/fragile"));
    assert!(!root.inject_panic("agent/nobody"));
    sleep(Duration::from_millis(50)).await;
    assert_eq!(node(&root, "fragile").state, State::BackingOff);
    sleep(Duration::from_secs(1)).await;

    let fragile = node(&root, "fragile");
    assert_eq!((fragile.state, fragile.restarts), (State::Running, 1));
    assert_eq!(
        fragile.last_failure.unwrap().why,
        "panicked: injected panic"
    );
    assert_eq!(starts.load(Ordering::SeqCst), 2);
    assert_eq!(node(&root, "calm").restarts, 0);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push((*event).clone());
    }
    assert!(seen.contains(&Event::ChildRestarted {
        child: "agent/fragile".into(),
        why: "panicked: injected panic".into(),
        restarts: 1
    }));
}

#[tokio::test(start_paused = true)]
async fn a_used_up_budget_costs_that_child_alone() {
    let (root, telemetry) = root();
    let begun = Instant::now();
    let broken = root.child(Spec::permanent("broken"), |_| async {
        Err::<(), _>("no such file")
    });
    let calm = root
        .group("probes")
        .child(Spec::permanent("calm"), until_cancelled);
    assert_eq!(broken.ended().await, State::Failed);
    // 100, 200, 400, 800 and 1600 ms of pauses.
    assert_eq!(begun.elapsed().as_millis() / 10, 310);

    let broken = node(&root, "broken");
    assert_eq!((broken.state, broken.restarts), (State::Failed, 5));
    assert_eq!(broken.last_failure.unwrap().why, "no such file");
    assert_eq!(calm.state(), State::Running);
    assert_eq!(node(&root, "probes/calm").state, State::Running);
    let given_up = telemetry
        .counters()
        .into_iter()
        .find(|c| c.name == "lens_child_failures");
    assert_eq!(
        given_up.unwrap().labels,
        [("child", "agent/broken".to_owned())]
    );
}

#[tokio::test(start_paused = true)]
async fn a_transient_child_may_end() {
    let (root, _) = root();
    let tries = AtomicU32::new(0);
    let child = root.child(Spec::transient("fetch"), move |_| {
        let failed = tries.fetch_add(1, Ordering::SeqCst) < 2;
        async move { if failed { Err("not yet") } else { Ok(()) } }
    });
    assert_eq!(child.ended().await, State::Finished);
    assert_eq!(node(&root, "fetch").restarts, 2);

    let again = root.child(Spec::transient("fetch"), until_cancelled);
    assert_eq!(
        root.tree().children.len(),
        1,
        "one that is over is replaced"
    );
    again.cancel();
    assert_eq!(again.ended().await, State::Finished);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_child_leaves_the_tree() {
    let (root, telemetry) = root();
    for _ in 0..100 {
        root.child(Spec::temporary("question"), |_| async {
            Err::<(), _>("failed once")
        });
    }
    let ended = root.child(Spec::temporary("question"), |_| async { Outcome::Ok(()) });
    assert_eq!(ended.ended().await, State::Finished);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(root.tree().children, []);
    let failures = telemetry
        .counters()
        .into_iter()
        .find(|c| c.name == "lens_child_failures");
    assert_eq!(failures.unwrap().value, 100);
}

#[tokio::test(start_paused = true)]
async fn cancelling_a_parent_cancels_what_is_below() {
    let (root, _) = root();
    let outer = root.group("outer");
    let inner = outer.group("inner");
    let child = inner.child(Spec::permanent("deep"), until_cancelled);
    let failing = inner.child(Spec::permanent("failing"), |_| async { Err::<(), _>("no") });
    let other = root
        .group("other")
        .child(Spec::permanent("calm"), until_cancelled);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(failing.state(), State::BackingOff);
    outer.cancel();
    assert_eq!(child.ended().await, State::Finished);
    assert_eq!(failing.ended().await, State::Finished);
    assert_eq!(other.state(), State::Running);
    assert_eq!(node(&root, "outer/inner").state, State::Finished);
    // What comes too late ends at once.
    assert_eq!(
        inner
            .child(Spec::permanent("late"), until_cancelled)
            .ended()
            .await,
        State::Finished
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_no_longer_than_it_may() {
    let (root, _) = root();
    root.child(Spec::permanent("good"), until_cancelled);
    let deaf = root
        .group("group")
        .child(Spec::permanent("deaf"), |_| async {
            std::future::pending::<()>().await;
            Outcome::Ok(())
        });
    sleep(Duration::from_millis(10)).await;
    let begun = Instant::now();
    let stopped = root.shutdown(Duration::from_secs(3)).await;
    assert_eq!(stopped.aborted, ["agent/group/deaf"]);
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(deaf.ended().await, State::Failed);
    assert_eq!(node(&root, "good").state, State::Finished);
}

#[tokio::test]
async fn a_blocking_child_panics_and_ends_like_any_other() {
    let (root, _) = root();
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let spec = Spec::transient("blocking").budget(Budget {
        first_pause: Duration::from_millis(1),
        ..Budget::default()
    });
    let child = root.blocking_child(spec, move |_token| {
        assert!(
            counted.fetch_add(1, Ordering::SeqCst) > 0,
            "the first try fails"
        );
        Outcome::Ok(())
    });
    assert_eq!(child.ended().await, State::Finished);
    let node = node(&root, "blocking");
    assert_eq!(
        node.last_failure.unwrap().why,
        "panicked: the first try fails"
    );
    assert_eq!(tries.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn the_root_takes_all_with_it() {
    let (root, _) = root();
    let child = root
        .group("group")
        .child(Spec::permanent("child"), until_cancelled);
    drop(root);
    assert_eq!(child.ended().await, State::Finished);
}
