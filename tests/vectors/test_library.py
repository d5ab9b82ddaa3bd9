"""Claims about libraries: a folder that says what is in it, and refuses what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from interop_examples import assert_same_vector, example_vector
from transformer_lens.model_bridge import TransformerBridge

from steerlens import files
from steerlens.errors import FileFormatError, SteeringError, SteerlensError, UnknownNameError
from steerlens.models.weights import sha256_of_files
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats import load_vector
from steerlens.vectors.formats.index import INDEX_NAME
from steerlens.vectors.library import Library, load_library, save_library
from steerlens.vectors.model_cards import LibraryItem, Rate

RATES = (
    Rate("uninstructed", 1, 20),
    Rate("uninstructed+steering", 13, 20),
    Rate("uninstructed+placebo", 0, 20),
)


def made_for(instruction: str, seed: int = 0, **metadata: Any) -> SteeringVector:
    return example_vector(
        seed=seed,
        d_model=16,
        instruction=instruction,
        **{"n_layers": 3, "weights_hash": "sha256:ab", "split": "fit", "n_pairs": 64, **metadata},
    )


def two_items() -> list[LibraryItem]:
    title, bullets = made_for("detectable_format:title"), made_for("bullets", seed=1)
    best = title.at(2, operation="add", strength=1.5, scope="prompt")
    return [
        LibraryItem(title, best, RATES, limits=["Only English was tried."]),
        LibraryItem(bullets),
    ]


def test_vectors_and_how_to_apply_them_come_back(tmp_path: Path) -> None:
    items = two_items()

    save_library(tmp_path / "new", items)
    library = load_library(tmp_path / "new")

    assert library.names == ("detectable_format:title", "bullets")
    for item in items:
        assert_same_vector(library.load(item.vector.name), item.vector)
    [one] = library.steering("detectable_format:title").interventions
    assert (one.layer, one.operation, one.strength, one.scope) == (2, "add", 1.5, "prompt")
    with pytest.raises(SteerlensError, match="no settings for 'bullets'"):
        library.steering("bullets")
    with pytest.raises(UnknownNameError, match="did you mean 'bullets'"):
        library.load("bullet")
    row = library.table.set_index("name").loc["detectable_format:title"]
    assert row["layer"] == 2 and row["uninstructed+steering"] == 0.65


def test_the_index_has_the_hash_of_every_file_and_a_changed_file_is_refused(
    tmp_path: Path,
) -> None:
    library = save_library(tmp_path, two_items())
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["schema"] == "steerlens-vectors/1" and index["d_model"] == 16
    for entry in index["vectors"]:
        assert entry["sha256"] == sha256_of_files([tmp_path / entry["file"]])

    made_for("bullets", seed=9).save(tmp_path / "bullets.safetensors")
    with pytest.raises(FileFormatError, match="is not the file"):
        library.load("bullets")
    with pytest.raises(FileFormatError, match="is not the file"):
        load_vector(tmp_path / "bullets.safetensors")
    library.load("detectable_format:title")


class Stopped(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("n", range(1, 7))
def test_a_library_written_again_and_stopped_anywhere_gives_nothing_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    def items(seed: int, layer: int) -> list[LibraryItem]:
        vectors = [made_for(name, seed=seed + i) for i, name in enumerate(("title", "bullets"))]
        return [LibraryItem(one, one.at(layer, operation="add")) for one in vectors]

    def told(library: Library, name: str) -> tuple[int, list[float]] | None:
        try:
            [one] = library.steering(name).interventions
        except FileFormatError:
            return None
        return one.layer, one.direction.tolist()

    names = ("title", "bullets")
    other = save_library(tmp_path / "other", items(7, layer=2))
    new = {name: told(other, name) for name in names}
    first = save_library(tmp_path / "mine", items(0, layer=1))
    old = {name: told(first, name) for name in names}

    # Given the n-th of its six files as the last,
    whole, written = files.write_atomically, []

    def write(path: Any, content: Any) -> Path:
        written.append(path)
        if len(written) == n:
            raise Stopped
        return whole(path, content)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(files, "write_atomically", write)
        save_library(tmp_path / "mine", items(7, layer=2))

    # then each vector comes with its own settings, or is refused.
    library = load_library(tmp_path / "mine")
    for name in names:
        assert told(library, name) in (old[name], new[name], None)
    assert (told(library, "title") == old["title"]) == (n == 1)
    save_library(tmp_path / "mine", items(7, layer=2))
    assert {name: told(load_library(tmp_path / "mine"), name) for name in names} == new


def test_a_vector_for_another_model_is_refused_on_loading(
    tmp_path: Path, tiny_model: TransformerBridge
) -> None:
    library = save_library(tmp_path / "fits", [made_for("a")])
    assert_same_vector(library.load("a", tiny_model), made_for("a"))
    deep = save_library(tmp_path / "deep", [made_for("a", n_layers=30)])
    with pytest.raises(SteeringError, match="30 layers, this model has 3"):
        deep.load("a", tiny_model)


def test_the_page_links_to_every_card(tmp_path: Path) -> None:
    save_library(tmp_path, two_items())
    page = (tmp_path / "README.md").read_text()
    for stem in ("detectable_format-title", "bullets"):
        assert f"({stem}.md)" in page and (tmp_path / f"{stem}.md").is_file()
    assert "65%" in page and "a-model" in page


def test_names_from_data_cannot_leave_the_folder_or_the_table(tmp_path: Path) -> None:
    name = "../../x|<script>\n`a`"
    library = save_library(tmp_path / "in", [made_for(name)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    page = (tmp_path / "in" / "README.md").read_text()
    assert "<script>" not in page and "\\|&lt;script>" in page
    assert_same_vector(library.load(name), made_for(name))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "no vector to save"),
        ([made_for("a"), made_for("a", seed=1)], "would be called 'a'"),
        ([made_for("a:b"), made_for("a-b")], "would be called 'a-b'"),
        ([made_for("readme")], "would be called 'readme'"),
        ([made_for("a"), made_for("b", weights_hash="sha256:cd")], "vectors of one model"),
        (
            [made_for(name, configuration_hash=name) for name in ("a", "b")],
            "configuration_hash 'b'.*vectors of one model",
        ),
        (
            [LibraryItem(made_for("a"), made_for("a").at(0) + made_for("a").at(1))],
            "must be one intervention",
        ),
        (
            [LibraryItem(made_for("a"), example_vector(layers=(9,)).at(9))],
            "layer 9 is out of range",
        ),
    ],
)
def test_what_cannot_be_a_library_is_refused_before_anything_is_written(
    tmp_path: Path, items: list[LibraryItem], words: str
) -> None:
    with pytest.raises(SteerlensError, match=words):
        save_library(tmp_path / "new", items)
    assert not (tmp_path / "new").exists()


def test_an_index_without_names_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no readable vectors\.index\.json"):
        load_library(tmp_path)
    save_library(tmp_path, [made_for("a"), made_for("b")])
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    for name in (None, "a", 3):
        index["vectors"][1]["name"] = name
        (tmp_path / INDEX_NAME).write_text(json.dumps(index))
        with pytest.raises(FileFormatError, match="expected a name of its own"):
            load_library(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steering": {"layer": "2"}}, "garbles the settings of 'a'"),
        ({"steering": [1]}, "garbles the settings of 'a'"),
        ({"rates": [{"condition": "steered"}]}, "garbles the rates of 'a'"),
        ({"rates": 3}, "garbles the rates of 'a'"),
    ],
)
def test_an_index_that_garbles_settings_or_rates_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    save_library(tmp_path, [made_for("a")])
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    index["vectors"][0].update(change)
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(FileFormatError, match=words):
        load_library(tmp_path)
