"""Needs numpy, and does next to nothing with it: what is measured is how it got there."""

import numpy


def handler(event, context):
    return numpy.__version__
