//! What can be wrong: a closed list.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

macro_rules! categories {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Category {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Category {
            /// Every category.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is written.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)* }
            }
        }
    };
}

categories! {
    /// waits for a CPU that another holds
    CpuContention = "cpu_contention",
    /// is held back by its own CPU quota
    CpuThrottling = "cpu_throttling",
    /// burns CPU, and nobody waits
    CpuSaturation = "cpu_saturation",
    /// keeps memory and does not give it back
    MemoryLeak = "memory_leak",
    /// waits while the kernel looks for memory
    MemoryReclaim = "memory_reclaim",
    /// was killed for want of memory
    OomKill = "oom_kill",
    /// touches and drops pages at a high rate
    PageFaultStorm = "page_fault_storm",
    /// grows its address space without pages
    VirtualGrowth = "virtual_growth",
    /// starts and ends processes at a high rate
    ProcessChurn = "process_churn",
    /// dies and is started again
    CrashLoop = "crash_loop",
    /// keeps starting threads
    ThreadLeak = "thread_leak",
    /// does not collect its dead children
    ZombieLeak = "zombie_leak",
    /// does not close its files
    FdLeak = "fd_leak",
    /// does not close its sockets
    SocketLeak = "socket_leak",
    /// is refused by a limit on processes, files or the like
    ResourceLimit = "resource_limit",
    /// does not accept connections fast enough
    ListenOverflow = "listen_overflow",
    /// connects to where nobody ever listened
    ConnectionRefused = "connection_refused",
    /// the server was there and went
    ServiceDown = "service_down",
    /// loses segments on the way
    TcpRetransmit = "tcp_retransmit",
    /// receives datagrams faster than it reads them
    UdpDrop = "udp_drop",
    /// floods the network
    NetworkFlood = "network_flood",
    /// shares a network queue with another
    NetworkContention = "network_contention",
    /// the receiver stopped reading
    Backpressure = "backpressure",
    /// the callee answers late
    SlowDependency = "slow_dependency",
    /// a server is busy with another client
    ServiceSaturation = "service_saturation",
    /// makes system calls at a high rate
    SyscallStorm = "syscall_storm",
    /// has system calls fail at a high rate
    SyscallErrors = "syscall_errors",
    /// waits for a disk that another uses
    IoContention = "io_contention",
    /// waits for I/O that does not end
    IoStall = "io_stall",
    /// waits for dirty pages to be written
    WritebackStall = "writeback_stall",
    /// a file system is full
    DiskFull = "disk_full",
    /// fills a kernel cache
    SlabGrowth = "slab_growth",
    /// waits for a lock that is held too long
    LockContention = "lock_contention",
    /// waits for a lock that nobody will release
    Deadlock = "deadlock",
    /// is stopped
    ProcessStopped = "process_stopped",
    /// sets off timers at a high rate
    TimerStorm = "timer_storm",
    /// switches tasks at a high rate
    ContextSwitchStorm = "context_switch_storm",
    /// sends signals at a high rate
    SignalStorm = "signal_storm",
    /// the kernel's log reports errors
    KernelLogErrors = "kernel_log_errors",
    /// its own code got slow
    SlowFunction = "slow_function",
    /// nothing that can be named
    None = "none",
}

impl Category {
    /// Whether it says what a culprit does, not what a victim suffers: of two explanations with
    /// the same culprit, the one that says what it does says more.
    pub fn is_behaviour(self) -> bool {
        matches!(
            self,
            Self::SyscallStorm
                | Self::PageFaultStorm
                | Self::ProcessChurn
                | Self::CrashLoop
                | Self::MemoryLeak
        )
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a category.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no category")]
pub struct CategoryError(String);

impl FromStr for Category {
    type Err = CategoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().copied().find(|c| c.as_str() == text);
        found.ok_or_else(|| CategoryError(text.to_owned()))
    }
}

impl Serialize for Category {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Category {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
