"""The longest example where nobody says how long it may be."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import Loraga

FORMAT = ["dataset.text='{text}'", "dataset.label=label"]


def preview(loraga: Loraga, base: Path, file: Path, *options: str, code: int = 0) -> str:
    rows = ["model=classifier", f"model.path={base}", f"dataset.train_file={file}", *FORMAT]
    return loraga("train", *rows, *options, "--preview", code=code)


def test_the_default_is_no_more_than_the_positions_of_the_base(
    loraga: Loraga, saved_bases: dict[str, Path], sums_file: Path
) -> None:
    out = preview(loraga, saved_bases["bert"], sums_file)
    assert "dataset.max_length=256, the positions of this model (the default is 1024)" in out


def test_a_length_that_was_chosen_is_refused_with_the_one_to_use(
    loraga: Loraga, saved_bases: dict[str, Path], sums_file: Path
) -> None:
    out = preview(loraga, saved_bases["bert"], sums_file, "dataset.max_length=300", code=2)
    assert "300 tokens are more than the model's 256 positions (dataset.max_length=256)" in out
