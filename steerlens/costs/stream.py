r"""Decoding as a stream of rows through slots, and what a step of it takes.

A step with :math:`k` active rows, the oldest of which has :math:`w` positions, takes
:math:`a + b k + c k w` seconds: reading the weights and calling the kernels; each row's share of
the products with them; attention, which in each row looks at as many positions as the oldest has.
`stream` counts steps, active rows and positions looked at of a list of lengths, `fitted` finds
*a*, *b* and *c* from timed lists.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

__all__ = ["fitted", "stream"]


def stream(lengths: Sequence[int], slots: int, prompt: float = 0.0) -> tuple[int, int, int]:
    """Steps, and active rows and positions looked at summed over them.

    Args:
        lengths: Steps of each row, in the order of their turns.
        slots: Rows decoded together; a waiting row takes the slot of the first that ends.
        prompt: Tokens of a prompt.

    >>> stream([3, 1, 2], slots=2, prompt=10.0)
    (3, 6, 72)
    """
    if not lengths:
        return 0, 0, 0
    ends: list[int] = []
    begins, stops = [], []
    for length in lengths:
        begin = heapq.heappop(ends) if len(ends) == slots else 0
        heapq.heappush(ends, begin + length)
        begins.append(begin)
        stops.append(begin + length)
    steps = max(stops)
    time = np.arange(steps)
    begun = np.array(begins)[:, None]
    active = (begun <= time) & (time < np.array(stops)[:, None])
    oldest = np.where(active, time - begun, 0).max(axis=0)
    # The prompt, the tokens so far, and the one that the step reads.
    looked_at = active.sum(axis=0) * (prompt + 1 + oldest)
    return steps, int(active.sum()), int(looked_at.sum())


def fitted(timed: Sequence[tuple[tuple[int, int, int], float]]) -> tuple[float, float, float]:
    """Seconds a step, an active row in it, and a position looked at, none of them negative.

    Least squares of relative errors: a list of 2 s counts as much as one of 20 s.

    Args:
        timed: `stream`'s counts of a list, and the seconds it took.

    >>> lists = [((10, 960, 50_000), 1.66), ((40, 960, 100_000), 2.76), ((200, 2000, 10**6), 16.0)]
    >>> [round(one, 6) for one in fitted(lists)]
    [0.02, 0.001, 1e-05]
    """
    known = [(counts, seconds) for counts, seconds in timed if seconds > 0]
    if not known:
        return 0.0, 0.0, 0.0
    rows = np.array([counts for counts, _ in known], dtype=float)
    rows /= np.array([[seconds] for _, seconds in known])
    # Columns of like size: positions are a thousand times as many as steps.
    scale = np.maximum(rows.max(axis=0), 1e-12)
    found, _ = nnls(rows / scale, np.ones(len(rows)))
    step, row, position = (found / scale).tolist()
    return step, row, position
