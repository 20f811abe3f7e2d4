"""The gradient artifact: the leading singular triplets of every target's gradient, and how they were estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ga_cli.errors import ArtifactDamaged, DamagedFile, GradientError
from lora_ga_cli.files import atomic_folder, sha256_file
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.json_files import read_json, write_json

FORMAT = 2
FACTORS_FILE = "factors.safetensors"
MANIFEST_FILE = "artifact.json"


@dataclass(frozen=True)
class GradientArtifact:
    """Factors by layer name. Serves every rank whose initialization needs at most ``capacity`` singular vectors.

    Args:
        factors: by full name of the target; of experts, by that of each one's layer (`Target.layers`).
        capacity: singular vectors kept per layer (fewer in layers whose smaller side is smaller than that).
        info: how it was estimated: estimator, items, loss, provenance.
        key: its content address if it came from a store, else empty.
    """

    factors: Mapping[str, Factors]
    capacity: int
    info: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def max_rank(self) -> int:
        """The largest rank that LoRA-GA can initialize from this artifact."""
        return self.capacity // 2

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by layer."""
        return {name: factors.shape for name, factors in self.factors.items()}

    @property
    def unreached(self) -> set[str]:
        """The targets that no gradient reached, such as an expert that no token was routed to; they have no factors."""
        return set(self.info.get("unreached", []))

    @property
    def target_modules(self) -> list[str]:
        """The targets in the form of PEFT's ``target_modules``: endings if they suffice, else full names."""
        return list(self.info.get("target_modules", self.factors))

    def energy(self, rank: int) -> dict[str, float]:
        """The share of ``‖G‖²`` that a first step of this rank can follow (2·rank singular vectors), by layer."""
        return {name: factors.energy(2 * rank) for name, factors in self.factors.items()}

    def alignment(self, rank: int) -> dict[str, float]:
        """How well the first step follows the best first step of this rank, from 0 to 1, by layer."""
        return {name: factors.alignment(2 * rank) for name, factors in self.factors.items()}

    def check_serves(self, names: set[str], rank: int) -> None:
        """Checks that this artifact can initialize some layers at a rank, or knows that no gradient reached them.

        Raises:
            GradientError: the rank is above `max_rank`, or a layer has no gradient here.
        """
        if rank > self.max_rank:
            raise GradientError(
                f"this gradient artifact keeps {self.capacity} singular vectors and serves ranks up to "
                f"{self.max_rank}, not rank={rank}: estimate with a capacity of {2 * rank}"
            )
        missing = sorted(names - set(self.factors) - self.unreached)
        if missing:
            more = f" and {len(missing) - 1} more layers" if len(missing) > 1 else ""
            raise GradientError(
                f"the gradient artifact has no gradient for {missing[0]}{more}: estimate it for them too"
            )

    def save(self, folder: Path) -> None:
        """Writes the artifact to ``folder`` (safetensors and JSON), atomically; replaces one that is there."""
        tensors: dict[str, Tensor] = {}
        for name, factors in self.factors.items():
            tensors |= {
                f"{name}.left": factors.left,
                f"{name}.singular": factors.singular,
                f"{name}.right": factors.right,
            }
            if factors.missed is not None:
                tensors[f"{name}.missed"] = factors.missed
        with atomic_folder(folder) as temporary:
            save_file(tensors, temporary / FACTORS_FILE)
            manifest = {
                "format": FORMAT,
                "key": self.key,
                "capacity": self.capacity,
                "sha256": sha256_file(temporary / FACTORS_FILE),
                "info": self.info,
                "norms": {name: factors.norm for name, factors in self.factors.items()},
            }
            write_json(temporary / MANIFEST_FILE, manifest, digest=True)

    @classmethod
    def load(cls, folder: Path) -> GradientArtifact:
        """Reads and verifies an artifact.

        Raises:
            ArtifactDamaged: a file is missing, cannot be parsed, or does not have the bytes that were written.
        """
        try:
            manifest = read_json(folder / MANIFEST_FILE)
            _check_types(manifest)
            if manifest["format"] != FORMAT:
                raise ArtifactDamaged(f"{folder}: format {manifest['format']}, this version reads {FORMAT}")
            if sha256_file(folder / FACTORS_FILE) != manifest["sha256"]:
                raise ArtifactDamaged(f"{folder}: {FACTORS_FILE} does not have the bytes that were written")
            tensors = load_file(folder / FACTORS_FILE)
            factors = {
                name: Factors(
                    tensors[f"{name}.left"],
                    tensors[f"{name}.singular"],
                    tensors[f"{name}.right"],
                    norm,
                    tensors.get(f"{name}.missed"),
                )
                for name, norm in manifest["norms"].items()
            }
            return cls(factors=factors, capacity=manifest["capacity"], info=manifest["info"], key=manifest["key"])
        except DamagedFile as error:
            raise ArtifactDamaged(str(error)) from error
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ArtifactDamaged(f"{folder}: not a complete gradient artifact ({error})") from error


def _check_types(manifest: Any) -> None:
    """Raises TypeError or KeyError where a manifest is not of the form that `GradientArtifact.save` writes."""
    for name, kind in (("capacity", int), ("info", dict), ("norms", dict), ("key", str), ("sha256", str)):
        if not isinstance(manifest[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    if not all(isinstance(norm, float) for norm in manifest["norms"].values()):
        raise TypeError("norms are no numbers")
    info = manifest["info"]
    for name in ("unreached", "target_modules"):
        if not _are_names(info.get(name, [])):
            raise TypeError(f"{name} is no list of names")
    provenance = info.get("provenance") or {}
    if not isinstance(provenance, dict) or not _are_names(provenance.get("command") or []):
        raise TypeError("provenance is not what was written")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
