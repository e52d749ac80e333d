"""Renders a template over the event."""

from jinja2 import Environment, StrictUndefined

PAGE = Environment(autoescape=True, undefined=StrictUndefined).from_string(
    "<h1>{{ title }}</h1><ul>{% for item in items %}<li>{{ loop.index }}. {{ item }}</li>{% endfor %}</ul>"
)


def handler(event, context):
    return {"html": PAGE.render(title=event["title"], items=event["items"])}
