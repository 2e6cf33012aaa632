//! One machine for one run.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use mlua::{
    Function, Lua, LuaOptions, MultiValue, StdLib, Value as LuaValue, VmState, chunk::ChunkMode,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Host, Limits, Run, SandboxError,
    json::{self, TooLarge},
};
use crate::base::{
    clock::{Clock as _, SystemClock},
    text::clean,
};

/// The base functions that are harmless. What is not named here is taken out, so that one that a
/// later version adds is not there by accident.
const BASE: &[&str] = &[
    "assert",
    "error",
    "getmetatable",
    "ipairs",
    "next",
    "pairs",
    "pcall",
    "rawequal",
    "rawget",
    "rawlen",
    "rawset",
    "select",
    "setmetatable",
    "tonumber",
    "tostring",
    "type",
    "typeof",
    "unpack",
    "xpcall",
    "bit32",
    "math",
    "string",
    "table",
    "utf8",
];

/// The script's name in messages.
const CHUNK: &str = "script";

/// Begins the message about a name that is not there.
const UNKNOWN: &str = "unknown name `";

/// Our own Luau. Errors of callbacks are raised here, so that they carry the caller's line; and
/// the two functions that search without an interrupt, in time (text x word), get a bound.
const PRELUDE: &str = r#"
local call, strings, error, type, missing = ...
local find, split = strings.find, strings.split
local function bounded(word)
    if type(word) == "string" and #word > 256 then
        error("a text to search for has at most 256 bytes", 3)
    end
    return word
end
function strings.find(text, word, ...)
    return find(text, bounded(word), ...)
end
function strings.split(text, word)
    return split(text, bounded(word))
end
local function callback(at)
    return function(...)
        local done, value = call(at, ...)
        if done then
            return value
        end
        error(value, 2)
    end
end
local function index(_, name)
    error(missing(name), 2)
end
return callback, index
"#;

/// Why the script was interrupted.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Timeout,
    Turns,
    Cancelled,
}

pub(super) fn run(
    script: &str,
    host: &Host,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<Value, SandboxError> {
    if script.len() > limits.script {
        return Err(SandboxError::ScriptTooLarge {
            bytes: script.len(),
            limit: limits.script,
        });
    }
    // Compiled code begins with a control character, and running it is not safe.
    if script.starts_with(|c: char| c.is_control() && !c.is_whitespace()) {
        return Err(SandboxError::Syntax {
            line: Some(1),
            what: "it begins with a control character".to_owned(),
        });
    }
    let broken = |why: mlua::Error| SandboxError::Broken(clean(&why.to_string()));
    let lua = machine(host, limits).map_err(broken)?;
    let stop = Arc::new(OnceLock::new());
    watch(&lua, limits, cancel, &stop);
    let chunk = lua
        .load(script)
        .set_name(format!("={CHUNK}"))
        .set_mode(ChunkMode::Text);
    let returned = chunk.eval::<MultiValue>();
    // Asked first: a script can catch the error that the interrupt raises, but not go on.
    if let Some(stop) = stop.get() {
        return Err(match stop {
            Stop::Timeout => SandboxError::Timeout {
                after: limits.within,
            },
            Stop::Turns => SandboxError::Turns {
                limit: limits.turns,
            },
            Stop::Cancelled => SandboxError::Cancelled,
        });
    }
    let returned = returned.map_err(|why| failure(&why, host, limits))?;
    let first = returned.front().unwrap_or(&LuaValue::Nil);
    json::from_lua(first, limits.result).map_err(|TooLarge| SandboxError::ResultTooLarge {
        limit: limits.result,
    })
}

fn machine(host: &Host, limits: &Limits) -> mlua::Result<Lua> {
    let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::BIT | StdLib::UTF8;
    // A panic of a callback goes on to whoever supervises us: it is a bug, not the script's.
    let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(false))?;
    lua.set_memory_limit(limits.memory)?;
    let globals = lua.globals();
    let (callback, index) = prelude(&lua, host, limits)?;
    let names: Vec<LuaValue> = globals
        .pairs::<LuaValue, LuaValue>()
        .map(|pair| Ok(pair?.0))
        .collect::<mlua::Result<_>>()?;
    for name in names {
        let known = name
            .as_string()
            .is_some_and(|name| BASE.iter().any(|known| name.as_bytes() == known.as_bytes()));
        if !known {
            globals.raw_set(name, LuaValue::Nil)?;
        }
    }
    for (name, value) in &host.values {
        globals.raw_set(name.as_str(), json::to_lua(&lua, value, true)?)?;
    }
    for (at, given) in host.callbacks.iter().enumerate() {
        globals.raw_set(&*given.name, callback.call::<Function>(at)?)?;
    }
    let unknown = lua.create_table()?;
    unknown.raw_set("__index", index)?;
    globals.set_metatable(Some(unknown))?;
    lua.sandbox(true)?;
    Ok(lua)
}

