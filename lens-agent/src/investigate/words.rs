//! A model's own words may say only what claims that hold say: every number and every cgroup in
//! them must occur there.

use super::claim::Claim;
use crate::base::snapshot::By;

/// A number may be rounded: this much off is the same.
const ROUNDED: f64 = 0.06;

/// Whether every number and every path in `text` occurs in `claims`.
pub(super) fn are_borne_out(text: &str, claims: &[Claim]) -> bool {
    let claimed: Vec<f64> = claims.iter().flat_map(numbers_of).collect();
    let names: Vec<String> = claims.iter().flat_map(names_of).collect();
    let paths_are_known = paths(text).all(|path| names.iter().any(|n| n == path));
    let bare = without_names(text, &names);
    paths_are_known
        && numbers(&bare)
            .iter()
            .all(|n| claimed.iter().any(|c| is_same(*n, *c)))
}

fn numbers_of(claim: &Claim) -> Vec<f64> {
    let mut found = numbers(&claim.text);
    for evidence in &claim.evidence {
        found.extend([evidence.seen, evidence.value]);
    }
    found
}

fn names_of(claim: &Claim) -> Vec<String> {
    let mut names = Vec::new();
    for evidence in &claim.evidence {
        names.push(evidence.scope.to_string());
        if let Some(By::Cgroup(path)) = &evidence.by {
            names.push(path.to_string());
        }
    }
    names
}

/// Digits in a cgroup's name are no number.
fn without_names(text: &str, names: &[String]) -> String {
    let mut names: Vec<&String> = names.iter().filter(|n| n.len() > 1).collect();
    names.sort_by_key(|n| std::cmp::Reverse(n.len()));
    names.into_iter().fold(text.to_owned(), |text, name| {
        text.replace(name.as_str(), " ")
    })
}

/// Numbers in `text`; thousands may be separated by commas.
fn numbers(text: &str) -> Vec<f64> {
    let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
    text.split(|c| !is_part(c))
        .filter(|word| word.bytes().any(|b| b.is_ascii_digit()))
        .filter_map(|word| word.trim_matches(['.', ',']).replace(',', "").parse().ok())
        .collect()
}

/// Words that are a path.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
        .map(|word| {
            word.trim_matches(|c: char| {
                matches!(c, '.' | ',' | ';' | ':' | '(' | ')' | '"' | '`' | '\'')
            })
        })
        .filter(|word| word.len() > 1 && word.starts_with('/'))
}

/// The same number, rounded, or in the larger unit: seconds for milliseconds, MiB for bytes.
fn is_same(said: f64, claimed: f64) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= ROUNDED * b.abs();
    [1.0, 1e3, 1_048_576.0]
        .iter()
        .any(|unit| near(said, claimed / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{scope::Scope, snapshot::SnapshotId},
        investigate::claim::{Evidence, Kind, Relation},
    };

    fn claims() -> Vec<Claim> {
        let scope = Scope::cgroup("/shop/cart-7f3a");
        let evidence = Evidence {
            snapshot: SnapshotId::new(1, "scheduler", &scope),
            scope,
            metric: "runq_wait_ms_per_sec".to_owned(),
            by: Some("/batch".into()),
            relation: Relation::More,
            value: 9.0,
            seen: 412.3,
            holds: true,
        };
        let text = "/shop/cart-7f3a waited 412 ms/s (usual: under 9); 71 % of it behind /batch.";
        vec![Claim {
            kind: Kind::Pair,
            text: text.to_owned(),
            evidence: vec![evidence],
        }]
    }

    #[test]
    fn only_claimed_numbers_and_names_pass() {
        let check = |text: &str| are_borne_out(text, &claims());
        assert!(check(
            "/shop/cart-7f3a waits 412 ms/s because /batch holds the CPU."
        ));
        assert!(check(
            "/shop/cart-7f3a waits 0.41 s each second, 71% of it behind /batch."
        ));
        assert!(
            !check("/shop/cart-7f3a waits 900 ms/s because of /batch."),
            "a number"
        );
        assert!(
            !check("/shop/cart-7f3a waits because of /innocent."),
            "a name"
        );
        assert!(check("It waits for a CPU."), "nothing to bear out");
    }
}
