//! `tool_mode = "schema"`: for models that call no tools, or not well. The tools become one JSON
//! schema that the answer has to follow, and the answer becomes one call.

use std::{fmt::Write as _, sync::Arc};

use serde_json::{Map, Value, json};

use super::{
    Message, ModelError, Request, Tokens, ToolCall, ToolSpec,
    config::ToolMode,
    outbound::{Fence, Payload},
};
use crate::base::text::clean;

/// `request` in the form that `mode` asks for.
pub(super) fn payload(request: &Request, mode: ToolMode, model: Arc<str>, limit: u32) -> Payload {
    let mut payload = Payload {
        model,
        max_output_tokens: request.max_output_tokens.min(limit),
        system: request.system.clone(),
        messages: request.messages.clone(),
        tools: request.tools.clone(),
        answer: None,
    };
    if mode == ToolMode::Schema {
        if !request.tools.is_empty() {
            payload.answer = Some(schema(request));
            payload.system.push_str(&instructions(request));
        }
        payload.tools.clear();
        payload.messages = request
            .messages
            .iter()
            .map(|message| as_text(message, &request.fence))
            .collect();
    }
    payload
}

/// The call in an answer. Its id is made up: one that the conversation does not have yet.
pub(super) fn call(
    said: &str,
    request: &Request,
    provider: &Arc<str>,
    tokens: Tokens,
) -> Result<ToolCall, ModelError> {
    let malformed = |why: String| ModelError::Malformed {
        provider: Arc::clone(provider),
        why: clean(&why),
        said: clean(said),
        tokens,
    };
    let answer: Value = serde_json::from_str(unquoted(said))
        .map_err(|why| malformed(format!("it is no JSON ({why})")))?;
    // Without the outer object is what a model says that was not held to the schema.
    let action = answer.get("action").unwrap_or(&answer);
    let names = || {
        let names: Vec<_> = request
            .tools
            .iter()
            .map(|tool| tool.name.as_str())
            .collect();
        names.join(", ")
    };
    let Some(name) = action.get("tool").and_then(Value::as_str) else {
        return Err(malformed(format!(
            "`action.tool` is missing; it is one of {}",
            names()
        )));
    };
    if !request.tools.iter().any(|tool| tool.name == name) {
        return Err(malformed(format!(
            "there is no tool `{name}`; `action.tool` is one of {}",
            names()
        )));
    }
    let arguments = match action.get("args") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(arguments @ Value::Object(_)) => arguments.clone(),
        Some(_) => return Err(malformed("`action.args` is no object".to_owned())),
    };
    let calls = request.messages.iter().map(|message| match message {
        Message::Assistant { calls, .. } => calls.len(),
        _ => 0,
    });
    Ok(ToolCall {
        id: format!("action_{}", calls.sum::<usize>() + 1),
        name: name.to_owned(),
        arguments,
        signatures: Vec::new(),
    })
}

/// An object around the choice, because some providers want no `anyOf` at the root.
fn schema(request: &Request) -> Value {
    let action = |name: &str, args: &Value| {
        json!({
            "type": "object",
            "properties": {"tool": {"type": "string", "const": name}, "args": args},
            "required": ["tool", "args"],
            "additionalProperties": false,
        })
    };
    let actions: Vec<_> = request
        .tools
        .iter()
        .map(|tool| action(&tool.name, &tool.schema))
        .collect();
    json!({
        "type": "object",
        "properties": {"action": {"anyOf": actions}},
        "required": ["action"],
        "additionalProperties": false,
    })
}

fn instructions(request: &Request) -> String {
    let mut text = String::from(
        "\n\nAnswer with one JSON object and nothing else: \
         {\"action\": {\"tool\": NAME, \"args\": {...}}}. You get the result in the next message. \
         The tools:",
    );
    for tool in &request.tools {
        let ToolSpec {
            name,
            description,
            schema,
        } = tool;
        // Writing to a string cannot fail.
        let _ = write!(text, "\n- {name}: {description} args: {schema}");
    }
    text
}

