"""What is claimed of a benchmark's figures, and whether they bear it out."""

from typing import Any, NamedTuple


class Check(NamedTuple):
    """One claim: `found` lies at or below `limit`, or, for `at_least`, at or above it."""

    what: str
    found: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return self._asdict() | {"holds": self.holds}


def sentence(check: dict[str, Any]) -> str:
    """A check's data as a line for a person."""
    word = "at least" if check["at_least"] else "at most"
    verdict = "holds" if check["holds"] else "does NOT hold"
    found, limit = (f"{check[key]:,.0f}" if check[key] >= 100 else f"{check[key]:.2f}" for key in ("found", "limit"))
    return f"{check['what']}: {found} ({word} {limit}: {verdict})"


FAMILY = {"batchtopk": 1.15, "matryoshka": 1.3, "auxk": 1.1}
"""our other steps, in times of our TopK's"""


def of_family(table: dict[str, Any]) -> list[dict[str, Any]]:
    """A `family` table against `FAMILY`."""
    took = {row["name"].removeprefix("ours (").removesuffix(")"): row["step_ms"] for row in table["candidates"]}
    names = {"batchtopk": "BatchTopK", "matryoshka": "Matryoshka", "auxk": "TopK with 1 % of its latents dead (AuxK)"}
    where = f"d_sae {table['d_sae']:,}"
    return [
        Check(f"{names[name]}: a step in times of TopK's, {where}", took[name] / took["topk"], limit).data()
        for name, limit in FAMILY.items()
        if name in took and "topk" in took
    ]


def faster_than_ours(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for every library that beats our first row; `bounds` are the machine's, and not a library's."""
    others = [row for row in rows if not row["name"].startswith(("ours", "bounds"))]
    return [
        f"  {row['name']} is faster than ours here, {1 / row['ours_is_faster_by']:.2f} times."
        for row in others
        if row.get("ours_is_faster_by", 1.0) < 1
    ]
