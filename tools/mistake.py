"""This module describes a user's mistake in parts, so that each caller can word it. It is free of torch.

The library names arguments, a script names options. Neither edits the other's sentences.
"""

import re
from collections.abc import Callable


class Mistake(ValueError):
    """A `Mistake` reports something that a user asked for and cannot have.

    Arguments:
        option: The argument or option that is wrong, dotted where it belongs to a group
            (`gluing.h_every`), or empty. Where its name alone does not identify it, the name stands in
            back-quotes among other words ("`strategy` fair").
        what: What is wrong with it. Other options stand in back-quotes: "needs `gluing.cache`", or "goes
            with `compile=False`" for a switch that is turned off.
        cure: What would be right, where `what` does not say it.
        source: The file that gives the wrong value, where it was not given directly.
    """

    def __init__(self, option: str, what: str, cure: str = "", *, source: str = "") -> None:
        super().__init__(option, what, cure)
        self.option, self.what, self.cure, self.source = option, what, cure, source

    def __str__(self) -> str:
        return self.worded(lambda option: option)

    @property
    def quoted(self) -> str:
        """Return the mistake as one line with all options in back-quotes, for use inside another mistake."""
        about = self.option if "`" in self.option or not self.option else f"`{self.option}`"
        text = f"{self.what}; {self.cure}" if self.cure else self.what
        return ": ".join(part for part in (self.source, about, text) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"source": self.source}  # for sending it to another process

    def worded(self, spell: Callable[[str], str]) -> str:
        """Return the mistake as one line, with every option spelled as the reader knows it."""
        return re.sub(r"`([a-z][\w.]*(?:=False)?)`", lambda name: spell(name[1]), self.quoted)

    def about(self, option: str) -> "Mistake":
        """Return the same mistake about another option, without the source."""
        return type(self)(option, self.what, self.cure)


def quoted(error: Exception) -> str:
    """Return an error's message for use inside a mistake, with known options in back-quotes."""
    return error.quoted if isinstance(error, Mistake) else str(error)
