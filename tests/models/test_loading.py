"""Models: the right numbers, and a sentence for everything that cannot be."""

import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_models import tiny_llama, write_tiny_gguf
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlens.errors import FileFormatError, ModelError, UnknownNameError
from steerlens.models import loading as models
from steerlens.models.loading import (
    auto_dtype,
    load_model,
    model_info,
    render_prompt,
    tokenize_prompts,
)
from steerlens.models.sources import find_source
from steerlens.models.weights import sha256_of_files

# Weights


def test_the_default_model_has_the_tensors_of_its_gguf_file(model: TransformerBridge) -> None:
    file = Path(models.available_models()[0].how)
    wanted = {"blk.0.ffn_down.weight": None, "blk.29.ffn_norm.weight": None}
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name in wanted:
            wanted[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type)

    blocks = model.original_model.model.layers

    ours = blocks[0].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(ours, wanted["blk.0.ffn_down.weight"])
    norm = blocks[29].post_attention_layernorm.weight.detach().numpy()
    np.testing.assert_array_equal(norm, wanted["blk.29.ffn_norm.weight"])


def test_a_hooked_model_computes_what_plain_transformers_computes(
    tiny_model: TransformerBridge, tiny_folder: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager")
    tokens = torch.tensor([[1, 50, 60, 70, 80, 90]])

    with torch.no_grad():
        expected = plain(tokens).logits
        ours = tiny_model(tokens)

    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_bfloat16_is_the_float32_model_rounded_and_names_the_same_weights(
    tiny_model: TransformerBridge, tiny_folder: Path
) -> None:
    rounded = load_model(tiny_folder, dtype="bfloat16", device="cpu")

    exact = dict(tiny_model.original_model.named_parameters())
    for name, parameter in rounded.original_model.named_parameters():
        assert torch.equal(parameter, exact[name].bfloat16()), name
    assert model_info(rounded).dtype == "bfloat16"
    assert model_info(rounded).weights_hash == model_info(tiny_model).weights_hash


def test_the_reference_is_the_models_name_and_a_title_in_the_file_is_not(
    model: TransformerBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    path = write_tiny_gguf(tmp_path / "tiny.gguf")

    from_file = load_model(path, device="cpu")

    assert model.cfg.model_name == "smollm2-135m-instruct"
    assert from_file.cfg.model_name == str(path)


def test_loading_changes_neither_the_tokenizers_settings_nor_its_habits(
    tiny_model: TransformerBridge, tiny_folder: Path
) -> None:
    plain = AutoTokenizer.from_pretrained(tiny_folder)

    assert tiny_model.tokenizer("a")["input_ids"] == plain("a")["input_ids"]
    assert "add_bos_token" not in tiny_model.tokenizer.init_kwargs


# ModelInfo


def test_the_default_model_describes_itself(model: TransformerBridge) -> None:
    info = model_info(model)

    assert (info.reference, info.kind) == ("smollm2-135m-instruct", "packaged")
    assert (info.n_layers, info.d_model, info.context_length) == (30, 576, 8192)
    assert (info.dtype, info.device, info.chat_format) == ("float32", "cpu", "template")
    assert info.dtype_reason == "asked for"
    file = Path(models.available_models()[0].how)
    assert info.weights_hash == f"sha256:{sha256_of_files([file])}"


def test_the_hash_of_a_folder_is_that_of_its_weights_file(
    tiny_model: TransformerBridge, tiny_folder: Path
) -> None:
    info = model_info(tiny_model)

    expected = sha256_of_files([tiny_folder / "model.safetensors"])
    assert (info.kind, info.weights_hash) == ("folder", f"sha256:{expected}")
    assert info.reference == str(tiny_folder)


def boot(seed: int, tiny_folder: Path) -> TransformerBridge:
    return TransformerBridge.boot_transformers(
        "mine",
        hf_model=tiny_llama(seed),
        tokenizer=AutoTokenizer.from_pretrained(tiny_folder),
        device="cpu",
    )


def test_a_bridge_made_elsewhere_is_described_by_its_parameters(tiny_folder: Path) -> None:
    first, again, other = (boot(seed, tiny_folder) for seed in (0, 0, 1))

    info = model_info(first)

    assert (info.reference, info.kind, info.n_layers, info.d_model) == ("mine", "given", 3, 16)
    assert info.weights_hash == model_info(again).weights_hash
    assert info.weights_hash != model_info(other).weights_hash


def test_a_model_converted_after_loading_says_so(tiny_folder: Path) -> None:
    converted = load_model(tiny_folder, device="cpu").to(torch.bfloat16)

    info = model_info(converted)

    assert (info.dtype, info.dtype_reason) == ("bfloat16", "converted after loading")


def test_auto_takes_bfloat16_only_on_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        dtype, reason = auto_dtype("cpu")
        assert dtype == expected
        assert "bf16" in reason


# What cannot be loaded


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'smollm2-135m-instruct'"):
        load_model("smollm2-135m")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "bf16"}, "unknown dtype 'bf16'; did you mean 'bfloat16'"),
        ({"dtype": torch.int8}, "dtype torch.int8 is not one models run in"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "meta"}, "device 'meta' is not available here"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available here"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_read(
    options: dict[str, object], sentence: str
) -> None:
    with pytest.raises((ModelError, UnknownNameError), match=sentence):
        load_model("no/such-model", **options)


