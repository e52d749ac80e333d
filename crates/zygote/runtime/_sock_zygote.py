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
import _sock_recorder as recorder

sys.path.pop(0)

FORK_CHANNEL, CONTROL = 3, 4
# What the descriptors of a fork are, in their order; the last goes with "zygote" only, whose "socket" is its fork channel.
FORK = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "group", "socket", "log", "control")
# Idle threads of memory allocators that survive a fork of the others: they hold no lock while they sleep.
ALLOCATOR_THREADS = ("jemalloc_bg_thd", "background_thre", "mimalloc", "arrow_jemalloc")
UID = 1000

CLONE = {"user": 0x10000000, "pid": 0x20000000, "mnt": 0x20000, "net": 0x40000000, "ipc": 0x8000000,
         "uts": 0x4000000, "cgroup": 0x2000000}
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER = 4, 24, 28, 36
# Uid 0 gets no capabilities by an exec, for good: SECBIT_NOROOT and its lock.
NO_ROOT = 3
SYS_CAPSET, SYS_SECCOMP, SYS_RSEQ = {"x86_64": (126, 317, 334), "aarch64": (91, 277, 293)}[os.uname().machine]
# x86_64 only, as the native fork is.
SYS_ARCH_PRCTL, ARCH_GET_FS = 158, 0x1003

libc = ctypes.CDLL(None, use_errno=True)
# Looked up now, while there is time: after a fork each first use would cost page faults.
setns, prctl, syscall = libc.setns, libc.prctl, libc.syscall
syscall.restype = ctypes.c_long
# PyOS_BeforeFork and its kin are os.fork()'s, around a fork that is not its own.
before_fork, after_in_parent, after_in_child = [
    getattr(ctypes.pythonapi, "PyOS_" + name) for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
]
for function in (before_fork, after_in_parent, after_in_child):
    function.argtypes, function.restype = [], None
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


CLONE_VM, CLONE_VFORK, CLONE_INTO_CGROUP = 0x100, 0x4000, 0x200000000
clone_arguments = CloneArguments(flags=CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD)
forked = ctypes.c_long()


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
    kinds = [ctypes.POINTER(CloneArguments), ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
             ctypes.POINTER(ctypes.c_long)]
    # With the interpreter's lock held all the way.
    return ctypes.PYFUNCTYPE(ctypes.c_long, *kinds)(address)


def find_rseq():
    """What the C library registered with rseq(2) for this thread: address and size; None where it has not."""
    try:
        offset = ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value
        size = ctypes.c_uint.in_dll(libc, "__rseq_size").value
    except ValueError:
        return None
    pointer = ctypes.c_ulong()
    if not size or syscall(SYS_ARCH_PRCTL, ARCH_GET_FS, ctypes.byref(pointer)) < 0:
        return None
    return pointer.value + offset, max(32, size)


def register_rseq():
    """Again, in the child: the helper shared the zygote's memory, and a process that does so loses it. Without, the C library
    would go on believing that it runs on the processor where the zygote forked."""
    if rseq is not None:
        check(syscall(SYS_RSEQ, ctypes.c_void_p(rseq[0]), rseq[1], 0, 0x53053053), "rseq")


enter_and_fork = load_fork()
rseq = find_rseq()
fork_of_libc = ctypes.cast(libc.fork, ctypes.c_void_p)


def fork_into(fds):
    """As os.fork(), with the child in the slot's cgroup, user and PID namespace."""
    clone_arguments.cgroup = fds["group"]
    # A helper that is killed on its way leaves this.
    forked.value = -errno.ESRCH
    before_fork()
    helper = enter_and_fork(ctypes.byref(clone_arguments), ctypes.sizeof(clone_arguments), fds["user"], fds["pid"],
                            fork_of_libc, ctypes.byref(forked))
    if helper == 0:
        register_rseq()
        after_in_child()
        return 0
    after_in_parent()
    if helper > 0:
        os.waitpid(helper, 0)
    if helper < 0 or forked.value < 0:
        number = -helper if helper < 0 else -forked.value
        raise OSError(number, "fork into a slot: %s" % os.strerror(number))
    return forked.value


def check(result, call):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (call, os.strerror(number)))


def enter(fds):
    """Moves the calling process, a fresh child, into the rest of the slot."""
    for name in ("net", "ipc", "uts", "cgroup", "mnt"):
        check(setns(fds[name], CLONE[name]), "setns " + name)


