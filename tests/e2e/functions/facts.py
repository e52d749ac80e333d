"""What a function can find out about the process that it runs in."""

import importlib
import locale
import logging
import os
import resource
import signal
import sys
import threading
import warnings

try:
    import main  # noqa: F401
except ImportError:
    pass


def version(module):
    value = getattr(module, "__version__", None)
    return value if isinstance(value, str) else None


def handler(event, context):
    for name in event.get("import", ()):
        importlib.import_module(name)
    modules = {name: [getattr(module, "__file__", None), version(module)] for name, module in sorted(sys.modules.items())}
    handlers = {}
    for number in signal.valid_signals():
        handlers[str(int(number))] = str(signal.getsignal(number))
    umask = os.umask(0o022)
    return {
        "modules": modules,
        "path": sys.path,
        "argv": len(sys.argv),
        "flags": str(sys.flags),
        "meta_path": [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path],
        "environment": {k: v for k, v in os.environ.items() if k not in ("AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_FUNCTION_NAME")},
        "directory": os.getcwd(),
        "umask": umask,
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "session": os.getsid(0) == os.getpid(),
        "threads": threading.active_count(),
        "signals": handlers,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "locale": [locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding(), sys.stdout.encoding],
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": [type(handler).__name__ for handler in logging.root.handlers],
        "recursion": sys.getrecursionlimit(),
        "files": [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_NPROC)],
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
        "mounts": sorted(line.split()[4] for line in open("/proc/self/mountinfo")),
        "bytecode": sys.dont_write_bytecode,
    }
