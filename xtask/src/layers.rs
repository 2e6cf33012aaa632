//! Imports in lens-agent go one way.
//!
//! A module imports only from rows above its own in [`LAYERS`]; modules on one row don't import
//! each other; test modules are no exception. Without a machine that looks, the arrows between
//! the modules of one crate drift, and in the end all of them sit in one cycle.

use std::{fs, path::Path, str::FromStr as _};

use anyhow::{Context as _, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The top-level modules of lens-agent, what everything stands on first.
const LAYERS: &[&[&str]] = &[
    &["base"],
    &["telemetry"],
    &["supervise", "store", "history", "host", "llm", "sandbox"],
    &["probes"],
    &["skills"],
    &["anomaly"],
    &["investigate"],
    &["api"],
    &["outputs"],
    &["config"],
    &["agent"],
    &["cli"],
];

/// The crate's own name, by which main.rs calls it.
const OWN_CRATE: &str = "lens_agent";

fn row(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// What is wrong with the imports of a crate, given the folder of its sources.
pub(crate) fn check(sources: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(sources, "", &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let text = fs::read_to_string(sources.join(file)).with_context(|| file.clone())?;
        found.extend(check_file(file, &text));
    }
    Ok(found)
}

/// Adds the Rust files of a folder and of those in it, named from the folder of the sources.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), files)?;
        } else if entry.path().extension().is_some_and(|end| end == "rs") {
            files.push(name);
        }
    }
    Ok(())
}

fn check_file(file: &str, text: &str) -> Vec<String> {
    // main.rs is another crate, which sees only what lib.rs shows.
    if file == "main.rs" {
        return Vec::new();
    }
    let mut walk = Walk {
        file,
        found: Vec::new(),
    };
    let module = module_of(file);
    if let Some(top) = module.first() {
        walk.declared(top, 1);
    }
    match TokenStream::from_str(text) {
        Ok(tokens) => walk.tokens(tokens, &module),
        Err(why) => walk.report(why.span().start().line, "is no Rust"),
    }
    walk.found
}

/// `skills/cpu.rs` and `skills/cpu/mod.rs` are `[skills, cpu]`, lib.rs is `[]`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" {
        Vec::new()
    } else {
        path.split('/').map(str::to_owned).collect()
    }
}

/// Goes over the tokens of one file. Tokens have no comments, and a string is one of them.
struct Walk<'a> {
    file: &'a str,
    found: Vec<String>,
}

