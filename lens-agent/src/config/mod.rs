//! Settings: flags over environment over file over defaults.
//!
//! Each is a flag, a `LENS_*` variable and a key of the file under the same name. A key that
//! nothing knows is an error, never ignored.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::{
    anomaly,
    investigate::Strategy,
    llm::{self, ProviderConfig, budget::Limits},
    outputs::http::{self, Token, TokenError},
    probes,
};

/// The file that is read when none is named; it need not exist.
pub const FILE: &str = "/etc/lens/lens.toml";
/// Where the agent remembers when nothing else is said.
pub const STATE_DIR: &str = "/var/lib/lens";
/// The file in it that holds the token for commands.
pub const TOKEN_FILE: &str = "token";

/// A span of time as people write it: `5s`, `10m`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// Not a span of time.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no span of time; say for example `5s`, `10m` or `1h30m`")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span: Option<SignedDuration> = text.parse().ok();
        let span = span
            .and_then(|s| Duration::try_from(s).ok())
            .filter(|s| !s.is_zero());
        span.map(Self).ok_or_else(|| SpanError(text.to_owned()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SignedDuration::try_from(self.0) {
            Ok(span) => write!(f, "{span:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Cgroups to watch, as patterns of whole paths: `*` within a segment, `**` across. All if
    /// none is given.
    #[arg(long, value_name = "GLOB", num_args = 1.., env = "LENS_CGROUP", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroup: Vec<String>,
    /// Address to listen on [default: 127.0.0.1:9700]
    #[arg(long, value_name = "ADDR", env = "LENS_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Time between two readings [default: 5s]
    #[arg(long, value_name = "SPAN", env = "LENS_INTERVAL")]
    pub interval: Option<Span>,
    /// Time until a series trusts its own baseline [default: 10m]
    #[arg(long, value_name = "SPAN", env = "LENS_LEARN")]
    pub learn: Option<Span>,
    /// How investigations run [default: auto]
    #[arg(long, env = "LENS_STRATEGY")]
    pub strategy: Option<Strategy>,
    /// Directory for what is remembered [default: /var/lib/lens]
    #[arg(long, value_name = "DIR", env = "LENS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Probes to run, all if none is given
    #[arg(long, value_name = "NAME", num_args = 1.., env = "LENS_PROBE", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe: Vec<String>,
    /// Probes not to run
    #[arg(long, value_name = "NAME", num_args = 1.., env = "LENS_NO_PROBE", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_probe: Vec<String>,
    /// File that holds the token which clients must show where the address is not the host's own
    #[arg(long, value_name = "FILE", env = "LENS_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Environment variable that holds it
    #[arg(long, value_name = "NAME", env = "LENS_TOKEN_ENV")]
    pub token_env: Option<String>,
    /// Names by which clients may call the agent, besides its address and `localhost`
    #[arg(long, value_name = "HOST", num_args = 1.., env = "LENS_ALLOWED_HOST", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_host: Vec<String>,
    /// Measure how long one system call in so many takes, 0 for none [default: 8]
    #[arg(long, value_name = "N", env = "LENS_SYSCALLS_TIME_ONE_IN")]
    pub syscalls_time_one_in: Option<u32>,
    /// Take a user stack of one page fault in so many, 0 for none [default: 0]
    #[arg(long, value_name = "N", env = "LENS_FAULT_STACK_ONE_IN")]
    pub fault_stack_one_in: Option<u32>,
    /// CPU time that the kernel programs may take, as a percentage of the whole host's [default: 1]
    #[arg(long, value_name = "PERCENT", env = "LENS_CPU_BUDGET_PERCENT")]
    pub cpu_budget_percent: Option<f64>,
    /// Log what the kernel programs say of themselves; nothing if it is not given
    #[arg(long, value_name = "LEVEL", env = "LENS_PROBE_LOG")]
    pub probe_log: Option<probes::LogLevel>,
    /// Who serves models; only in the file.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provider: Vec<ProviderConfig>,
    /// What investigations with a model may take; only in the file.
    #[arg(skip)]
    pub budget: Option<Limits>,
}

/// Settings that do not make sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        why: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        why: String,
    },
    /// A probe of that name does not exist.
    #[error("there is no probe `{name}`; there are: {known}")]
    NoSuchProbe {
        /// The name.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A pattern.
    #[error(transparent)]
    Glob(#[from] probes::GlobError),
    /// A provider.
    #[error(transparent)]
    Provider(#[from] llm::ConfigError),
    /// The strategy wants a model, and there is none.
    #[error("strategy agent-loop needs a [[provider]] in the configuration file")]
    NoProvider,
    /// Readings too close to one another, or too far apart.
    #[error("an interval of {0} is out of range: from 200ms to 5m")]
    Interval(Span),
    /// No part of a host's CPU time.
    #[error("a CPU budget of {0} % is out of range: from 0.01 to 100, of the whole host")]
    CpuBudget(f64),
    /// Where the token should be, there is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Two places for one token.
    #[error("token_file and token_env both name a token; keep one of them")]
    TwoTokens,
}

const LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9700));
const EVERY: Span = Span(Duration::from_secs(5));
/// Readings closer than this cost more than they tell; further apart, incidents are missed.
const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_mins(5);

/// CPU budgets that make sense, as a percentage.
const BUDGET: std::ops::RangeInclusive<f64> = 0.01..=100.0;

impl Settings {
    /// Reads `path`; without one, [`FILE`] if it exists.
    pub fn from_file(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.is_some();
        let path = path.unwrap_or(Path::new(FILE));
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(why) if !named && why.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(why) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    why,
                });
            }
        };
        // Only the message: neighbouring lines of a file may hold a secret.
        let wrong = |why: &toml::de::Error| {
            let line = why
                .span()
                .map_or(1, |s| text[..s.start].matches('\n').count() + 1);
            let why = format!("line {line}: {}", why.message());
            ConfigError::File {
                path: path.to_owned(),
                why,
            }
        };
        toml::from_str(&text).map_err(|why| wrong(&why))
    }

    /// These, and where they say nothing, those of `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        let list = |mine: Vec<String>, theirs| if mine.is_empty() { theirs } else { mine };
        // Two ways to say one thing: a flag goes over either key of the file.
        let (token_file, token_env) = if self.token_file.is_some() || self.token_env.is_some() {
            (self.token_file, self.token_env)
        } else {
            (below.token_file, below.token_env)
        };
        Self {
            cgroup: list(self.cgroup, below.cgroup),
            listen: self.listen.or(below.listen),
            interval: self.interval.or(below.interval),
            learn: self.learn.or(below.learn),
            strategy: self.strategy.or(below.strategy),
            state_dir: self.state_dir.or(below.state_dir),
            probe: list(self.probe, below.probe),
            no_probe: list(self.no_probe, below.no_probe),
            token_file,
            token_env,
            allowed_host: list(self.allowed_host, below.allowed_host),
            syscalls_time_one_in: self.syscalls_time_one_in.or(below.syscalls_time_one_in),
            fault_stack_one_in: self.fault_stack_one_in.or(below.fault_stack_one_in),
            cpu_budget_percent: self.cpu_budget_percent.or(below.cpu_budget_percent),
            probe_log: self.probe_log.or(below.probe_log),
            provider: if self.provider.is_empty() {
                below.provider
            } else {
                self.provider
            },
            budget: self.budget.or(below.budget),
        }
    }

    /// These, and the defaults where they say nothing.
    #[must_use]
    pub fn complete(self) -> Self {
        let probes::Config {
            syscalls, memory, ..
        } = probes::Config::default();
        self.over(Self {
            listen: Some(LISTEN),
            interval: Some(EVERY),
            learn: Some(Span(anomaly::Config::default().learn)),
            strategy: Some(Strategy::default()),
            state_dir: Some(PathBuf::from(STATE_DIR)),
            syscalls_time_one_in: Some(syscalls.time_one_in),
            fault_stack_one_in: Some(memory.fault_stack_one_in),
            cpu_budget_percent: Some(probes::CPU_BUDGET_PERCENT),
            budget: Some(Limits::default()),
            ..Self::default()
        })
    }

    /// With every default filled in, and checked.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let known: Vec<&str> = probes::REGISTRY.iter().map(|d| d.name).collect();
        for name in self.probe.iter().chain(&self.no_probe) {
            if !known.contains(&name.as_str()) {
                return Err(ConfigError::NoSuchProbe {
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
        }
        let interval = self.interval.unwrap_or(EVERY);
        if !INTERVAL.contains(&interval.0) {
            return Err(ConfigError::Interval(interval));
        }
        if let Some(percent) = self.cpu_budget_percent
            && !BUDGET.contains(&percent)
        {
            return Err(ConfigError::CpuBudget(percent));
        }
        let token = match (&self.token_file, &self.token_env) {
            (None, None) => None,
            (Some(file), None) => Some(Token::from_file(file)?),
            (None, Some(name)) => Some(Token::from_env(name)?),
            (Some(_), Some(_)) => return Err(ConfigError::TwoTokens),
        };
        llm::config::check_all(&self.provider)?;
        let strategy = self.strategy.unwrap_or_default();
        if strategy == Strategy::AgentLoop && self.provider.is_empty() {
            return Err(ConfigError::NoProvider);
        }
        let mut probes = probes::Config {
            globs: probes::Globs::new(&self.cgroup)?,
            only: self.probe,
            without: self.no_probe,
            log: self.probe_log,
            cpu_budget_percent: self.cpu_budget_percent.or(Some(probes::CPU_BUDGET_PERCENT)),
            ..probes::Config::default()
        };
        if let Some(time_one_in) = self.syscalls_time_one_in {
            probes.syscalls.time_one_in = time_one_in;
        }
        if let Some(one_in) = self.fault_stack_one_in {
            probes.memory.fault_stack_one_in = one_in;
        }
        let mut anomaly = anomaly::Config::default();
        if let Some(learn) = self.learn {
            anomaly.learn = learn.0;
        }
        Ok(Config {
            probes,
            anomaly,
            http: http::Config {
                token,
                command_token: None,
                hosts: self.allowed_host,
            },
            interval: interval.0,
            listen: self.listen.unwrap_or(LISTEN),
            strategy,
            state_dir: self.state_dir.unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            providers: self.provider,
            budget: self.budget.unwrap_or_default(),
        })
    }
}

/// All settings, with nothing left open.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which probes, for whom.
    pub probes: probes::Config,
    /// When a series trusts itself.
    pub anomaly: anomaly::Config,
    /// Who may ask.
    pub http: http::Config,
    /// Time between two readings.
    pub interval: Duration,
    /// Where to listen.
    pub listen: SocketAddr,
    /// How investigations run.
    pub strategy: Strategy,
    /// Where to remember.
    pub state_dir: PathBuf,
    /// Who serves models.
    pub providers: Vec<ProviderConfig>,
    /// What investigations with a model may take.
    pub budget: Limits,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lens.toml");
        fs::write(&path, text).unwrap();
        Settings::from_file(Some(&path))
    }

    #[test]
    fn flags_go_over_the_file() {
        let below = file("interval = \"2s\"\nlearn = \"1m\"\ncgroup = [\"/a\"]\n").unwrap();
        let flags = Settings {
            interval: Some("10s".parse().unwrap()),
            ..Settings::default()
        };
        let config = flags.over(below).resolve().unwrap();
        assert_eq!(config.interval, Duration::from_secs(10));
        assert_eq!(config.anomaly.learn, Duration::from_mins(1));
        assert!(config.probes.globs.matches("/a") && !config.probes.globs.matches("/b"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it_and_its_line() {
        let error = file("interval = \"5s\"\nintervall = \"5s\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 2") && error.contains("intervall"),
            "{error}"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        let error = |settings: Settings| settings.resolve().unwrap_err().to_string();
        let probe = error(Settings {
            probe: vec!["shed".to_owned()],
            ..Settings::default()
        });
        assert!(
            probe.contains("`shed`") && probe.contains("sched"),
            "{probe}"
        );
        let interval = error(Settings {
            interval: "1ms".parse().ok(),
            ..Settings::default()
        });
        assert!(interval.contains("200ms"), "{interval}");
        assert!(
            "5 parsecs"
                .parse::<Span>()
                .unwrap_err()
                .to_string()
                .contains("`10m`")
        );
        assert!("0s".parse::<Span>().is_err());
    }

    #[test]
    fn a_token_comes_from_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s3cret\n").unwrap();
        let from_file = || Settings {
            token_file: Some(path.clone()),
            ..Settings::default()
        };
        let below = || file("token_env = \"NO_SUCH_VARIABLE\"\n").unwrap();
        let token = |settings: Settings| settings.resolve().map(|c| c.http.token.unwrap());
        assert_eq!(token(from_file().over(below())).unwrap().reveal(), "s3cret");
        let missing = token(below()).unwrap_err().to_string();
        assert!(missing.contains("NO_SUCH_VARIABLE"), "{missing}");
        let both = Settings {
            token_env: Some("HOME".to_owned()),
            ..from_file()
        };
        assert!(matches!(token(both), Err(ConfigError::TwoTokens)));
    }

    #[test]
    fn no_file_is_no_error_unless_it_was_named() {
        assert!(Settings::from_file(Some(Path::new("/no/such/lens.toml"))).is_err());
    }
}
