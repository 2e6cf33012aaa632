//! Who gets an answer over HTTP.

use lens_agent::outputs::http::{Config, Token};
use lens_tests::{
    commands::{command, said},
    http::{Answer, ask, get},
    served::Served,
};

/// A server on every address that wants the token `s3cret`.
fn guarded() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    let config = Config {
        token: Some(Token::from_file(&path).unwrap()),
        hosts: vec!["lens.internal".to_owned()],
        ..Config::default()
    };
    Served::to_everybody(config).unwrap()
}

fn error(answer: &Answer) -> String {
    answer.json().unwrap()["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_name_that_somebody_points_at_loopback_gets_nothing_of_the_host() {
    let served = Served::new().unwrap();
    let from = |host: &str| get(served.addr, "/api/v1/incidents", &[("Host", host)]).unwrap();
    let rebound = from("evil.example:9700");
    assert_eq!(rebound.status, 403, "{rebound:?}");
    assert!(
        error(&rebound).contains("`evil.example:9700`"),
        "{rebound:?}"
    );
    assert!(error(&rebound).contains("allowed_host"), "{rebound:?}");
    for own in ["localhost", "127.0.0.1:9700", "[::1]:9700"] {
        assert_eq!(from(own).status, 200, "{own}");
    }
    assert_eq!(
        get(served.addr, "/api/v1/incidents", &[]).unwrap().status,
        400
    );
}

#[test]
fn beyond_loopback_only_the_token_opens_the_api() {
    let served = guarded();
    let host = ("Host", "lens.internal:9700");
    let shows = |token: &[(&str, &str)]| {
        get(served.addr, "/api/v1/incidents", &[&[host], token].concat()).unwrap()
    };
    for wrong in [&[][..], &[("Authorization", "Bearer guess")]] {
        let answer = shows(wrong);
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(
            answer.headers.contains("www-authenticate: bearer"),
            "{answer:?}"
        );
        assert!(error(&answer).contains("--token-file"), "{answer:?}");
    }
    assert_eq!(shows(&[("Authorization", "Bearer s3cret")]).status, 200);
    let rebound = [("Host", "evil.example"), ("Authorization", "Bearer s3cret")];
    assert_eq!(
        get(served.addr, "/api/v1/incidents", &rebound)
            .unwrap()
            .status,
        403
    );
}

#[test]
fn beyond_loopback_without_a_token_only_metrics_and_health_answer() {
    let served = Served::to_everybody(Config::default()).unwrap();
    served.fill();
    let shut = ask(served.addr, "/api/v1/incidents").unwrap();
    assert_eq!(shut.status, 403, "{shut:?}");
    assert!(error(&shut).contains("token_file"), "{shut:?}");
    for open in ["/metrics", "/healthz", "/readyz"] {
        let answer = get(served.addr, open, &[("Host", "10.42.0.7:9700")]).unwrap();
        assert_eq!(answer.status, 200, "{open}: {answer:?}");
    }
}

#[test]
fn the_command_shows_the_token_it_was_given() {
    let served = guarded();
    let url = served.url();
    let refused = said(&["incidents", "--url", &url]).unwrap();
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(
        refused.err.contains("401") && refused.err.contains("LENS_TOKEN"),
        "{refused:?}"
    );
    let mut asked = command(&["incidents", "--url", &url]).unwrap();
    let output = asked.env("LENS_TOKEN", "s3cret").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    let path = path.to_str().unwrap();
    let shown = said(&["incidents", "--url", &url, "--token-file", path]).unwrap();
    assert_eq!(shown.code, Some(0), "{shown:?}");
}
