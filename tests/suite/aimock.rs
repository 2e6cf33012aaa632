//! Models as somebody else understands the wire formats: aimock, an npm package, plays the
//! providers. Needs node and npm, and the registry once.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lens_agent::{
    base::clock::SystemClock,
    llm::{
        Message, Model as _, ModelError, Models, Reply, Request, ToolSpec,
        outbound::{Outbound, SendLog, Sent},
    },
    telemetry::Telemetry,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const PACKAGE: &str = "@copilotkit/aimock";
const VERSION: &str = "1.43.0";

/// A running server; it ends with this value.
struct Aimock {
    process: Child,
    url: String,
}

impl Aimock {
    fn start(fixtures: &Path, flags: &[&str]) -> Result<Self> {
        let mut command = Command::new("node");
        command.arg(folder().join("node_modules/.bin/llmock"));
        command
            .args(["--port", "0", "--fixtures"])
            .arg(fixtures)
            .args(flags);
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        let mut process = command.spawn().context("aimock cannot be started")?;
        let said = process.stdout.take().context("aimock says nothing")?;
        let mut server = Self {
            process,
            url: String::new(),
        };
        for line in BufReader::new(said).lines() {
            if let Some((_, url)) = line?.split_once("listening on ") {
                url.trim().clone_into(&mut server.url);
                return Ok(server);
            }
        }
        bail!("aimock ended before it listened")
    }

    /// A provider of this kind, and what was sent to it.
    fn models(&self, kind: &str, base: &str) -> Result<(Models, Arc<Log>)> {
        let key = folder().join("key");
        std::fs::write(&key, "test")?;
        let config = json!({
            "name": kind, "kind": kind, "model": "test-model", "api_key_file": key,
            "base_url": format!("{}{base}", self.url),
        });
        let log = Arc::new(Log::default());
        let clock = Arc::new(SystemClock);
        let outbound = Outbound::new(clock, Telemetry::new(), log.clone());
        let models = Models::connect(&[serde_json::from_value(config)?], outbound)?;
        Ok((models.context("one is configured")?, log))
    }
}

impl Drop for Aimock {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug, Default)]
struct Log(Mutex<Vec<Sent>>);

impl SendLog for Log {
    fn record(&self, sent: Sent) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(sent);
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../aimock")
}

/// Installs aimock, unless this version is there. `Err` says why it cannot be had.
fn install() -> Result<()> {
    let manifest = folder()
        .join("node_modules")
        .join(PACKAGE)
        .join("package.json");
    let installed = std::fs::read_to_string(manifest).unwrap_or_default();
    if installed.contains(&format!("\"version\": \"{VERSION}\"")) {
        return Ok(());
    }
    for program in ["node", "npm"] {
        let found = Command::new(program).arg("--version").output();
        ensure!(
            found.is_ok_and(|found| found.status.success()),
            "there is no {program}"
        );
    }
    std::fs::create_dir_all(folder())?;
    let mut npm = Command::new("npm");
    npm.args([
        "install",
        "--no-audit",
        "--no-fund",
        "--no-save",
        "--prefix",
    ]);
    let done = npm
        .arg(folder())
        .arg(format!("{PACKAGE}@{VERSION}"))
        .output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "npm cannot install it: {}",
        said.trim()
    );
    Ok(())
}

/// Whether aimock can be had. If not, that is said past the test's captured output, and it is a
/// failure where everything must run.
fn can_run() -> bool {
    let Err(why) = install() else { return true };
    let said = format!("NOT RUN: models against aimock ({why:#})");
    let must_run = env::var_os("LENS_TESTS_MUST_RUN").is_some_and(|value| value == "1");
    assert!(!must_run, "{said}, but LENS_TESTS_MUST_RUN=1");
    let _ = writeln!(std::io::stderr(), "\n{said}");
    false
}

fn request(text: &str) -> Request {
    let mut request = Request::new("You diagnose a host.");
    request.within = Duration::from_secs(20);
    request.messages = vec![Message::user(text)];
    request.tools = vec![ToolSpec {
        name: "take_snapshot".into(),
        description: "Takes a look at one skill.".into(),
        schema: json!({"type": "object", "properties": {"skill": {"type": "string"}},
                       "required": ["skill"]}),
    }];
    request
}

async fn ask(models: &Models, request: &Request) -> Result<Reply, ModelError> {
    models.ask(request, CancellationToken::new()).await
}

#[tokio::test]
async fn models_are_asked_as_others_understand_their_formats() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fixtures = dir.path().join("fixtures.json");
    let call = json!({"name": "take_snapshot", "arguments": {"skill": "disk"}});
    let rules = json!({"fixtures": [
        {"match": {"hasToolResult": true}, "response": {"content": "It is the disk."}},
        {"match": {"userMessage": "hello"}, "response": {"content": "Hello, host."}},
        {"match": {"userMessage": "look"}, "response": {"toolCalls": [call]}},
    ]});
    std::fs::write(&fixtures, rules.to_string()).unwrap();

    let server = Aimock::start(&fixtures, &["--strict"]).unwrap();
    for (kind, base) in [
        ("openai", "/v1"),
        ("openai-compatible", "/v1"),
        ("openai-responses", "/v1"),
        ("anthropic", "/v1"),
        ("gemini", "/v1beta"),
        ("ollama", ""),
    ] {
        let (models, log) = server.models(kind, base).unwrap();
        let reply = ask(&models, &request("hello")).await;
        let reply = reply.unwrap_or_else(|why| panic!("{kind}: {why}"));
        assert_eq!(reply.text.as_deref(), Some("Hello, host."), "{kind}");
        assert!(reply.calls.is_empty(), "{kind}");

        let mut conversation = request("Have a look.");
        let reply = ask(&models, &conversation).await.unwrap();
        assert_eq!(reply.calls.len(), 1, "{kind}: {reply:?}");
        assert_eq!(reply.calls[0].name, "take_snapshot", "{kind}");
        assert_eq!(reply.calls[0].arguments, json!({"skill": "disk"}), "{kind}");

        let result = Message::result(&reply.calls[0], r#"{"await_ms": 900}"#);
        conversation.messages.extend([reply.message(), result]);
        let reply = ask(&models, &conversation).await.unwrap();
        assert_eq!(reply.text.as_deref(), Some("It is the disk."), "{kind}");
        assert_eq!(log.0.lock().unwrap().len(), 3, "{kind}: one attempt each");
    }
    drop(server);

    let server = Aimock::start(&fixtures, &["--chaos-malformed", "1"]).unwrap();
    for (kind, base) in [("openai", "/v1"), ("anthropic", "/v1")] {
        let (models, _) = server.models(kind, base).unwrap();
        let failed = ask(&models, &request("hello")).await.unwrap_err();
        assert!(
            matches!(failed, ModelError::Malformed { .. }),
            "{kind}: {failed:?}"
        );
    }
    drop(server);

    let server = Aimock::start(&fixtures, &["--chaos-ratelimit", "1"]).unwrap();
    for (kind, base) in [("openai", "/v1"), ("anthropic", "/v1")] {
        let (models, _) = server.models(kind, base).unwrap();
        let mut request = request("hello");
        // No time for a second attempt.
        request.within = Duration::from_millis(900);
        let failed = ask(&models, &request).await.unwrap_err();
        let limited = matches!(
            &failed,
            ModelError::RateLimited {
                retry_after: Some(_),
                ..
            }
        );
        assert!(limited, "{kind}: {failed:?}");
    }
}
