"""Export a finished run: read the finding, put it into a trainer's words, write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankwise.durable import write_directory, write_file
from rankwise.errors import UserError
from rankwise.export.axolotl import axolotl_config
from rankwise.export.finding import Finding, read_finding
from rankwise.export.hub import check_repository, upload, write_folder
from rankwise.export.litgpt import litgpt_config
from rankwise.export.llama_factory import llama_factory_config
from rankwise.export.peft import write_peft
from rankwise.export.serving import serving_line
from rankwise.export.torchtune import torchtune_config
from rankwise.export.trl import trl_config
from rankwise.export.unsloth import unsloth_script

_TEXTS: dict[str, tuple[Callable[[Finding], str], str]] = {
    "trl": (trl_config, "YAML for trl sft"),
    "axolotl": (axolotl_config, "YAML for axolotl train"),
    "llama-factory": (llama_factory_config, "YAML for llamafactory-cli train"),
    "unsloth": (unsloth_script, "a Python script for Unsloth"),
    "torchtune": (torchtune_config, "YAML lines for a LoRA recipe of torchtune"),
    "litgpt": (litgpt_config, "YAML for litgpt finetune_lora"),
}
_HUB = "hub:"
TARGETS = ("peft", *_TEXTS, "hub:USER/NAME")


@dataclass(frozen=True)
class Export:
    """What was exported: a `text`, or None for a directory; the `path` that was written, if any; what to know of it.

    `address` is where on the hub it is now.
    """

    text: str | None
    path: Path | None
    remarks: tuple[str, ...]
    address: str | None = None


def export_recommendation(run: str | Path, to: str, out: str | Path | None = None, *, dry_run: bool = False) -> Export:
    """Put a finished run's recommendation into the words of a trainer, `to` (one of `TARGETS`).

    Texts are written to `out` where that is given. `peft` writes a directory, `hub:USER/NAME` a folder that it then
    sends to the hub, unless `dry_run`: `out`, or one under the run's `export/`. Raises `UserError` where the run has
    not ended or names no rank, where the trainer cannot train such a thing, and where `out` exists.
    """
    run, out = Path(run), None if out is None else Path(out)
    repository = to.removeprefix(_HUB) if to.startswith(_HUB) else None
    if repository is not None:
        check_repository(repository)
    elif to not in ("peft", *_TEXTS):
        raise UserError(f"to: {to!r} is not one of {', '.join(TARGETS)}")
    elif dry_run:
        raise UserError("dry-run: nothing is sent anywhere with --to " + to + "; leave it out")
    if out is not None and out.exists():
        raise UserError(f"out: {out} exists; remove it, or give another --out")
    finding = read_finding(run)
    if to in _TEXTS:
        return _export_text(finding, to, out)
    remarks = (finding.notes[0], *([serving_line(finding.rank)] if finding.causal else []))
    if repository is None:
        path = out or run / "export" / "peft"
        write_directory(path, lambda beside: write_peft(beside, finding))
        return Export(None, path, remarks)
    path = out or run / "export" / "hub"
    write_directory(path, lambda beside: write_folder(beside, finding, repository))
    if finding.is_local:
        remarks += (f"the base model is a directory here: name its hub id in {path}/README.md and adapter_config.json",)
    return Export(None, path, remarks, None if dry_run else upload(path, repository))


def _export_text(finding: Finding, to: str, out: Path | None) -> Export:
    if not finding.causal:
        raise UserError(f"{to} trains language models, and this run compared ranks of a classifier: give --to peft")
    write, kind = _TEXTS[to]
    text = write(finding)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, lambda beside: beside.write_text(text, encoding="utf-8"))
    return Export(text, out, (f"{kind}; {finding.notes[0]}",))
