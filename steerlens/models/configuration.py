"""What is set about a model, beside its weights, as hashes: configuration and tokenizer.

The same weights compute something else under another base of the rotary positions, window of
attention or scaling. `configuration_hash` covers what a configuration has beside the defaults of
its kind, so that another version of transformers, which knows more entries, does not make another
model of it; where the model came from, its dtype and what a forward pass reports are left out. Of
the bridge's own configuration it covers what was changed since the model was first looked at.

`tokenizer_hash` covers vocabulary, merges, normalisation, special tokens and how text is put
together again. It is remembered as long as the tokenizer seems to be the same one.

**Caveat.** A library whose *defaults* change from one version to the next is not noticed here; runs
and results record the versions.
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
_NO_MATTER = {
    "architectures",
    "attn_implementation",
    "dtype",
    "id2label",
    "label2id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Of the bridge's own configuration too: where the model is, and which hooks it offers.
_NO_MATTER_HERE = {
    "device",
    "dtype",
    "model_name",
    "n_devices",
    "tokenizer_name",
    "use_attn_in",
    "use_attn_result",
    "use_hook_mlp_in",
    "use_hook_tokens",
    "use_split_qkv_input",
}


def configuration_hash(model: TransformerBridge) -> str:
    """Hash of the configuration, so far as it decides what is computed; see the module's page."""
    root: Any = model.original_model
    config = root.config
    beside_defaults = config.to_diff_dict() if hasattr(config, "to_diff_dict") else vars(config)
    generation = getattr(root, "generation_config", None)
    ours = {
        key: repr(value)
        for key, value in vars(model.cfg).items()
        if key not in _NO_MATTER_HERE and not key.startswith("_")
    }
    at_first = model.__dict__.setdefault(_BRIDGE, ours)
    return hash_of(
        {
            "kind": type(root).__name__,
            "config": _what_matters(beside_defaults),
            "ends": getattr(generation, "eos_token_id", None),
            "bridge": {k: v for k, v in ours.items() if at_first.get(k) != v},
        }
    )


def _what_matters(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _what_matters(one)
            for key, one in value.items()
            if key not in _NO_MATTER and not str(key).startswith("_")
        }
    if isinstance(value, list | tuple | set):
        return [_what_matters(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    # No address of an object, which differs from process to process.
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__


def tokenizer_hash(model: TransformerBridge, tokenizer: Any) -> str:
    """Hash of what makes tokens of text and text of tokens; see the module's page."""
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
    seems = (id(tokenizer), len(tokenizer), hash_of([about, spelled]))
    known = model.__dict__.get(_TOKENIZER)
    if known is not None and known[0] == seems:
        return str(known[1])
    if backend is None:
        content = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # What stands before are padding and truncation, which are set for the call.
        whole: str = backend.to_str()
        content = whole[max(0, whole.find('"added_tokens"')) :]
    found = hash_of([about, content])
    model.__dict__[_TOKENIZER] = (seems, found)
    return found


def hash_of(value: Any) -> str:
    """``"sha256:…"`` of plain data.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
