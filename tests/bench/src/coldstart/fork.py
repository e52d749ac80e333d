"""Imports what its arguments name; then, for each line that it reads, forks, and writes how many nanoseconds went by until it had
read the one byte that the child writes."""

import importlib
import os
import sys
import time

for name in sys.argv[1:]:
    importlib.import_module(name)
print("ready", flush=True)
while sys.stdin.readline():
    reading, writing = os.pipe()
    begin = time.perf_counter_ns()
    child = os.fork()
    if child == 0:
        os.write(writing, b"1")
        os._exit(0)
    os.read(reading, 1)
    took = time.perf_counter_ns() - begin
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    print(took, flush=True)
