"""Private names of other libraries: each is there, each is missed in a sentence, none is elsewhere.

An upgrade that drops a name fails here, with library and name in the test's id.
"""

import ast
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import modeling_gguf_pytorch_utils
from transformers.quantizers import auto

import steerlens
from steerlens.errors import SteerlensError
from steerlens.models.adapter import bridge, hugging_face, lm_eval, pytorch

GLOBAL_HOOKS = [
    f"_global_{kind}_hooks" for kind in ("forward_pre", "forward", "backward_pre", "backward")
]
LOCAL_HOOKS = [f"_{kind}_hooks" for kind in ("forward_pre", "forward", "backward_pre", "backward")]
FLAGS = {
    "_supports_sdpa": hugging_face.supports_fused_attention,
    "_supports_attention_backend": hugging_face.supports_custom_attention,
    "_is_stateful": hugging_face.is_stateful,
}


# Attributes of the bridge without an underscore that are its own business all the same.
INTERNAL = "original_component|component_mapping|hook_aliases|submodules|user_hook|eager_mask"


def _bare() -> nn.Module:
    """A module whose `__init__` has not run, so it has none of a module's attributes."""
    return nn.Linear.__new__(nn.Linear)


def _without_hooks(name: str) -> nn.Module:
    module = nn.Linear(1, 1)
    delattr(module, name)
    return module


class _Unversioned(Tensor):
    @property
    def _version(self) -> int:
        raise AttributeError("_version")


def _hooks(module: nn.Module) -> list[Any]:
    with pytorch.hooks_silenced([module]):
        return list(pytorch.hooks_of(module))


def _reordered(_model: Any) -> Tensor:
    return pytorch.reordered_weight(torch.ones(48, 32, dtype=torch.bfloat16), 96)


def _product(_model: Any) -> Tensor:
    weight = torch.ones(48, 32, dtype=torch.bfloat16)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 3) if _has_onednn() else weight
    return pytorch.reordered_product(weight[:3], packed, None)


def _has_onednn() -> bool:
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _attention(model: TransformerBridge) -> None:
    with hugging_face.attention_chosen(model.original_model, "sdpa"):
        assert model.original_model.config._attn_implementation == "sdpa"


def _random(model: TransformerBridge) -> None:
    root: Any = model.original_model
    hugging_face.random_model(type(root), root.config, torch.float32)


def _gguf_bar(_model: Any) -> None:
    with hugging_face.gguf_progress_in_terminal():
        pass


def _inside(_model: Any) -> Any:
    return pytorch.tensors_inside(torch.ones(1))


def _norm(model: TransformerBridge) -> Any:
    return bridge.norm_after(model.blocks[0], "hook_attn_out")


def _hooked(model: TransformerBridge) -> None:
    point = model.blocks[0].hook_out
    assert not bridge.has_outside_hook(point)
    point.add_hook(lambda value, hook: None)
    try:
        assert bridge.has_outside_hook(point)
    finally:
        point.remove_hooks()


def _register(_model: Any) -> None:
    hugging_face.register_attention("steerlens_test", print)


Use = Callable[[TransformerBridge], Any]
Break = Callable[[pytest.MonkeyPatch, TransformerBridge], Any]

