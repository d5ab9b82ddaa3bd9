"""Every way to change the weights of a hooked model after loading."""

import torch
from tiny_models import tiny_llama
from torch import nn

from steerlens.models.fingerprint import named_tensors


def scaled_in_place(model):
    with torch.no_grad():
        model.blocks[1].mlp.out.weight.mul_(1.01)


def edited_as_data(model):
    model.original_model.model.layers[0].self_attn.q_proj.weight.data[3, 4] += 1e-3


def replaced_parameter(model):
    head = model.original_model.lm_head
    module = getattr(head, "original_component", head)
    module.weight = nn.Parameter(module.weight.detach().flip(0).clone())


def loaded_other_weights(model):
    # Through the plain model's own names, as a checkpoint would be.
    other = tiny_llama(seed=5).state_dict()
    tensors = dict(named_tensors(model))
    with torch.no_grad():
        for name, value in other.items():
            tensors[name].copy_(value)


def other_frequencies(model):
    dict(named_tensors(model))["model.rotary_emb.inv_freq"].mul_(1.5)


def compatibility_mode(model):
    model.enable_compatibility_mode()


def half(model):
    model.to(torch.bfloat16)


CHANGES = [
    scaled_in_place,
    edited_as_data,
    replaced_parameter,
    loaded_other_weights,
    other_frequencies,
    compatibility_mode,
    half,
]
