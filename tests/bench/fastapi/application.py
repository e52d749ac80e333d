"""tests/functions/echo as people serve it otherwise."""

from typing import Any

from fastapi import Body, FastAPI
from main import handler

app = FastAPI()


@app.post("/run/echo")
async def run(event: Any = Body()):
    return handler(event, None)
