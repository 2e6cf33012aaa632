//! Asking the running agent; or reading what an agent has left.

use std::{path::PathBuf, time::Duration};

use serde::de::DeserializeOwned;

use super::Trouble;
use crate::{
    config::{STATE_DIR, Settings},
    store::Store,
};

/// Where to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Ask {
    /// The agent's address
    #[arg(
        long,
        value_name = "URL",
        env = "LENS_URL",
        default_value = "http://127.0.0.1:9700"
    )]
    url: String,
    /// Where to read when no agent answers
    #[arg(long, value_name = "DIR", env = "LENS_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

/// An agent on this host answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found: the agent, or what it has left.
pub(super) enum Source {
    Agent(Agent),
    Store(Store),
}

/// A running agent.
pub(super) struct Agent {
    url: String,
    client: reqwest::Client,
}

impl Ask {
    /// The agent if it answers, else the state directory.
    pub(super) async fn find(&self) -> Result<Source, Trouble> {
        match self.agent().await {
            Ok(agent) => Ok(Source::Agent(agent)),
            Err(Trouble::NoAgent { url, why, dir }) => match Store::open_read_only(&self.dir()) {
                Ok(store) => {
                    tracing::warn!("no agent answers at {url} ({why}); reading {dir}");
                    Ok(Source::Store(store))
                }
                Err(_) => Err(Trouble::NoAgent { url, why, dir }),
            },
            Err(other) => Err(other),
        }
    }

    /// The agent; an error if none answers.
    pub(super) async fn agent(&self) -> Result<Agent, Trouble> {
        let url = self.url.trim_end_matches('/').to_owned();
        let trouble = |why: String| Trouble::Answer {
            url: url.clone(),
            why,
        };
        // Loopback without TLS needs no certificates, and a host may have none.
        let mut builder = reqwest::Client::builder().timeout(PATIENCE).no_proxy();
        if url.starts_with("http://") {
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|why| trouble(why.to_string()))?;
        let answer = client.get(format!("{url}/healthz")).send().await;
        match answer {
            Ok(_) => Ok(Agent { url, client }),
            Err(why) if why.is_connect() || why.is_timeout() => Err(Trouble::NoAgent {
                url,
                why: if why.is_timeout() {
                    "it takes too long"
                } else {
                    "nobody listens"
                }
                .to_owned(),
                dir: self.dir().display().to_string(),
            }),
            Err(why) => Err(trouble(why.without_url().to_string())),
        }
    }

    fn dir(&self) -> PathBuf {
        let configured = || Settings::from_file(None).ok().and_then(|s| s.state_dir);
        self.state_dir
            .clone()
            .or_else(configured)
            .unwrap_or_else(|| PathBuf::from(STATE_DIR))
    }
}

impl Agent {
    /// The JSON at `/api/v1/` and this path.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Trouble> {
        let url = format!("{}/api/v1/{path}", self.url);
        let pairs: Vec<String> = query
            .iter()
            .map(|(k, v)| format!("{k}={}", encode(v)))
            .collect();
        let full = if pairs.is_empty() {
            url.clone()
        } else {
            format!("{url}?{}", pairs.join("&"))
        };
        let trouble = |why: String| Trouble::Answer {
            url: url.clone(),
            why,
        };
        let answer = self
            .client
            .get(full)
            .send()
            .await
            .map_err(|why| trouble(why.to_string()))?;
        let status = answer.status();
        let body = answer
            .bytes()
            .await
            .map_err(|why| trouble(why.to_string()))?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body).trim().to_owned();
            return Err(trouble(format!("{status}: {text}")));
        }
        serde_json::from_slice(&body)
            .map_err(|why| trouble(format!("not what it should be: {why}")))
    }
}

/// Percent-encodes what is not plainly allowed in a query.
fn encode(text: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/' | b':');
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}
