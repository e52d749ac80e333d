"""Ways out of a container, each a function that tries one. Plain Python, so that it also runs as a function of the platform.

What a probe returns is told: "made" where it got through, the name of the error where it was refused. An OSError is its errno.
What of the host it is to reach comes in by the environment: a port (PORT), an abstract socket (ABSTRACT), a System V key (KEY); the same of
another container, which has them from `be_a_neighbour`, by names that begin with NEIGHBOUR_, and its number on the host (NEIGHBOUR).
"""

import ctypes
import errno
import fcntl
import json
import os
import pty
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios

libc = ctypes.CDLL(None, use_errno=True)
report, kept = None, []
NEWNS, NEWUSER, NEWNET, NEWPID = 0x20000, 0x10000000, 0x40000000, 0x20000000
MACHINE = os.uname().machine
# By number, so that no check of a library's comes first.
NUMBERS = {
    "ptrace": 101, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "sethostname": 170, "init_module": 175,
    "reboot": 169, "clock_settime": 227, "kexec_load": 246, "add_key": 248, "keyctl": 250, "mknodat": 259, "unshare": 272,
    "perf_event_open": 298, "open_by_handle_at": 304, "name_to_handle_at": 303, "setns": 308, "process_vm_readv": 310,
    "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone": 56, "clone3": 435,
    "personality": 135, "setuid": 105, "pidfd_open": 434, "pidfd_getfd": 438, "mq_open": 240, "swapon": 167,
    "acct": 163, "syslog": 103, "quotactl": 179, "settimeofday": 164, "fanotify_init": 300, "move_mount": 429,
    "kexec_file_load": 320, "finit_module": 313, "mount_setattr": 442, "lookup_dcookie": 212, "iopl": 172, "modify_ldt": 154,
}


def call(name, *arguments):
    # All of a register each: what goes by the stack has no upper half else.
    whole = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *whole)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def reading(path):
    with open(path) as file:
        return file.read()


def reads(path):
    with open(path, "rb") as file:
        file.read(1)


def writes(path):
    if os.path.exists(path) and os.stat(path).st_rdev == os.makedev(1, 3):
        return "masked"
    with open(path, "r+b", buffering=0) as file:
        file.write(b"0\n")


def connects_to(port):
    socket.create_connection(("127.0.0.1", int(port)), 2)


def connects_by_name(name):
    socket.socket(socket.AF_UNIX).connect(b"\0" + name.encode())


def shares_memory(key):
    if libc.shmget(int(key), 0, 0o600) < 0:
        raise OSError(ctypes.get_errno(), "shmget")


def be_a_neighbour(*_):
    """Has what others are to try to reach, for as long as this process lives: its environment for them. A handler, too."""
    listener, end = socket.socket(), socket.socket(socket.AF_UNIX)
    listener.bind(("127.0.0.1", 0))
    name, key = "sock-neighbour-" + os.urandom(8).hex(), int.from_bytes(os.urandom(3), "little") | 0x51000000
    end.bind(b"\0" + name.encode())
    for one in (listener, end):
        one.listen()
        kept.append(one)
    if libc.shmget(key, 4096, 0o1666) < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return dict(NEIGHBOUR_PORT=str(listener.getsockname()[1]), NEIGHBOUR_ABSTRACT=name, NEIGHBOUR_KEY=str(key))


# The root.

def chroot():
    os.makedirs("/tmp/root", exist_ok=True)
    call("chroot", b"/tmp/root")

def chroot_twice():
    """The classic: a root below the working directory, and up from there."""
    os.makedirs("/tmp/a/b", exist_ok=True)
    os.chdir("/tmp/a")
    call("chroot", b"/tmp/a/b")
    for _ in range(64):
        os.chdir("..")
    call("chroot", b".")

def pivot_root():
    os.makedirs("/tmp/new", exist_ok=True)
    call("mount", b"none", b"/tmp/new", b"tmpfs", 0, None)
    os.mkdir("/tmp/new/old")
    call("pivot_root", b"/tmp/new", b"/tmp/new/old")

