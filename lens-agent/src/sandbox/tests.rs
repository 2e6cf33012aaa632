use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::time::Instant;

use super::*;

/// What agents give: the two base callbacks, one of a skill, one that fails, and a table.
fn host() -> Host {
    let mut host = Host::new(vec![
        Callback::new("get_current_time", "", "UTC, RFC 3339.", |_| {
            Ok(json!("2026-11-24T12:00:00Z"))
        }),
        Callback::new("get_node_info", "", "The host.", |_| Ok(json!({"cpus": 2}))),
        Callback::new("top_waiters", "limit", "ms a second by cgroup.", |args| {
            let limit = args
                .first()
                .and_then(Value::as_u64)
                .ok_or("limit is missing")?;
            let rows = (1..=limit).map(|n| json!({"cgroup": format!("/c{n}"), "ms": n * 10}));
            Ok(rows.collect())
        }),
        Callback::new("echo", "value", "Its argument.", |args| {
            Ok(args.first().cloned().unwrap_or_default())
        }),
        Callback::new("broken", "", "Fails.", |_| Err("no such skill".to_owned())),
    ]);
    host.values.insert(
        "brief".into(),
        json!({"suspects": [{"cgroup": "/a", "share": 0.7}]}),
    );
    host
}

fn check(script: &str) -> Result<Value, SandboxError> {
    run(script, &host(), &Limits::default())
}

#[test]
fn a_result_is_json() {
    for (script, wanted) in [
        ("return 1", json!(1)),
        ("1 + 1", json!(2)),
        ("return 0.5", json!(0.5)),
        ("return 9007199254740992", json!(9_007_199_254_740_992_u64)),
        ("return 1e300", json!(1e300)),
        ("return 0/0", json!(null)),
        ("return 'a\\255b'", json!("a\u{fffd}b")),
        ("return {}", json!([])),
        ("return {1, 'b', {c = true}}", json!([1, "b", {"c": true}])),
        ("return {a = 1, b = {2, 3}}", json!({"a": 1, "b": [2, 3]})),
        ("return {1, nil, 3}", json!({"1": 1, "3": 3})),
        (
            "local t = {} t[3] = 'c' t[1] = 'a' t[2] = 'b' return t",
            json!(["a", "b", "c"]),
        ),
        (
            "return setmetatable({1}, {__index = error, __len = error, __iter = error})",
            json!([1]),
        ),
        ("return {[2] = 'x', y = 1}", json!({"2": "x", "y": 1})),
        (
            "return {1, 2, name = 'x'}",
            json!({"1": 1, "2": 2, "name": "x"}),
        ),
        ("return type, 2", json!(null)),
        ("local x = 1", json!(null)),
        (
            "return #utf8.char(228) + bit32.band(7, 3) + math.floor(2.5)",
            json!(7),
        ),
        ("return ('a,b'):split(',')", json!(["a", "b"])),
        ("x = 1; x += 1; return x", json!(2)),
    ] {
        assert_eq!(check(script), Ok(wanted), "{script}");
    }
}

#[test]
fn callbacks_take_and_give_json() {
    let script = "
        local sum = 0
        for _, row in ipairs(top_waiters(3)) do sum += row.ms end
        return {sum = sum, at = get_current_time(), cpus = get_node_info().cpus,
                first = brief.suspects[1].cgroup, echo = echo({a = {1, 2}})}";
    let wanted = json!({"sum": 60, "at": "2026-11-24T12:00:00Z", "cpus": 2, "first": "/a",
                        "echo": {"a": [1, 2]}});
    assert_eq!(check(script), Ok(wanted));
    let sorted = "local t = top_waiters(3); table.sort(t, function(a, b) return a.ms > b.ms end)
                  return t[1].ms";
    assert_eq!(
        check(sorted),
        Ok(json!(30)),
        "what a callback returns is the script's own"
    );
}

#[test]
fn an_error_of_a_callback_is_an_error_of_the_line() {
    let what = "no such skill".to_owned();
    let line = Some(2);
    assert_eq!(
        check("local x = 1\nreturn broken()"),
        Err(SandboxError::Runtime { line, what })
    );
    let caught = "local ok, why = pcall(broken); return {ok, why}";
    assert_eq!(check(caught), Ok(json!([false, "no such skill"])));
    let caught = "local ok, why = pcall(function() return top_waiters() end); return why";
    assert_eq!(check(caught), Ok(json!("script:1: limit is missing")));
}