# How steerlens uses each name, and what takes the name away; the use after that must fail.
NAMES: dict[tuple[str, str], tuple[Use, Break | Use]] = {
    ("torch", "_modules"): (
        lambda model: pytorch.children_of(model.original_model),
        lambda _patch, _model: pytorch.children_of(_bare()),
    ),
    ("torch", "_parameters"): (
        lambda model: pytorch.parameters_of(model.original_model),
        lambda _patch, _model: pytorch.parameters_of(_bare()),
    ),
    ("torch", "_buffers"): (
        lambda model: pytorch.buffers_of(model.original_model),
        lambda _patch, _model: pytorch.buffers_of(_bare()),
    ),
    ("torch", "_version"): (
        lambda _model: pytorch.n_writes(torch.ones(1)),
        lambda _patch, _model: pytorch.n_writes(torch.ones(1).as_subclass(_Unversioned)),
    ),
    ("torch", "is_traceable_wrapper_subclass"): (
        _inside,
        lambda patch, _model: patch.delattr(
            torch.utils._python_dispatch, "is_traceable_wrapper_subclass"
        ),
    ),
    ("torch", "_reorder_linear_weight"): (
        _reordered,
        lambda patch, _model: patch.setattr(torch.ops, "mkldnn", SimpleNamespace()),
    ),
    ("torch", "_linear_pointwise"): (
        _product,
        lambda patch, _model: patch.setattr(torch.ops, "mkldnn", SimpleNamespace()),
    ),
    ("transformer-lens", "original_component"): (
        lambda model: bridge.own_module(model.blocks[0].attn),
        lambda _patch, _model: bridge.own_module(SimpleNamespace()),
    ),
    ("transformer-lens", "user_hook"): (
        _hooked,
        lambda _patch, _model: bridge.has_outside_hook(
            SimpleNamespace(fwd_hooks=[SimpleNamespace()], bwd_hooks=[])
        ),
    ),
    ("transformer-lens", "fwd_hooks"): (
        _hooked,
        lambda _patch, _model: bridge.has_outside_hook(SimpleNamespace(bwd_hooks=[])),
    ),
    ("transformer-lens", "bwd_hooks"): (
        _hooked,
        lambda _patch, _model: bridge.has_outside_hook(SimpleNamespace(fwd_hooks=[])),
    ),
    ("transformer-lens", "adapter"): (
        bridge.block_list,
        lambda patch, model: patch.delattr(model, "adapter"),
    ),
    ("transformer-lens", "component_mapping"): (
        bridge.block_list,
        lambda patch, model: patch.setattr(model, "adapter", SimpleNamespace()),
    ),
    ("transformer-lens", "hook_aliases"): (
        _norm,
        lambda _patch, _model: bridge.norm_after(SimpleNamespace(submodules={}), ""),
    ),
    ("transformer-lens", "submodules"): (
        _norm,
        lambda _patch, _model: bridge.norm_after(SimpleNamespace(hook_aliases={}), ""),
    ),
    ("transformer-lens", "_weights_processed"): (
        bridge.weights_processed,
        lambda patch, model: patch.delattr(model, "_weights_processed"),
    ),
    ("transformers", "_from_config"): (
        _random,
        lambda patch, _model: patch.delattr(transformers.PreTrainedModel, "_from_config"),
    ),
    ("transformers", "_attn_implementation_internal"): (
        _attention,
        lambda patch, _model: patch.setattr(
            hugging_face.transformers, "PreTrainedConfig", SimpleNamespace
        ),
    ),
    ("transformers", "eager_mask"): (
        _register,
        lambda patch, _model: patch.delattr(transformers.masking_utils, "eager_mask"),
    ),
    ("transformers", "AUTO_QUANTIZATION_CONFIG_MAPPING"): (
        lambda _model: hugging_face.quantization_methods(),
        lambda patch, _model: patch.delattr(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING"),
    ),
    ("transformers", "tqdm"): (
        _gguf_bar,
        lambda patch, _model: patch.delattr(modeling_gguf_pytorch_utils, "tqdm"),
    ),
}
for _name in LOCAL_HOOKS:
    NAMES["torch", _name] = (
        lambda model: _hooks(model.original_model),
        lambda _patch, _model, name=_name: _hooks(_without_hooks(name)),
    )
for _name in GLOBAL_HOOKS:
    NAMES["torch", _name] = (
        lambda _model: pytorch.has_global_hooks(),
        lambda patch, _model, name=_name: patch.delattr(nn.modules.module, name),
    )
for _name, _flag in FLAGS.items():
    NAMES["transformers", _name] = (
        lambda model, flag=_flag: flag(model.original_model),
        lambda patch, _model, name=_name: patch.delattr(transformers.PreTrainedModel, name),
    )


@pytest.mark.parametrize(("library", "name"), NAMES)
def test_the_installed_release_has_the_private_name(
    tiny_model: TransformerBridge, library: str, name: str
) -> None:
    if name in ("_reorder_linear_weight", "_linear_pointwise") and not _has_onednn():
        pytest.skip("this build of torch has no oneDNN, and steerlens does without")
    use, _ = NAMES[library, name]

    use(tiny_model)


@pytest.mark.parametrize(("library", "name"), NAMES)
def test_a_private_name_that_is_gone_is_named_with_library_and_version(
    tiny_model: TransformerBridge, monkeypatch: pytest.MonkeyPatch, library: str, name: str
) -> None:
    use, take_away = NAMES[library, name]
    version = re.escape(importlib.metadata.version(library))

    with pytest.raises(SteerlensError, match=rf"^{library} {version} has no .*\.{name}, which"):
        take_away(monkeypatch, tiny_model)
        use(tiny_model)


def test_the_bridge_keeps_what_it_wraps_under_the_name_that_is_left_out_of_module_names(
    tiny_model: TransformerBridge,
) -> None:
    names = [name for name, _ in tiny_model.named_modules(remove_duplicate=False)]

    assert any("._original_component" in name for name in names)


def test_the_function_by_which_the_bridge_sets_hooks_at_boot_has_its_name() -> None:
    from transformer_lens.model_bridge import component_setup

    assert callable(component_setup._wire_symbolic_hooks)


def test_a_configuration_says_where_it_was_read_from_under_the_name_that_is_removed(
    tiny_folder: Path,
) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_folder)

    assert config._name_or_path == str(tiny_folder)
    assert not any("name_or_path" in key for key in hugging_face.without_source(vars(config)))


