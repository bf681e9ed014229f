"""What a look-up hands out, each with a JSON twin (`to_dict`)."""

from typing import Any, NamedTuple


class LogitLens(NamedTuple):
    """Tokens that a decoder direction raises and lowers most, with the logit change of one unit of activation."""

    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]


class Example(NamedTuple):
    """One context of the general text in which a feature is strongly active; `values` has one activation a token."""

    feature: int
    rank: int
    source: str
    document: int
    position: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def text(self) -> str:
        """The context as running text."""
        return "".join(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """The columns of examples.parquet."""
        return self._asdict() | {"tokens": list(self.tokens), "values": list(self.values)}


class Active(NamedTuple):
    """A labelled feature at one token. `scope`: what its label claims, the concept `label` or a family or norm around it.
    `share`: `value` in units of its largest one on the general text."""

    id: str
    feature: int
    label: str
    scope: str
    value: float
    share: float | None


class ReadToken(NamedTuple):
    """One token of a reader's text; `read` is False for tokens that no feature ever sees (opening and special ones)."""

    position: int
    text: str
    read: bool
    features: tuple[Active, ...]


class Reading(NamedTuple):
    """A text as one dictionary's labelled features see it; the features of a token stand strongest share first."""

    dictionary: str
    text: str
    tokens: tuple[ReadToken, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists all the way down."""
        tokens = [one._asdict() | {"features": [active._asdict() for active in one.features]} for one in self.tokens]
        return {"dictionary": self.dictionary, "text": self.text, "tokens": tokens}
