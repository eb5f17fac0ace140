"""The colour that text will lie on."""

from __future__ import annotations

import numpy as np
from PIL import Image

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import Rgb
from erase.synthetic.sample import Box


def mean_colour(canvas: Canvas, box: Box) -> Rgb:
    """The mean of what has been painted inside `box`."""
    part = canvas.image.crop((int(box.left), int(box.top), int(box.right) + 1, int(box.bottom) + 1))
    red, green, blue = np.asarray(part.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist()
    return red, green, blue
