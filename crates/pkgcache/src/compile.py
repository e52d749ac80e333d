"""Compiles files to bytecode that is never checked against its source again. Imports nothing of what it compiles.

Reads the list of files, separated by NUL, from standard input, relative to the working directory. Writes one byte a file when it is
done with it, so that a crash of the compiler itself (deep nesting can overflow its stack) tells which file it was.
"""
import py_compile
import resource
import sys

CPU_SECONDS_PER_FILE = 60
MEMORY = 2 << 30

mount = sys.argv[1]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
cpu_hard = resource.getrlimit(resource.RLIMIT_CPU)[1]

for name in filter(None, sys.stdin.buffer.read().split(b"\0")):
    name = name.decode("utf-8")
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + CPU_SECONDS_PER_FILE
    if cpu_hard != resource.RLIM_INFINITY:
        soft = min(soft, cpu_hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, cpu_hard))
    try:
        py_compile.compile(
            name,
            # The path under which it will be imported: the import system rewrites every code object of a file whose path differs.
            dfile=mount + "/" + name,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        done = b"+"
    except OSError:
        raise
    except Exception:
        # A file for another Python version, a template, a test of the parser: importing it will say so.
        done = b"-"
    sys.stdout.buffer.write(done)
    sys.stdout.buffer.flush()
