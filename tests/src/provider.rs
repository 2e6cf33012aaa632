//! A provider that follows a script: speaks OpenAI's chat completions, and checks each request
//! before it answers.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

/// The key that it wants to be shown.
pub const KEY: &str = "key-of-the-test";
/// The model that it serves.
pub const MODEL: &str = "scripted-1";

/// What it says to a request.
#[derive(Clone, Debug)]
pub enum Says {
    /// Calls these tools.
    Calls(Vec<(&'static str, Value)>),
    /// This body, with this status, whatever it means.
    Raw(u16, String),
}

/// A running provider; it ends with this value.
#[derive(Debug)]
pub struct Provider {
    server: Option<MockServer>,
    url: String,
    log: Log,
    runtime: Runtime,
}

/// What came, and what was wrong with it.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<(Vec<Value>, Vec<String>)>>);

struct Script<F> {
    says: F,
    log: Log,
}

impl Provider {
    /// Answers each body that comes with what the script says to it.
    pub fn start(says: impl Fn(&Value) -> Says + Send + Sync + 'static) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let log = Log::default();
        let script = Script {
            says,
            log: log.clone(),
        };
        let server = runtime.block_on(async {
            let server = MockServer::start().await;
            Mock::given(any()).respond_with(script).mount(&server).await;
            server
        });
        Ok(Self {
            url: server.uri(),
            server: Some(server),
            log,
            runtime,
        })
    }

    /// The table of a configuration file that names this provider, with its key in `key`.
    pub fn table(&self, name: &str, key: &std::path::Path) -> Result<String> {
        std::fs::write(key, KEY)?;
        Ok(format!(
            "[[provider]]\nname = \"{name}\"\nkind = \"openai-compatible\"\nmodel = \"{MODEL}\"\n\
             base_url = \"{}/v1/\"\napi_key_file = \"{}\"\ntimeout = \"5s\"\n",
            self.url,
            key.display()
        ))
    }

    /// The bodies that came.
    pub fn requests(&self) -> Vec<Value> {
        self.log.lock().0.clone()
    }

    /// An error if any request was not what it should be.
    pub fn check(&self) -> Result<()> {
        let faults = self.log.lock().1.clone();
        ensure!(faults.is_empty(), "{faults:?}");
        Ok(())
    }

    /// Nobody listens any more.
    pub fn stop(&mut self) {
        let server = self.server.take();
        self.runtime.block_on(async move { drop(server) });
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<Value>, Vec<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Fn(&Value) -> Says + Send + Sync> Respond for Script<F> {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if let Err(why) = check(request, &body) {
            self.log.lock().1.push(format!("{why:#}"));
            return ResponseTemplate::new(400).set_body_string(format!("{why:#}"));
        }
        let turn = {
            let mut log = self.log.lock();
            log.0.push(body.clone());
            log.0.len()
        };
        match (self.says)(&body) {
            Says::Raw(status, text) => ResponseTemplate::new(status).set_body_string(text),
            Says::Calls(calls) => {
                let call = |(i, (name, arguments)): (usize, (&str, Value))| {
                    json!({ "id": format!("call-{turn}-{i}"), "type": "function",
                            "function": { "name": name, "arguments": arguments.to_string() } })
                };
                let calls: Vec<Value> = calls.into_iter().enumerate().map(call).collect();
                ResponseTemplate::new(200).set_body_json(json!({
                    "id": format!("answer-{turn}"), "object": "chat.completion", "created": 0,
                    "model": MODEL,
                    "choices": [{ "index": 0, "finish_reason": "tool_calls",
                                  "message": { "role": "assistant", "tool_calls": calls } }],
                    "usage": { "prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110 },
                }))
            }
        }
    }
}

/// Right address and key, this model, tools with schemas, and one result for each call.
fn check(request: &Request, body: &Value) -> Result<()> {
    ensure!(
        request.url.path() == "/v1/chat/completions",
        "{}",
        request.url
    );
    let shown = request.headers.get("authorization").context("no key")?;
    ensure!(
        shown.to_str()? == format!("Bearer {KEY}"),
        "another key was shown"
    );
    ensure!(body["model"] == MODEL, "model {}", body["model"]);
    let tools = body["tools"].as_array().context("no tools")?;
    for tool in tools {
        let schema = &tool["function"]["parameters"];
        ensure!(
            schema["type"] == "object",
            "a tool without a schema: {tool}"
        );
    }
    let mut open: Vec<&str> = Vec::new();
    for message in body["messages"].as_array().context("no messages")? {
        if message["role"] == "tool" {
            let id = message["tool_call_id"]
                .as_str()
                .context("a result of what?")?;
            let at = open.iter().position(|o| *o == id);
            open.remove(at.with_context(|| format!("a result of no open call: {id}"))?);
        } else {
            ensure!(open.is_empty(), "calls without results: {open:?}");
            let calls = message["tool_calls"].as_array().into_iter().flatten();
            open.extend(calls.filter_map(|call| call["id"].as_str()));
        }
    }
    ensure!(open.is_empty(), "calls without results: {open:?}");
    Ok(())
}

/// What all messages of a role say.
pub fn said_by(body: &Value, role: &str) -> String {
    let messages = body["messages"].as_array().into_iter().flatten();
    let text = |message: &Value| {
        message["content"]
            .as_str()
            .map_or_else(|| message["content"].to_string(), str::to_owned)
    };
    messages
        .filter(|message| message["role"] == role)
        .map(text)
        .collect::<Vec<_>>()
        .join("\n")
}
