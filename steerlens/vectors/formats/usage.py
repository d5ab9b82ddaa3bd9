r"""How other tools use what was written: the exact command, or lines of Python, for each format.

Every tool here knows one operation, adding a shift to the output of blocks on every token, so what
is written is ``add`` at strength 1 and scope ``all``.

>>> print(usage("steerlens", "title.safetensors", [22]).splitlines()[1])
steerlens steer --vector title.safetensors --layer 22 --prompt "…"
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from steerlens.errors import unknown_name

__all__ = ["TOOLS", "usage"]

TOOLS: Mapping[str, str] = {
    "steerlens": "steerlens, exactly",
    "gguf": "llama.cpp and llama-cpp-python",
    "repeng": "repeng",
    "steering-vectors": "steering-vectors",
    "vllm-lens": "vLLM-Lens",
    "easysteer": "EasySteer",
    "plain": "anything that reads safetensors",
}
"""What each format is for."""

_STEERLENS = """\
# steerlens
steerlens steer --vector {path} --layer {layer} --prompt "…"
"""
_GGUF = """\
# llama.cpp
llama-cli -m MODEL.gguf -p "…" \\
    --control-vector-scaled {path}:1.0 --control-vector-layer-range {first} {last}

# llama-cpp-python
import ctypes, gguf, llama_cpp, numpy as np
llama = llama_cpp.Llama("MODEL.gguf")
width, depth = llama.n_embd(), llama_cpp.llama_model_n_layer(llama.model)
rows = np.zeros((depth, width), dtype=np.float32)  # one per layer, from layer 1 on
for tensor in gguf.GGUFReader("{path}").tensors:
    rows[int(tensor.name.split(".")[1]) - 1] += 1.0 * tensor.data
pointer = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
llama_cpp.llama_set_adapter_cvec(llama.ctx, pointer, rows.size, width, {first}, {last})
llama("…")
"""
_REPENG = """\
# repeng 0.4
from repeng import ControlModel, ControlVector
model = ControlModel(hf_model, layer_ids={layers})
model.set_control(ControlVector.import_gguf("{path}"), 1.0)
model.generate(…)
"""
_STEERING_VECTORS = """\
# steering-vectors
from safetensors.torch import load_file
from steering_vectors import SteeringVector
rows = load_file("{path}")
vector = SteeringVector({{layer: rows[f"layer_{{layer}}"] for layer in {layers}}}, "decoder_block")
with vector.apply(hf_model, multiplier=1.0):
    hf_model.generate(…)
"""
_VLLM_LENS = """\
# vLLM with the plugin vllm-lens
import torch
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm_lens import SteeringVector
rows = load_file("{path}")
vector = SteeringVector(
    activations=torch.stack([rows[f"layer_{{layer}}"] for layer in {layers}]),
    layer_indices={layers},
    scale=1.0,
)
options = SamplingParams(temperature=0, extra_args={{"apply_steering_vectors": [vector]}})
LLM("MODEL").generate(["…"], options)
"""
_EASYSTEER = """\
# EasySteer
from vllm import LLM, SamplingParams
from vllm.steer_vectors.request import SteerVectorRequest
request = SteerVectorRequest(
    "steerlens", 1, steer_vector_local_path="{path}", scale=1.0, target_layers={layers},
    prefill_trigger_tokens=[-1], generate_trigger_tokens=[-1],  # every token
)
llm = LLM("MODEL", enable_steer_vector=True, enforce_eager=True, enable_chunked_prefill=False)
llm.generate("…", SamplingParams(temperature=0), steer_vector_request=request)
"""
_PLAIN = """\
# one tensor per layer, added to the output of that block (counted from 0)
from safetensors.torch import load_file
rows = load_file("{path}")  # {{"layer_{layer}": tensor of shape [d_model], …}}
"""
_TEXTS = {
    "steerlens": _STEERLENS,
    "gguf": _GGUF,
    "repeng": _REPENG,
    "steering-vectors": _STEERING_VECTORS,
    "vllm-lens": _VLLM_LENS,
    "easysteer": _EASYSTEER,
    "plain": _PLAIN,
}


def usage(form: str, path: str | Path, layers: Sequence[int]) -> str:
    """The command, or lines of Python, that use a file in the tool it was written for.

    Args:
        form: One of `TOOLS`.
        path: The file.
        layers: The layers it holds.

    Raises:
        UnknownNameError: Another format.
    """
    if form not in _TEXTS:
        raise unknown_name("format", form, _TEXTS)
    held = sorted(layers)
    named = {"path": str(path), "layers": held, "layer": held[-1]}
    return _TEXTS[form].format(**named, first=held[0], last=held[-1])
