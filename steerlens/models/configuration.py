"""Hashes of what is set about a model besides its weights: configuration and tokenizer.

`configuration_hash` covers what a configuration has besides the defaults of its kind, so that
another version of transformers, which knows more entries, gives the same hash. Where the model came
from, its dtype and what a forward pass reports are left out. Of the bridge's own configuration it
covers what was changed since the model was first looked at.

`tokenizer_hash` covers vocabulary, merges, normalisation, special tokens and decoding.

**Caveat.** A library whose *defaults* change is not noticed here; runs and results record versions.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

__all__ = ["configuration_hash", "hash_of", "tokenizer_hash"]

_BRIDGE = "steerlens_bridge_settings"
_TOKENIZER = "steerlens_tokenizer_hash"
# Entries of a configuration that change no number: where it came from, and what is reported.
_IGNORED = """
    architectures attn_implementation dtype id2label label2id name_or_path output_attentions
    output_hidden_states problem_type return_dict torch_dtype transformers_version use_cache
"""
# The same of the bridge's: where the model is, and which hooks it offers.
_IGNORED_IN_BRIDGE = """
    device dtype model_name n_devices tokenizer_name use_attn_in use_attn_result use_hook_mlp_in
    use_hook_tokens use_split_qkv_input
"""


def configuration_hash(model: TransformerBridge) -> str:
    """Hash of what the configuration decides about the numbers that are computed."""
    root: Any = model.original_model
    config = root.config
    beside_defaults = config.to_diff_dict() if hasattr(config, "to_diff_dict") else vars(config)
    generation = getattr(root, "generation_config", None)
    settings = {
        key: repr(value)
        for key, value in vars(model.cfg).items()
        if key not in _IGNORED_IN_BRIDGE.split() and not key.startswith("_")
    }
    at_first = model.__dict__.setdefault(_BRIDGE, settings)
    return hash_of(
        {
            "kind": type(root).__name__,
            "config": _relevant(beside_defaults),
            "ends": getattr(generation, "eos_token_id", None),
            "bridge": {k: v for k, v in settings.items() if at_first.get(k) != v},
        }
    )


def _relevant(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _relevant(item)
            for key, item in value.items()
            if key not in _IGNORED.split() and not str(key).startswith("_")
        }
    if isinstance(value, list | tuple | set):
        return [_relevant(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    # Not repr, which may hold an address.
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__


def tokenizer_hash(model: TransformerBridge, tokenizer: Any) -> str:
    """Hash of what turns text into tokens and back, kept while the tokenizer looks the same."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    about = {
        "kind": type(tokenizer).__name__,
        "special": {str(k): str(v) for k, v in tokenizer.special_tokens_map.items()},
        "ids": sorted(map(int, tokenizer.all_special_ids)),
        "spaces": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
        "split": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    parts = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
    spelled = [repr(getattr(backend, part, None)) for part in parts]
    state = (id(tokenizer), len(tokenizer), hash_of([about, spelled]))
    known = model.__dict__.get(_TOKENIZER)
    if known is not None and known[0] == state:
        return str(known[1])
    if backend is None:
        content = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # Before that come padding and truncation, which are set for each call.
        whole: str = backend.to_str()
        content = whole[max(0, whole.find('"added_tokens"')) :]
    digest = hash_of([about, content])
    model.__dict__[_TOKENIZER] = (state, digest)
    return digest


def hash_of(value: Any) -> str:
    """``"sha256:…"`` of plain data.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
