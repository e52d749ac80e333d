"""A package that turns on whoever imports it: `case.py` beside it names the function here that is called. What came of it is in
`results`, which whoever is forked from here finds. In an instance that starts by itself nothing is tried."""

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
import time

from .case import CASE, EVENT

results = {}
FORK_CHANNEL, CONTROL = 3, 4
CLONE = {"user": 0x10000000, "pid": 0x20000000, "mnt": 0x20000, "net": 0x40000000, "ipc": 0x8000000, "uts": 0x4000000,
         "cgroup": 0x2000000}
libc = ctypes.CDLL(None, use_errno=True)


def outcome(action):
    try:
        return action() or "made"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def hang():
    while True:
        time.sleep(600)


def in_background(action):
    """Does it in a process that nobody waits for and no signal but one ends."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            try:
                action()
            finally:
                os._exit(0)
        os._exit(0)
    os.wait()


# The host.

def probes():
    """The ways out that functions try, by a process with a zygote's rights."""
    from . import ways_out

    os.environ.update(EVENT["environment"])
    results.update({name: ways_out.attempt(name) for name in EVENT["probes"]})
    for name in EVENT["environment"]:
        del os.environ[name]


def status():
    fields = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "NSpid")
    lines = (line.split(":", 1) for line in open("/proc/self/status"))
    results["status"] = {name: value.strip() for name, value in lines if name in fields}
    with open("/proc/self/cgroup") as file:
        results["group"] = [line.split(":", 2)[2].strip() for line in file if line.startswith("0:")]
    results["identity"] = [os.getpid(), os.getuid(), os.readlink("/proc/self/ns/pid")]


# The launcher and the gateway.

def flood(fd, messages):
    channel = socket.socket(fileno=os.dup(fd))
    for message in messages:
        try:
            channel.send(message, socket.MSG_DONTWAIT)
        except OSError as error:
            results[str(message[:20])] = errno.errorcode[error.errno]
    channel.close()


def fork_channel():
    flood(FORK_CHANNEL, [b"garbage", b"\0" * 64, b"ended", b"ended 1", b"ended 99999999999999999999999 0", b"ended 1 -1", b"x" * 60000,
                         b"x" * 4000000])
    flood(FORK_CHANNEL, [b"ended %d 9" % number for number in range(200)])
    flood(FORK_CHANNEL, [b""])
    channel = socket.socket(fileno=os.dup(FORK_CHANNEL))
    channel.setblocking(False)
    for kind in ("/", "/dev/null", "/proc/self/ns/user", "/tmp"):
        fd = os.open(kind, os.O_RDONLY)
        results[kind] = outcome(lambda: socket.send_fds(channel, [b"ended 1 0"], [fd] * 50) and None)
        os.close(fd)
    # The zygote's own is the same.
    channel.setblocking(True)


def fork_channel_without_end():
    """As fast as it is heard."""
    def speak():
        channel = socket.socket(fileno=FORK_CHANNEL)
        while True:
            channel.send(b"ended 1 9")

    in_background(speak)


def fork_channel_closed():
    socket.socket(fileno=os.dup(FORK_CHANNEL)).shutdown(socket.SHUT_RDWR)


def control_garbage():
    os.write(CONTROL, b"garbage")
    hang()


def control_too_long():
    os.write(CONTROL, b"F" + (1 << 31).to_bytes(4, "little") + b"x" * 1000)
    hang()


def control_descriptors():
    channel = socket.socket(fileno=os.dup(CONTROL))
    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    for _ in range(20):
        outcome(lambda: socket.send_fds(channel, [b"garbage"], [fd] * 200) and None)
    # Where none is taken.
    channel.send(b"garbage")
    hang()


def facts():
    """As a zygote reports them, of an import that is worth a zygote."""
    names = ("missed", "lookups", "env", "threads", "baseline")
    costs = {"evil": [100000, 1000000]}
    told = dict({name: [] for name in names}, imported=["evil"], native=False, safe=True, errors={}, costs=costs)
    text = json.dumps(told).encode()
    os.write(CONTROL, b"F" + len(text).to_bytes(4, "little") + text)


def facts_twice():
    """Says that it is done, and later, unasked, again."""
    facts()


def facts_and_gone():
    facts()
    os._exit(0)


