"""A progress bar in one line, where somebody may see it."""

import sys
import time

#: Seconds: work that takes less shows nothing, and between two changes there are as many at least.
DELAY, PAUSE = 1.0, 0.1
_WIDTH = 40


class Progress:
    """A bar on stderr for long work, if that is a terminal; otherwise nothing.

    The cursor is left where the bar begins, so that lines which are printed meanwhile, longer ones,
    take its place.

    Parameters
    ----------
    label : str
    total : int
        What `update` is called with in the end.
    shown : bool, default=True
        False for no bar.
    """

    def __init__(self, label, total, *, shown=True):
        self.label, self.total = label, total
        self.shown = shown and sys.stderr is not None and sys.stderr.isatty()
        self.due, self.drawn = time.monotonic() + DELAY, 0

    def __enter__(self):
        return self

    def update(self, done):
        """Show how much is done, unless that was shown just now."""
        now = time.monotonic()
        if not self.shown or now < self.due:
            return
        full = _WIDTH * done // self.total
        bar = "#" * full + "." * (_WIDTH - full)
        self._draw(f"{self.label:<10}{bar} {done / self.total:4.0%}")
        self.due = now + PAUSE

    def __exit__(self, *_):
        if self.drawn:
            self._draw("")
            self.drawn = 0

    def _draw(self, text):
        sys.stderr.write(f"{text:<{self.drawn}}\r")
        sys.stderr.flush()
        self.drawn = len(text)
