"""Private names of lm-eval: the files of its IFEval task, and task files as it reads them."""

import builtins
import importlib
import importlib.util
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.models.adapter import missing, private

__all__ = ["ifeval_module", "task_file"]


def ifeval_module(stem: str, answers: Mapping[str, Any]) -> ModuleType:
    """One of lm-eval's IFEval files, run as a private module; `sys.modules` is left as it is.

    Args:
        stem: "instructions_util", "instructions" or "instructions_registry".
        answers: What its ``import`` statements get by name, in place of the real modules.

    Raises:
        SteerlensError: lm-eval is not installed, or has no such file.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise SteerlensError(
            "the instruction checks need lm-eval, which is not installed; run 'pip install lm-eval'"
        )
    path = Path(spec.submodule_search_locations[0], "tasks", "ifeval", f"{stem}.py")

    def private_import(name: str, *args: Any, **kwargs: Any) -> Any:
        return answers[name] if name in answers else builtins.__import__(name, *args, **kwargs)

    module = ModuleType(f"lm_eval.tasks.ifeval.{stem}")
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": private_import}
    try:
        code = SourceFileLoader(module.__name__, str(path)).get_code(module.__name__)
    except OSError as error:
        raise missing("lm-eval", f"IFEval file {path.name}") from error
    assert code is not None
    exec(code, module.__dict__)
    return module


def task_file(path: Path) -> dict[str, Any]:
    """The configuration in a task file, with what it includes; its functions are not imported.

    Raises:
        SteerlensError: The installed lm-eval has no such reader.
    """
    try:
        module = importlib.import_module("lm_eval.tasks._yaml_loader")
    except ImportError as error:
        raise missing("lm-eval", "module tasks._yaml_loader") from error
    read = private("lm-eval", module, "load_yaml")
    return dict(read(path, resolve_func=False))
