"""Where it runs, by the kernel's word and by the C library's, which has it from memory that the kernel keeps (rseq)."""

import ctypes
import os

libc = ctypes.CDLL(None)


def handler(event, context):
    seen = []
    for processor in sorted(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, {processor})
        seen.append([processor, libc.sched_getcpu()])
    return seen