def root_of_init():
    reads("/proc/1/root/etc/hostname")

def working_directory_of_init():
    os.listdir("/proc/1/cwd")

def descriptors_of_init():
    os.listdir("/proc/1/fd")

def memory_of_init():
    reads("/proc/1/mem")

def environment_of_init():
    reads("/proc/1/environ")

def arguments_of_init():
    """It is a fork of what the server was started as, whose arguments may have secrets in them."""
    with open("/proc/1/cmdline", "rb") as file:
        return "hidden" if file.read().strip(b"\0") == b"sock: container" else "made"

def file_of_the_host():
    reads("/etc/shadow")

def home_of_root():
    os.listdir("/root")

def writable_usr():
    open("/usr/escape", "w").close()

def writable_root():
    open("/escape", "w").close()

def writable_etc():
    open("/etc/passwd", "a").close()

def own_program():
    """runc's CVE-2019-5736."""
    open("/proc/self/exe", "r+b").close()

def library_of_the_host():
    open(os.path.realpath("/usr/lib/os-release"), "r+b").close()

def set_user_id_programs():
    """None of them takes effect: by the mounts, by no_new_privs, and in one that runs, held up by a pipe that nobody reads."""
    program = next(path for path in ("/usr/bin/su", "/usr/bin/mount") if os.path.exists(path) and os.stat(path).st_mode & stat.S_ISUID)
    _, end = os.pipe()
    os.write(end, bytes(fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 4096)))
    with subprocess.Popen([program, "--help"], stdout=end, stderr=end, stdin=subprocess.DEVNULL) as child:
        while not reading("/proc/%d/stat" % child.pid).startswith("%d (%s) S" % (child.pid, os.path.basename(program))):
            if child.poll() is not None:
                return "it ended"
            os.sched_yield()
        ids = next(line for line in reading("/proc/%d/status" % child.pid).splitlines() if line.startswith("Uid:")).split()[1:]
        child.kill()
    if set(ids) != {str(os.getuid())}:
        return "made"
    return "ineffective" if os.statvfs("/usr").f_flag & os.ST_NOSUID and libc.prctl(39, 0, 0, 0, 0) == 1 else "made"


# Mounts.

def mount():
    call("mount", b"none", b"/tmp", b"tmpfs", 0, None)

def mount_proc():
    call("mount", b"proc", b"/tmp", b"proc", 0, None)

def mount_sys():
    call("mount", b"sysfs", b"/tmp", b"sysfs", 0, None)

def mount_cgroup():
    call("mount", b"none", b"/tmp", b"cgroup2", 0, None)

def release_agent():
    """CVE-2022-0492: a program that the host's root runs when a group is empty."""
    call("mount", b"none", b"/tmp", b"cgroup", 0, b"none,name=escape,release_agent=/tmp/agent")

def unmask_proc():
    call("umount2", b"/proc/keys", 2)

def unmount_proc():
    call("umount2", b"/proc", 2)

def remount_writable():
    call("mount", None, b"/", None, 0x20 | 0x1000, None)

def open_tree():
    call("open_tree", -100, b"/", 1)

def new_mount_interface():
    call("fsopen", b"tmpfs", 0)

def move_mount():
    call("move_mount", -100, b"/tmp", -100, b"/usr", 0)

def mount_attributes():
    call("mount_setattr", -100, b"/", 0, struct.pack("QQQQ", 0, 1, 0, 0), 32)

def file_handles():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    call("name_to_handle_at", -100, b"/usr", handle, ctypes.byref(ctypes.c_int()), 0)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, os.O_RDONLY)

def make_device():
    call("mknodat", -100, b"/tmp/disk", 0o60666, os.makedev(254, 0))

def make_null():
    call("mknodat", -100, b"/tmp/null", 0o20666, os.makedev(1, 3))

