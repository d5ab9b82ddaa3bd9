"""Search: where and how hard to steer, chosen by behaviour on prompts set aside for it.

================ ==================================================================
`settings`       how much is tried
`space`          the candidates, their neighbours and combinations
`scoring`        how candidates are compared
`halving`        one instruction, stage by stage
`run`            several instructions, in a folder that can be resumed
================ ==================================================================
"""

from steerlens.search.halving import Found, search_instruction
from steerlens.search.run import search
from steerlens.search.settings import SearchSettings, Stage

__all__ = ["Found", "SearchSettings", "Stage", "search", "search_instruction"]
