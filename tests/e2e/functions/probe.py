"""Wraps a function and reports what it sees of others: files, processes, packages."""

import os
import re

import main


def handler(event, context):
    token = event["token"]
    print("token", token)
    with open("/tmp/" + token, "x") as file:
        file.write(token)
    processes = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    distributions = [re.sub(r"-[^-]*\.dist-info$", "", entry) for entry in os.listdir("/packages") if entry.endswith(".dist-info")]
    return {
        "answer": main.handler(event["event"], context),
        "token": token,
        "tmp": sorted(os.listdir("/tmp")),
        "commands": sorted({open("/proc/%s/comm" % pid).read().strip() for pid in processes}),
        "processes": len(processes),
        "distributions": sorted(name.lower().replace("_", "-") for name in distributions),
        "task": sorted(os.listdir("/var/task")),
    }