def disk():
    found = [name for name in os.listdir("/dev") if name not in (
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero")]
    return "made" if found else "ENOENT"

def memory_device():
    reads("/dev/mem")

def kernel_memory():
    return writes("/proc/kcore")

def kernel_symbols():
    with open("/proc/kallsyms") as file:
        return "made" if file.read(1) else "masked"

def sysfs():
    os.listdir("/sys")


# What the kernel is told through /proc.

def core_pattern():
    return writes("/proc/sys/kernel/core_pattern")

def host_name_file():
    return writes("/proc/sys/kernel/hostname")

def module_loader():
    return writes("/proc/sys/kernel/modprobe")

def overcommit():
    return writes("/proc/sys/vm/overcommit_memory")

def sysrq():
    return writes("/proc/sysrq-trigger")

def oom_score_of_init():
    return writes("/proc/1/oom_score_adj")

def namespaces_allowed():
    return writes("/proc/sys/user/max_user_namespaces")

def interrupts():
    os.listdir("/proc/irq/0")

def keys_of_others():
    with open("/proc/keys") as file:
        return "made" if file.read(1) else "masked"


# Namespaces.

def user_namespace():
    call("unshare", NEWUSER)

def mount_namespace():
    call("unshare", NEWNS)

def network_namespace():
    call("unshare", NEWNET)

def user_namespace_by_clone():
    if call("clone", NEWUSER | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)

def user_namespace_by_clone3():
    arguments = (ctypes.c_uint64 * 11)(NEWUSER, 0, 0, 0, signal.SIGCHLD)
    if call("clone3", ctypes.byref(arguments), 88) == 0:
        os._exit(0)

def namespace_of_init():
    call("setns", call("pidfd_open", 1, 0), NEWNS)

def network_of_init():
    call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), NEWNET)


# Other processes.

def others_seen():
    found = {int(pid) for pid in os.listdir("/proc") if pid.isdigit()} - {1, os.getpid(), os.getppid()}
    return "made" if found else "ESRCH"

def kill_outside():
    for pid in range(1, 1 << 15):
        if pid not in (1, os.getpid(), os.getppid()):
            try:
                os.kill(pid, 0)
                return "made"
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise
    return "ESRCH"

def kill_a_neighbour():
    os.kill(int(os.environ["NEIGHBOUR"]), 0)

def kill_init():
    os.kill(1, signal.SIGKILL)

def kill_all():
    """-1 is everybody: whom it reaches is of the container."""
    os.kill(-1, 0)
    return "ESRCH" if others_seen() == "ESRCH" else "made"

def ptrace():
    call("ptrace", 16, 1, 0, 0)

def ptrace_a_neighbour():
    call("ptrace", 16, int(os.environ["NEIGHBOUR"]), 0, 0)

def ptrace_me():
    call("ptrace", 0, 0, 0, 0)

def read_memory():
    call("process_vm_readv", 1, 0, 0, 0, 0, 0)

def memory_of_a_neighbour():
    one = ctypes.create_string_buffer(1)
    vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(one), 1))
    call("process_vm_readv", int(os.environ["NEIGHBOUR"]), vector, 1, vector, 1, 0)

def steal_descriptor():
    call("pidfd_getfd", call("pidfd_open", 1, 0), 0, 0)

def priority():
    os.setpriority(os.PRIO_PROCESS, 0, -5)

def inherited_descriptors():
    """Besides the three, an instance's socket, and what tells the outcome."""
    listed = {int(fd) for fd in os.listdir("/proc/self/fd")} - {0, 1, 2, 3, report}
    # The listing's own is closed by now.
    return "made" if [fd for fd in listed if os.path.exists("/proc/self/fd/%d" % fd)] else "none"


# The kernel's large doors.

def keyring():
    call("keyctl", 0, -3, 1)

def add_key():
    call("add_key", b"user", b"escape", b"x", 1, -2)

def bpf():
    call("bpf", 0, ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 8, 1) + bytes(56)), 72)

def perf():
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0) + bytes(24) + struct.pack("Q", 0x60) + bytes(64))
    call("perf_event_open", attributes, 0, -1, -1, 0)

