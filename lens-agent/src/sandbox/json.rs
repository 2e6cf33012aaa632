//! Values on their way into the machine and out of it.

use mlua::{Lua, Value as LuaValue};
use serde_json::{Map, Value};

/// Deeper than any answer, and far from the end of the stack.
const MAX_DEPTH: usize = 32;

/// Up to here every whole number is exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// `value` as a Lua value. Null is nil, so that a field that is null is absent.
pub(super) fn to_lua(lua: &Lua, value: &Value, read_only: bool) -> mlua::Result<LuaValue> {
    Ok(match value {
        Value::Null => LuaValue::Nil,
        Value::Bool(flag) => LuaValue::Boolean(*flag),
        // Always there: the numbers of this crate are integers or finite floats.
        Value::Number(number) => LuaValue::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => LuaValue::String(lua.create_string(text)?),
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (at, item) in items.iter().enumerate() {
                table.raw_set(at + 1, to_lua(lua, item, read_only)?)?;
            }
            table.set_readonly(read_only);
            LuaValue::Table(table)
        }
        Value::Object(fields) => {
            let table = lua.create_table_with_capacity(0, fields.len())?;
            for (name, field) in fields {
                table.raw_set(name.as_str(), to_lua(lua, field, read_only)?)?;
            }
            table.set_readonly(read_only);
            LuaValue::Table(table)
        }
    })
}

/// A Lua value is more than the limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// `value` as JSON of at most `limit` bytes, counted while it is written: a small table that
/// contains another ten times, which contains a third ten times, is a large result.
pub(super) fn from_lua(value: &LuaValue, limit: usize) -> Result<Value, TooLarge> {
    Writer { left: limit }.value(value, 0)
}

struct Writer {
    left: usize,
}

impl Writer {
    fn spend(&mut self, bytes: usize) -> Result<(), TooLarge> {
        self.left = self.left.checked_sub(bytes).ok_or(TooLarge)?;
        Ok(())
    }

    fn value(&mut self, value: &LuaValue, depth: usize) -> Result<Value, TooLarge> {
        match value {
            LuaValue::Boolean(flag) => {
                self.spend(5)?;
                Ok(Value::Bool(*flag))
            }
            LuaValue::Integer(number) => {
                self.spend(8)?;
                Ok(Value::from(*number))
            }
            LuaValue::Number(number) => {
                self.spend(8)?;
                Ok(self::number(*number))
            }
            LuaValue::String(text) => Ok(Value::String(self.text(&text.as_bytes())?)),
            LuaValue::Table(table) if depth < MAX_DEPTH => self.table(table, depth),
            LuaValue::Table(_) => Err(TooLarge),
            // Nil, and what JSON has no word for.
            _ => {
                self.spend(4)?;
                Ok(Value::Null)
            }
        }
    }

    fn table(&mut self, table: &mlua::Table, depth: usize) -> Result<Value, TooLarge> {
        self.spend(2)?;
        // Raw, because metamethods are the script's and could go on for ever. An error can only
        // come from a conversion, and nothing is converted here.
        let pair = |pair: mlua::Result<(LuaValue, LuaValue)>| pair.map_err(|_| TooLarge);
        let mut entries = 0;
        for _ in table.pairs::<LuaValue, LuaValue>() {
            self.spend(2)?;
            entries += 1;
        }
        // A border that counts every entry has all of 1 to n below it, and nothing beside it.
        if table.raw_len() == entries {
            let item = |at| table.raw_get(at).map_err(|_| TooLarge);
            return (1..=entries)
                .map(|at| self.value(&item(at)?, depth + 1))
                .collect();
        }
        let mut fields = Map::new();
        for entry in table.pairs().map(pair) {
            let (key, field) = entry?;
            fields.insert(self.key(&key)?, self.value(&field, depth + 1)?);
        }
        Ok(Value::Object(fields))
    }

    fn key(&mut self, key: &LuaValue) -> Result<String, TooLarge> {
        match key {
            LuaValue::String(text) => self.text(&text.as_bytes()),
            other => {
                let text = match other {
                    LuaValue::Integer(number) => number.to_string(),
                    LuaValue::Number(number) => number.to_string(),
                    LuaValue::Boolean(flag) => flag.to_string(),
                    other => other.type_name().to_owned(),
                };
                self.spend(text.len())?;
                Ok(text)
            }
        }
    }

    fn text(&mut self, bytes: &[u8]) -> Result<String, TooLarge> {
        self.spend(bytes.len() + 2)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// A whole number without a point, as people and models write it.
fn number(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is whole and within 2^53, which was just asked"
        )]
        let whole = number as i64;
        Value::from(whole)
    } else {
        // Not a number and infinity are null.
        Value::from(number)
    }
}
