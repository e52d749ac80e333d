"""A web application behind API Gateway's event format."""

from fastapi import FastAPI, HTTPException
from mangum import Mangum
from pydantic import BaseModel

app = FastAPI()


class Order(BaseModel):
    item: str
    count: int


@app.get("/items/{number}")
def item(number: int, q: str = "none"):
    if number > 100:
        raise HTTPException(404, "no such item")
    return {"item": number, "q": q}


@app.post("/orders")
def order(order: Order):
    return {"ordered": order.item, "total": order.count * 2}


handler = Mangum(app, lifespan="off")
