"""What a zygote does with its memory so that forks of it are cheap. No rights needed."""

import ctypes
import gc
import sys
from types import FunctionType

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

PAGE, HUGE = 4096, 2 << 20
# Of the pages of a huge one, which has them all, those that are there already.
FULL = 448
# Present, and mapped by nobody else: proc_pid_pagemap(5).
OWN, MADV_COLLAPSE = 1 << 63 | 1 << 56, 25


# What was moved, where it was.
left = []


def fill_holes():
    """Takes all free memory that lies between what is in use. A child would fill it with small things of its own, one here and one
    there, and each would cost it the copy of a page: a tenth of all that it copies until its first answer.

    Sizes from the largest down, each until the C library gives memory from the heap's end. What is taken is never given back.
    """
    malloc, free = libc.malloc, libc.free
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


def gather(action, environment):
    """Puts what `action` uses side by side, as far as it can be moved: the code of functions, and the environment's strings. What is used once has
    its references counted, and the first count in a child copies its page.
    """
    used, before = {}, sys.getprofile()

    def note(frame, event, _):
        if event == "call":
            used[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    for function in [thing for thing in gc.get_objects() if type(thing) is FunctionType and id(thing.__code__) in used]:
        # Nothing is to be put where the old one was.
        left.append(function.__code__)
        function.__code__ = function.__code__.replace()
    items = [(bytes(bytearray(name)), bytes(bytearray(value))) for name, value in environment.items()]
    environment.clear()
    environment.update(items)


def collapse():
    """Has stretches of memory that are in use mapped as huge pages, which fork and exit take as one: most of what a fork of large imports costs
    is the copying of page tables. What a child writes to is copied by the small page as ever. madvise(2), from Linux 6.1; elsewhere, and where
    there is no memory for it, nothing is lost.

    What is shared with the zygote that this one was forked from stays as it is: it would be copied.
    """
    try:
        maps, pagemap = open("/proc/self/maps"), open("/proc/self/pagemap", "rb", buffering=0)
    except OSError:
        return
    with maps, pagemap:
        for line in maps.readlines():
            span, access, _, _, inode = line.split(None, 5)[:5]
            if access != "rw-p" or inode != "0":
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            for at in range(-(-start // HUGE) * HUGE, end - HUGE + 1, HUGE):
                pagemap.seek(at // PAGE * 8)
                pages = memoryview(pagemap.read(HUGE // PAGE * 8)).cast("Q")
                if sum(page & OWN == OWN for page in pages) >= FULL:
                    libc.madvise(at, HUGE, MADV_COLLAPSE)