/// The makers of a callback, by its place in the list, and of the error for an unknown name.
fn prelude(lua: &Lua, host: &Host, limits: &Limits) -> mlua::Result<(Function, Function)> {
    let runs: Vec<Run> = host
        .callbacks
        .iter()
        .map(|given| Arc::clone(&given.run))
        .collect();
    let limit = limits.result;
    let call = lua.create_function(move |lua, mut args: MultiValue| {
        let at = args.pop_front().and_then(|at| at.as_usize());
        let Some(run) = at.and_then(|at| runs.get(at)) else {
            return Err(mlua::Error::runtime("no such callback"));
        };
        let args: Result<Vec<_>, _> = args
            .iter()
            .map(|value| json::from_lua(value, limit))
            .collect();
        let done = args
            .map_err(|TooLarge| format!("an argument is more than {limit} bytes, or too deep"))
            .and_then(|args| run(&args));
        match done {
            Ok(value) => Ok((true, json::to_lua(lua, &value, false)?)),
            Err(why) => Ok((false, LuaValue::String(lua.create_string(why)?))),
        }
    })?;
    let missing = lua.create_function(|_, name: LuaValue| {
        let name = name.to_string().unwrap_or_default();
        Ok(format!("{UNKNOWN}{}`", clean(&name)))
    })?;
    let globals = lua.globals();
    let base = |name: &str| globals.get::<LuaValue>(name);
    let (strings, error, of_type) = (base("string")?, base("error")?, base("type")?);
    lua.load(PRELUDE)
        .set_name("=prelude")
        .call((call, strings, error, of_type, missing))
}

/// Interrupts the script from now on when it has taken all that it may.
fn watch(lua: &Lua, limits: &Limits, cancel: &CancellationToken, stop: &Arc<OnceLock<Stop>>) {
    let (limits, cancel, stop) = (*limits, cancel.clone(), Arc::clone(stop));
    let (turns, began) = (AtomicU64::new(0), SystemClock.now());
    lua.set_interrupt(move |_| {
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        let why = if turn >= limits.turns {
            Stop::Turns
        } else if cancel.is_cancelled() {
            Stop::Cancelled
        } else if SystemClock.now().since(&began) >= limits.within {
            Stop::Timeout
        } else {
            return Ok(VmState::Continue);
        };
        // The first reason stays; the script may have caught it.
        let _ = stop.set(why);
        Err(mlua::Error::runtime("interrupted"))
    });
}

fn failure(error: &mlua::Error, host: &Host, limits: &Limits) -> SandboxError {
    match error {
        mlua::Error::CallbackError { cause, .. } => failure(cause, host, limits),
        mlua::Error::MemoryError(_) => SandboxError::Memory {
            limit: limits.memory,
        },
        mlua::Error::SyntaxError { message, .. } => {
            let (line, what) = located(message);
            SandboxError::Syntax { line, what }
        }
        mlua::Error::RuntimeError(message) => {
            let (line, what) = located(message);
            let name = what
                .strip_prefix(UNKNOWN)
                .and_then(|name| name.strip_suffix('`'));
            match name {
                Some(name) => SandboxError::UnknownName {
                    line,
                    name: name.to_owned(),
                    hint: host.hint(),
                },
                // What Luau says when the limit is met where it cannot tell its host.
                None if what == "not enough memory" => SandboxError::Memory {
                    limit: limits.memory,
                },
                None => SandboxError::Runtime { line, what },
            }
        }
        other => SandboxError::Runtime {
            line: None,
            what: clean(&other.to_string()),
        },
    }
}

/// `script:3: what` taken apart, without the traceback.
fn located(message: &str) -> (Option<u32>, String) {
    let message = message
        .split("\nstack traceback:")
        .next()
        .unwrap_or(message);
    let rest = message
        .strip_prefix(CHUNK)
        .and_then(|rest| rest.strip_prefix(':'));
    let place = rest.and_then(|rest| rest.split_once(": "));
    let line = place.and_then(|(line, what)| Some((line.parse().ok()?, what)));
    match line {
        Some((line, what)) => (Some(line), clean(what)),
        None => (None, clean(message)),
    }
}
