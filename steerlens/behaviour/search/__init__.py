"""Search: where and how hard to steer, chosen by behaviour on prompts set aside for it.

================ ==================================================================
`settings`       how much is tried
`space`          the candidates, their neighbours and combinations
`scoring`        how candidates are compared
`evidence`       which layers are tried first
`halving`        one task, stage by stage
`unchecked`      the same for a task without a check, or with choices
`run`            several tasks, in a folder that can be resumed
================ ==================================================================
"""

from steerlens.behaviour.search.run import search
from steerlens.behaviour.search.settings import SearchSettings, Stage

__all__ = ["SearchSettings", "Stage", "search"]