#[test]
fn errors_say_where_and_what() {
    for (script, wanted) in [
        ("local x =\nreturn 1", "syntax error in line 2: "),
        ("return 1 +", "syntax error in line 1: "),
        (
            "local x = 1\n\nreturn nosuch(x)",
            "unknown name `nosuch` in line 3; a script has get_current_time(), ",
        ),
        ("print('hello')", "it returns what it found"),
        (
            "local t = nil\nreturn t.x",
            "error in line 2: attempt to index nil with 'x'",
        ),
        ("error('mine')", "error in line 1: mine"),
        ("error({})", "error: "),
        (
            "local function f() return f() + 1 end\nreturn f()",
            "stack overflow",
        ),
        ("\u{1}\u{2}return 1", "begins with a control character"),
    ] {
        let said = check(script).unwrap_err().to_string();
        assert!(said.contains(wanted), "{script}: {said}");
    }
    let deep = format!("return {}1{}", "(".repeat(20_000), ")".repeat(20_000));
    assert!(matches!(check(&deep), Err(SandboxError::Syntax { .. })));
}

#[test]
fn nothing_but_the_listed_names_is_there() {
    for name in [
        "io",
        "os",
        "load",
        "loadstring",
        "loadfile",
        "dofile",
        "require",
        "debug",
        "package",
        "collectgarbage",
        "gcinfo",
        "getfenv",
        "setfenv",
        "newproxy",
        "print",
        "coroutine",
        "buffer",
        "vector",
        "ffi",
        "_G",
        "_VERSION",
    ] {
        let failed = check(&format!("return {name}")).unwrap_err();
        assert!(
            matches!(&failed, SandboxError::UnknownName { name: n, .. } if n == name),
            "{failed}"
        );
    }
}

#[test]
fn what_the_host_gives_is_read_only() {
    for script in [
        "brief.suspects[1].cgroup = '/b'",
        "brief.new = 1",
        "table.insert(brief.suspects, 1)",
        "rawset(brief, 'a', 1)",
        "setmetatable(brief, {})",
        "string.rep = nil",
        "math.huge = 1",
        "getmetatable('').__index = {}",
    ] {
        let said = check(script).unwrap_err().to_string();
        assert!(
            said.contains("readonly") || said.contains("protected"),
            "{script}: {said}"
        );
    }
    // A script may shadow a name for itself; the next one has it back.
    assert_eq!(
        check("get_node_info = 1; return get_node_info"),
        Ok(json!(1))
    );
    assert_eq!(check("return get_node_info().cpus"), Ok(json!(2)));
}

#[test]
fn an_endless_script_ends_at_the_deadline() {
    let after = Duration::from_millis(100);
    let limits = Limits {
        within: after,
        turns: u64::MAX,
        ..Limits::default()
    };
    for script in [
        "while true do end",
        "repeat until false",
        "while true do pcall(function() while true do end end) end",
        "local function f() while true do pcall(f) end end f()",
        "local function f() pcall(f) pcall(f) end f()",
        "xpcall(function() while true do end end, function() while true do end end) while true do end",
        "local t = setmetatable({}, {__index = function(t, k) return t[k + 1] end}) return pcall(function() return t[1] end), (function() while true do end end)()",
        "for _ in pairs({1}) do while true do end end",
        "return string.find(string.rep('a', 100000), string.rep('a*', 30) .. 'b')",
        "return (string.rep('a', 5000)):match('.-.-.-.-.-b')",
        "return (string.rep('a', 100000)):gsub('a-b', '')",
        "while true do top_waiters(1) end",
        "table.sort(table.create(1000, 1), function(a, b) while true do end end)",
    ] {
        let began = Instant::now();
        let done = run(script, &host(), &limits);
        assert_eq!(done, Err(SandboxError::Timeout { after }), "{script}");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "{script}: {took:?}");
    }
}

