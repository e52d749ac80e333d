"""Records what imports depend on besides the files that they read: the four clauses of the sharing rule need it.

* names that were looked for and not found (another function's packages may have them);
* look-ups of installed distributions' metadata, "*" for an enumeration of all;
* environment variables that were read, "*" for an enumeration of all;
* environment variables that were set, which a function's own imports would have set.

And what each module costs, without what it imports in turn: which zygotes are worth having is decided by that.
"""

import os
import sys
import time

missed = set()
lookups = set()
env = set()
# The last value; None when it was removed.
written = {}
# Of each module that was imported: microseconds, bytes of private memory.
costs = {}


class Last:
    """At the end of sys.meta_path: whatever gets here was found by nobody. Also asked for metadata, like every finder."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        missed.add(name)
        return None

    @staticmethod
    def find_distributions(context=None):
        name = getattr(context, "name", None)
        lookups.add(name if name else "*")
        return iter(())

    @staticmethod
    def iter_modules(prefix=""):
        # pkgutil lists every module there is: plugins are found so.
        lookups.add("*")
        return []


def text(key):
    """A variable's name as reports have it: that of os.environb is bytes, and may be no text."""
    return os.fsdecode(key).encode("utf-8", "replace").decode()


def watch_environment():
    """Makes os.environ, and os.environb with it, note what is read and written; returns a function that undoes it."""
    kind = type(os.environ)

    def all_of(read):
        def noted(self):
            env.add("*")
            return read(self)

        return noted

    def get(self, key):
        if isinstance(key, (str, bytes)):
            env.add(text(key))
        return own["__getitem__"](self, key)

    def put(self, key, value):
        own["__setitem__"](self, key, value)
        written[os.fsdecode(key)] = os.fsdecode(value)

    def remove(self, key):
        written[os.fsdecode(key)] = None
        own["__delitem__"](self, key)

    noted = {"__getitem__": get, "__setitem__": put, "__delitem__": remove}
    for name in ("__iter__", "__len__", "__repr__"):
        noted[name] = all_of(getattr(kind, name))
    own = {name: getattr(kind, name) for name in noted}
    for name, function in noted.items():
        setattr(kind, name, function)

    def undo():
        for name, function in own.items():
            setattr(kind, name, function)

    return undo


def watch_costs():
    """Measures every import; returns a function that ends that."""
    bootstrap, page = sys.modules["_frozen_importlib"], os.sysconf("SC_PAGE_SIZE")
    load, clock = bootstrap._load_unlocked, time.perf_counter
    statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    # Of each import that is under way: what those took that it made in turn.
    inner = []

    def private():
        # Resident, and of that shared with files. proc_pid_statm(5)
        fields = os.pread(statm, 128, 0).split()
        return (int(fields[1]) - int(fields[2])) * page

    def measured(spec):
        time_before, memory_before = clock(), private()
        inner.append([0.0, 0])
        try:
            return load(spec)
        finally:
            took, grown = clock() - time_before, private() - memory_before
            own = inner.pop()
            costs[spec.name] = (max(0, int((took - own[0]) * 1e6)), max(0, grown - own[1]))
            if inner:
                inner[-1][0] += took
                inner[-1][1] += grown

    def undo():
        bootstrap._load_unlocked = load
        os.close(statm)

    bootstrap._load_unlocked = measured
    return undo


def record(action):
    """Runs `action` and adds to the record what its imports looked at."""
    undo, undo_costs = watch_environment(), watch_costs()
    sys.meta_path.append(Last)
    costs.clear()
    try:
        action()
    finally:
        if Last in sys.meta_path:
            sys.meta_path.remove(Last)
        undo_costs()
        undo()
    if "pkg_resources" in sys.modules:
        # It scans every directory of the path when it is imported.
        lookups.add("*")
