"""The engine checks itself: it finds planted faults, in any dtype, and judges only what it saw."""

import pytest
import torch
from architectures import write_family

import steerlens as sl
from steerlens.engine import choosing, decoding, forward, steps, verification
from steerlens.engine.choosing import choose_path
from steerlens.engine.memory import attention_masks
from steerlens.engine.modules import device_of, only_blocks
from steerlens.models.loading import load_model, tokenize_prompts
from steerlens.tasks.pairs import ContrastPair, ContrastSet

HALF = ("bfloat16", "float16")
PAIRS = ContrastSet(
    tuple(ContrastPair(f"{q} Shout.", q, q) for q in ("Where is Rome?", "Name a fruit."))
)


def _with_positions(model, resid):
    """An unembedding as it was once: the model's own embedding stage has its say."""
    with only_blocks(model, 0, 0):
        out = model.original_model(
            inputs_embeds=resid[:, None],
            position_ids=torch.zeros(1, 1, dtype=torch.long, device=device_of(model)),
            attention_mask=torch.ones(len(resid), 1, dtype=torch.long),
            use_cache=False,
        )
    return out.logits[:, -1]


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_position_embeddings_that_enter_the_unembedding_are_found_in_any_dtype(
    dtype, tmp_path, monkeypatch
):
    model = load_model(write_family("gpt-2", tmp_path / "m"), dtype=dtype, device="cpu")
    monkeypatch.setattr(decoding, "unembed", _with_positions)
    assert "differ from the bridge's" in choose_path(model).reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_window_that_the_engine_forgot_is_found_however_long_the_window_is(
    dtype, tmp_path, monkeypatch
):
    folder = write_family("mistral", tmp_path / "m")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"sliding_window": 8', '"sliding_window": 100'))
    model = load_model(folder, dtype=dtype, device="cpu")
    assert model.original_model.config.sliding_window == 100

    def without_window(config, *args):
        class Plain:
            sliding_window = None

        return attention_masks(Plain, *args)

    monkeypatch.setattr(forward, "attention_masks", without_window)
    monkeypatch.setattr(steps, "attention_masks", without_window)
    assert "differ from the bridge's" in choose_path(model).reason


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError()])
def test_a_comparison_without_memory_is_no_verdict(error, tiny_folder, monkeypatch):
    model = load_model(tiny_folder, device="cpu")

    def fails(*_args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(verification, "decode_rows", fails)
        path = choose_path(model)
        assert not path.is_fast and "no memory" in path.reason
    assert choose_path(model).is_fast


def test_a_verdict_is_of_the_dtype_the_model_has_now(tiny_folder, monkeypatch):
    model = load_model(tiny_folder, device="cpu")
    assert choose_path(model).is_fast
    seen = []
    judge = choosing.verdict
    monkeypatch.setattr(
        choosing, "verdict", lambda model: seen.append(choosing.dtype_of(model)) or judge(model)
    )
    assert choose_path(model).is_fast and seen == []
    model.to(torch.bfloat16)
    assert choose_path(model).is_fast and seen == [torch.bfloat16]


def test_autocast_around_a_call_changes_nothing_and_spoils_no_verdict(tiny_folder):
    model, other = (load_model(tiny_folder, device="cpu") for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sl.cache_residuals(model, PAIRS, show_progress=False)
        texts = sl.generate(model, "Where is Rome?", max_new_tokens=8)
    expected = sl.cache_residuals(other, PAIRS, show_progress=False)
    assert torch.equal(inside.instructed, expected.instructed)
    assert texts.tokens == sl.generate(other, "Where is Rome?", max_new_tokens=8).tokens
    assert texts.settings["attention"] == "sdpa"
    # The caller's own context is as it was.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sl.generate(model, "Where is Rome?", max_new_tokens=2)
        assert torch.is_autocast_enabled("cpu")


def test_a_model_in_training_mode_runs_without_dropout_and_stays_in_it(tmp_path):
    folder = write_family("gpt-2", tmp_path / "m")
    config = folder / "config.json"
    text = config.read_text().replace('"resid_pdrop": 0.0', '"resid_pdrop": 0.5')
    config.write_text(text)
    model = load_model(folder, device="cpu")
    assert model.original_model.config.resid_pdrop > 0
    expected = sl.generate(model, "Where is Rome?", max_new_tokens=8).tokens
    model.train()
    got = sl.generate(model, "Where is Rome?", max_new_tokens=8)
    assert got.tokens == expected and got.settings["attention"] == "sdpa"
    assert model.original_model.training


def test_the_check_leaves_the_callers_random_numbers_alone(tiny_folder):
    model = load_model(tiny_folder, device="cpu")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert choose_path(model).is_fast
    assert torch.equal(torch.rand(3), expected)


def test_quantised_blocks_are_checked_with_random_weights(tiny_folder):
    model = load_model(tiny_folder, device="cpu")
    model.original_model.config.quantization_config = {"quant_method": "none"}
    small = verification.excerpt(model, torch.float32)
    assert small.cfg.n_layers == 2
    own = small.original_model.state_dict()
    assert not any(
        torch.equal(one, model.original_model.state_dict().get(k, one * 0 - 1))
        for k, one in own.items()
        if "proj" in k
    )


def test_a_comparison_without_room_for_the_excerpt_is_no_verdict(tiny_folder, monkeypatch):
    model = load_model(tiny_folder, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(verification, "free_memory", lambda device: 0)
        assert "no memory" in choose_path(model).reason
    assert choose_path(model).is_fast


def test_where_padding_is_wrong_the_whole_model_is_compared_all_the_same(tiny_folder, monkeypatch):
    model = load_model(tiny_folder, device="cpu")
    seen = []
    monkeypatch.setattr(
        verification, "_on_excerpt", lambda model: verification.Verdict(None, pads=False)
    )
    whole = verification._on_the_whole
    monkeypatch.setattr(
        verification, "_on_the_whole", lambda *args: seen.append(args[1]) or whole(*args)
    )
    assert choose_path(model).is_fast and seen == [False]


def test_a_part_of_a_joint_matrix_given_other_weights_is_not_computed_by_the_engine(tmp_path):
    model = load_model(write_family("gpt-2", tmp_path / "m"), device="cpu")
    [ids] = tokenize_prompts(model, ["x"])
    assert choose_path(model).is_fast
    value = model.blocks[0].attn.v.original_component
    value.weight = torch.nn.Parameter(-30.0 * value.weight.detach())
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, -1].argmax().item()
    got = sl.generate(model, "x", max_new_tokens=1)
    assert got.settings["attention"] == "eager"
    assert got.tokens[0] == (expected,)
