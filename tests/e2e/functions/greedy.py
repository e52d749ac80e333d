"""Takes as much as it is given."""

import os
import time


def burn(seconds):
    """Processor time that two processes got, as a multiple of the time that went by."""
    began, before = time.monotonic(), os.times()
    for _ in range(2):
        if os.fork() == 0:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass
            os._exit(0)
    for _ in range(2):
        os.wait()
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used / (time.monotonic() - began)


def hold(megabytes):
    """Touches every page."""
    block = bytearray(megabytes << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    return len(block) >> 20


def handler(event, context):
    if "burn" in event:
        return burn(event["burn"])
    if "hold" in event:
        return hold(event["hold"])
    return os.getpid()
