//! Who is let in.
//!
//! A browser asks whatever address a web page tells it to, and a name that its owner points at
//! 127.0.0.1 makes the page and this server the same site (DNS rebinding). The `Host` header
//! still carries that name: so it is always checked. Beyond loopback a bearer token is wanted. To
//! have something done (a function traced, a model's tokens spent) it is wanted on loopback too:
//! there to look is free to all users of the host, and to command is not. The agent leaves a token
//! for that in its state directory, which only root can read.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE},
        uri::Authority,
    },
    middleware::Next,
    response::Response,
};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;

use super::{CameInAt, Config, problem::problem};

/// A secret that a client shows. It is never written anywhere.
#[derive(Clone, Debug)]
pub struct Token(SecretString);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        why: io::Error,
    },
    /// There is no such variable.
    #[error("the environment variable {0}, which should hold the token, is not set")]
    Variable(String),
    /// It could not be sent as a header.
    #[error("the token in {0} is empty, or has other characters than visible ASCII")]
    NotVisible(String),
}

impl Token {
    /// The content of a file, without white space around it.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let text = fs::read_to_string(path).map_err(|why| TokenError::File {
            path: path.to_owned(),
            why,
        })?;
        Self::new(&text, &path.display().to_string())
    }

    /// The value of an environment variable, without white space around it.
    pub fn from_env(name: &str) -> Result<Self, TokenError> {
        let text = std::env::var(name).map_err(|_| TokenError::Variable(name.to_owned()))?;
        Self::new(&text, name)
    }

    fn new(text: &str, source: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::NotVisible(source.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// A fresh one, that nobody can guess; kept in `file`, for its owner's eyes only.
    pub fn make(file: &Path) -> io::Result<Self> {
        let mut random = [0_u8; 32];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let text = random.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        // Another's file would keep its mode.
        match fs::remove_file(file) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let mut kept = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        kept.write_all(text.as_bytes())?;
        Ok(Self(text.into()))
    }

    /// The secret itself, to be shown to a server.
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }

    /// Takes as long for a guess that is nearly right as for one that is not at all.
    fn is(&self, shown: &str) -> bool {
        self.reveal().as_bytes().ct_eq(shown.as_bytes()).into()
    }
}

/// Why somebody is not let in.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// No host, or two.
    NoHost,
    /// Called by a name that is not the agent's.
    Host(String),
    /// A page of another site asks.
    Origin(String),
    /// The token is missing or wrong.
    Token,
    /// Nobody is let in.
    Shut(String),
}

/// The rules.
#[derive(Debug)]
pub(super) struct Door {
    bound: SocketAddr,
    token: Option<Token>,
    command_token: Option<Token>,
    hosts: Vec<String>,
}

impl Door {
    pub(super) fn new(bound: SocketAddr, config: Config) -> Self {
        Self {
            bound,
            token: config.token,
            command_token: config.command_token,
            hosts: config.hosts,
        }
    }

    /// Why nobody can be let in.
    pub(super) fn shut(&self) -> Option<String> {
        let open = self.is_loopback() || self.token.is_some();
        (!open).then(|| {
            format!(
                "the agent listens on {} without a token, and so answers only /metrics, /healthz \
                 and /readyz; set token_file or token_env, or listen on 127.0.0.1",
                self.bound
            )
        })
    }

    fn is_loopback(&self) -> bool {
        self.bound.ip().to_canonical().is_loopback()
    }

    fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        at: IpAddr,
    ) -> Result<(), Refusal> {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Refusal::NoHost);
        };
        let called = host.to_str().unwrap_or_default();
        let authority = called.parse().ok();
        if !authority.is_some_and(|a| self.is_mine(&a, at)) {
            return Err(Refusal::Host(called.to_owned()));
        }
        // `GET http://other/api/v1/...` names a host too.
        if let Some(other) = uri.authority().filter(|a| !self.is_mine(a, at)) {
            return Err(Refusal::Host(other.to_string()));
        }
        if let Some(origin) = headers.get(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let uri = origin.parse::<Uri>().ok();
            let own = uri.as_ref().and_then(Uri::authority);
            if !own.is_some_and(|a| self.is_mine(a, at)) {
                return Err(Refusal::Origin(origin.to_owned()));
            }
        }
        if *method != Method::GET && *method != Method::HEAD {
            let shown = shown(headers);
            let is_shown = |token: &Token| shown.is_some_and(|shown| token.is(shown));
            let known = [&self.token, &self.command_token];
            let opens = known.into_iter().flatten().any(is_shown);
            return if opens { Ok(()) } else { Err(Refusal::Token) };
        }
        if self.is_loopback() {
            return Ok(());
        }
        match (&self.token, shown(headers)) {
            (None, _) => Err(Refusal::Shut(self.shut().unwrap_or_default())),
            (Some(token), Some(shown)) if token.is(shown) => Ok(()),
            (Some(_), _) => Err(Refusal::Token),
        }
    }

    /// The port is not looked at: one that is forwarded has another, and a name is what a foreign
    /// page cannot choose.
    fn is_mine(&self, authority: &Authority, at: IpAddr) -> bool {
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return ip.is_loopback()
                || ip == self.bound.ip().to_canonical()
                || ip == at.to_canonical()
                || self.is_named(bare);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        name.eq_ignore_ascii_case("localhost") || self.is_named(name)
    }

    fn is_named(&self, host: &str) -> bool {
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

/// The token of `Authorization: Bearer TOKEN`; the scheme's case does not matter.
fn shown(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

impl Refusal {
    fn answer(self) -> Response {
        match self {
            Self::NoHost => problem(
                StatusCode::BAD_REQUEST,
                "a request needs one Host header; send the address that you connect to",
            ),
            Self::Host(host) => problem(
                StatusCode::FORBIDDEN,
                format!(
                    "`{host}` is no name of this agent: ask it by its address, or add the name to \
                     allowed_host in its configuration"
                ),
            ),
            Self::Origin(origin) => problem(
                StatusCode::FORBIDDEN,
                format!("pages of `{origin}` may not ask this agent"),
            ),
            Self::Token => {
                let mut answer = problem(
                    StatusCode::UNAUTHORIZED,
                    "this agent wants its token: send `Authorization: Bearer TOKEN` (the lens \
                     command takes it from --token-file or LENS_TOKEN; on the agent's host root \
                     has one in the state directory, see --state-dir)",
                );
                let bearer = HeaderValue::from_static("Bearer");
                answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
                answer
            }
            Self::Shut(why) => problem(StatusCode::FORBIDDEN, why),
        }
    }
}

/// Lets the request in, or answers why not.
pub(super) async fn enter(
    State(door): State<Arc<Door>>,
    Extension(CameInAt(at)): Extension<CameInAt>,
    request: Request,
    next: Next,
) -> Response {
    match door.check(request.method(), request.uri(), request.headers(), at) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.answer(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(bound: &str, token: Option<&str>, hosts: &[&str]) -> Door {
        let config = Config {
            token: token.map(|t| Token::new(t, "a test").unwrap()),
            command_token: Some(Token::new("c0mmand", "a test").unwrap()),
            hosts: hosts.iter().map(|&h| h.to_owned()).collect(),
        };
        Door::new(bound.parse().unwrap(), config)
    }

    fn headers(pairs: &[(axum::http::HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter().cloned();
        pairs.map(|(n, v)| (n, v.parse().unwrap())).collect()
    }

    fn asks(door: &Door, host: &str, at: &str) -> Result<(), Refusal> {
        let uri = Uri::from_static("/api/v1/status");
        door.check(
            &Method::GET,
            &uri,
            &headers(&[(HOST, host)]),
            at.parse().unwrap(),
        )
    }

    #[test]
    fn on_loopback_the_agent_answers_to_its_own_names_only() {
        let door = door("127.0.0.1:9700", None, &["lens.internal", "10.1.2.3"]);
        for host in [
            "127.0.0.1:9700",
            "127.0.0.1",
            "127.9.9.9:1",
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "[::1]:9700",
            "[::ffff:127.0.0.1]",
            "Lens.internal:9700",
            "10.1.2.3",
        ] {
            assert_eq!(asks(&door, host, "127.0.0.1"), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9700",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "169.254.169.254",
            "[fe80::1]",
            "",
            "a b",
        ] {
            let wanted = Err(Refusal::Host(host.to_owned()));
            assert_eq!(asks(&door, host, "127.0.0.1"), wanted);
        }
    }

    #[test]
    fn bound_to_everything_it_answers_to_the_address_that_was_reached() {
        let door = door("0.0.0.0:9700", Some("s3cret"), &[]);
        assert_eq!(
            asks(&door, "10.0.0.7:9700", "10.0.0.7"),
            Err(Refusal::Token)
        );
        let other = asks(&door, "10.0.0.8:9700", "10.0.0.7");
        assert_eq!(other, Err(Refusal::Host("10.0.0.8:9700".to_owned())));
    }

    #[test]
    fn a_request_with_no_host_two_hosts_or_another_in_its_address_is_refused() {
        let door = door("127.0.0.1:9700", None, &[]);
        let at = "127.0.0.1".parse().unwrap();
        let uri = Uri::from_static("/api/v1/status");
        assert_eq!(
            door.check(&Method::GET, &uri, &HeaderMap::new(), at),
            Err(Refusal::NoHost)
        );
        let mut two = headers(&[(HOST, "localhost")]);
        two.append(HOST, HeaderValue::from_static("evil.example"));
        assert_eq!(
            door.check(&Method::GET, &uri, &two, at),
            Err(Refusal::NoHost)
        );
        let absolute = Uri::from_static("http://evil.example/api/v1/status");
        let refusal = door.check(
            &Method::GET,
            &absolute,
            &headers(&[(HOST, "localhost")]),
            at,
        );
        assert_eq!(refusal, Err(Refusal::Host("evil.example".to_owned())));
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let door = door("127.0.0.1:9700", None, &[]);
        let at = "127.0.0.1".parse().unwrap();
        let uri = Uri::from_static("/api/v1/status");
        let from = |origin| {
            door.check(
                &Method::GET,
                &uri,
                &headers(&[(HOST, "localhost"), (ORIGIN, origin)]),
                at,
            )
        };
        assert_eq!(from("http://localhost:9700"), Ok(()));
        for origin in [
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
        ] {
            assert_eq!(from(origin), Err(Refusal::Origin(origin.to_owned())));
        }
    }

    #[test]
    fn beyond_loopback_the_token_is_wanted() {
        let at: IpAddr = "10.0.0.7".parse().unwrap();
        let uri = Uri::from_static("/api/v1/status");
        let shows = |door: &Door, authorization: Option<&str>| {
            let mut headers = headers(&[(HOST, "10.0.0.7:9700")]);
            headers.extend(authorization.map(|a| (AUTHORIZATION, a.parse().unwrap())));
            door.check(&Method::GET, &uri, &headers, at)
        };
        let guarded = door("10.0.0.7:9700", Some("s3cret"), &[]);
        assert_eq!(shows(&guarded, Some("Bearer s3cret")), Ok(()));
        assert_eq!(shows(&guarded, Some("bearer  s3cret")), Ok(()));
        for wrong in [
            None,
            Some("Bearer s3cre"),
            Some("Bearer"),
            Some("s3cret"),
            Some("Basic s3cret"),
        ] {
            assert_eq!(shows(&guarded, wrong), Err(Refusal::Token), "{wrong:?}");
        }
        assert!(guarded.shut().is_none());
        let shut = door("10.0.0.7:9700", None, &[]);
        assert!(matches!(
            shows(&shut, Some("Bearer ")),
            Err(Refusal::Shut(_))
        ));
        assert!(shut.shut().unwrap().contains("token_file"));
    }

    #[test]
    fn on_loopback_a_token_is_wanted_for_commands() {
        let at = "127.0.0.1".parse().unwrap();
        let uri = Uri::from_static("/api/v1/trace");
        let asks = |door: &Door, method, authorization: Option<&str>| {
            let mut headers = headers(&[(HOST, "localhost")]);
            headers.extend(authorization.map(|a| (AUTHORIZATION, a.parse().unwrap())));
            door.check(&method, &uri, &headers, at)
        };
        let open = door("127.0.0.1:9700", None, &[]);
        assert_eq!(asks(&open, Method::GET, None), Ok(()));
        assert_eq!(asks(&open, Method::POST, None), Err(Refusal::Token));
        assert_eq!(asks(&open, Method::POST, Some("Bearer c0mmand")), Ok(()));
        let guarded = door("127.0.0.1:9700", Some("s3cret"), &[]);
        assert_eq!(asks(&guarded, Method::GET, None), Ok(()));
        assert_eq!(asks(&guarded, Method::POST, None), Err(Refusal::Token));
        assert_eq!(asks(&guarded, Method::POST, Some("Bearer s3cret")), Ok(()));
    }

    #[test]
    fn a_token_is_not_shown_and_not_empty() {
        let token = Token::new(" s3cret\n", "x").unwrap();
        assert_eq!(token.reveal(), "s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
        for bad in ["", " \n", "two words", "tab\there", "é"] {
            assert!(
                Token::new(bad, "the file")
                    .unwrap_err()
                    .to_string()
                    .contains("the file")
            );
        }
        let missing = Token::from_file(Path::new("/no/such/token")).unwrap_err();
        assert!(missing.to_string().contains("/no/such/token"));
    }
}
