//! Takes secrets out of text. Few rules, each with a shape that hardly anything else has.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

/// A known secret shorter than this is a word, and not looked for.
const SHORTEST_KNOWN: usize = 8;

/// Name and pattern. The group `keep`, where there is one, is what stays of the match.
///
/// No pattern runs over `<`: behind it the end of a fence may stand.
const RULES: &[(&str, &str)] = &[
    (
        "private-key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^<-]|-[^<-])*(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    (
        "jwt",
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    ),
    ("aws-key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    (
        "github-token",
        r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{22,}",
    ),
    ("slack-token", r"\bxox[abeposr]-[A-Za-z0-9-]{10,}"),
    (
        "api-key",
        r"\b(?:sk-[A-Za-z0-9_-]{20,}|[rs]k_live_[A-Za-z0-9]{16,}|AIza[A-Za-z0-9_-]{35}|glpat-[A-Za-z0-9_-]{20,})",
    ),
    (
        "authorization",
        r"(?i)(?<keep>\b(?:bearer|basic)[ \t]+)[A-Za-z0-9._~+/=-]{12,}",
    ),
    (
        "url-password",
        r"(?<keep>\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s/:@<]{0,100}:)[^\s/@<]{1,200}@",
    ),
    (
        "password",
        concat!(
            r"(?i)(?<keep>[a-z0-9_.-]{0,60}(?:password|passwd|passphrase|pwd|secret|secret[_-]?access[_-]?key",
            r"|api[_-]?key|access[_-]?key|private[_-]?key|access[_-]?token|auth[_-]?token|refresh[_-]?token)",
            r#"\\*["']?[ \t]*(?:=>|=|:)[ \t]*)"#,
            r#"(?:\\+"(?:[^"\\<]|\\{1,2}[^"\\<]|\\{3,}"?)*|"(?:[^"\\<]|\\[^<])*"?|'[^'<]*'?|[^\s"'\\,;&<>{}()\[\]]+)"#,
        ),
    ),
    (
        "password",
        r#"(?i)(?<keep>(?:^|\s|")--?(?:password|passwd|pass|token|secret|api-key)(?:[ \t=]+|\\*",[ \t]*\\*"))[^\s"\\<-][^\s"\\<]*"#,
    ),
    (
        "password",
        r"(?<keep>\b(?:mysql|mysqldump|mysqladmin|mariadb|sshpass)\b[^\n<]{0,200}?\s-p[ \t]?)[^\s<]+",
    ),
    (
        "password",
        r"(?<keep>\bcurl\b[^\n<]{0,200}?\s(?:-u|--user)[ \t=]?[^\s:<]{1,100}:)[^\s<]+",
    ),
];

#[expect(
    clippy::expect_used,
    reason = "the patterns are constants, and every test of this module compiles them"
)]
static COMPILED: LazyLock<Vec<(Regex, String)>> = LazyLock::new(|| {
    let compile = |(name, pattern): &(&str, &str)| {
        let regex = Regex::new(pattern).expect("a valid pattern");
        // A group that the pattern does not have is empty.
        (regex, format!("${{keep}}[redacted:{name}]"))
    };
    RULES.iter().map(compile).collect()
});

/// The rules, and secrets that are known to the letter.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    known: Vec<SecretString>,
}

impl Redactor {
    /// Adds a secret that never leaves in a text, such as a provider's key.
    pub(super) fn hide(&mut self, secret: SecretString) {
        if secret.expose_secret().len() >= SHORTEST_KNOWN {
            self.known.push(secret);
        }
    }

    /// `text` without secrets. Doing it twice changes nothing more.
    pub(super) fn text(&self, text: &str) -> String {
        let mut clean = Cow::Borrowed(text);
        for secret in &self.known {
            if clean.contains(secret.expose_secret()) {
                let replaced = clean.replace(secret.expose_secret(), "[redacted:own-key]");
                clean = Cow::Owned(replaced);
            }
        }
        for (regex, replacement) in COMPILED.iter() {
            if let Cow::Owned(replaced) = regex.replace_all(&clean, replacement) {
                clean = Cow::Owned(replaced);
            }
        }
        clean.into_owned()
    }

