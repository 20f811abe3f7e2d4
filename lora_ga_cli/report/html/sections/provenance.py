"""Where the runs come from: versions, machine, source, base and data, by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html.plain import compare
from lora_ga_cli.report.html.record import RunRecord
from lora_ga_cli.report.html.section import Section, SectionContent

ENTRIES = ("base_identity", "base_fingerprint", "data", "hub_datasets", "saved_difference", "format")
"""Entries of a manifest that say what a run was made from, and what came out."""


@SECTIONS.register("provenance")
class Provenance(Section):
    name, title, position = "provenance", "Provenance", 80

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        known = [provenance_of(run) for run in runs]
        if not any(known):
            return None
        shown = [
            _readable(item) | _files(run.manifest.get("files") or {}) for item, run in zip(known, runs, strict=True)
        ]
        return SectionContent({"found": compare([run.name for run in runs], shown)})


def provenance_of(run: RunRecord) -> dict[str, Any]:
    """Nested plain data, the most interesting first."""
    manifest = run.manifest
    stored: Mapping[str, Any] = manifest.get("provenance") or {}
    times = {name: _moment(manifest.get(name)) for name in ("started", "finished")}
    versions = {"loraga": stored.get("loraga"), "python": stored.get("python"), **(stored.get("packages") or {})}
    git = stored.get("git") or {}
    commit = {"git commit": f"{git.get('commit')}{' (with uncommitted changes)' if git.get('modified') else ''}"}
    known = {
        **times,
        **{name: version for name, version in versions.items() if version != "absent"},
        "platform": stored.get("platform"),
        "accelerator": stored.get("accelerator"),
        **(commit if git.get("commit") else {}),
        **{name: manifest.get(name) for name in ENTRIES},
    }
    return {name: value for name, value in known.items() if value not in (None, "", [], {})}


def _readable(known: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested data with one name for each value, without empty values."""
    found: dict[str, Any] = {}
    for name, value in known.items():
        title = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            found |= _readable(value, f"{title} · ")
        elif value != []:
            found[title] = value
    return found


def _files(written: Mapping[str, Any]) -> dict[str, Any]:
    """The digest of each file of a run."""
    return {f"file {name}": entry.get("sha256") for name, entry in written.items() if isinstance(entry, Mapping)}


def _moment(time: Any) -> str | None:
    """A time of a manifest (UTC), for people."""
    return f"{time[:10]} {time[11:19]} UTC" if isinstance(time, str) and time.endswith("+00:00") else time
