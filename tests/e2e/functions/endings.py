"""Takes what it is told to, and writes."""

import os
import sys
import time


def handler(event, context):
    how = event["how"]
    print("about to", how)
    if how == "memory":
        block = bytearray(1 << 30)
        for place in range(0, len(block), 4096):
            block[place] = 1
    elif how == "forks":
        made = 0
        try:
            while made < 20000:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                made += 1
        except BlockingIOError:
            pass
        return made
    elif how == "output":
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
    return os.getpid()
