"""The engine: many rows, each with its own steering, at the speed of the hardware.

`forward` is one pass over rows, on which `reading`, `scoring`, `residuals`, `patching` and
`components` rest; `decoding` lets rows wait, fill slots and leave; `memory` holds keys and values;
`modules` is the model they run on. `plain` is the bridge's own path, and `choosing` says which of
the two a call takes. Only `generation` knows text: it renders prompts and decodes tokens.
"""

from steerlens.engine.choosing import choose_path, running
from steerlens.engine.decoding import decode_rows
from steerlens.engine.modules import fast_modules
from steerlens.engine.paths import FastPath, slots_for
from steerlens.engine.rows import Choose, FinishReason, Row

__all__ = [
    "Choose",
    "FastPath",
    "FinishReason",
    "Row",
    "choose_path",
    "decode_rows",
    "fast_modules",
    "running",
    "slots_for",
]
