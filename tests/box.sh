#!/usr/bin/env bash
# Runs a command as root in a box: a copy of this machine whose first process is systemd, with files
# (writes go to memory), processes and a network of its own. What the command installs, starts and
# leaves behind there is gone when it ends.
#   tests/box.sh DIRECTORY COMMAND [ARGUMENT ..]
# The command runs in the directory, which is the same one inside and outside.
# Needs root, systemd, and a kernel that lets root mount overlayfs and cgroup2 in namespaces.
set -euo pipefail

fail() { echo "tests/box.sh: $*" >&2 && exit 1; }

# The second half: the first process in the namespaces.
if [ "${1:-}" = --first ]; then
    shared=$2 place=$3
    mount -t tmpfs box "$place"
    root=$place/root
    mkdir "$place/written" "$place/work" "$root"
    mount -t overlay box -o "lowerdir=/,upperdir=$place/written,workdir=$place/work" "$root"
    mount -t proc box "$root/proc"
    # What is set there is often set for the whole machine.
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro box "$root/sys"
    mount -t cgroup2 box "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 box "$root/run"
    mount -t tmpfs -o mode=1777 box "$root/tmp"
    mount -t tmpfs -o mode=755 box "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 box "$root/dev/pts"
    mount -t tmpfs -o mode=1777 box "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir -p "$root$shared"
    mount --bind "$shared" "$root$shared"
    mkdir "$root/run/machine"
    cd "$root"
    pivot_root . run/machine
    umount --lazy /run/machine
    # The machine's mounts are not for the box.
    : >/etc/fstab
    exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=basic.target --show-status=no
fi

[ "$#" -ge 2 ] || fail "which directory, and which command?"
shared=$(realpath "$1")
shift
[ "$(id -u)" = 0 ] || fail "only root can make a box"
for program in unshare nsenter pivot_root ip /lib/systemd/systemd; do
    command -v "$program" >/dev/null || fail "$program is missing"
done
unified=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || fail "no cgroup2 is mounted"

place=$(mktemp -d)
# systemd takes the whole of its control group for its own.
group=$unified$(sed -n 's/^0:://p' /proc/self/cgroup)/millpond-box-$$
box=
finish() {
    # `timeout` signals twice.
    trap '' HUP INT TERM
    if [ -n "$box" ]; then
        # With its first process, all others of the box end.
        kill -KILL "$box" 2>/dev/null || true
        wait "$box" 2>/dev/null || true
    fi
    for _ in $(seq 50); do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$group" ] || break
        sleep 0.1
    done
    rm -rf "$place" "$place.log"
}
trap finish EXIT
mkdir -p "$group/command"

(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec setpriv --pdeathsig KILL \
        unshare --mount --propagation private --pid --fork --kill-child --net --uts --ipc --cgroup \
        "$0" --first "$shared" "$place"
) >"$place.log" 2>&1 </dev/null &
box=$!

inside() {
    (
        echo "$BASHPID" >"$group/command/cgroup.procs"
        exec nsenter --target "$first" --all \
            env -i --chdir="$shared" PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
    )
}
state=
for _ in $(seq 300); do
    kill -0 "$box" 2>/dev/null || break
    first=$(cat "/proc/$box/task/$box/children")
    first=${first%% *}
    state=$([ -z "$first" ] || inside systemctl is-system-running 2>/dev/null || true)
    case $state in running | degraded) break ;; esac
    sleep 0.1
done
case $state in
running | degraded) ;;
*)
    cat "$place.log"
    fail "systemd does not start in a box (its state: ${state:-none})"
    ;;
esac
inside ip link set lo up
inside "$@"