def userfaultfd():
    call("userfaultfd", 1)

def io_uring():
    call("io_uring_setup", 1, ctypes.create_string_buffer(120))

def kexec():
    call("kexec_load", 0, 0, 0, 0)

def kexec_by_file():
    call("kexec_file_load", -1, -1, 0, b"", 0)

def load_module():
    call("init_module", b"", 0, b"")

def load_module_by_file():
    call("finit_module", os.open("/dev/null", os.O_RDONLY), b"", 0)

def reboot():
    call("reboot", 0xfee1dead - (1 << 32), 672274793, 0x89abcdef - (1 << 32), 0)

def swap():
    call("swapon", b"/tmp/swap", 0)

def accounting():
    call("acct", None)

def kernel_log():
    call("syslog", 3, ctypes.create_string_buffer(64), 64)

def watch_everything():
    call("fanotify_init", 0x200, 0)

def clock():
    call("clock_settime", 0, struct.pack("qq", 0, 0))

def host_name():
    call("sethostname", b"escape", 6)

def no_randomisation():
    call("personality", 0x40000)

def old_segments():
    call("modify_ldt", 0, ctypes.create_string_buffer(16), 16)

def io_ports():
    call("iopl", 3)

def become_root():
    call("setuid", 0)

def old_system_calls():
    """By the numbers of x32: a filter that forgets them is none."""
    result = libc.syscall(ctypes.c_long(0x40000000 + 39))
    if result < 0:
        raise OSError(ctypes.get_errno(), "x32")

def type_into_the_terminal():
    """Its own, so that what refuses it is not whose it is."""
    os.setsid()
    # What openpty() says has no number.
    os.close(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
    fcntl.ioctl(follower, termios.TIOCSTI, b"x")

def core_dumps():
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


# The network.

def raw_socket():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)

def lingering_socket():
    """Whoever closes one last waits for its peer: passed to the platform, the platform waits."""
    socket.socket(socket.AF_INET).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))

def other_options():
    """What programs do set is allowed."""
    end = socket.socket(socket.AF_INET6)
    end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return "allowed"

def packet_filter():
    socket.socket(socket.AF_INET).setsockopt(socket.IPPROTO_IP, 64, bytes(128))

def interface():
    fcntl.ioctl(socket.socket(socket.AF_INET), 0x8914, struct.pack("16sH22x", b"lo", 0))

def multipath_socket():
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)

def stop_by_a_childs_end():
    pid = os.fork()
    if pid == 0:
        try:
            if call("clone", signal.SIGSTOP, 0, 0, 0, 0) == 0:
                os._exit(0)
            signal.pause()
        except OSError as error:
            os._exit(error.errno)
    status = os.waitpid(pid, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "made"
    raise OSError(os.WEXITSTATUS(status), "clone")

def stop_by_a_parents_death():
    if libc.prctl(1, signal.SIGSTOP, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")

def stop_a_process():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        os.kill(pid, signal.SIGSTOP)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

def signal_by_descriptor():
    fcntl.fcntl(0, 10, signal.SIGSTOP)

def time_namespace():
    call("unshare", 0x80)

def packet_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

def netlink_socket():
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)

def vsock():
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)

def crypto_socket():
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)

def loopback_of_the_host():
    connects_to(os.environ["PORT"])

def loopback_of_a_neighbour():
    connects_to(os.environ["NEIGHBOUR_PORT"])

def abroad():
    socket.create_connection(("192.0.2.1", 9), 2)

def abstract_socket_of_the_host():
    connects_by_name(os.environ["ABSTRACT"])

def abstract_socket_of_a_neighbour():
    connects_by_name(os.environ["NEIGHBOUR_ABSTRACT"])


# Shared things.

def shared_memory_of_the_host():
    shares_memory(os.environ["KEY"])

def shared_memory_of_a_neighbour():
    shares_memory(os.environ["NEIGHBOUR_KEY"])

def message_queue():
    call("mq_open", b"sock-escape-%d" % int(os.environ["KEY"]), 0, 0, None)