impl Walk<'_> {
    fn report(&mut self, line: usize, what: &str) {
        self.found.push(format!("{}:{line}: {what}", self.file));
    }

    fn declared(&mut self, top: &str, line: usize) {
        if row(top).is_none() {
            self.report(
                line,
                &format!("`{top}` has no row in LAYERS (xtask/src/layers.rs)"),
            );
        }
    }

    /// Finds modules and paths in tokens that stand in `module`.
    fn tokens(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream(), module),
                TokenTree::Ident(word) if word == "mod" => {
                    if let Some(TokenTree::Ident(name)) = tokens.get(at + 1) {
                        at += 1;
                        let name = name.to_string();
                        if module.is_empty() {
                            self.declared(&name, word.span().start().line);
                        }
                        if let Some(TokenTree::Group(body)) = tokens.get(at + 1) {
                            at += 1;
                            self.tokens(body.stream(), &[module, &[name]].concat());
                        }
                    }
                }
                TokenTree::Ident(word) if !ends_with_colons(&tokens[..at]) => {
                    let from = match word.to_string().as_str() {
                        "crate" | OWN_CRATE => Some(&module[..0]),
                        "self" => Some(module),
                        "super" => Some(parent(module)),
                        _ => None,
                    };
                    if let Some(from) = from {
                        self.path(&tokens[at + 1..], from, module);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Follows a path that has come to the module `at`; what comes next begins with `::`, if it
    /// goes on.
    fn path(&mut self, rest: &[TokenTree], at: &[String], module: &[String]) {
        let Some(next) = after_colons(rest) else {
            if let Some(TokenTree::Ident(word)) = rest.first()
                && word == "as"
                && at.is_empty()
            {
                self.report(word.span().start().line, ROOT_RENAMED);
            }
            return;
        };
        self.segment(next, at, module);
    }

    /// Follows a path from its next segment, in the module `at`.
    fn segment(&mut self, rest: &[TokenTree], at: &[String], module: &[String]) {
        match rest.first() {
            Some(TokenTree::Ident(word)) if word == "super" => {
                self.path(&rest[1..], parent(at), module);
            }
            Some(TokenTree::Ident(word)) if word == "self" => self.path(&rest[1..], at, module),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let branches: Vec<_> = group.stream().into_iter().collect();
                for branch in branches.split(|token| is_punct(token, ',')) {
                    self.segment(branch, at, module);
                }
            }
            Some(TokenTree::Ident(word)) if at.is_empty() => {
                self.import(&word.to_string(), word.span().start().line, module);
            }
            Some(star) if at.is_empty() && is_punct(star, '*') => {
                self.report(
                    star.span().start().line,
                    "names everything in the crate's root",
                );
            }
            _ => {}
        }
    }

    /// `module` uses something of the top-level module `to`.
    fn import(&mut self, to: &str, line: usize, module: &[String]) {
        let Some(own) = module.first() else { return };
        let Some(here) = row(own) else { return };
        match row(to) {
            _ if own == to => {}
            Some(there) if there < here => {}
            Some(there) if there == here => self.report(
                line,
                &format!("`{own}` may not import `{to}`: they share a row of LAYERS"),
            ),
            Some(_) => self.report(
                line,
                &format!("`{own}` may not import `{to}`: its row comes later in LAYERS"),
            ),
            None => self.report(
                line,
                &format!("`{to}` of the crate's root is no module of LAYERS"),
            ),
        }
    }
}

const ROOT_RENAMED: &str = "gives the crate's root a name, which hides what is imported by it";

