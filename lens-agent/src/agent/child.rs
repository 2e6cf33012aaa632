//! Children that the agent forks before it closes itself, and how it speaks with them: messages are
//! JSON behind their length.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
};

use rustix::process::{Pid, Signal};
use serde::{Serialize, de::DeserializeOwned};

/// The longest message: a reading has at most a few hundred cgroups, and as many stacks are named at
/// once.
const LONGEST: u32 = 4 << 20;

/// Forks a child that does `live`, and ends when the agent does; its number, and a socket to it. To be
/// called while the process has one thread.
pub(super) fn fork(live: fn(UnixStream) -> io::Result<()>) -> io::Result<(Pid, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread, so the child is as whole as its parent.
    #[expect(unsafe_code, reason = "no safe wrapper for fork")]
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        None if pid == 0 => {
            drop(ours);
            let lived = begin(parent).and_then(|alone| {
                if alone {
                    return Ok(());
                }
                live(theirs)
            });
            // SAFETY: ends the child without running what belongs to its parent.
            #[expect(unsafe_code, reason = "no safe wrapper for _exit")]
            unsafe {
                libc::_exit(i32::from(lived.is_err()))
            }
        }
        Some(child) => Ok((child, ours)),
        None => Err(io::Error::last_os_error()),
    }
}

/// Has the child die with its parent; whether that has died already.
fn begin(parent: Pid) -> io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Ok(true);
    }
    leave_stdio()?;
    Ok(false)
}

/// Whoever reads the agent's output must not wait for the child to end.
#[expect(
    unsafe_code,
    reason = "no safe wrapper for dup2 onto stdio in use here"
)]
fn leave_stdio() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for fd in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        let null = null.as_raw_fd();
        // SAFETY: both are open, and nothing in this process refers to what is closed.
        let done = unsafe { libc::dup2(null, fd) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

pub(super) fn say<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&text)
}

pub(super) fn hear<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    let read = from.take(u64::from(length)).read_to_end(&mut text)?;
    if read != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_heard_as_they_were_said() {
        let mut wire = Vec::new();
        let said = ("no".to_owned(), true);
        say(&mut wire, &said).unwrap();
        say(&mut wire, &said).unwrap();
        let mut wire = &wire[..];
        assert_eq!(hear::<(String, bool)>(&mut wire).unwrap(), said);
        assert_eq!(hear::<(String, bool)>(&mut wire).unwrap(), said);
        let end = hear::<(String, bool)>(&mut wire).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_an_error() {
        let cut: &[u8] = &[10, 0, 0, 0, b'{'];
        let end = hear::<String>(&mut &*cut).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let long: &[u8] = &[0xff; 8];
        assert!(hear::<String>(&mut &*long).is_err());
    }
}
