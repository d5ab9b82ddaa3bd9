"""Formats of other tools, both ways.

| module | format |
|---|---|
| `loading` | `load_vector`: any known file, told by its content |
| `gguf` | llama.cpp control vectors, which repeng reads and writes as well |
| `plain` | safetensors as other tools lay them out |
| `objects` | the objects of repeng and steering-vectors |
| `vllm` | declarative interventions for TransformerLens's vLLM source |
| `index` | the hashes of files kept together |
| `record` | shifts, and the record that makes round trips exact |

All of them know one operation, ``add`` on every token: a shift g·u per layer.
"""

from steerlens.vectors.formats.gguf import read_gguf, write_gguf
from steerlens.vectors.formats.index import verify_file
from steerlens.vectors.formats.loading import load_vector, vector_format
from steerlens.vectors.formats.objects import (
    from_repeng,
    from_steering_vectors,
    to_repeng,
    to_steering_vectors,
)
from steerlens.vectors.formats.plain import read_plain, write_plain
from steerlens.vectors.formats.vllm import vllm_interventions

__all__ = [
    "from_repeng",
    "from_steering_vectors",
    "load_vector",
    "read_gguf",
    "read_plain",
    "to_repeng",
    "to_steering_vectors",
    "vector_format",
    "verify_file",
    "vllm_interventions",
    "write_gguf",
    "write_plain",
]
