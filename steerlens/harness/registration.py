"""The model's name in lm-eval's registry."""

from steerlens.harness.saved import require_lm_eval

__all__ = ["MODEL_NAME", "register"]

MODEL_NAME = "steerlens"


def register() -> None:
    """Let lm-eval find `SteeredLM` under the name ``steerlens``; again does nothing.

    Raises:
        SteerlensError: lm-eval is not installed.
    """
    require_lm_eval()
    import lm_eval.models  # noqa: F401  (its own names first)
    from lm_eval.api.registry import MODEL_REGISTRY, register_model

    from steerlens.harness.language_model import SteeredLM

    if MODEL_NAME not in MODEL_REGISTRY:
        register_model(MODEL_NAME)(SteeredLM)
