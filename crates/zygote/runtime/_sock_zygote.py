"""A fork server: imports what it is told, and forks itself into slots.

It runs the import-time code of third-party packages, so everything outside treats it as hostile: it holds no capability,
and a seccomp filter that it cannot shed. Slots are owned by its user id, which is how it gets into them all the same. It never
calls library code, it only imports; a thread that an import left behind makes it unsafe, and then it never forks.

A child becomes an instance, or another zygote, which imports more: its slot's user and PID namespace are then its own, and slots
that are made in those are owned by it.

Descriptors: 0 /dev/null, 1 and 2 the log, 3 the fork channel (datagrams of the launcher's, "fork NUMBER", "spare NUMBER" or
"zygote NUMBER" with descriptors, see `FORK`; and ours, "ended NUMBER STATUS", when that child is dead), 4 the control
socket (frames, with the gateway).
"""

import sys

sys.dont_write_bytecode = True
HERE = __file__.rpartition("/")[0]
sys.path.insert(0, HERE)

import _sock_instance as instance

# Before the others: what an instance that starts by itself has as well. The rest counts as imported, since a function
# may have modules of its own by those names.
baseline = instance.baseline()

import ctypes
import errno
import gc
import os
import select
import signal
import socket

import _sock_after_fork as after_fork
import _sock_memory as memory
import _sock_recorder as recorder

sys.path.pop(0)

FORK_CHANNEL, CONTROL = 3, 4
# What the descriptors of a fork are, in their order; the last goes with "zygote" only, whose "socket" is its fork channel.
FORK = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "group", "socket", "log", "control")
# Idle threads of memory allocators that survive a fork of the others: they hold no lock while they sleep.
ALLOCATOR_THREADS = ("jemalloc_bg_thd", "background_thre", "mimalloc", "arrow_jemalloc")
UID = 1000
# Calls until the interpreter has adapted a function's code to what it does, which was made anew.
WARMING = 10

CLONE = {"user": 0x10000000, "pid": 0x20000000, "mnt": 0x20000, "net": 0x40000000, "ipc": 0x8000000,
         "uts": 0x4000000, "cgroup": 0x2000000}
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER = 4, 24, 28, 36
# Uid 0 gets no capabilities by an exec, for good: SECBIT_NOROOT and its lock.
NO_ROOT = 3
ARCH_GET_FS = 0x1003
# Numbers of system calls on x86_64, the only processor that the native fork is written for.
SYS = dict(close=3, rt_sigprocmask=14, umask=95, setsid=112, setgroups=116, setresuid=117, setresgid=119, capset=126,
           prctl=157, arch_prctl=158, openat=257, signalfd4=289, dup3=292, setns=308, seccomp=317,
           getrandom=318, rseq=334, close_range=436)

libc = ctypes.CDLL(None, use_errno=True)
syscall = libc.syscall
syscall.restype = ctypes.c_long
# PyOS_BeforeFork and its kin are os.fork()'s, around a fork that is not its own.
before_fork, after_in_parent, after_in_child = [
    getattr(ctypes.pythonapi, "PyOS_" + name) for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
]
for function in (before_fork, after_in_parent, after_in_child):
    function.argtypes, function.restype = [], None
# For the steps of a child, which are addresses: kept for as long as there may be one.
capability_header = (ctypes.c_uint32 * 2)(0x20080522, 0)
no_capabilities = (ctypes.c_uint32 * 6)()


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


with open(HERE + "/_sock_filter.bpf", "rb") as file:
    instructions = file.read()
program = Program(len(instructions) // 8, instructions)
with open("/proc/sys/kernel/cap_last_cap") as file:
    capabilities = range(int(file.read()) + 1)


class CloneArguments(ctypes.Structure):
    """clone3(2)"""

    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
        "set_tid_size", "cgroup")]


class Step(ctypes.Structure):
    """A system call that a child makes before anything else."""

    _fields_ = [("number", ctypes.c_long), ("arguments", ctypes.c_long * 6)]


class Fork(ctypes.Structure):
    """See isolation/src/enter.rs."""

    _fields_ = [("args", ctypes.c_void_p)] + [(name, ctypes.c_long) for name in ("args_size", "user", "pids")] + [
        ("fork", ctypes.c_void_p), ("child", ctypes.c_long), ("first", ctypes.c_void_p), ("end", ctypes.c_void_p),
        ("failed", ctypes.c_void_p), ("error", ctypes.c_long)]