    /// Every text in `value`, names of fields included; and the whole value of a field whose name
    /// says that it is a secret.
    pub(super) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => {
                let field =
                    |(name, value): (&String, &Value)| (self.text(name), self.field(name, value));
                Value::Object(fields.iter().map(field).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn field(&self, name: &str, value: &Value) -> Value {
        let is_secret = match value {
            // The rule for assignments sees name and value only together.
            Value::String(text) => !text.is_empty() && self.names_secret(name),
            Value::Number(_) => self.names_secret(name),
            _ => false,
        };
        if is_secret {
            Value::String("[redacted:password]".to_owned())
        } else {
            self.value(value)
        }
    }

    fn names_secret(&self, name: &str) -> bool {
        let probe = format!("{name}=\"x\"");
        self.text(&probe) != probe
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Texts, each with the part of it that must not leave.
    pub(in crate::llm) const PLANTED: &[(&str, &str)] = &[
        ("key AKIAIOSFODNN7EXAMPLE in use", "IOSFODNN7"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "wJalrXUtnFEMI",
        ),
        (
            "Authorization: Bearer abcdef0123456789abcdef",
            "abcdef0123456789",
        ),
        ("authorization: basic dXNlcjpodW50ZXIyMjI=", "dXNlcjpodW50"),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
            "eyJzdWIiOiIx",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
            "MIIEpAIBAAKCAQEA",
        ),
        (
            "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBg\\ncut off",
            "MIIEvQIBADANBg",
        ),
        (
            "postgres://shop:hunter2hunter2@db.internal/shop",
            "hunter2hunter2",
        ),
        ("DB_PASSWORD=hunter2hunter2 ./run", "hunter2hunter2"),
        (
            r#"{"password": "hunter2 with \"quotes\" hunter3"}"#,
            "hunter",
        ),
        (r#"{\"password\":\"hunter2hunter2\"}"#, "hunter2hunter2"),
        ("client_secret: 'hunter2 hunter3'", "hunter"),
        (
            "/usr/bin/tool --password hunter2hunter2 --fast",
            "hunter2hunter2",
        ),
        ("mysql -u root -phunter2hunter2 shop", "hunter2hunter2"),
        (
            "curl -s -u admin:hunter2hunter2 http://x/",
            "hunter2hunter2",
        ),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijkl"),
        ("OPENAI sk-proj-abcdefghijklmnopqrstuvwx", "abcdefghijkl"),
        ("xoxb-123456789012-abcdefghij", "123456789012"),
    ];

    #[test]
    fn planted_secrets_go_and_their_surroundings_stay() {
        let redactor = Redactor::default();
        for (text, secret) in PLANTED {
            for (before, after) in [
                ("", ""),
                ("pid 7 comm=nginx\n", "\nnext line"),
                ("(", ") end"),
            ] {
                let clean = redactor.text(&format!("{before}{text}{after}"));
                assert!(!clean.contains(secret), "{clean}");
                assert!(clean.contains("[redacted:"), "{clean}");
                assert!(clean.starts_with(before), "{clean}");
                assert_eq!(redactor.text(&clean), clean, "twice is once");
            }
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        let redactor = Redactor::default();
        for text in [
            "/kubepods/burstable/pod7b3e/4f2a waited 412 ms/s for a CPU",
            "/var/lib/kubelet/pods/7b/volumes/kubernetes.io~secret/tls",
            "max_tokens: 4096, tokens=17, password rotation is due",
            "http://127.0.0.1:9700/metrics and user@host:/path",
            "DB_PASSWORD_FILE=/run/secrets/db",
            "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "skb-consume sk_buff eyJ. bearer of news",
        ] {
            assert_eq!(redactor.text(text), text);
        }
    }

    #[test]
    fn a_field_that_names_a_secret_is_redacted_whole() {
        let value = serde_json::json!({
            "env": [{"DB_PASSWORD": "hunter2 hunter2", "HOME": "/srv"}],
            "password": "", "count": 3,
        });
        let clean = Redactor::default().value(&value);
        assert!(!clean.to_string().contains("hunter2"), "{clean}");
        assert_eq!(clean["env"][0]["HOME"], "/srv");
        assert_eq!(clean["count"], 3);
    }

    #[test]
    fn own_keys_never_leave_whatever_they_look_like() {
        let mut redactor = Redactor::default();
        redactor.hide("plain words as key".into());
        redactor.hide("short".into());
        let clean = redactor.text("seen: plain words as key; short");
        assert_eq!(clean, "seen: [redacted:own-key]; short");
    }
}
