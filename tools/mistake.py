"""A user's mistake in its parts, so that whoever speaks to the user can word it. Free of torch.

The library speaks of arguments, a script of options. Neither edits the other's sentences.
"""

import re
from collections.abc import Callable


class Mistake(ValueError):
    """Something that a user asked for and cannot have.

    Arguments:
        option: The argument or option that it is about, dotted where it belongs to a group
            (`gluing.h_every`), or empty.
        what: What is wrong with it. Other options stand in back-quotes: "needs `gluing.cache`".
        cure: What would be right, where `what` does not say it.
        source: The file that says so, where it is not the reader who just said it.
    """

    def __init__(self, option: str, what: str, cure: str = "", *, source: str = "") -> None:
        super().__init__(option, what, cure)
        self.option, self.what, self.cure, self.source = option, what, cure, source

    def __str__(self) -> str:
        return self.worded(lambda option: option)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"source": self.source}  # on its way to another process

    def worded(self, spell: Callable[[str], str]) -> str:
        """The mistake as one line, with every option spelled as the reader knows it."""
        text = f"{self.what}; {self.cure}" if self.cure else self.what
        text = re.sub(r"`([a-z][a-z0-9_.]*)`", lambda name: spell(name[1]), text)
        source = f"{self.source}: " if self.source else ""
        return f"{source}{spell(self.option)}: {text}" if self.option else f"{source}{text}"

    def about(self, option: str) -> "Mistake":
        """The same mistake, of another option."""
        return Mistake(option, self.what, self.cure, source=self.source)
