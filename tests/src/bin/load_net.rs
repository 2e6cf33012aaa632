//! Sockets in a network namespace of their own, and work with them.

#![expect(unsafe_code, reason = "system calls as bare as they come")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lens_tests::work::serve;
use serde_json::{Value, json};

fn main() -> Result<()> {
    // SAFETY: takes a number; this program has one thread.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    bring_loopback_up()?;
    let mut held = Held::default();
    serve(|line| {
        let n = |i| line.number(i);
        let port = |i| -> Result<u16> { Ok(u16::try_from(n(i)?)?) };
        match line.work() {
            "join" => join(n(1)?),
            "listen" => held.listen(n(1)?),
            "accept" => held.accept(),
            "connect" => held.connect(port(1)?, n(2)?, n(3)?),
            "try" => attempt(port(1)?, n(2)?),
            "send" => held.send(n(1)?),
            "receive" => held.receive(n(1)?),
            "deafen" => held.deafen(),
            "hear" => held.hear(),
            "reset" => held.reset(),
            "info" => held.info(),
            "bind" => held.bind(n(1)?),
            "datagrams" => datagrams(port(1)?, n(2)?),
            other => bail!("no such work: {other}"),
        }
    })
}

fn checked(returned: i32) -> Result<()> {
    ensure!(returned == 0, std::io::Error::last_os_error());
    Ok(())
}

fn bring_loopback_up() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: a request that outlives the call; all zero is one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP)?;
        checked(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        ))
    }
}

/// Enters the network namespace of the process `pid`.
fn join(pid: u64) -> Result<Value> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    // SAFETY: an open file.
    checked(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(json!({}))
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn set<T>(fd: RawFd, level: i32, option: i32, value: &T) -> Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>())?;
    // SAFETY: a value of that size.
    checked(unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(value).cast(), size) })
}

/// What it keeps open.
#[derive(Default)]
struct Held {
    listener: Option<TcpListener>,
    streams: Vec<TcpStream>,
    datagrams: Option<UdpSocket>,
}

impl Held {
    fn last(&mut self) -> Result<&mut TcpStream> {
        self.streams.last_mut().context("no connection")
    }

    fn listen(&mut self, backlog: u64) -> Result<Value> {
        let listener = TcpListener::bind(at(0))?;
        // SAFETY: an own socket; a second call changes the length of the queue only.
        checked(unsafe { libc::listen(listener.as_raw_fd(), i32::try_from(backlog)?) })?;
        let port = listener.local_addr()?.port();
        self.listener = Some(listener);
        Ok(json!({ "port": port }))
    }

    fn accept(&mut self) -> Result<Value> {
        let listener = self.listener.as_ref().context("not listening")?;
        self.streams.push(listener.accept()?.0);
        Ok(json!({}))
    }

    /// Tries to connect `times` times, and gives each time up after so many milliseconds.
    fn connect(&mut self, port: u16, times: u64, millis: u64) -> Result<Value> {
        let (mut connected, mut refused, mut timed_out) = (0, 0, 0);
        for _ in 0..times {
            match TcpStream::connect_timeout(&at(port), Duration::from_millis(millis)) {
                Ok(stream) => {
                    connected += 1;
                    self.streams.push(stream);
                }
                Err(why) if why.kind() == std::io::ErrorKind::ConnectionRefused => refused += 1,
                Err(why) if why.kind() == std::io::ErrorKind::TimedOut => timed_out += 1,
                Err(why) => bail!(why),
            }
        }
        Ok(json!({ "connected": connected, "refused": refused, "timed_out": timed_out }))
    }

    fn send(&mut self, bytes: u64) -> Result<Value> {
        let bytes = vec![7; usize::try_from(bytes)?];
        self.last()?.write_all(&bytes)?;
        Ok(json!({}))
    }

    fn receive(&mut self, bytes: u64) -> Result<Value> {
        let mut bytes = vec![0; usize::try_from(bytes)?];
        self.last()?.read_exact(&mut bytes)?;
        Ok(json!({}))
    }

    /// Has the kernel drop what comes in for the last connection.
    fn deafen(&mut self) -> Result<Value> {
        let mut nothing = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let filter = libc::sock_fprog {
            len: 1,
            filter: &raw mut nothing,
        };
        let fd = self.last()?.as_raw_fd();
        set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
        Ok(json!({}))
    }

    fn hear(&mut self) -> Result<Value> {
        let fd = self.last()?.as_raw_fd();
        set(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0_i32)?;
        Ok(json!({}))
    }

    /// Closes all connections with a reset.
    fn reset(&mut self) -> Result<Value> {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        for stream in self.streams.drain(..) {
            set(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                &at_once,
            )?;
        }
        Ok(json!({}))
    }

    /// What the kernel says of the last connection.
    fn info(&mut self) -> Result<Value> {
        let fd = self.last()?.as_raw_fd();
        // SAFETY: all zero is one, and the kernel writes no more than its size.
        let info = unsafe {
            let mut info: libc::tcp_info = std::mem::zeroed();
            let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>())?;
            let to = (&raw mut info).cast();
            checked(libc::getsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                to,
                &raw mut size,
            ))?;
            info
        };
        Ok(json!({ "rtt_us": info.tcpi_rtt, "retransmits": info.tcpi_total_retrans }))
    }

    /// A socket for datagrams that nobody will read, with so much room.
    fn bind(&mut self, room: u64) -> Result<Value> {
        let socket = UdpSocket::bind(at(0))?;
        let room = i32::try_from(room)?;
        set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &room)?;
        let port = socket.local_addr()?.port();
        self.datagrams = Some(socket);
        Ok(json!({ "port": port }))
    }
}

/// Tries to connect for as long as the kernel does when it is told to give up after so many
/// milliseconds.
fn attempt(port: u16, millis: u64) -> Result<Value> {
    // SAFETY: a new socket, owned from here on; an address that outlives the call.
    let connected = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        ensure!(fd >= 0, std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let millis = u32::try_from(millis)?;
        set(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &millis)?;
        let mut to: libc::sockaddr_in = std::mem::zeroed();
        to.sin_family = u16::try_from(libc::AF_INET)?;
        to.sin_port = port.to_be();
        to.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
        let size = libc::socklen_t::try_from(size_of_val(&to))?;
        checked(libc::connect(
            socket.as_raw_fd(),
            (&raw const to).cast(),
            size,
        ))
    };
    let timed_out = connected.is_err_and(|why| {
        let why = why.downcast_ref::<std::io::Error>();
        why.is_some_and(|why| why.kind() == std::io::ErrorKind::TimedOut)
    });
    Ok(json!({ "timed_out": timed_out }))
}

fn datagrams(port: u16, times: u64) -> Result<Value> {
    let socket = UdpSocket::bind(at(0))?;
    for _ in 0..times {
        socket.send_to(&[7; 512], at(port))?;
    }
    Ok(json!({}))
}
