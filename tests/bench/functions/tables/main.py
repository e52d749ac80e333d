"""Needs pandas, and does next to nothing with it: what is measured is how it got there."""

import pandas


def handler(event, context):
    return pandas.__version__