def test_accelerate_keeps_its_hook_and_the_replaced_forward_under_their_names() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    module = nn.Linear(1, 1)
    hooks.add_hook_to_module(module, hooks.AlignDevicesHook(offload=True, weights_map={}))

    assert isinstance(module._hf_hook.weights_map, dict)
    assert module._old_forward.__func__ is nn.Linear.forward
    assert hugging_face.is_librarys_forward(module)


def test_a_cpu_is_asked_for_its_instruction_sets_under_the_older_name_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert pytorch.cpu_has("amx_bf16", "avx512_bf16") == "avx512_bf16"

    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    with pytest.raises(SteerlensError, match=r"has no torch\.cpu\._is_avx512_bf16_supported"):
        pytorch.cpu_has("avx512_bf16")


def test_lm_eval_has_the_files_of_its_ifeval_task_and_a_missing_one_is_named() -> None:
    for stem in ("instructions_util", "instructions_registry"):
        # Without nltk's own downloads.
        nltk = SimpleNamespace(data=SimpleNamespace(find=lambda _resource: True))
        package = SimpleNamespace(instructions=_AnyName())
        answers = {"lm_eval.tasks.ifeval": package, "nltk": nltk}
        assert lm_eval.ifeval_module(stem, answers).__name__ == f"lm_eval.tasks.ifeval.{stem}"

    with pytest.raises(SteerlensError, match=r"^lm-eval .* has no IFEval file instruction\.py"):
        lm_eval.ifeval_module("instruction", {})


class _AnyName:
    def __getattr__(self, name: str) -> type:
        return object


def _private_uses(path: Path) -> Iterator[str]:
    """Private names of others in a file: attributes, imports, and strings that look them up."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("steerlens"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Subscript):
            names = _strings([node.slice])
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            looks_up = ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr")
            names = _strings(node.args) if looks_up or called in ("get", "pop") else []
        for name in names:
            is_dunder = name.startswith("__") and name.endswith("__")
            # Jupyter's rendering protocol is documented.
            is_protocol = name.startswith("_repr_") and name.endswith("_")
            if re.fullmatch(rf"_\w*[a-z]\w*|{INTERNAL}", name) and not (
                is_dunder or is_protocol or name in own
            ):
                yield f"{path.name}:{node.lineno} {name}"


def _strings(nodes: list[ast.expr]) -> list[str]:
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_no_other_module_uses_a_private_name() -> None:
    package = Path(steerlens.__file__).parent
    adapter = package / "models" / "adapter"
    files = [path for path in package.rglob("*.py") if adapter not in path.parents]

    assert [use for path in files for use in _private_uses(path)] == []


def test_planted_uses_of_private_names_are_found(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from torch.utils import _python_dispatch\n"
        "module._modules, model.original_component, self._own\n"
        "getattr(module, '_hf_hook'), module.__dict__['_buffers'], vars(model).get('_other')\n"
    )

    names = [use.split()[1] for use in _private_uses(planted)]
    expected = ["_python_dispatch", "_modules", "original_component"]
    assert sorted(names) == sorted([*expected, "_hf_hook", "_buffers", "_other"])
