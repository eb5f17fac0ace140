"""Stage 1's pixels: images as the model sees them, their entropies and edges, the same bits on every device."""
