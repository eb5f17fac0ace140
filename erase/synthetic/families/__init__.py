"""One file per family of images; each has `compose(canvas, crowd, hard)`, which draws and returns the questions."""
