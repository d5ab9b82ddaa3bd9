"""README's first lines in an environment without the checkout: python -I quickstart.py [MODEL].

It imports nothing of the tests, so that it also runs where only the wheel is installed.
"""

import sys
from pathlib import Path

import steerlens as sl


def main() -> None:
    """The first lines."""
    assert Path(sl.__file__).is_relative_to(sys.prefix), f"{sl.__file__} is not the installed wheel"

    model = sl.load_model(*sys.argv[1:], dtype="float32", device="cpu")
    task = sl.catalogue["detectable_format:title"]
    cache = sl.cache_residuals(model, sl.contrast_pairs(task, n=8, split="fit"))
    ranking = sl.rank_layers(cache)
    vector = sl.difference_of_means(cache)
    held_out = sl.contrast_pairs(task, n=4, split="select")
    recovery = sl.first_token_recovery(model, held_out, vector)
    steering = vector.at(layer=ranking.best_layer, strength=2.0, scope="prompt")
    run = sl.steer(model, "Tell me about Rome.", steering, max_new_tokens=8)
    print(
        f"steerlens {sl.__version__}: {len(recovery.table)} layers, {len(run.effects.table)} tokens"
    )


if __name__ == "__main__":
    main()
