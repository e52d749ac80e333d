"""Mean and spread of a value by group, over CSV text."""

import io

import pandas


def handler(event, context):
    table = pandas.read_csv(io.StringIO(event["csv"]))
    groups = table.groupby(event["by"])[event["of"]].agg(["mean", "std", "count"])
    return {name: {k: round(float(v), 6) for k, v in row.items()} for name, row in groups.iterrows()}
