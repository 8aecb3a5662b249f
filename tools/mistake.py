"""A user's mistake in its parts, so that whoever speaks to the user can word it. Free of torch.

The library speaks of arguments, a script of options. Neither edits the other's sentences.
"""

import re
from collections.abc import Callable


class Mistake(ValueError):
    """Something that a user asked for and cannot have.

    Arguments:
        option: The argument or option that it is about, dotted where it belongs to a group
            (`gluing.h_every`), or empty. Where it takes more words than a name to say which, the name
            stands in back-quotes ("`strategy` fair").
        what: What is wrong with it. Other options stand in back-quotes: "needs `gluing.cache`", or
            "goes with `compile=False`" for a switch that is turned off.
        cure: What would be right, where `what` does not say it.
        source: The file that says so, where it is not the reader who just said it.
    """

    def __init__(self, option: str, what: str, cure: str = "", *, source: str = "") -> None:
        super().__init__(option, what, cure)
        self.option, self.what, self.cure, self.source = option, what, cure, source

    def __str__(self) -> str:
        return self.worded(lambda option: option)

    @property
    def quoted(self) -> str:
        """The mistake as one line in which all options stand in back-quotes, for a mistake that says more."""
        about = self.option if "`" in self.option or not self.option else f"`{self.option}`"
        text = f"{self.what}; {self.cure}" if self.cure else self.what
        return ": ".join(part for part in (self.source, about, text) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"source": self.source}  # on its way to another process

    def worded(self, spell: Callable[[str], str]) -> str:
        """The mistake as one line, with every option spelled as the reader knows it."""
        return re.sub(r"`([a-z][\w.]*(?:=False)?)`", lambda name: spell(name[1]), self.quoted)

    def about(self, option: str) -> "Mistake":
        """The same mistake, of another option, which says as much as a source does."""
        return type(self)(option, self.what, self.cure)


def quoted(error: Exception) -> str:
    """What an error says, with options in back-quotes where it is a mistake, for another mistake to say."""
    return error.quoted if isinstance(error, Mistake) else str(error)
