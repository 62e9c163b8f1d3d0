"""A trained adapter of lower rank: the nearest there is, in PEFT's format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import save_file

from rankwise.durable import write_directory
from rankwise.errors import UserError, reason_of
from rankwise.lora.peft_files import AdaptedModule, AdapterFiles, find_adapter, open_weights
from rankwise.records import AdapterSpectrum, ModuleSpectrum, ResizedAdapter, ResizedModule
from rankwise.spectrum.adapter import one_thread, rank_for, truncated
from rankwise.spectrum.inspect import factors, spectrum_of
from rankwise.spectrum.measure import measured_change, score_adapter
from rankwise.spectrum.patterns import commonest
from rankwise.spectrum.subject import load_subject
from rankwise.tasks.source import Source

Ranks = Mapping[str, int]
_EXPERT_OR_ROUTER = re.compile(r"\.experts\.\d+\.|\.(?:block_sparse_moe|mlp)\.gate$")


def resize_adapter(
    path: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    per_layer: bool = False,
    test: Source | None = None,
    model: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> ResizedAdapter:
    """Write the adapter of lower rank that is nearest to the one in `path` (as for `inspect_adapter`) to `out`.

    Either of `rank`, or of the smallest that keeps this share (between 0 and 1) of the squared Frobenius norm of all
    updates ΔW; with `per_layer` each module's rank is the smallest that keeps it of its own. A module whose rank is
    lower already keeps its rank. Alpha is set anew, so that every module's scaling stays; tensors keep their dtype,
    and those that are not LoRA's (heads) are copied. Raises `UserError` where `out` exists, for a rank above the
    adapter's, and where a mixture's experts would differ in rank, which PEFT does not load.

    With `test` both adapters are scored on these data. The base model is that of the adapter's run or configuration
    unless `model` is given; the other options are those of `ComparisonConfig`, by default the run's where there is one
    (`trust_remote_code` excepted, which only its caller can give).
    Nothing is written where model, data and adapter do not belong together. `tell` hears what takes long.
    """
    out = Path(out)
    if (rank is None) == (energy is None):
        raise UserError("resize needs a rank or a share of the energy to keep, and one of them only")
    if energy is not None and not 0 < energy < 1:
        raise UserError(f"energy {energy:g} is not a share between 0 and 1, such as 0.95")
    if per_layer and energy is None:
        raise UserError("per-layer chooses each module's rank by its energy: give energy instead of rank")
    given = {
        "model": model,
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "max_length": max_length,
        "trust_remote_code": trust_remote_code,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if options and test is None:
        name = next(iter(options)).replace("_", "-")
        raise UserError(f"{name} says how test data are scored, and there are none: give test, or leave {name} out")
    if out.exists():
        raise UserError(f"{out} exists already: give another place for the resized adapter")
    files = find_adapter(Path(path))
    largest = max(module.rank for module in files.modules)
    if rank is not None and not 1 <= rank <= largest:
        raise UserError(f"rank {rank} is not one from 1 to {largest}, the rank of adapter {files.directory}")
    spectrum = spectrum_of(files)
    ranks = {module.name: _rank(module, spectrum, rank, energy, per_layer) for module in spectrum.modules}
    _check_experts(ranks, "leave per-layer out" if per_layer else "give a rank that all have")
    alphas = {module.name: _alpha(module, ranks[module.name], spectrum.use_rslora) for module in files.modules}
    measured = None
    if test is None:
        _write(out, files, ranks, alphas)
    else:
        subject = load_subject(files, test, options, tell)
        before = score_adapter(files.directory, subject, tell)
        _write(out, files, ranks, alphas)
        measured = measured_change(before, score_adapter(out, subject, tell), subject.task)
    kept = sum(module.norm_squared * module.energy[ranks[module.name]] for module in spectrum.modules)
    whole = sum(module.norm_squared for module in spectrum.modules)
    return ResizedAdapter(
        source=files.directory,
        adapter=out,
        energy=kept / whole if whole > 0 else 1.0,
        params_before=sum(module.rank * (module.d_in + module.d_out) for module in files.modules),
        params=sum(ranks[module.name] * (module.d_in + module.d_out) for module in files.modules),
        modules=tuple(
            ResizedModule(
                name=module.name,
                kind=module.kind,
                rank_before=module.rank,
                rank=ranks[module.name],
                alpha=alphas[module.name],
                norm_squared_before=module.norm_squared,
                energy=module.energy[ranks[module.name]],
            )
            for module in spectrum.modules
        ),
        measured=measured,
    )


def _rank(
    module: ModuleSpectrum, spectrum: AdapterSpectrum, rank: int | None, energy: float | None, per_layer: bool
) -> int:
    if energy is not None:
        rank = rank_for(module.energy if per_layer else spectrum.overall.energy, energy)
    assert rank is not None
    return max(1, min(rank, len(module.singular_values)))


def _check_experts(ranks: Ranks, what_to_do: str) -> None:
    # PEFT stacks experts as transformers 5 has them, and routers have another name there: their patterns match nothing.
    usual, _ = commonest(ranks)
    for name, rank in ranks.items():
        if rank != usual and _EXPERT_OR_ROUTER.search(name):
            raise UserError(
                f"{name} would have rank {rank} where most modules have {usual}, and PEFT loads a mixture's experts "
                f"and routers at one rank only: {what_to_do}"
            )


def _alpha(module: AdaptedModule, rank: int, use_rslora: bool) -> float:
    share = rank / module.rank
    return module.alpha * (share**0.5 if use_rslora else share)


def _write(out: Path, files: AdapterFiles, ranks: Ranks, alphas: Mapping[str, float]) -> None:
    rank, rank_pattern = commonest(ranks)
    # PEFT declares alpha a whole number, and takes any.
    alpha, alpha_pattern = commonest({name: int(a) if a == int(a) else a for name, a in alphas.items()})
    changed = {"r": rank, "lora_alpha": alpha, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    with open_weights(files.weights) as weights:
        tensors = {name: weights.get_tensor(name) for name in files.others}
        metadata = weights.metadata()
    with one_thread():
        for module, a, b in factors(files):
            new_a, new_b = truncated(a, b, ranks[module.name])
            tensors[module.tensor_a] = new_a.to(a.dtype).contiguous()
            tensors[module.tensor_b] = new_b.to(b.dtype).contiguous()

    def write(beside: Path) -> None:
        (beside / CONFIG_NAME).write_text(json.dumps(dict(files.settings) | changed, indent=2))
        save_file(tensors, beside / SAFETENSORS_WEIGHTS_NAME, metadata)

    try:
        write_directory(out, write)
    except SafetensorError as error:
        raise UserError(f"{out} could not be written: {reason_of(error)}") from error
