"""The generation engine: many rows, each with its own steering, at the speed of the hardware.

How a row travels: `decoding` lets rows wait, fill slots and leave; `reading` reads their prompts,
shared parts once; `memory` holds keys and values; `modules` is the model they run on; `plain` is
the bridge's own path, and `paths` chooses between the two. Nothing here knows text:
`steerlens.engine.generation` renders prompts and decodes tokens around it.
"""

from steerlens.engine.choosing import choose_path, running
from steerlens.engine.decoding import decode_rows, first_logits
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
    "first_logits",
    "running",
    "slots_for",
]
