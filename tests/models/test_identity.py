"""A model's identity: what belongs to it, and what results say of a model that was changed."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_llama
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer
from weight_changes import CHANGES, half

import steerlens as sl
from steerlens.attribution import instruction_geometry
from steerlens.errors import SteerlensError
from steerlens.models.configuration import tokenizer_hash
from steerlens.models.identity import model_identity
from steerlens.models.loading import load_model, model_info
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors.consistency import combined_metadata
from steerlens.vectors.library import save_library

OTHER_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}>"


@pytest.fixture
def own(tiny_folder):
    """A model of the test's own, to be changed."""
    return load_model(tiny_folder, device="cpu")


def folder_with(tiny_folder, tmp_path, file, change):
    """A copy of the tiny model's folder with one JSON file changed."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_folder, folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def test_a_model_loaded_again_in_another_process_is_the_same(own, tiny_folder):
    program = (
        "import sys; from steerlens.models.loading import load_model\n"
        "from steerlens.models.identity import model_identity\n"
        "print(model_identity(load_model(sys.argv[1], device='cpu')))"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, str(tiny_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(model_identity(own))
    sl.generate(own, ["Hi"], max_new_tokens=4)
    own.tokenizer(["a", "bc"], padding=True, truncation=True, max_length=4)
    assert there.stdout.strip() == str(model_identity(own))


@pytest.mark.parametrize("change", CHANGES)
def test_edited_weights_have_another_name_and_say_why(own, change):
    loaded = model_identity(own)
    assert loaded.weights_hash.startswith("sha256:") and not model_info(own).edited
    change(own)
    assert model_identity(own).weights_hash.startswith("edited:")
    assert model_info(own).edited
    assert model_identity(own).key != loaded.key
    if change is half:
        assert model_info(own).dtype_reason == "converted after loading"


def test_an_edit_taken_back_gives_the_files_hash_again(own):
    weight = own.original_model.model.layers[0].self_attn.q_proj.weight
    loaded = model_identity(own)
    kept = weight.data.clone()
    weight.data.add_(1.0)
    assert model_identity(own) != loaded
    weight.data.copy_(kept)
    assert model_identity(own) == loaded


def test_the_configuration_belongs_to_it_and_where_it_came_from_does_not(
    own, tiny_folder, tmp_path
):
    def other_positions(config):
        config["rope_parameters"]["rope_theta"] = 500.0

    def renamed(config):
        config.update(transformers_version="4.0", _name_or_path="elsewhere", use_cache=False)

    first = model_identity(own)
    turned = folder_with(tiny_folder, tmp_path / "a", "config.json", other_positions)
    moved = folder_with(tiny_folder, tmp_path / "b", "config.json", renamed)
    other = model_identity(load_model(turned, device="cpu"))
    assert other.weights_hash == first.weights_hash
    assert other.configuration_hash != first.configuration_hash and other.key != first.key
    assert model_identity(load_model(moved, device="cpu")).key == first.key
    own.cfg.attn_scale = 3.0
    assert model_identity(own).configuration_hash != first.configuration_hash


def test_tokenizer_and_template_belong_to_it(own):
    first = model_identity(own)
    own.tokenizer.chat_template = OTHER_TEMPLATE
    templated = model_identity(own)
    assert templated.chat_template_hash != first.chat_template_hash
    # Pieces hold token ids, which tell templates apart where they differ.
    assert templated.key == first.key and templated.settings != first.settings
    own.tokenizer.add_tokens(["cat"])
    assert model_identity(own).tokenizer_hash != first.tokenizer_hash
    own.tokenizer.chat_template = None
    assert model_identity(own).chat_template_hash is None
    assert model_info(own).chat_format == "plain"


def test_modes_that_change_what_is_computed_are_named(own):
    assert model_identity(own).switched == ()
    own.enable_compatibility_mode(no_processing=True)
    assert model_identity(own).switched == ("compatibility_mode",)
    own.train()
    assert "training" in model_identity(own).switched


def test_a_bridge_made_elsewhere_is_named_by_its_weights_as_they_are(tiny_folder):
    bridge = TransformerBridge.boot_transformers(
        "mine",
        hf_model=tiny_llama(0),
        tokenizer=AutoTokenizer.from_pretrained(tiny_folder),
        device="cpu",
    )
    first = model_info(bridge).weights_hash
    assert first.startswith("live:")
    with torch.no_grad():
        bridge.original_model.model.norm.weight.mul_(2)
    assert model_info(bridge).weights_hash not in ("", first)
    assert model_info(bridge).weights_hash.startswith("live:")


class WordsOnly:
    """A tokenizer without a backend, as far as it is asked."""

    def __init__(self, *words: str) -> None:
        self.vocabulary = {word: i for i, word in enumerate(words)}
        self.special_tokens_map: dict[str, str] = {}
        self.all_special_ids: list[int] = []

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def __len__(self) -> int:
        return len(self.vocabulary)


def test_without_a_backend_a_tokenizer_is_known_by_its_words(own):
    first, same, other = (WordsOnly(*words) for words in ("ab", "ab", "ba"))
    assert tokenizer_hash(own, first) == tokenizer_hash(own, same) != tokenizer_hash(own, other)


def test_in_compatibility_mode_no_library_or_map_takes_a_model_for_the_loaded_one(
    gpt2_folder, tmp_path
):
    pairs = ContrastSet.from_prompts([f"{i}: yes" for i in range(4)], [f"{i}:" for i in range(4)])
    model = load_model(gpt2_folder, device="cpu")
    loaded = sl.cache_residuals(model, pairs, show_progress=False)
    model.enable_compatibility_mode()
    folded = sl.cache_residuals(model, pairs, show_progress=False)
    # The residuals are others,
    change = (folded.instructed - loaded.instructed).norm() / loaded.instructed.norm()
    assert change > 0.05
    # and nothing compares them with the loaded model's.
    assert folded.metadata["weights_hash"].startswith("edited:")
    first, second = (sl.difference_of_means(cache) for cache in (loaded, folded))
    named = [
        replace(one, metadata={**one.metadata, "instruction": name})
        for name, one in (("a", first), ("b", second))
    ]
    with pytest.raises(SteerlensError, match="a library holds vectors of one model"):
        save_library(tmp_path / "library", named)
    with pytest.raises(SteerlensError, match="differ in weights hash"):
        instruction_geometry({"a": loaded, "b": folded}, layer=1)
    kept = combined_metadata([first.metadata, second.metadata])
    assert "differ in weights_hash" in kept["targets_unknown_because"]
