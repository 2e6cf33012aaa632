//! The loop with a scripted model, which checks each request before it answers.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    base::clock::SystemClock,
    investigate::{insight::Verdict, world::World},
    llm::{
        Asking, Message, Reply, Request, ToolCall,
        budget::{Budget, Limits, Spent},
    },
    skills,
    telemetry::Telemetry,
};

/// Answers in order; operators and the coordinator have scripts of their own.
#[derive(Debug, Default)]
struct Scripted {
    coordinator: Mutex<VecDeque<Answer>>,
    operator: Mutex<VecDeque<Answer>>,
    seen: Mutex<Vec<Request>>,
}

#[derive(Debug)]
enum Answer {
    Calls(Vec<(&'static str, Value)>),
    Down,
    Panic,
    Never,
}

impl Scripted {
    fn next(&self, request: &Request) -> Answer {
        check(request);
        let is_operator = request.system.contains("You are the operator");
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(request.clone());
        let script = if is_operator {
            &self.operator
        } else {
            &self.coordinator
        };
        let next = script
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        next.unwrap_or(Answer::Calls(vec![("done", json!({}))]))
    }
}

/// Every call of every earlier reply has exactly one result, and every tool a schema.
fn check(request: &Request) {
    assert!(!request.system.is_empty() && !request.messages.is_empty());
    for tool in &request.tools {
        assert_eq!(tool.schema["type"], "object", "{}", tool.name);
        assert_eq!(tool.schema["additionalProperties"], false, "{}", tool.name);
    }
    let mut open: Vec<&str> = Vec::new();
    for message in &request.messages {
        match message {
            Message::Assistant { calls, .. } => {
                assert!(open.is_empty(), "calls without a result: {open:?}");
                open.extend(calls.iter().map(|c| c.id.as_str()));
            }
            Message::ToolResult { call, .. } => {
                let at = open
                    .iter()
                    .position(|id| id == call)
                    .expect("a result of an open call");
                open.remove(at);
            }
            Message::User { .. } => {}
        }
    }
    assert!(open.is_empty(), "calls without a result: {open:?}");
}

impl Model for Scripted {
    fn ask<'a>(&'a self, request: &'a Request, cancel: CancellationToken) -> Asking<'a> {
        Box::pin(async move {
            let turn = request.messages.len();
            let calls = match self.next(request) {
                Answer::Calls(calls) => calls,
                Answer::Down => {
                    return Err(ModelError::Timeout {
                        after: std::time::Duration::from_secs(1),
                    });
                }
                Answer::Panic => panic!("injected"),
                Answer::Never => {
                    cancel.cancelled().await;
                    return Err(ModelError::Cancelled);
                }
            };
            let call = |(i, (name, arguments)): (usize, (&str, Value))| ToolCall {
                id: format!("{turn}-{i}"),
                name: name.to_owned(),
                arguments,
                signatures: Vec::new(),
            };
            Ok(Reply {
                text: None,
                calls: calls.into_iter().enumerate().map(call).collect(),
                tokens: Tokens {
                    input: 100,
                    cached: 0,
                    output: 10,
                },
                cost_usd: Some(0.001),
                provider: "scripted".into(),
                model: "test".into(),
            })
        })
    }
}

fn scene() -> Scene {
    let wait = "runq_wait_others_ms_per_sec";
    World::new()
        .set("/shop", wait, 5.0, 800.0)
        .pair("/shop", wait, "/batch", 1.0, 700.0)
        .set("/shop", "runq_wait_quota_ms_per_sec", 0.0, 0.0)
        .set("/batch", "cpu_ms_per_sec", 10.0, 1900.0)
        .set("/idle", "cpu_ms_per_sec", 50.0, 50.0)
        .set("host", "cpu_ms_per_sec", 100.0, 2000.0)
        .live()
        .unwrap()
}

fn bench(model: Arc<Scripted>, limits: Limits) -> (Bench, CancellationToken) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let telemetry = Telemetry::new();
    let budget = Budget::new(limits, Spent::default(), telemetry.clone());
    let purse = Purse::open(Arc::new(Mutex::new(budget)), clock.clone()).unwrap();
    let cancel = CancellationToken::new();
    let bench = Bench {
        scene: Arc::new(scene()),
        model,
        purse: Arc::new(purse),
        skills: skills::REGISTRY,
        supervisor: Supervisor::new("test", telemetry, clock.clone()),
        clock,
        cancel: cancel.clone(),
    };
    (bench, cancel)
}

fn script(coordinator: Vec<Answer>, operator: Vec<Answer>) -> Arc<Scripted> {
    Arc::new(Scripted {
        coordinator: Mutex::new(coordinator.into()),
        operator: Mutex::new(operator.into()),
        seen: Mutex::default(),
    })
}

fn insight(culprit: &str, by: &str, summary: &str) -> Value {
    json!({
        "verdict": "cause",
        "category": "cpu_contention",
        "culprit": culprit,
        "victims": ["/shop"],
        "claims": [
            { "kind": "change", "scope": "/shop", "metric": "runq_wait_others_ms_per_sec", "direction": "up" },
            { "kind": "pair", "victim": "/shop", "metric": "runq_wait_others_ms_per_sec", "by": by, "least": 0.5 },
        ],
        "summary": summary,
        "hypotheses": [{ "text": "its own quota", "status": "rejected", "why": "no throttling" }],
    })
}

#[tokio::test]
async fn operators_look_and_the_coordinator_concludes() {
    let invoke = json!({ "skills": ["scheduler"], "question": "who holds the CPU?" });
    let coordinator = vec![
        Answer::Calls(vec![(
            "think",
            json!({ "thought": "the brief may be right" }),
        )]),
        Answer::Calls(vec![("invoke_operators", invoke)]),
        Answer::Calls(vec![("done", json!({}))]),
        Answer::Calls(vec![("get_notifications", json!({}))]),
        Answer::Calls(vec![(
            "produce_insight",
            insight("/batch", "/batch", "/shop waits 800 ms/s behind /batch."),
        )]),
        Answer::Calls(vec![("done", json!({}))]),
    ];
    let script_text = "return pairs('/shop', 'runq_wait_others_ms_per_sec')[1].by";
    let notification = json!({
        "severity": "warning", "context": "since the onset", "observation": "/shop waits behind /batch",
        "snapshot_ids": ["47/scheduler//shop"],
    });
    let operator = vec![
        Answer::Calls(vec![
            ("take_snapshot", json!({ "scope": "/shop" })),
            ("get_snapshots", json!({ "scope": "/shop", "limit": 3 })),
            ("execute", json!({ "script": script_text })),
        ]),
        Answer::Calls(vec![(
            "send_notification",
            json!({ "severity": "warning", "context": "", "observation": "", "snapshot_ids": ["9/x/host"] }),
        )]),
        Answer::Calls(vec![("send_notification", notification)]),
        Answer::Calls(vec![("done", json!({}))]),
    ];
    let model = script(coordinator, operator);
    let (bench, _cancel) = bench(model.clone(), Limits::default());
    let outcome = investigate(&bench).await.unwrap();
    let conclusion = outcome.conclusion.unwrap();
    assert_eq!(conclusion.verdict, Verdict::Cause);
    assert_eq!(conclusion.culprit.unwrap().as_str(), "/batch");
    assert_eq!(conclusion.struck, Vec::<String>::new());
    assert!(conclusion.summary.is_some() && conclusion.confidence > 0.6);
    assert_eq!(outcome.notifications.len(), 1);
    assert_eq!(outcome.tokens.input, 1000, "ten replies");
    let seen = model.seen.lock().unwrap();
    let results = |text: &str| {
        let of = |m: &Message| matches!(m, Message::ToolResult { content, .. } if content.contains(text));
        seen.iter().flat_map(|r| &r.messages).any(of)
    };
    assert!(results("/batch"), "the script's result");
    assert!(results("there is no snapshot `9/x/host`"));
    assert!(results("notifications are unread"));
}

#[tokio::test]
async fn a_false_accusation_is_struck_out() {
    let accuse = insight("/idle", "/idle", "/idle takes 99 % of the CPU.");
    let model = script(
        vec![Answer::Calls(vec![("produce_insight", accuse)])],
        Vec::new(),
    );
    let (bench, _cancel) = bench(model, Limits::default());
    let conclusion = investigate(&bench).await.unwrap().conclusion.unwrap();
    assert_eq!(conclusion.verdict, Verdict::Inconclusive);
    assert_eq!(conclusion.culprit, None);
    assert_eq!(conclusion.confidence, 0.0);
    assert!(
        conclusion.struck[0].contains("does not hold"),
        "{:?}",
        conclusion.struck
    );
    assert_eq!(conclusion.summary, None, "it says what no claim bears out");
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_told_with_the_path_to_them() {
    let mut wrong = insight("/batch", "/batch", "");
    wrong["claims"][1]["least"] = json!("much");
    let coordinator = vec![
        Answer::Calls(vec![("produce_insight", wrong)]),
        Answer::Calls(vec![("no_such_tool", json!({}))]),
        Answer::Calls(vec![("produce_insight", insight("/batch", "/batch", ""))]),
    ];
    let model = script(coordinator, Vec::new());
    let (bench, _cancel) = bench(model.clone(), Limits::default());
    assert!(investigate(&bench).await.unwrap().conclusion.is_some());
    let seen = model.seen.lock().unwrap();
    let told = format!("{:?}", seen.last().unwrap().messages);
    assert!(
        told.contains("claims[1]") && told.contains("there is no tool `no_such_tool`"),
        "{told}"
    );
}

#[tokio::test]
async fn a_provider_that_is_down_is_a_failure_not_a_conclusion() {
    let (bench, _cancel) = bench(script(vec![Answer::Down], Vec::new()), Limits::default());
    assert!(matches!(
        investigate(&bench).await,
        Err(Failure::Model(ModelError::Timeout { .. }))
    ));
}

#[tokio::test]
async fn the_budget_ends_it() {
    let think = || Answer::Calls(vec![("think", json!({ "thought": "hm" }))]);
    let model = script((0..20).map(|_| think()).collect(), Vec::new());
    let limits = Limits {
        iterations: 4,
        ..Limits::default()
    };
    let (bench, _cancel) = bench(model.clone(), limits);
    assert!(matches!(
        investigate(&bench).await,
        Err(Failure::Refused(_))
    ));
    assert_eq!(model.seen.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_operator_that_panics_costs_its_own_work_only() {
    let invoke = json!({ "skills": ["scheduler"], "question": "?" });
    let coordinator = vec![
        Answer::Calls(vec![("invoke_operators", invoke)]),
        Answer::Calls(vec![("produce_insight", insight("/batch", "/batch", ""))]),
    ];
    let model = script(coordinator, vec![Answer::Panic]);
    let (bench, _cancel) = bench(model.clone(), Limits::default());
    assert!(investigate(&bench).await.unwrap().conclusion.is_some());
    let seen = model.seen.lock().unwrap();
    assert!(format!("{:?}", seen.last().unwrap().messages).contains("its operator failed"));
}

#[tokio::test]
async fn cancelling_ends_operators_and_their_model_calls() {
    let invoke = json!({ "skills": ["scheduler", "memory"], "question": "?" });
    let coordinator = vec![
        Answer::Calls(vec![("invoke_operators", invoke)]),
        Answer::Never,
    ];
    let model = script(coordinator, vec![Answer::Never, Answer::Never]);
    let (bench, cancel) = bench(model.clone(), Limits::default());
    let asked = async {
        // All three have been asked before it is cancelled.
        while model.seen.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(investigate(&bench), asked);
    assert!(matches!(outcome, Err(Failure::Cancelled)));
}

#[test]
fn no_key_of_a_callback_is_a_word_of_lua() {
    let host = callbacks::host(&Arc::new(scene()));
    for callback in &host.callbacks {
        assert!(
            !crate::sandbox::is_reserved(&callback.name),
            "{}",
            callback.name
        );
    }
    for key in [
        "by",
        "value",
        "low",
        "high",
        "median",
        "cpus",
        "memory_bytes",
        "percent",
        "pid",
        "comm",
        "truncated",
        "frames",
    ] {
        assert!(!crate::sandbox::is_reserved(key), "{key}");
    }
}
