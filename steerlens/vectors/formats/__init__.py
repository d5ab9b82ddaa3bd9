"""Formats of other tools, both ways.

| module | format |
|---|---|
| `loading` | `load_vector`: any known file, told by its content |
| `gguf` | llama.cpp control vectors, which repeng reads and writes as well |
| `plain` | safetensors as other tools lay them out |
| `steering_vectors` | the objects of that library |
| `index` | the hashes of files kept together |
| `record` | shifts, and the record that makes round trips exact |

All of them know one operation, ``add`` on every token: a shift g·u per layer.
"""

from steerlens.vectors.formats.gguf import read_gguf, write_gguf
from steerlens.vectors.formats.index import verify_file
from steerlens.vectors.formats.loading import load_vector, vector_format
from steerlens.vectors.formats.plain import read_plain, write_plain
from steerlens.vectors.formats.steering_vectors import from_steering_vectors, to_steering_vectors

__all__ = [
    "from_steering_vectors",
    "load_vector",
    "read_gguf",
    "read_plain",
    "to_steering_vectors",
    "vector_format",
    "verify_file",
    "write_gguf",
    "write_plain",
]