def facts_and_closed():
    """Hangs up, and goes on."""
    facts()
    os.close(CONTROL)
    in_background(hang)
    hang()


def facts_and_silent():
    facts()
    hang()


def lies():
    """About what the standard library costs, which others import as well."""
    lies = {name: (10 ** 12, 10 ** 12) for name in EVENT["modules"]}
    for name in lies:
        __import__(name)

    class Costs(dict):
        def items(self):
            return dict(dict.items(self), **lies).items()

    recorder = sys.modules["_sock_recorder"]
    recorder.costs = Costs(recorder.costs)
    results["told"] = len(lies)


# The neighbours.

def watcher():
    """Looks at whatever it sees, again and again, and tries to do it harm; but not to the zygote itself and its PID 1."""
    zygote = os.getpid()

    def look():
        all_seen = set()
        while True:
            seen = {}
            for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
                if pid in (1, zygote, os.getpid()):
                    continue
                try:
                    lines = dict(line.split(":", 1) for line in open("/proc/%d/status" % pid))
                except OSError:
                    continue
                seen[pid] = lines["Uid"].split()[0]
            all_seen.update(seen)
            with open("/tmp/seen.new", "w") as file:
                json.dump([seen, len(all_seen)], file)
            os.rename("/tmp/seen.new", "/tmp/seen")
            time.sleep(0.01)

    in_background(look)


def reaches():
    """Numbers that others have, from the machine's first to those of its own neighbours: reached by none of the ways."""
    mine = {1, os.getpid()}
    numbers = [number for number in EVENT["pids"] + list(range(2, 400)) if number not in mine]
    ways = {
        "signal": lambda pid: os.kill(pid, 0),
        "ptrace": lambda pid: check(libc.ptrace(16, pid, 0, 0)),
        "memory": lambda pid: open("/proc/%d/mem" % pid, "r+b").close(),
        "root": lambda pid: os.listdir("/proc/%d/root" % pid) and None,
    }
    for name, way in ways.items():
        results[name] = sorted({outcome(lambda: way(pid)) for pid in numbers})
    for kind, flag in CLONE.items():
        def enter():
            fd = os.open("/proc/1/ns/" + kind, os.O_RDONLY)
            check(libc.setns(fd, flag))
        results["enter " + kind] = outcome(enter)


# Its end.

def outlives():
    for _ in range(3):
        in_background(hang)


def kills_all():
    in_background(hang)
    results["all"] = outcome(lambda: os.kill(-1, signal.SIGKILL))
    results["init"] = outcome(lambda: os.kill(1, signal.SIGKILL))


def splits():
    """What is forked from here makes a process of its own a while later."""
    def split(number, frame):
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.fork() == 0:
            hang()

    def arm():
        # Not in a process that was made so.
        if not split.armed:
            split.armed = True
            signal.signal(signal.SIGALRM, split)
            signal.setitimer(signal.ITIMER_REAL, 0.2)

    split.armed = False
    os.register_at_fork(after_in_child=arm)


def exits():
    os._exit(3)


def raises():
    raise SystemExit(3)


def crashes():
    ctypes.string_at(0)


def ends_later():
    """The same, a moment after all was well."""
    signal.setitimer(signal.ITIMER_REAL, 0.05)


# The machine.

def descriptors():
    kept = []
    results["descriptors"] = outcome(lambda: [kept.append(os.dup(0)) for _ in range(1 << 20)] and None)
    results["kept"] = len(kept) > 1000
    resource_limits()


def resource_limits():
    for name in ("NOFILE", "NPROC", "DATA"):
        kind = getattr(resource, "RLIMIT_" + name)
        soft, hard = resource.getrlimit(kind)
        results[name] = [soft, hard]
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            results["more " + name] = "made"
        except (OSError, ValueError):
            results["more " + name] = "refused"


def processes():
    """As many as it has itself limited: what is tried is that they are gone with it."""
    resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
    count = 0
    while True:
        try:
            if os.fork() == 0:
                hang()
        except OSError as error:
            results["processes"] = errno.errorcode[error.errno]
            break
        count += 1
    results["count"] = count


# Not where a function's process imports it: what it may do there is for other tests.
if os.getuid() == 0:
    globals()[CASE]()
