//! Real programs, each in a cgroup of its own: the CPU time that an operation takes them, whoever
//! watches. What watching costs in their name is in there; what an observer does itself is not.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::{cgroup::Cgroup, until};
use serde_json::Value;

use crate::{
    table::Series,
    watching::Observer::{self, EmptyOf, Lens, Nothing},
};

/// How long a server may take to answer.
const READY: Duration = Duration::from_secs(20);
/// How long the load goes on under a governor before it is measured: it has settled by then.
const SETTLED: Duration = Duration::from_secs(45);
const OBSERVERS: &[(&str, Observer, Duration)] = &[
    ("nothing", Nothing, Duration::ZERO),
    ("empty, all hooks of lens", EmptyOf(&[]), Duration::ZERO),
    (
        "lens, nothing reduced",
        Lens(&["--cpu-budget-percent", "100"]),
        Duration::ZERO,
    ),
    ("lens", Lens(&[]), SETTLED),
];

/// A mix at work: servers that run, and what is asked of them.
struct Mix {
    name: &'static str,
    cgroup: Cgroup,
    servers: Vec<Server>,
    dir: PathBuf,
    /// Does some operations, and says how many.
    work: fn(&Mix) -> Result<f64>,
    /// Where its server listens.
    port: u16,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // Our own child; SIGINT is the quick and clean end of all of them.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Mix {
    fn new(name: &'static str, dir: &Path, work: fn(&Self) -> Result<f64>) -> Result<Self> {
        // Configurations name it, and want no spaces.
        let dir = dir.join(name.replace(' ', "-"));
        fs::create_dir(&dir)?;
        Ok(Self {
            name,
            cgroup: Cgroup::new(name)?,
            servers: Vec::new(),
            dir,
            work,
            port: free_port()?,
        })
    }

    fn serve(&mut self, program: &str, arguments: &[String]) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = self.cgroup.spawn(&mut command);
        self.servers
            .push(Server(child.context(program.to_owned())?));
        Ok(())
    }

    /// Runs a client in the cgroup, and hands over what it says.
    fn ask(&self, program: &str, arguments: &[String]) -> Result<String> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = self.cgroup.spawn(&mut command);
        let output = child.context(program.to_owned())?.wait_with_output()?;
        ensure!(output.status.success(), "{program}: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn answers(&self) -> Result<()> {
        until(self.name, READY, || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        })
    }

    /// µs of CPU time an operation.
    fn measure(&self) -> Result<f64> {
        let before = self.cgroup.usage_ns()?;
        let operations = (self.work)(self)?;
        let used = self.cgroup.usage_ns()? - before;
        Ok(used as f64 / 1e3 / operations)
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The first number behind `label` in `text`.
fn number_after(text: &str, label: &str) -> Result<f64> {
    let (_, rest) = text.split_once(label).context(label.to_owned())?;
    let number = rest.split_ascii_whitespace().next().context("no number")?;
    Ok(number.parse()?)
}

/// The compiler, on a file of some hundred functions.
fn gcc(dir: &Path) -> Result<Mix> {
    const COMPILATIONS: usize = 12;
    let mix = Mix::new("gcc", dir, |mix| {
        for _ in 0..COMPILATIONS {
            mix.ask("gcc", &words("-O1 -c some.c -o some.o"))?;
        }
        Ok(COMPILATIONS as f64)
    })?;
    let function = |i: usize| {
        format!(
            "int f{i}(int *a, int n) {{ int s = {i}; for (int i = 0; i < n; i++) s += a[i] * s; return s; }}\n"
        )
    };
    let text: String = (0..300).map(function).collect();
    fs::write(mix.dir.join("some.c"), text)?;
    Ok(mix)
}

fn redis(dir: &Path) -> Result<Mix> {
    const REQUESTS: u32 = 100_000;
    let mut mix = Mix::new("redis-benchmark", dir, |mix| {
        let line = format!("-p {} -n {REQUESTS} -c 20 -t get -q", mix.port);
        mix.ask("redis-benchmark", &words(&line))?;
        Ok(f64::from(REQUESTS))
    })?;
    let line = format!("--port {} --bind 127.0.0.1 --save", mix.port);
    let mut arguments = words(&line);
    arguments.push(String::new());
    mix.serve("redis-server", &arguments)?;
    mix.answers()?;
    Ok(mix)
}

fn nginx(dir: &Path) -> Result<Mix> {
    let mut mix = Mix::new("nginx and wrk", dir, |mix| {
        let line = format!("-t1 -c16 -d3s http://127.0.0.1:{}/page", mix.port);
        let said = mix.ask("wrk", &words(&line))?;
        let (before, _) = said.split_once(" requests in").context("wrk")?;
        let number = before.rsplit(char::is_whitespace).next();
        Ok(number.context("wrk")?.parse()?)
    })?;
    let at = mix.dir.display().to_string();
    let config = format!(
        "daemon off; worker_processes 1; user root; pid {at}/pid; error_log {at}/error;\n\
         events {{ }}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{}; root {at}; }} }}\n",
        mix.port
    );
    fs::write(mix.dir.join("conf"), config)?;
    fs::write(mix.dir.join("page"), "x".repeat(1024))?;
    mix.serve("nginx", &words(&format!("-c {at}/conf -e {at}/error")))?;
    mix.answers()?;
    Ok(mix)
}

/// Where Debian puts the servers' programs.
fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("package postgresql")?;
    let found = versions.flatten().map(|v| v.path().join("bin")).max();
    found.context("package postgresql")
}

