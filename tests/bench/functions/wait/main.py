"""Answers with its event at the time that is given in it: all that are asked together have instances of their own."""

import time


def handler(event, context):
    time.sleep(max(0, event["until"] - time.time()))
    return event
