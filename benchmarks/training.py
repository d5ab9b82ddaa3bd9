"""What training directions costs: one task, every objective, eight layers side by side.

    python -m benchmarks.training

One JSON line: seconds by the clock, steps, peak memory of the process above that of the loaded
model, and the held-out loss of each direction before and after.
"""

import json
import os
import resource
import time

import torch

import steerlens as sl
from steerlens.training import Slot, TrainingSettings, train_directions

MODEL, TASK = "smollm2-135m-instruct", "detectable_format:title"
LAYERS = (2, 6, 10, 13, 16, 19, 22, 25)
SETTINGS = TrainingSettings(n_examples=24, max_tokens=48, n_steps=8, batch_size=4, look_every=8)


def peak() -> float:
    """Most memory so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Train, and print the line."""
    model = sl.load_model(MODEL, dtype="float32")
    sl.generate(model, "Warm.", max_new_tokens=2)
    before = peak()
    slots = [
        Slot((layer,), objective, gate=True)
        for objective in ("comply", "prefer", "imitate", "regress")
        for layer in LAYERS
    ]
    started = time.monotonic()
    trained = train_directions(model, TASK, slots, settings=SETTINGS)
    seconds = time.monotonic() - started
    losses = trained.table[["objective", "start_loss", "loss"]]
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "directions": len(slots),
                "steps": SETTINGS.n_steps,
                "peak_gb_above_model": round(peak() - before, 2),
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "losses": losses.groupby("objective").mean().round(3).to_dict(),
            }
        )
    )


if __name__ == "__main__":
    main()
