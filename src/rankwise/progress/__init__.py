"""How a comparison goes, for whoever watches it: `bars` in notebooks and scripts; the command line has a table."""

from rankwise.progress.tqdm_bars import bars

__all__ = ["bars"]