CLONE_VM, CLONE_VFORK, CLONE_INTO_CGROUP = 0x100, 0x4000, 0x200000000
# The helper's end is no child's: it sends no signal.
WALL = 0x40000000
clone_arguments = CloneArguments(flags=CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP)
fork_arguments = Fork(args=ctypes.addressof(clone_arguments), args_size=ctypes.sizeof(clone_arguments),
                      fork=ctypes.cast(libc.fork, ctypes.c_void_p).value)


def load_fork():
    """Maps the code of isolation/src/enter.rs."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    fd = os.open(HERE + "/_sock_fork.bin", os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    # PROT_READ | PROT_EXEC, MAP_PRIVATE
    address = libc.mmap(None, size, 5, 2, fd, 0) if size else None
    os.close(fd)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError("cannot map the code of the fork: there is none for this processor, or no memory")
    # With the interpreter's lock held all the way.
    return ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.POINTER(Fork))(address)


def find_rseq():
    """What the C library registered with rseq(2) for this thread: address and size; None where it has not."""
    try:
        offset = ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value
        size = ctypes.c_uint.in_dll(libc, "__rseq_size").value
    except ValueError:
        return None
    pointer = ctypes.c_ulong()
    if not size or syscall(SYS["arch_prctl"], ARCH_GET_FS, ctypes.byref(pointer)) < 0:
        return None
    return pointer.value + offset, max(32, size)


enter_and_fork = load_fork()
rseq = find_rseq()


class Steps:
    """The steps of a kind of child, made ahead: a fork only fills in its descriptors."""

    def __init__(self, calls):
        self.calls, self.places = calls, []
        self.array = (Step * len(calls))()
        for step, (name, *arguments) in zip(self.array, calls):
            step.number = SYS[name]
            for at, argument in enumerate(arguments):
                if argument in FORK:
                    self.places.append((step.arguments, at, argument))
                else:
                    step.arguments[at] = address(argument)

    def go(self, fds):
        """As os.fork(), with the child in the slot's cgroup, user and PID namespace; and past its steps."""
        for arguments, at, name in self.places:
            arguments[at] = fds[name]
        clone_arguments.cgroup = fds["group"]
        fork_arguments.user, fork_arguments.pids = fds["user"], fds["pid"]
        fork_arguments.first = ctypes.addressof(self.array)
        fork_arguments.end = fork_arguments.first + ctypes.sizeof(self.array)
        # A helper that is killed on its way leaves this.
        fork_arguments.child = -errno.ESRCH
        before_fork()
        helper = enter_and_fork(fork_arguments)
        if helper == 0:
            after_in_child()
            return 0
        after_in_parent()
        if helper > 0:
            os.waitpid(helper, WALL)
        if helper < 0 or fork_arguments.child < 0:
            number = -helper if helper < 0 else -fork_arguments.child
            raise OSError(number, "fork into a slot: %s" % os.strerror(number))
        return fork_arguments.child

    def check(self):
        """In the child: whether it went past all of them."""
        if fork_arguments.failed:
            number = -fork_arguments.error
            at = (fork_arguments.failed - ctypes.addressof(self.array)) // ctypes.sizeof(Step)
            raise OSError(number, "%s: %s" % (self.calls[at], os.strerror(number)))


def address(argument):
    """What a system call gets for it."""
    if isinstance(argument, int):
        return argument
    if isinstance(argument, ctypes.c_char_p):
        return ctypes.cast(argument, ctypes.c_void_p).value
    return ctypes.addressof(argument)


def entering():
    """The calling process, a fresh child, moves into the rest of the slot.

    First of all the C library's rseq(2) area is registered again: the helper shared the zygote's memory, and a process that does so loses
    it. Without, the C library would go on believing that it runs on the processor where the zygote forked.
    """
    steps = [("rseq", *rseq, 0, 0x53053053)] if rseq is not None else []
    return steps + [("setns", name, CLONE[name]) for name in ("net", "ipc", "uts", "cgroup", "mnt")]