/// What searches without an interrupt is bounded by its arguments.
#[test]
fn a_long_search_is_refused() {
    for search in ["find(word, 1, true)", "find(word)", "split(word)"] {
        let script = format!(
            "local word = string.rep('a', 1000000) .. 'b'
             return string.rep('a', 4000000):{search}"
        );
        let began = Instant::now();
        let said = check(&script).unwrap_err().to_string();
        assert!(
            said.contains("in line 2: a text to search for has at most 256"),
            "{said}"
        );
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    // The longest that there is ends by itself, long before the deadline.
    let longest = "return string.rep('a', 8000000):find(string.rep('a', 255) .. 'b', 1, true)";
    assert_eq!(check(longest), Ok(json!(null)));
    assert_eq!(check("return ('hello'):find('l')"), Ok(json!(3)));
}

#[test]
fn a_memory_bomb_is_refused() {
    let limits = Limits {
        within: Duration::from_secs(10),
        ..Limits::default()
    };
    for script in [
        "return string.rep('x', 1e9)",
        "local s = 'x' while true do s = s .. s end",
        "local t = {} while true do t[#t + 1] = {} end",
        "return table.create(5e7, 1)",
        "return ('%99d'):rep(1e7):format(1)",
        "local t = {} for i = 1, 1e9 do t['k' .. i] = i end",
        "return (string.rep('a', 100000)):gsub('a', string.rep('b', 1000))",
        "return table.concat(table.create(10000, string.rep('x', 10000)))",
        "echo(string.rep('x', 60000)):rep(1000)",
        "local t = {} while true do t[#t + 1] = top_waiters(1000) end",
    ] {
        let began = Instant::now();
        let limit = limits.memory;
        assert_eq!(
            run(script, &host(), &limits),
            Err(SandboxError::Memory { limit }),
            "{script}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{script}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn turns_are_bounded() {
    let limits = Limits {
        turns: 1000,
        ..Limits::default()
    };
    let limit = 1000;
    let script = "for i = 1, 2000 do end";
    assert_eq!(
        run(script, &host(), &limits),
        Err(SandboxError::Turns { limit })
    );
    assert_eq!(
        run("for i = 1, 900 do end", &host(), &limits),
        Ok(json!(null))
    );
}

#[test]
fn script_and_result_are_bounded() {
    let limit = 64 * 1024;
    for script in [
        "return string.rep('x', 65536)",
        "local t = {} t.t = t return t",
        "local t = {1} for _ = 1, 30 do t = {t, t} end return t",
        "local t = {} for i = 1, 100000 do t[i] = 1 end return t",
        "local t = {} for _ = 1, 1000 do t = {t} end return t",
    ] {
        assert_eq!(
            check(script),
            Err(SandboxError::ResultTooLarge { limit }),
            "{script}"
        );
    }
    let failed = check("return echo(string.rep('x', 65536))").unwrap_err();
    assert!(
        failed
            .to_string()
            .contains("an argument is more than 65536 bytes"),
        "{failed}"
    );
    let bytes = limit + 1;
    let long = " ".repeat(bytes);
    assert_eq!(
        check(&long),
        Err(SandboxError::ScriptTooLarge { bytes, limit })
    );
}

#[test]
fn reserved_words_are_those_that_break_a_script() {
    for word in ["end", "function", "nil", "until"] {
        assert!(is_reserved(word));
        let broken = check(&format!("local t = {{}} return t.{word}"));
        assert!(
            matches!(broken, Err(SandboxError::Syntax { .. })),
            "{word}: {broken:?}"
        );
    }
    for word in [
        "func",
        "cgroup",
        "type",
        "continue",
        "runq_wait_ms_per_sec",
        "",
    ] {
        assert!(!is_reserved(word), "{word}");
    }
}

#[test]
fn docs_are_one_line_a_callback() {
    assert!(
        host()
            .docs()
            .contains("top_waiters(limit): ms a second by cgroup.\n")
    );
}

#[tokio::test]
async fn cancelling_ends_the_script() {
    let entered = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&entered);
    let enter = Callback::new("enter", "", "", move |_| {
        seen.store(true, Ordering::Release);
        Ok(Value::Null)
    });
    let (host, cancel) = (Arc::new(Host::new(vec![enter])), CancellationToken::new());
    let held = Arc::downgrade(&host);
    let limits = Limits {
        within: Duration::from_mins(1),
        turns: u64::MAX,
        ..Limits::default()
    };
    let script = "enter() while true do end".to_owned();
    let running = run_until_cancelled(script, host, limits, cancel.clone());
    let cancelling = async {
        while !entered.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (done, ()) = tokio::join!(running, cancelling);
    assert_eq!(done, Err(SandboxError::Cancelled));
    // The thread lets go of the host when its script has ended.
    let began = Instant::now();
    while held.upgrade().is_some() {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "the thread goes on"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_result_comes_from_the_other_thread() {
    let (host, cancel) = (Arc::new(host()), CancellationToken::new());
    let done = run_until_cancelled("return 7".into(), host, Limits::default(), cancel).await;
    assert_eq!(done, Ok(json!(7)));
}

#[tokio::test]
async fn a_bug_in_a_callback_is_not_the_scripts_to_catch() {
    let bug = Callback::new("bug", "", "", |_| panic!("a bug"));
    let (host, cancel) = (Arc::new(Host::new(vec![bug])), CancellationToken::new());
    let script = "return pcall(bug)".to_owned();
    let done = run_until_cancelled(script, host, Limits::default(), cancel).await;
    assert!(
        matches!(&done, Err(SandboxError::Broken(why)) if why.contains("a bug")),
        "{done:?}"
    );
}
