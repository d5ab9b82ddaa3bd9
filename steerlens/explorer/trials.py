"""What the explorer tries: a vector from the catalogue, a file or your own words, and its use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import POSITIONS, cache_residuals
from steerlens.errors import SteerlensError
from steerlens.steering.interventions import Steering
from steerlens.tasks import base_queries, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.formats import load_vector

__all__ = ["Trial", "as_python", "kind_of", "read_at", "vector_of"]

_FILES = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Trial:
    """What the controls are set to.

    Attributes:
        source: Where the vector comes from; see `kind_of`.
        prompt: The user's message.
        layer: Block whose output is steered.
        operation: ``"add"``, ``"set_projection"`` or ``"ablate"``.
        strength: Multiplies the change; see `SteeringVector.at`.
        scope: ``"all"``, ``"prompt"`` or ``"response"``.
        max_new_tokens: Longest response, in tokens.
    """

    source: str
    prompt: str
    layer: int
    operation: str = "set_projection"
    strength: float = 1.0
    scope: str = "all"
    max_new_tokens: int = 48

    def steering(self, vector: SteeringVector) -> Steering:
        """The vector, steered as this trial says.

        Raises:
            SteeringError: As `SteeringVector.at`.
        """
        return vector.at(self.layer, self.operation, self.strength, self.scope)

    def describe(self) -> str:
        return (
            f"{self.source}: {self.operation} ×{self.strength:g} at layer {self.layer} on "
            f"{self.scope}, {self.prompt!r}"
        )


def kind_of(source: str) -> Literal["instruction", "file", "words"]:
    """What was picked or typed: an id of the catalogue, a vector file, or an instruction.

    >>> kind_of("detectable_format:title"), kind_of("v.gguf"), kind_of("Answer like a pirate.")
    ('instruction', 'file', 'words')
    """
    if source in catalogue:
        return "instruction"
    return "file" if source.lower().endswith(_FILES) else "words"


def vector_of(model: TransformerBridge, source: str, n_pairs: int) -> SteeringVector:
    """The vector of a source (`kind_of`) on this model, fitted on `n_pairs` contrast pairs.

    Raises:
        SteerlensError: A file that is missing or no vector, or an instruction of one word, which is
            more likely a mistyped id.
    """
    kind = kind_of(source)
    if kind == "file":
        if not Path(source).is_file():
            raise SteerlensError(f"there is no file {source!r}")
        return load_vector(source)
    if kind == "instruction":
        pairs = contrast_pairs(source, n=n_pairs)
    else:
        if " " not in source.strip():
            raise SteerlensError(
                f"{source!r} is no instruction of the catalogue and no vector file; an instruction "
                "in your own words has at least two"
            )
        asked = [query.text for query in base_queries("fit")[:n_pairs]]
        pairs = ContrastSet.from_prompts([f"{text} {source}" for text in asked], asked)
    return difference_of_means(cache_residuals(model, pairs, show_progress=False))


def read_at(vector: SteeringVector, n_prompt: int) -> str | int | None:
    """Where a vector was read, to be marked in a text; ``None`` where it does not say.

    The record of a file may hold anything, and a prompt of `n_prompt` tokens may be too short.
    """
    position = vector.metadata.get("position")
    if isinstance(position, str) and position in POSITIONS:
        return position
    # JSON's true is an int to Python.
    if isinstance(position, int) and not isinstance(position, bool):
        return position if -n_prompt <= position < n_prompt else None
    return None


def as_python(trial: Trial, model: str, n_pairs: int, dtype: str = "float32") -> str:
    """The lines that reproduce a trial on a model, given by its reference and dtype."""
    kind = kind_of(trial.source)
    fitted = "vector = sl.difference_of_means(sl.cache_residuals(model, pairs))"
    marked = "" if kind == "file" else ", read_at='last_prompt'"
    if kind == "file":
        vector = [f"vector = sl.load_vector({trial.source!r})"]
    elif kind == "instruction":
        vector = [f"pairs = sl.contrast_pairs({trial.source!r}, n={n_pairs})", fitted]
    else:
        vector = [
            "from steerlens.tasks.pairs import ContrastSet",
            f"asked = [query.text for query in sl.base_queries('fit')[:{n_pairs}]]",
            f"instructed = [text + ' ' + {trial.source!r} for text in asked]",
            "pairs = ContrastSet.from_prompts(instructed, asked)",
            fitted,
        ]
    return "\n".join(
        [
            "import steerlens as sl",
            "",
            f"model = sl.load_model({model!r}, dtype={dtype!r})",
            *vector,
            f"steering = vector.at(layer={trial.layer}, operation={trial.operation!r}, "
            f"strength={trial.strength}, scope={trial.scope!r})",
            f"run = sl.steer(model, {trial.prompt!r}, steering, "
            f"max_new_tokens={trial.max_new_tokens}{marked})",
            "",
        ]
    )
