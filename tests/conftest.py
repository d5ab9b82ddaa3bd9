"""Fixtures every test module may use: the real default model, and a tiny random one.

No test reaches a network. The real weights come from the installed package and are converted once
into the user's cache folder (or ``STEERLENS_CACHE``), which test runs share.
"""

import os
import signal

# Read when huggingface_hub is imported, so set before anything imports it.
os.environ["HF_HUB_OFFLINE"] = "1"
# Processes that test side by side share the cores; read when torch is imported, here and in the
# processes that tests start. More threads than cores wait for each other.
if n_beside := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // n_beside))

# Ray starts workers at a low priority, so they would wait for whatever else runs on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell starts what it puts in the background with interrupts ignored; tests raise them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

from jaxtyping import install_import_hook

# Every shape in every signature of the package is checked while the tests run. Modules without
# shapes are not: small functions called for every part of a model would take most of the time.
_PACKAGE = Path(__file__).parents[1]
install_import_hook(
    [
        ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)
        for path in (_PACKAGE / "steerlens").rglob("*.py")
        if "jaxtyping" in path.read_text(encoding="utf-8")
    ],
    "beartype.beartype",
)

import pytest
import torch
from hf_reference import load_plain
from hypothesis import settings
from small_search import SMALL, TITLE
from tiny_models import write_tiny_folder, write_tiny_gpt2
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from steerlens.behaviour.search import search
from steerlens.models.loading import load_model, model_info
from steerlens.models.weights import cache_folder

# How long an example takes is the machine's matter, not the code's.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_LONGEST = ("test_notebooks", "test_browser_explorer", "test_workers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first, so that processes side by side end at about the same time."""
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if not torch.accelerator.is_available():
        for item in items:
            if item.get_closest_marker("accelerator"):
                item.add_marker(pytest.mark.skip(reason="there is no accelerator here"))


@pytest.fixture(scope="session")
def model() -> TransformerBridge:
    """SmolLM2-135M-Instruct in float32 on the CPU; leave no hooks on it."""
    return load_model("smollm2-135m-instruct", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: three Llama blocks of width 16, random weights, a tokenizer of bytes."""
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> TransformerBridge:
    """The model of `tiny_folder`, hooked; leave no hooks on it."""
    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with room for the catalogue's prompts, one token a byte."""
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "roomy", context=4096)


@pytest.fixture(scope="session")
def roomy_model(roomy_folder: Path) -> TransformerBridge:
    """The model of `roomy_folder`, hooked; leave no hooks on it."""
    return load_model(roomy_folder, device="cpu")


@pytest.fixture(scope="session")
def plan_folder(roomy_model: TransformerBridge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small search on `roomy_model`, with its plan."""
    folder = tmp_path_factory.mktemp("search") / "plan"
    search(roomy_model, [TITLE], folder, SMALL, show_progress=False)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: three GPT-2 blocks of width 16, random weights, a tokenizer of bytes."""
    return write_tiny_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def hf_model(model: TransformerBridge) -> LlamaForCausalLM:
    """The default model's weights in a plain Hugging Face model, for independent computations.

    Attention is eager, as in the hooked model, so that only the code around it differs.
    """
    folder = cache_folder() / "weights" / model_info(model).weights_hash.removeprefix("sha256:")
    return load_plain(folder)


@pytest.fixture(scope="session")
def wide_model(gpt2_folder: Path) -> TransformerBridge:
    """A tiny model in float64, for finite differences; its norms do not go through float32."""
    model = load_model(gpt2_folder, device="cpu")
    model.original_model.double()
    return model


@pytest.fixture(scope="session")
def plain_model(gpt2_folder: Path) -> GPT2LMHeadModel:
    """The same weights in plain Hugging Face modules."""
    return GPT2LMHeadModel.from_pretrained(gpt2_folder).double().eval()