def message_queue_for_neighbours():
    call("mq_open", b"sock-escape", os.O_CREAT, 0o666, None)

def cgroup():
    return writes("/sys/fs/cgroup/cgroup.procs")

def cgroup_path():
    with open("/proc/self/cgroup") as file:
        return "made" if any(line.strip().split(":")[2] != "/" for line in file if line.startswith("0:")) else "hidden"


def swap_links():
    """While whoever checks a path looks at a directory, it becomes a link: what is opened is of the container all the same."""
    os.makedirs("/tmp/race/place/etc")
    os.symlink("/", "/tmp/race/link")
    os.symlink("place", "/tmp/race/way")
    swapper = os.fork()
    if swapper == 0:
        while True:
            for aim in ("link", "place"):
                os.symlink(aim, "/tmp/race/new")
                os.replace("/tmp/race/new", "/tmp/race/way")
    try:
        for _ in range(2000):
            try:
                reads("/tmp/race/way/etc/shadow")
                return "made"
            except FileNotFoundError:
                pass
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    return "ENOENT"


# Taking all that there is.

def all_keys():
    for number in range(100000):
        call("add_key", b"user", b"escape %d" % number, b"x", 1, -2)

def all_user_namespaces():
    for _ in range(100000):
        call("unshare", NEWUSER)

def all_processes():
    children = []
    try:
        for _ in range(100000):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

def all_descriptors():
    kept = []
    for _ in range(1 << 20):
        kept.append(os.open("/dev/null", os.O_RDONLY))

def all_sockets():
    kept = []
    for _ in range(1 << 20):
        kept.append(socket.socket(socket.AF_UNIX))

def all_of_tmp():
    with open("/tmp/fill", "wb", buffering=0) as file:
        try:
            for _ in range(1 << 14):
                file.write(bytes(1 << 20))
        finally:
            os.unlink("/tmp/fill")

def all_inodes():
    os.mkdir("/tmp/many")
    try:
        for number in range(1 << 20):
            os.mkdir("/tmp/many/%d" % number)
    finally:
        for name in os.listdir("/tmp/many"):
            os.rmdir("/tmp/many/" + name)
        os.rmdir("/tmp/many")

def all_watches():
    kept = []
    for _ in range(1 << 20):
        fd = libc.inotify_init1(0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        kept.append(fd)

def all_locked_memory():
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if libc.mlock(libc.mmap(None, 8 << 20, 3, 0x22, -1, 0), 8 << 20) < 0:
        raise OSError(ctypes.get_errno(), "mlock")


HELPERS = ("call", "reading", "reads", "writes", "connects_to", "connects_by_name", "shares_memory", "be_a_neighbour")
PROBES = {name: thing for name, thing in list(globals().items())
          if callable(thing) and getattr(thing, "__module__", "") == __name__ and name not in HELPERS}


def outcome(probe):
    try:
        return probe() or "made"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except ValueError:
        # What setrlimit() says for EPERM.
        return "EPERM"


def attempt(name):
    """In a process of its own: what it opened and became is gone with it, and so is one that does not end."""
    global report
    read, write = os.pipe()
    report = write
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.alarm(60)
        text = "failed"
        try:
            text = outcome(PROBES[name])
        except BaseException as error:
            text = repr(error)
        finally:
            try:
                os.write(write, text.encode())
            finally:
                os._exit(0)
    os.close(write)
    text = b""
    while True:
        piece = os.read(read, 4096)
        if not piece:
            break
        text += piece
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    return text.decode() or "signal %d" % (status & 0x7f)


def handler(event, context):
    os.environ.update(event["environment"])
    return {name: attempt(name) for name in event.get("probes") or PROBES}


if __name__ == "__main__" and sys.argv[1:] == ["be_a_neighbour"]:
    print(json.dumps(be_a_neighbour()), flush=True)
    signal.pause()
elif __name__ == "__main__":
    print(json.dumps({name: attempt(name) for name in sys.argv[1:] or PROBES}))