def test_truncated_safetensors_are_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "cut"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(FileFormatError, match="is truncated or damaged"):
        load_model(folder)


def test_a_folder_that_lacks_tensors_is_refused_rather_than_filled_at_random(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "deeper"))
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))

    with pytest.raises(FileFormatError, match=r"lack 9 of the model's tensors \(model\.layers\.3"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", "{", "cannot be loaded"),
        ("config.json", '{"model_type": "not-a-model"}', "cannot be loaded"),
        ("tokenizer.json", '{"version": "1.0"}', "the tokenizer of .* cannot be loaded"),
    ],
)
def test_a_folder_with_a_broken_file_is_one_sentence(
    file: str, content: str, sentence: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "broken"))
    (folder / file).write_text(content)

    with pytest.raises(ModelError, match=sentence) as caught:
        load_model(folder)

    assert "\n" not in str(caught.value)


def test_a_bridge_without_tokenizer_is_told_what_it_lacks() -> None:
    bridge = TransformerBridge.__new__(TransformerBridge)
    torch.nn.Module.__init__(bridge)
    bridge.__dict__["tokenizer"] = None
    bridge.__dict__["cfg"] = None

    with pytest.raises(ModelError, match="has no tokenizer"):
        render_prompt(bridge, "Why?")


def test_device_map_spreads_a_model_as_transformers_does(tiny_folder: Path) -> None:
    spread = load_model(tiny_folder, device_map={"": "cpu"})

    assert model_info(spread).device == "cpu"
    assert find_source(str(tiny_folder)).kind == "folder"


def test_a_prompt_that_is_no_unicode_is_refused_by_its_number(
    tiny_model: TransformerBridge,
) -> None:
    with pytest.raises(ModelError, match="prompt 1 is not valid Unicode"):
        tokenize_prompts(tiny_model, ["fine", "a\ud800"])


def test_a_device_torch_was_not_compiled_for_is_one_sentence(tiny_folder: Path) -> None:
    if torch.xpu.is_available():
        pytest.skip("this machine has an XPU")
    with pytest.raises(ModelError, match=r"cannot be set up: .*XPU"):
        load_model(tiny_folder, device="xpu")


def test_advice_on_names_that_the_user_did_not_choose_is_not_passed_on(
    tiny_folder: Path, tmp_path: Path
) -> None:
    # given a folder whose name TransformerLens takes for a deprecated alias, in a fresh process
    # (here pytest has handlers of its own on the root logger)
    shutil.copytree(tiny_folder, tmp_path / "gemma-3-270m-it")
    code = """
import logging
from steerlens.models.loading import load_model
load_model("gemma-3-270m-it", device="cpu")
assert logging.getLogger().handlers == [], "nor is the root logger given a handler"
assert logging.getLogger().filters == []
logging.warning("another warning")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip() == "WARNING:root:another warning"


def test_advice_is_left_out_of_a_users_own_handlers_too(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "gemma-3-270m-it")
    monkeypatch.chdir(tmp_path)
    load_model("gemma-3-270m-it", device="cpu")
    assert caplog.text == "" and capfd.readouterr().err == ""
