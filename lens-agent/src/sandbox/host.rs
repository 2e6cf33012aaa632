//! What a script is given.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use serde_json::Value;

/// Words that are no names in Lua: as a key, `t.end` is a syntax error.
///
/// `goto` is a name in Luau, and in no other Lua of the last ten years: models take it for a word.
const RESERVED: &[&str] = &[
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
    "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
];

/// Whether `word` may not be a key of what callbacks return, nor the name of one.
pub fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// What a callback does: its arguments in order, missing ones at the end left out.
pub type Run = Arc<dyn Fn(&[Value]) -> Result<Value, String> + Send + Sync>;

/// A function that a script can call. Read-only, bounded in time and size, and documented.
#[derive(Clone)]
pub struct Callback {
    /// Its global name.
    pub name: Cow<'static, str>,
    /// Its arguments, for people and models: `cgroup, limit?`.
    pub args: Cow<'static, str>,
    /// What it returns, with units.
    pub docs: Cow<'static, str>,
    /// The function. Its error is raised in the script, in the line that called it.
    pub run: Run,
}

impl Callback {
    /// A callback that does `run`.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        args: impl Into<Cow<'static, str>>,
        docs: impl Into<Cow<'static, str>>,
        run: impl Fn(&[Value]) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            args: args.into(),
            docs: docs.into(),
            run: Arc::new(run),
        }
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.args)
    }
}

/// All that a script is given.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Functions; of two with one name the last counts.
    pub callbacks: Vec<Callback>,
    /// Global values by name. Tables are read-only, all the way down.
    pub values: BTreeMap<String, Value>,
}

impl Host {
    /// These functions and no values.
    pub fn new(callbacks: Vec<Callback>) -> Self {
        Self {
            callbacks,
            values: BTreeMap::new(),
        }
    }

    /// The callbacks for a prompt, one a line.
    pub fn docs(&self) -> String {
        let mut text = String::new();
        for Callback {
            name, args, docs, ..
        } in &self.callbacks
        {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}({args}): {docs}");
        }
        text
    }

    /// The names that a script can use, for an error.
    pub(super) fn hint(&self) -> String {
        let callbacks = self
            .callbacks
            .iter()
            .map(|callback| format!("{}()", callback.name));
        let names: Vec<_> = callbacks.chain(self.values.keys().cloned()).collect();
        let names = if names.is_empty() {
            "nothing".to_owned()
        } else {
            names.join(", ")
        };
        format!(
            "a script has {names} and string, table, math, bit32, utf8; it returns what it found"
        )
    }
}
