"""What the engine tells of itself while it runs."""


class EngineObserver:
    """Hears of every step, from the engine's thread; must return quickly. Override what is of interest."""

    def stepped(self, phase: str, batch: int) -> None:
        """A step ended: `phase` is prefill or decode, with `batch` sequences in it."""

    def load_changed(self, running: int, waiting: int, cache_tokens: float) -> None:
        """Sequences running and waiting now, and tokens in the key/value caches, averaged over layers."""

    def preempted(self) -> None:
        """A running sequence gave its cache to others and waits again."""

    def images_looked_up(self, found: int, missing: int) -> None:
        """Images whose features were still known, and images that had to be encoded, since the start."""
