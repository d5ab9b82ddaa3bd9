"""Models small enough to build in a test: a Llama of random weights that reads bytes."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_LAYERS, D_MODEL, N_HEADS, D_MLP, CONTEXT = 3, 16, 2, 32, 128


def vocabulary() -> list[str]:
    """The special tokens, one token a byte, and "!!" (a GGUF file must list some merge)."""
    return [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "!!"]


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, whose pad token is its end-of-turn token."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    backend = Tokenizer(BPE(vocab=ids, merges=[("!", "!")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_llama(seed: int = 0, context: int = CONTEXT) -> LlamaForCausalLM:
    """Three Llama blocks of width 16 with weights large enough that every block matters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def write_tiny_gpt2(folder: Path, seed: int = 0) -> Path:
    """Write a GPT-2 of the same size, with joint query-key-value matrices and uneven norms."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(vocabulary()),
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_positions=CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_tiny_folder(
    folder: Path,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    context: int = CONTEXT,
) -> Path:
    """Write model and tokenizer as an ordinary model folder."""
    tiny_llama(seed, context).save_pretrained(folder)
    byte_tokenizer(chat_template).save_pretrained(folder)
    return folder


def write_stand_in(folder: Path, original: Path) -> Path:
    """Write random weights with the layers, tokenizer and context of the model in `original`.

    The full stop and the end of turn have large rows in the unembedding, so that answers have
    sentences and some end by themselves.
    """
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(
        original,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        head_dim=D_MODEL // N_HEADS,
        initializer_range=0.3,
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = LlamaForCausalLM(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(original)
    with torch.no_grad():
        frequent = [tokenizer.eos_token_id, *tokenizer.encode(".", add_special_tokens=False)]
        model.lm_head.weight[frequent] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_gguf(path: Path, seed: int = 0, leave_out: str | None = None) -> Path:
    """Write a GGUF file of the same shape with random float32 tensors, tokenizer included.

    Args:
        path: Where the file shall stand.
        seed: Of the random numbers.
        leave_out: Name of a tensor to leave out.
    """
    rng = np.random.default_rng(seed)
    n_vocab = len(vocabulary())
    shapes = {"token_embd.weight": (n_vocab, D_MODEL), "output_norm.weight": (D_MODEL,)}
    shapes["output.weight"] = (n_vocab, D_MODEL)
    for layer in range(N_LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{block}{name}.weight"] = (D_MODEL, D_MODEL)
        shapes[f"{block}ffn_gate.weight"] = (D_MLP, D_MODEL)
        shapes[f"{block}ffn_up.weight"] = (D_MLP, D_MODEL)
        shapes[f"{block}ffn_down.weight"] = (D_MODEL, D_MLP)
        shapes[f"{block}attn_norm.weight"] = (D_MODEL,)
        shapes[f"{block}ffn_norm.weight"] = (D_MODEL,)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A Title Nobody Could Load It By")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (n_vocab - len(SPECIAL_TOKENS)))
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, shape in shapes.items():
        if name != leave_out:
            writer.add_tensor(name, rng.normal(scale=0.3, size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