fn parent(module: &[String]) -> &[String] {
    module.split_last().map_or(module, |(_, parent)| parent)
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// What follows the `::` that the tokens begin with.
fn after_colons(tokens: &[TokenTree]) -> Option<&[TokenTree]> {
    match tokens {
        [one, two, rest @ ..] if is_punct(one, ':') && is_punct(two, ':') => Some(rest),
        _ => None,
    }
}

fn ends_with_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [.., one, two] if is_punct(one, ':') && is_punct(two, ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(file: &str, text: &str) {
        assert_eq!(check_file(file, text), Vec::<String>::new(), "{text}");
    }

    /// Each of `wanted` is what one complaint says of the file, in order.
    fn refused(file: &str, text: &str, wanted: &[&str]) {
        let found = check_file(file, text);
        let seen: Vec<_> = found.iter().map(|line| &line[file.len() + 1..]).collect();
        assert_eq!(seen.len(), wanted.len(), "{text}: {found:?}");
        for (seen, wanted) in seen.iter().zip(wanted) {
            assert!(
                seen.starts_with(wanted),
                "{text}: {seen} instead of {wanted}"
            );
        }
    }

    #[test]
    fn a_row_is_named_once() {
        let mut names = LAYERS.concat();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LAYERS.concat().len());
    }

    #[test]
    fn imports_from_rows_above_are_fine() {
        accepted(
            "skills/cpu.rs",
            "use crate::{base::Clock, probes::{Probe, self}};",
        );
        accepted(
            "cli/mod.rs",
            "fn main() { crate::agent::run(); lens_agent::base::f() }",
        );
        accepted(
            "skills/cpu.rs",
            "use super::{view::View, super::base}; use crate::skills::x;",
        );
        accepted("main.rs", "use lens_agent::cli; use lens_agent::agent;");
        accepted(
            "lib.rs",
            "pub mod base; pub mod cli; pub use crate::cli::main;",
        );
    }

    #[test]
    fn an_import_from_below_is_refused() {
        for text in [
            "use crate::agent::Agent;",
            "use crate :: agent;",
            "fn f() { crate::agent::run() }",
            "use {crate::agent};",
            "use crate::{agent};",
            "use crate::{base, agent::{x, y}};",
            "type X = Vec<crate::agent::Y>;",
            "use lens_agent::agent;",
            "use super::super::agent;",
            "use super::{super::agent::X, view};",
            "use self::super::super::agent;",
            "macro_rules! m { () => { $crate::agent::x() } }",
            "println!(\"{}\", crate::agent::x());",
            "pub(in crate::skills) fn f(x: crate::agent::Y) {}",
        ] {
            refused(
                "skills/cpu.rs",
                text,
                &["1: `skills` may not import `agent`: its row comes later"],
            );
        }
    }

    #[test]
    fn modules_of_one_row_do_not_import_each_other() {
        refused(
            "store/mod.rs",
            "\nuse crate::history::Ring;",
            &["2: `store` may not import `history`: they share a row"],
        );
    }

    #[test]
    fn test_modules_are_no_exception_and_have_their_depth() {
        let test = |uses: &str| format!("#[cfg(test)] mod tests {{\n use {uses}; }}");
        accepted("base/ring.rs", &test("super::*"));
        accepted("base/mod.rs", &test("super::{ring, super::base}"));
        refused(
            "base/mod.rs",
            &test("super::super::cli"),
            &["2: `base` may not import `cli`"],
        );
        refused(
            "base/ring.rs",
            &test("crate::cli"),
            &["2: `base` may not import `cli`"],
        );
        refused(
            "lib.rs",
            "mod base { use crate::cli; }",
            &["1: `base` may not import `cli`"],
        );
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        accepted(
            "base/mod.rs",
            "//! [`crate::cli`]\n/* use crate::cli; */ /// crate::cli\nfn f() {}",
        );
        accepted(
            "base/mod.rs",
            "const X: &str = \"use crate::cli;\"; const Y: &str = r#\"crate::cli\"#;",
        );
        accepted(
            "base/mod.rs",
            "pub(crate) fn f<'a>(self: &'a X) -> char { '\"' }",
        );
    }

    #[test]
    fn the_root_is_not_a_way_around() {
        refused("base/mod.rs", "use super::*;", &["1: names everything"]);
        refused(
            "base/mod.rs",
            "use crate::{*, base};",
            &["1: names everything"],
        );
        refused(
            "base/mod.rs",
            "use crate as lens;",
            &["1: gives the crate's root a name"],
        );
        refused(
            "base/mod.rs",
            "use crate::{self as lens};",
            &["1: gives the crate's root a name"],
        );
        refused(
            "base/mod.rs",
            "use crate::Everything;",
            &["1: `Everything` of the crate's root"],
        );
    }

    #[test]
    fn a_top_level_module_without_a_row_is_refused() {
        refused("util.rs", "", &["1: `util` has no row"]);
        refused(
            "util/strings.rs",
            "use crate::cli;",
            &["1: `util` has no row"],
        );
        refused(
            "lib.rs",
            "pub mod base;\nmod util;",
            &["2: `util` has no row"],
        );
    }

    #[test]
    fn a_tree_is_checked_file_by_file() {
        let sources = tempfile::tempdir().unwrap();
        fs::create_dir_all(sources.path().join("skills/deep")).unwrap();
        for (file, text) in [
            ("lib.rs", "pub mod skills;"),
            ("main.rs", "fn main() { lens_agent::cli::main() }"),
            ("skills/mod.rs", "use super::base;"),
            ("skills/deep/mod.rs", "use super::super::config;"),
            ("skills/deep/rates.rs", "use super::super::super::api;"),
            ("skills/prompt.md", "use crate::cli;"),
        ] {
            fs::write(sources.path().join(file), text).unwrap();
        }
        let found = check(sources.path()).unwrap();
        let table = "its row comes later in LAYERS";
        assert_eq!(
            found,
            [
                format!("skills/deep/mod.rs:1: `skills` may not import `config`: {table}"),
                format!("skills/deep/rates.rs:1: `skills` may not import `api`: {table}"),
            ]
        );
    }
}