fn pgbench(dir: &Path) -> Result<Mix> {
    let programs = postgres_programs()?;
    let mut mix = Mix::new("pgbench", dir, |mix| {
        let line = format!(
            "-h 127.0.0.1 -p {} -U postgres -S -n -c 4 -j 1 -T 3 postgres",
            mix.port
        );
        let said = mix.ask("pgbench", &words(&line))?;
        number_after(&said, "actually processed:")
    })?;
    // The server does not run as root.
    let owned = Command::new("chown")
        .arg("postgres")
        .arg(&mix.dir)
        .status()?;
    ensure!(owned.success(), "chown");
    let as_postgres = |program: &str, more: &str| {
        let program = programs.join(program);
        let line = format!("-u postgres -- {} {more}", program.display());
        words(&line)
    };
    mix.ask(
        "runuser",
        &as_postgres("initdb", "-D data -A trust --no-sync"),
    )?;
    let line = format!(
        "-D data -h 127.0.0.1 -p {} -k {}",
        mix.port,
        mix.dir.display()
    );
    mix.serve("runuser", &as_postgres("postgres", &line))?;
    mix.answers()?;
    let filled = format!("-h 127.0.0.1 -p {} -U postgres -i -q postgres", mix.port);
    // It may still be starting up when it listens already.
    until("pgbench -i", READY, || {
        mix.ask("pgbench", &words(&filled)).is_ok()
    })?;
    Ok(mix)
}

fn fio(dir: &Path) -> Result<Mix> {
    Mix::new("fio", dir, |mix| {
        let line = "--name=some --filename=some --size=64M --rw=randread --bs=4k --direct=1 \
                    --ioengine=psync --time_based --runtime=3 --output-format=json";
        let said: Value = serde_json::from_str(&mix.ask("fio", &words(line))?)?;
        let done = &said["jobs"][0]["read"]["total_ios"];
        done.as_f64().context("fio says nothing of its reads")
    })
}

/// All mixes beside everybody.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Series>> {
    let dir = tempfile::Builder::new().prefix("lens-bench-").tempdir()?;
    // Another user's server has to get in.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open)?;
    let mixes: [fn(&Path) -> Result<Mix>; 5] = [nginx, pgbench, fio, gcc, redis];
    let mut all = Vec::new();
    for mix in mixes {
        let mix = mix(dir.path())?;
        all.push(beside(&mix, rounds)?);
    }
    Ok(all)
}

fn beside(mix: &Mix, rounds: usize) -> Result<Series> {
    let names: Vec<&str> = OBSERVERS.iter().map(|(name, ..)| *name).collect();
    let mut series = Series::new(mix.name, "us of CPU time an operation", &names);
    // Files are read and caches are warm from here on.
    mix.measure()?;
    for round in 1..=rounds {
        crate::say(&format!("{}: round {round} of {rounds}", mix.name));
        for (i, (_, observer, settled)) in OBSERVERS.iter().enumerate() {
            let watching = observer.watch()?;
            let began = SystemClock.now();
            while SystemClock.now().since(&began) < *settled {
                (mix.work)(mix)?;
            }
            let figure = mix.measure()?;
            drop(watching);
            series.rows[i].1.push(figure);
        }
    }
    Ok(series)
}
