"""Does what a handler should not: one function a case, which the event names. `good` has to be answered rightly all the same.

A case that hangs sleeps for longer than any test waits.
"""

import _thread
import builtins
import json
import os
import signal
import sys
import threading
import time
import uuid

SOCKET = 3
INSTANCE = uuid.uuid4().hex
held, replaced = [], []
cue = threading.Event()


def handler(event, context):
    return globals()[event["how"]](event, context)


def good(event, context):
    return {
        "value": event["value"],
        "request": context.aws_request_id,
        "instance": INSTANCE,
        "pids": os.readlink("/proc/self/ns/pid"),
    }


def hang():
    time.sleep(600)


# Ends.


def raises(event, context):
    return inner(event)


def inner(event):
    raise ValueError("no way")


def exits_well(event, context):
    exit()


def exits(event, context):
    sys.exit(3)


def exits_at_once(event, context):
    os._exit(5)


def crashes(event, context):
    import ctypes

    ctypes.string_at(0)


def aborts(event, context):
    os.abort()


def kills_itself(event, context):
    os.kill(os.getpid(), signal.SIGKILL)


def unserialisable(event, context):
    return {1}


def large(event, context):
    return "x" * (7 << 20)


# Time.


def spins(event, context):
    while True:
        pass


def sleeps(event, context):
    if os.fork() == 0:
        hang()
    hang()


def deaf(event, context):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


# Too much.


def memory(event, context):
    block = bytearray(1 << 30)
    for place in range(0, len(block), 4096):
        block[place] = 1


def forks(event, context):
    while True:
        try:
            os.fork()
        except OSError:
            hang()


def threads(event, context):
    while True:
        _thread.start_new_thread(hang, ())


def files(event, context):
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))


def fills(event, context):
    with open("/tmp/full", "wb", buffering=0) as file:
        try:
            fill(file, 1 << 20)
        except OSError:
            fill(file, 1)


def fill(file, size):
    block = bytes(size)
    while True:
        file.write(block)


# Output.


def lines(event, context):
    for _ in range(10 << 10):
        print("x" * 1023)


def line(event, context):
    print("y" * (10 << 20))


def binary(event, context):
    os.write(1, bytes(range(256)))


# The socket.


def frame(kind, payload=b""):
    return kind + len(payload).to_bytes(4, "little") + payload


def nonce():
    """What ties an answer to this invocation: nobody is told, but it is somewhere in this process."""
    caller = sys._getframe()
    while "nonce" not in caller.f_locals:
        caller = caller.f_back
    return caller.f_locals["nonce"]


def when_idle(action):
    """Does it in a thread, once the runtime waits for the next invocation."""
    main = threading.main_thread().ident

    def wait():
        while sys._current_frames()[main].f_code.co_name != "read_more":
            time.sleep(0.001)
        action()

    threading.Thread(target=wait, daemon=True).start()


def closes_everything(event, context):
    os.closerange(0, 1024)
    hang()


def closes_and_returns(event, context):
    os.closerange(0, 1024)


def closes_output(event, context):
    os.close(1)
    os.close(2)
    return "quiet"


def garbage(event, context):
    os.write(SOCKET, b"garbage")
    hang()


def too_long(event, context):
    os.write(SOCKET, b"r" + (1 << 31).to_bytes(4, "little"))
    hang()


def another_kind(event, context):
    os.write(SOCKET, frame(b"H"))
    hang()


def forged(event, context):
    os.write(SOCKET, frame(b"r", b'"forged"'))
    hang()


def forged_error(event, context):
    os.write(SOCKET, frame(b"e", b'{"errorType": "forged"}'))
    hang()


def half_a_frame(event, context):
    os.write(SOCKET, frame(b"r", b"123456789")[:5])
    return "whole"


def child_forges(event, context):
    socket = os.dup(SOCKET)
    if os.fork() == 0:
        os.write(socket, frame(b"r", b'"forged"'))
    hang()


def garbage_later(event, context):
    when_idle(lambda: os.write(SOCKET, b"garbage"))
    return "answered"


def forged_later(event, context):
    forged = frame(b"r", nonce() + b'"forged"')
    when_idle(lambda: os.write(SOCKET, forged))
    return "answered"


def answers_twice(event, context):
    os.write(SOCKET, frame(b"r", nonce() + b'"first"'))
    return "second"


def answers_next(event, context):
    """Its second answer comes while the next invocation runs."""
    late = frame(b"r", nonce() + b'"late"')

    def wait():
        cue.wait()
        os.write(SOCKET, late)

    threading.Thread(target=wait, daemon=True).start()
    return "answered"


def gives_cue(event, context):
    cue.set()
    hang()


def stops_blocking(event, context):
    os.set_blocking(SOCKET, False)
    return "answered"


def exits_later(event, context):
    when_idle(lambda: os._exit(0))
    return "answered"


def leaves_child_with_socket(event, context):
    os.dup(SOCKET)
    if os.fork() == 0:
        hang()
    os._exit(3)


# What is left behind.


def replaces(event, context):
    """As libraries do that know better, and worse. Once, or it would meet itself."""
    if replaced:
        return "replaced"
    replaced.append(True)

    def wrong(*arguments, **more):
        return "wrong"

    for module in (json, json.decoder, json.encoder, json.scanner):
        for name, value in list(vars(module).items()):
            if not name.startswith("__"):
                setattr(module, name, wrong)
            # Not those in C, of which there is one for all.
            if isinstance(value, type) and value.__module__.startswith("json"):
                for method in [method for method in vars(value) if method != "__module__"]:
                    try:
                        setattr(value, method, wrong)
                    except (AttributeError, TypeError):
                        pass
    os.read = os.write = os.open = os.dup2 = os.close = os._exit = wrong
    # What the other cases use.
    kept = ("setattr", "globals", "ValueError")
    for name in [name for name in vars(builtins) if not name.startswith("_") and name not in kept]:
        setattr(builtins, name, wrong)
    for name in ("json", "os", "time", "traceback", "builtins", "importlib"):
        sys.modules[name] = None
    sys.stdout = sys.stderr = None
    return "replaced"


def replaces_and_raises(event, context):
    replaces(event, context)
    raise ValueError("no way")


def replaces_and_exits(event, context):
    _thread.start_new_thread(hang, ())
    replaces(event, context)
    sys.exit(3)


def leaves(event, context):
    """Processes and threads, which go on."""
    def count():
        while True:
            held.append(1)
            time.sleep(0.001)

    threading.Thread(target=count, daemon=True).start()
    if os.fork() == 0:
        hang()
    os.system("sleep 600 &")
    return "left"


def prints_later(event, context):
    """Once the file is gone: until its caller has the answer, what is written belongs to this invocation."""
    def late():
        while os.path.exists("/tmp/hold"):
            time.sleep(0.001)
        os.write(1, b"a late line\n")
        open("/tmp/late", "w").close()

    print("a line in time")
    open("/tmp/hold", "w").close()
    threading.Thread(target=late, daemon=True).start()
    return "answered"


def floods(event, context):
    if os.fork() == 0:
        while True:
            os.write(1, b"on and on\n" * 100)
    return "answered"
