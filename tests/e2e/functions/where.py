"""Tells its instances apart."""

import os
import time
import uuid

INSTANCE = uuid.uuid4().hex
calls = 0


def handler(event, context):
    global calls
    calls += 1
    if "sleep" in event:
        open("/tmp/working", "w").close()
        time.sleep(event["sleep"])
    if "wait" in event:
        open("/tmp/working", "w").close()
        while os.path.exists("/tmp/working"):
            time.sleep(0.1)
    pids = os.readlink("/proc/self/ns/pid")
    return {"instance": INSTANCE, "calls": calls, "pid": os.getpid(), "pids": pids}
