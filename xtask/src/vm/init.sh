#!/bin/busybox sh
# PID 1 of the guest: mounts what a host has, lets lens say what works here, runs the tests, and
# switches off. What it says goes to the second serial port, apart from the kernel's own words.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
# What is there already stays.
/bin/busybox --install -s 2>/dev/null
mount -t devtmpfs dev /dev 2>/dev/null # the kernel may have done so
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run
exec </dev/null >/dev/ttyS1 2>&1
. /settings
ifconfig lo 127.0.0.1 up
# For tests that make disks; where it is missing they say so.
modprobe loop 2>/dev/null

# The agent switches the kernel's statistics on and off. That changes the code of every program's
# entry while other CPUs run it, and QEMU before 8.1 may keep what it has translated halfway (the
# guest dies with `Oops: int3`). With the statistics always on there is nothing to change.
echo 1 >/proc/sys/kernel/bpf_stats_enabled

# Like on any host, nothing runs in the root cgroup.
mkdir /sys/fs/cgroup/init
echo $$ >/sys/fs/cgroup/init/cgroup.procs

uptime() {
    read -r seconds _ </proc/uptime
    echo "$seconds"
}

echo "@ kernel $(uname -r)"
echo "@ controllers $(cat /sys/fs/cgroup/cgroup.controllers)"
echo "@ booted after $(uptime) s"
"$LENS_BIN" doctor
echo "@ doctor $? after $(uptime) s"
eval "\"$TESTS\" --test-threads=1 $ARGUMENTS"
echo "@ tests $? after $(uptime) s"
sync
poweroff -f
