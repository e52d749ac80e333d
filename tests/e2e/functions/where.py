"""Tells its instances apart."""

import os
import time
import uuid

INSTANCE = uuid.uuid4().hex
calls = 0


def handler(event, context):
    global calls
    calls += 1
    time.sleep(event.get("sleep", 0))
    return {"instance": INSTANCE, "calls": calls, "pid": os.getpid()}
