"""Records what imports depend on besides the files that they read: the four clauses of the sharing rule need it.

* names that were looked for and not found (another function's packages may have them);
* look-ups of installed distributions' metadata, "*" for an enumeration of all;
* environment variables that were read, "*" for an enumeration of all.
"""

import os
import sys

missed = set()
lookups = set()
env = set()


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


def watch_environment():
    """Makes os.environ note what is read; returns a function that undoes it."""
    kind = type(os.environ)
    get, iterate = kind.__getitem__, kind.__iter__

    def noted_get(self, key):
        env.add(key)
        return get(self, key)

    def noted_iterate(self):
        env.add("*")
        return iterate(self)

    kind.__getitem__, kind.__iter__ = noted_get, noted_iterate

    def undo():
        kind.__getitem__, kind.__iter__ = get, iterate

    return undo


def record(action):
    """Runs `action` and adds to the record what its imports looked at."""
    undo = watch_environment()
    sys.meta_path.append(Last)
    try:
        action()
    finally:
        sys.meta_path.remove(Last)
        undo()
    if "pkg_resources" in sys.modules:
        # It scans every directory of the path when it is imported.
        lookups.add("*")
