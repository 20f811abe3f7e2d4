"""The gradient artifact on disk: the same to the bit, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_ga_cli.errors import ArtifactDamaged, GradientError
from lora_ga_cli.gradient.artifact import FACTORS_FILE, FORMAT, MANIFEST_FILE, GradientArtifact
from lora_ga_cli.gradient.factors import Factors, truncated_svd

SHAPES = {"model.layers.0.q_proj": (12, 8), "model.layers.0.down_proj": (8, 20), "score": (3, 8)}
CAPACITY = 6


def build(capacity: int = CAPACITY, *, sketched: bool = False) -> GradientArtifact:
    """Exact factors in float32; or in float16 and with what they miss, as a sketch gives them."""
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    factors = {name: truncated_svd(grad, capacity) for name, grad in grads.items()}
    if sketched:
        factors = {
            name: replace(exact, left=exact.left.half(), right=exact.right.half(), missed=exact.singular / 7)
            for name, exact in factors.items()
        }
    return GradientArtifact(factors, capacity, {"estimator": "exact", "loss": 1 / 3, "model": "größe"}, key="abc")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build().save(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("sketched", [False, True], ids=["exact", "sketched"])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path: Path, sketched: bool) -> None:
    before = build(sketched=sketched)
    before.save(tmp_path / "artifact")
    after = GradientArtifact.load(tmp_path / "artifact")
    assert list(after.factors) == list(before.factors)
    for name, factors in before.factors.items():
        for part in ("left", "singular", "right", "missed"):
            ours, theirs = getattr(factors, part), getattr(after.factors[name], part)
            if ours is None:
                assert theirs is None
                continue
            assert theirs.dtype == ours.dtype
            assert torch.equal(theirs, ours)
        assert (after.factors[name].missed is not None) == sketched
        assert after.factors[name].norm == factors.norm
    assert (after.capacity, after.info, after.key) == (before.capacity, before.info, before.key)


def test_saving_twice_writes_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    build().save(tmp_path / "again")
    for name in (FACTORS_FILE, MANIFEST_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_saving_replaces_what_is_there(saved: Path) -> None:
    (saved / "old").touch()
    build(4).save(saved)
    assert {item.name for item in saved.iterdir()} == {FACTORS_FILE, MANIFEST_FILE}
    assert GradientArtifact.load(saved).capacity == 4


def flip_a_byte(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the factors": lambda folder: flip_a_byte(folder / FACTORS_FILE, -1),
    "a byte of their header": lambda folder: flip_a_byte(folder / FACTORS_FILE, 12),
    "short factors": lambda folder: (folder / FACTORS_FILE).write_bytes((folder / FACTORS_FILE).read_bytes()[:-4]),
    "empty factors": lambda folder: (folder / FACTORS_FILE).write_bytes(b""),
    "no factors": lambda folder: (folder / FACTORS_FILE).unlink(),
    "no manifest": lambda folder: (folder / MANIFEST_FILE).unlink(),
    "short manifest": lambda folder: (folder / MANIFEST_FILE).write_bytes((folder / MANIFEST_FILE).read_bytes()[:40]),
    "empty manifest": lambda folder: (folder / MANIFEST_FILE).write_text("{}", encoding="utf-8"),
    "manifest of another kind": lambda folder: (folder / MANIFEST_FILE).write_text("[]", encoding="utf-8"),
    "manifest not text": lambda folder: (folder / MANIFEST_FILE).write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_any_damage_is_noticed(saved: Path, damage: Callable[[Path], object]) -> None:
    damage(saved)
    with pytest.raises(ArtifactDamaged, match=str(saved)):
        GradientArtifact.load(saved)


def test_another_format_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST_FILE).read_text(encoding="utf-8"))
    (saved / MANIFEST_FILE).write_text(json.dumps(manifest | {"format": FORMAT + 1}), encoding="utf-8")
    with pytest.raises(ArtifactDamaged, match=f"format {FORMAT + 1}"):
        GradientArtifact.load(saved)


def test_it_serves_every_rank_up_to_half_its_capacity() -> None:
    artifact = build(6)
    assert artifact.max_rank == 3
    artifact.check_serves(set(SHAPES), 3)
    with pytest.raises(GradientError, match=r"ranks up to 3, not rank=4: estimate with a capacity of 8"):
        artifact.check_serves(set(SHAPES), 4)


@pytest.mark.parametrize(("others", "said"), [(["extra"], "for extra:"), (["y", "x", "z"], "for x and 2 more layers:")])
def test_a_layer_without_a_gradient_is_an_error_that_names_it(others: list[str], said: str) -> None:
    with pytest.raises(GradientError, match=said):
        build().check_serves({*SHAPES, *others}, 1)


def test_fewer_layers_than_were_estimated_are_served() -> None:
    build().check_serves({"score"}, 1)


def test_shapes_are_those_of_the_gradients_and_small_layers_keep_what_they_have() -> None:
    artifact = build(6)
    assert artifact.shapes == SHAPES
    assert artifact.factors["score"].capacity == 3


def test_energy_is_the_share_of_the_squared_norm() -> None:
    """Singular values 4, 2, 1 and a norm of sqrt(16 + 4 + 1 + 4): the first two hold 20/25."""
    factors = Factors(torch.eye(5)[:, :3], torch.tensor([4.0, 2.0, 1.0]), torch.eye(4)[:, :3], norm=5.0)
    assert GradientArtifact({"x": factors}, 3).energy(1) == {"x": pytest.approx(0.8)}


def test_alignment_is_that_of_the_vectors_a_rank_needs() -> None:
    """A start of rank 1 takes two directions, and a bad third one does not count."""
    missed = torch.tensor([0.0, 0.0, 1e6])
    factors = Factors(torch.eye(5)[:, :3], torch.tensor([4.0, 2.0, 1.0]), torch.eye(4)[:, :3], 5.0, missed)
    artifact = GradientArtifact({"x": factors}, 3)
    assert artifact.alignment(1) == {"x": 1.0}
    assert artifact.alignment(2)["x"] < 0.01
