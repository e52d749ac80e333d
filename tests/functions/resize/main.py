"""Makes a picture smaller: the paper's image case."""

import base64
import io

from PIL import Image


def handler(event, context):
    picture = Image.open(io.BytesIO(base64.b64decode(event["image"])))
    width = event["width"]
    small = picture.convert("RGB").resize((width, picture.height * width // picture.width), Image.Resampling.BOX)
    return {"size": list(small.size), "pixels": [list(small.getpixel((x, 0))) for x in range(width)]}