def dropping(uid):
    """Gives up everything, for good. A zygote stays the root of its user namespace, by number only."""
    steps = [("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0) for capability in capabilities]
    steps += [("setgroups", 0, 0), ("setresgid", uid, uid, uid), ("setresuid", uid, uid, uid)]
    if uid == 0:
        steps.append(("prctl", PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0))
    steps.append(("capset", capability_header, no_capabilities))
    if uid != 0:
        steps.append(("seccomp", 1, 0, program))
    # setresuid cleared it, and without it a process cannot read its own /proc/self/environ.
    return steps + [("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)]


def get_ready():
    """To fork: makes the steps of children, as what is imported wants them."""
    global instance_steps, zygote_steps
    descriptors = after_fork.arrangement(("log", "log", "socket"))
    rest = [("rt_sigprocmask", UNBLOCK, just_ended, 0, 8), ("setsid",), ("umask", 0o022)]
    instance_steps = Steps(entering() + descriptors + rest + dropping(UID) + after_fork.reseeding())
    descriptors = after_fork.arrangement(("log", "log", "socket", "control"), (ended,))
    zygote_steps = Steps(entering() + descriptors + [("setsid",)] + dropping(0))


def check(result, call):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (call, os.strerror(number)))


def child(spare):
    """The rest of the life of a forked process; of a spare, nobody waits for it."""
    try:
        instance_steps.check()
        # The object would close the number, which is the instance's socket now.
        channel.detach()
        after_fork.mend()
    except BaseException as error:
        os.write(2, ("sock: zygote: failed to become an instance: %r\n" % error).encode())
        os._exit(1)
    code = 1
    try:
        code = instance.main(3, standard, spare)
    finally:
        # Whatever happens, it does not come back as a second zygote. By a name that no handler has replaced.
        instance.leave_now(code)


def begin_again():
    """Makes a forked process a zygote that has imported what this one has."""
    try:
        zygote_steps.check()
        children.clear()
        instance.held.clear()
        adopt()
        instance.send(CONTROL, b"H")
    except BaseException as error:
        os.write(2, ("sock: zygote: failed to become a zygote: %r\n" % error).encode())
        os._exit(1)


def fork():
    """Takes one datagram off the fork channel: "fork" or "spare" for an instance that somebody waits for or nobody yet, "zygote" for another
    zygote. Whether this is the other one now.
    """
    message, control, _, _ = channel.recvmsg(32, socket.CMSG_SPACE(4 * len(FORK)))
    numbers = []
    for _, _, data in control:
        numbers += [int.from_bytes(data[at:at + 4], sys.byteorder) for at in range(0, len(data), 4)]
    if not message:
        os._exit(0)
    kind, _, name = message.partition(b" ")
    try:
        expected = len(FORK) if kind == b"zygote" else len(FORK) - 1
        if kind in (b"fork", b"spare", b"zygote") and len(numbers) == expected and safe:
            fds = dict(zip(FORK, numbers))
            steps = zygote_steps if kind == b"zygote" else instance_steps
            pid = steps.go(fds)
            if pid == 0:
                if kind == b"zygote":
                    begin_again()
                    numbers = ()
                    return True
                child(kind == b"spare")
            children[pid] = name
    except OSError as error:
        sys.stderr.write("sock: zygote: %s\n" % error)
        sys.stderr.flush()
    finally:
        # The child has its own; a closed socket tells the gateway of a fork that did not happen.
        for number in numbers:
            os.close(number)
    return False


def reap():
    """Tells how dead children ended, each before it is gone: a slot ends after that, and whoever waits for it then knows."""
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None:
            return
        name = children.pop(dead.si_pid, None)
        if name is not None:
            # As wait(2) has it.
            status = dead.si_status << 8 if dead.si_code == os.CLD_EXITED else dead.si_status
            try:
                channel.send(b"ended %s %d" % (name, status), socket.MSG_DONTWAIT)
            except OSError:
                pass  # Nobody listens: it is only news.
        os.waitpid(dead.si_pid, 0)


def adopt():
    """The helper's children are this process's when the helper is gone."""
    check(syscall(SYS["prctl"], PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def watch_children(watched):
    """The end of a child makes `ended` readable, while the signal is blocked. It is not during imports, which may start programs: those
    would have it blocked as well.
    """
    if watched:
        # Imports may have set it to something else; who ignores it hears of no end.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK if watched else signal.SIG_UNBLOCK, [signal.SIGCHLD])


def threads():
    """The names of threads that make a fork unsafe."""
    me, names = str(os.getpid()), []
    for task in os.listdir("/proc/self/task"):
        if task != me:
            try:
                with open("/proc/self/task/%s/comm" % task) as file:
                    name = file.read().strip()
            except OSError:
                continue  # It has ended meanwhile.
            if not name.startswith(ALLOCATOR_THREADS):
                names.append(name)
    return names


def forget_listings():
    """Those of directories that the zygote which this one was forked from saw: an overlay's root may carry the same time stamp."""
    for entry in list(sys.path_importer_cache):
        if entry not in standard:
            del sys.path_importer_cache[entry]


def import_one(module, names, errors):
    """As `from module import names` does: a name that is no attribute may be a submodule."""
    import importlib

    try:
        loaded = importlib.import_module(module)
        for name in names:
            if name != "*" and not hasattr(loaded, name):
                importlib.import_module(module + "." + name)
    except BaseException as error:
        errors[module] = "%s: %s" % (type(error).__name__, instance.shown(error))


def keep_path():
    """Entries that imports added to sys.path are the function's too, on the side where they were put."""
    known = standard + [instance.PACKAGES]
    first = next((at for at, entry in enumerate(sys.path) if entry in known), 0)
    instance.path_before[:] = sys.path[:first]
    instance.path_after[:] = [entry for entry in sys.path[first:] if entry not in known]


def rehearse():
    """Goes the way of a child once: what is made on that way, and code that has run, its children then have from here."""
    environment, path, directory = dict(os.environ), list(sys.path), os.getcwd()
    instance.rehearsed.clear()
    instance.rehearse(standard)
    # Without making anew what is as it was.
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    sys.path[:] = path
    os.chdir(directory)
    forget_listings()


def import_all(imports):
    """Imports, and tells what the sharing rule needs to know about it."""
    global safe
    errors, open_before = {}, after_fork.note()
    forget_listings()
    instance.watch_logging()
    random_noted = after_fork.watch_random()

    def action():
        for entry in imports:
            import_one(entry["module"], entry["names"], errors)

    watch_children(False)
    recorder.record(action)
    watch_children(True)
    random_noted()
    strangers = threads()
    safe = not strangers
    instance.env_written.update(recorder.written)
    keep_path()
    rehearse()
    # What was printed is the zygote's log, not that of each child.
    instance.flush()
    gc.collect()
    memory.fill_holes()
    memory.gather(rehearse, instance.environment)
    for _ in range(WARMING):
        rehearse()
    after_fork.settle(open_before)
    get_ready()
    # Of those that ended meanwhile nobody has heard.
    reap()
    gc.freeze()
    memory.collapse()
    files = [instance.file_of(module) for module in list(sys.modules.values())]
    native = any(file.startswith(instance.PACKAGES) and file.endswith(".so") for file in files)
    return {
        "imported": sorted({name for name in sys.modules if isinstance(name, str)} - set(baseline)),
        "missed": sorted(recorder.missed),
        "lookups": sorted(recorder.lookups),
        "env": sorted(recorder.env),
        "native": native,
        "threads": strangers,
        "safe": safe,
        "errors": errors,
        "costs": {name: cost for name, cost in recorder.costs.items() if name in sys.modules},
        "baseline": baseline,
    }


def control():
    kind, payload = instance.receive(CONTROL)
    if kind == b"M":
        wanted = instance.loads(payload)
        os.environ.update(wanted["env"])
        facts = import_all(wanted["imports"])
        instance.send(CONTROL, b"F", instance.escaped(facts).encode())


def loop():
    poll = select.poll()
    for fd in (FORK_CHANNEL, CONTROL, ended):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == FORK_CHANNEL:
                if fork():
                    # What there was to do is the other one's.
                    break
            elif fd == CONTROL:
                control()
            else:
                try:
                    os.read(ended, 128)
                except BlockingIOError:
                    pass  # It was taken back while something was imported.
                reap()


safe = True
standard = instance.standard_path()
sys.path[:] = standard + [instance.PACKAGES]
adopt()
channel = socket.socket(fileno=FORK_CHANNEL)
# Of living children: what the launcher calls them.
children = {}
instance.settle()
just_ended, UNBLOCK = ctypes.c_uint64(1 << signal.SIGCHLD - 1), 1
ended = syscall(SYS["signalfd4"], -1, ctypes.byref(just_ended), 8, os.O_CLOEXEC | os.O_NONBLOCK)
check(ended, "signalfd4")
watch_children(True)
get_ready()

if __name__ == "__main__":
    try:
        loop()
    except instance.Gone:
        # What packages would like to do at the end is not for a zygote.
        os._exit(0)
