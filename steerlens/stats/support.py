"""Whether evidence about layers singles out any of them.

The highest of thirty measurements is always at some layer, even where all of them are noise. A
layer counts as supported by a kind of evidence when at least one layer's 95 % interval lies above
the value that means "nothing there": 0.5 for an AUROC, 0 for a recovery or d′. This is the weakest
claim worth naming a layer for: it does not correct for looking at many layers, and it does not say
that the layer is better than its neighbours.

>>> caveat("auroc", [0.45, 0.62]) is None
True
>>> caveat("first_token_recovery", [-0.2, float("nan")])
"no layer's interval of first-token recovery is above 0"
"""

from collections.abc import Iterable

__all__ = ["caveat", "null_value"]

_NAMES = {
    "auroc": "AUROC",
    "d_prime": "d′",
    "d_prime_held_out": "held-out d′",
    "first_token_recovery": "first-token recovery",
}


def null_value(kind: str) -> float | None:
    """The value of a kind of evidence where nothing is there; ``None`` for unknown kinds."""
    if "auroc" in kind or kind.startswith("unseen_"):
        return 0.5
    return 0.0 if "recovery" in kind or kind.startswith("d_prime") else None


def caveat(kind: str, low: Iterable[float], name: str | None = None) -> str | None:
    """The sentence that no layer is supported; ``None`` where one is, or where it is not known.

    Args:
        kind: The column of the evidence.
        low: Lower ends of its intervals, one per layer; NaN where it was not measured.
        name: What the kind is called; by default named after its column.
    """
    null, ends = null_value(kind), [end for end in low if end == end]
    if null is None or any(end > null for end in ends):
        return None
    called = name or _NAMES.get(kind, kind.replace("_", " "))
    return f"no layer's interval of {called} is above {null:g}"