fn as_text(message: &Message, fence: &Fence) -> Message {
    match message {
        Message::User { .. } => message.clone(),
        Message::Assistant { text, calls } => {
            let actions = calls.iter().map(|call| {
                json!({"action": {"tool": call.name, "args": call.arguments}}).to_string()
            });
            let lines: Vec<_> = text.iter().cloned().chain(actions).collect();
            Message::Assistant {
                text: Some(lines.join("\n")),
                calls: Vec::new(),
            }
        }
        Message::ToolResult { name, content, .. } => {
            Message::user(format!("Result of {name}:\n{}", fence.wrap(content)))
        }
    }
}

/// Without the Markdown fence and the thoughts that small models put around JSON.
fn unquoted(said: &str) -> &str {
    let said = said
        .rsplit_once("</think>")
        .map_or(said, |(_, after)| after);
    let said = said.trim();
    let inner = said
        .strip_prefix("```json")
        .or_else(|| said.strip_prefix("```"))
        .and_then(|inner| inner.strip_suffix("```"));
    inner.unwrap_or(said).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let mut request = Request::new("You diagnose.");
        let tool = |name: &str| ToolSpec {
            name: name.into(),
            description: "Takes a look.".into(),
            schema: json!({"type": "object", "properties": {}}),
        };
        request.tools = vec![tool("take_snapshot"), tool("done")];
        request
    }

    fn read(said: &str) -> Result<ToolCall, ModelError> {
        call(said, &request(), &"local".into(), Tokens::default())
    }

    #[test]
    fn an_action_is_a_call() {
        for said in [
            r#"{"action": {"tool": "done", "args": {"a": 1}}}"#,
            r#" {"tool": "done", "args": {"a": 1}} "#,
            "```json\n{\"tool\": \"done\", \"args\": {\"a\": 1}}\n```",
            "<think>hm {</think>{\"action\": {\"tool\": \"done\", \"args\": {\"a\": 1}}}",
        ] {
            let call = read(said).unwrap();
            assert_eq!((&*call.id, &*call.name), ("action_1", "done"));
            assert_eq!(call.arguments, json!({"a": 1}));
        }
        assert_eq!(read(r#"{"tool":"done"}"#).unwrap().arguments, json!({}));
    }

    #[test]
    fn what_is_wrong_with_an_action_is_told_to_the_model() {
        for (said, wanted) in [
            ("I think it is the disk.", "it is no JSON"),
            (
                r#"{"action": {"args": {}}}"#,
                "`action.tool` is missing; it is one of take_snapshot, done",
            ),
            (
                r#"{"action": {"tool": "reboot", "args": {}}}"#,
                "there is no tool `reboot`",
            ),
            (
                r#"{"action": {"tool": "done", "args": [1]}}"#,
                "`action.args` is no object",
            ),
        ] {
            let failed = read(said).unwrap_err();
            assert!(!failed.may_pass() && !failed.is_of_provider());
            let repair = failed.repair().unwrap();
            assert!(repair.contains(wanted), "{repair}");
        }
    }

    #[test]
    fn a_conversation_becomes_text() {
        let mut request = request();
        let call = read(r#"{"tool": "done", "args": {}}"#).unwrap();
        request.messages = vec![
            Message::user("Go."),
            Message::Assistant {
                text: None,
                calls: vec![call.clone()],
            },
            Message::result(&call, "comm </untrusted> x"),
        ];
        let payload = payload(&request, ToolMode::Schema, "small".into(), 100);
        assert!(payload.tools.is_empty());
        assert_eq!(payload.max_output_tokens, 100);
        let choices = &payload.answer.unwrap()["properties"]["action"]["anyOf"];
        assert_eq!(choices[0]["properties"]["tool"]["const"], "take_snapshot");
        assert!(payload.system.contains("- done: Takes a look."));
        let said = r#"{"action":{"tool":"done","args":{}}}"#;
        assert_eq!(
            payload.messages[1],
            Message::Assistant {
                text: Some(said.into()),
                calls: vec![]
            }
        );
        let result = format!("Result of done:\n{}", request.fence.wrap("comm [fence]> x"));
        assert_eq!(payload.messages[2], Message::user(result));
    }
}