def drop(uid):
    """Gives up everything, for good. A zygote stays the root of its user namespace, by number only."""
    for capability in capabilities:
        check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl PR_CAPBSET_DROP")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if uid == 0:
        check(prctl(PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0), "prctl PR_SET_SECUREBITS")
    check(syscall(SYS_CAPSET, capability_header, no_capabilities), "capset")
    if uid != 0:
        check(syscall(SYS_SECCOMP, 1, 0, ctypes.byref(program)), "seccomp")
    # setresuid cleared it, and without it a process cannot read its own /proc/self/environ.
    check(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl PR_SET_DUMPABLE")


def let_go(log, socket):
    """Of what was the zygote's: its children's ends, and its descriptors."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    after_fork.arrange((log, log, socket))
    # The object would close the number, which is the instance's socket now.
    channel.detach()


def child(fds, early):
    """The rest of the life of a forked process."""
    try:
        enter(fds)
        let_go(fds["log"], fds["socket"])
        os.setsid()
        os.umask(0o022)
        drop(UID)
        after_fork.mend()
    except BaseException as error:
        os.write(2, ("sock: zygote: failed to become an instance: %r\n" % error).encode())
        os._exit(1)
    code = 1
    try:
        code = instance.main(3, standard, early)
    finally:
        # Whatever happens, it does not come back as a second zygote. By a name that no handler has replaced.
        instance.leave_now(code)


def begin_again(fds):
    """Makes a forked process a zygote that has imported what this one has."""
    try:
        enter(fds)
        after_fork.arrange((fds["log"], fds["log"], fds["socket"], fds["control"]), (woken, wake))
        for name, end in zip((woken, wake), os.pipe2(os.O_CLOEXEC)):
            os.dup2(end, name, False)
            os.close(end)
        os.set_blocking(wake, False)
        os.setsid()
        drop(0)
        children.clear()
        adopt()
        instance.send(CONTROL, b"H")
    except BaseException as error:
        os.write(2, ("sock: zygote: failed to become a zygote: %r\n" % error).encode())
        os._exit(1)


def fork():
    """Takes one datagram off the fork channel: "fork" for a request that waits, "spare" when none does yet, "zygote" for another
    one. Whether this is the other one now."""
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
            pid = fork_into(fds)
            if pid == 0:
                if kind == b"zygote":
                    begin_again(fds)
                    numbers = ()
                    return True
                child(fds, kind == b"spare")
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
    check(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def watch_children():
    """The end of a child wakes the loop. Again after imports, which may have set the signal to something else."""
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)


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
    instance.rehearse(standard)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    os.chdir(directory)
    forget_listings()


def fill_holes():
    """Takes all free memory that lies between what is in use. A child would fill it with small things of its own, one here and one
    there, and each would cost it the copy of a page: a tenth of all that it copies until its first answer.

    Sizes from the largest down, each until the C library gives memory from the heap's end. What is taken is never given back.
    """
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    # Below what the C library maps apart; above that, holes are whole pages.
    sizes = [100000, 65536, 32768, 16384, 8192, 4096, 2048] + list(range(1024, 8, -16))
    # The C library of another kind may never give memory from an end.
    left = 1000000
    for size in sizes:
        end = malloc(sizes[0])
        free(end)
        while left:
            left -= 1
            taken = malloc(size)
            if taken is None or taken >= end:
                free(taken)
                break


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

    recorder.record(action)
    random_noted()
    strangers = threads()
    safe = not strangers
    instance.env_written.update(recorder.written)
    keep_path()
    rehearse()
    # What was printed is the zygote's log, not that of each child.
    instance.flush()
    gc.collect()
    fill_holes()
    watch_children()
    after_fork.settle(open_before)
    gc.freeze()
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
    for fd in (FORK_CHANNEL, CONTROL, woken):
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
                os.read(woken, 4096)
                reap()


safe = True
standard = instance.standard_path()
sys.path[:] = standard + [instance.PACKAGES]
adopt()
channel = socket.socket(fileno=FORK_CHANNEL)
# Of living children: what the launcher calls them.
children = {}
woken, wake = os.pipe()
os.set_blocking(wake, False)
watch_children()

if __name__ == "__main__":
    try:
        loop()
    except instance.Gone:
        # What packages would like to do at the end is not for a zygote.
        os._exit(0)
