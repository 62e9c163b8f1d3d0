"""The four kinds of input that somebody else may have made, and what of the product reads them.

Each `Kind` is one file in a place where all else is valid; `read` takes the way of a command, as far as speed allows.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file

from rankwise.base.load import load_base
from rankwise.base.shapes import match_targets
from rankwise.cli.options import configured
from rankwise.compare.directory import RunDirectory, read_comparison
from rankwise.compare.journal import Journal
from rankwise.compare.page import write_page
from rankwise.export.write import TARGETS, export_recommendation
from rankwise.lora.attach import attached
from rankwise.lora.peft_files import find_adapter
from rankwise.lora.peft_io import read_adapter
from rankwise.records import Evaluation, Scores, Trial, TrialResult
from rankwise.report.spectrum import spectrum_table
from rankwise.report.tables import comparison_table
from rankwise.spectrum.inspect import inspect_adapter
from rankwise.spectrum.resize import resize_adapter
from rankwise.spectrum.subject import _known
from rankwise.tasks.classification import load_classification
from rankwise.tasks.instruction import load_instruction
from rankwise.tasks.retained import load_retained
from rankwise.tasks.task import Task
from rankwise.train.checkpoint import PackProgress, read_checkpoint, write_checkpoint
from rankwise.train.loop import PackOptimizer
from rankwise.train.settings import TrainingSettings
from tests.data import sentences
from tests.export.runs import layer_names, made_run
from tests.models import CHAT_TEMPLATE, save_model, tiny_tokenizer
from tests.report.samples import RICH, trials_of


@dataclass(frozen=True)
class Kind:
    """`path` is the file that is changed, in the directory that `read` is given; `form` is one of `mutate`'s."""

    parser: str
    name: str
    form: str
    path: str
    valid: bytes = field(repr=False)
    directory: Path
    read: Callable[[Path], object]

    def __call__(self, content: bytes) -> None:
        """Read this content. Raises what the product raises."""
        file = self.directory / self.path
        file.write_bytes(content)
        try:
            self.read(self.directory)
        finally:
            file.write_bytes(self.valid)


PARSERS = ("data", "configuration", "adapter", "run")


def kinds(parser: str, work: Path) -> list[Kind]:
    """Those of one parser; their valid files are written into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    return {"data": _data, "configuration": _configurations, "adapter": _adapters, "run": _runs}[parser](work)


def _data(work: Path) -> list[Kind]:
    plain, chat = tiny_tokenizer(), tiny_tokenizer()
    chat.chat_template = CHAT_TEMPLATE
    plain.eos_token = chat.eos_token = "[SEP]"
    frame = sentences(12).rename(columns={"sentence": "text"})

    def classify(file: Path) -> Task:
        return load_classification(
            train=file, validation=None, test=None, text="text", text_pair=None, label="label",
            tokenizer=plain, max_length=32,
        )  # fmt: skip

    def grouped(file: Path) -> Task:
        return load_classification(
            train=file, validation=None, test=None, text="text", text_pair=None, label="label", group="group",
            tokenizer=plain, max_length=32,
        )  # fmt: skip

    def instruct(file: Path) -> Task:
        return load_instruction(
            train=file, validation=None, test=None, group="group" if file.stem.startswith("grouped") else None,
            tokenizer=chat, max_length=32, skip_bad=file.stem.endswith("skip"),
        )  # fmt: skip

    def turns(number: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"add {number}"}, {"role": "assistant", "content": f"is {number + 1}"}]

    examples: dict[str, list[dict[str, Any]]] = {
        "messages": [{"messages": turns(number)} for number in range(6)],
        "completions-skip": [{"prompt": f"p {number}", "completion": f"c {number}"} for number in range(6)],
        "alpaca": [{"instruction": f"i {number}", "input": "", "output": f"o {number}"} for number in range(6)],
        "grouped-skip": [{"prompt": f"p {n}", "completion": f"c {n}", "group": n // 2} for n in range(12)],
        "choices": [{"question": f"q {n}", "choices": ["a", f"b{n}"], "answer": 1} for n in range(6)],
    }
    found = []

    def add(name: str, form: str, content: bytes, load: Callable[[Path], object]) -> None:
        (work / name).write_bytes(content)
        found.append(Kind("data", name, form, name, content, work, partial(_read_in, load, name)))

    add("classes.csv", "lines", frame.to_csv(index=False).encode(), classify)
    add("classes.tsv", "lines", frame.to_csv(index=False, sep="\t").encode(), classify)
    add("classes.jsonl", "json lines", frame.to_json(orient="records", lines=True).encode(), classify)
    add("classes.json", "json", frame.to_json(orient="records", indent=1).encode(), classify)
    frame.to_parquet(work / "classes.parquet")
    add("classes.parquet", "parquet", (work / "classes.parquet").read_bytes(), classify)
    documents = frame.assign(group=[f"d{number // 3}" for number in range(12)])
    add("grouped.csv", "lines", documents.to_csv(index=False).encode(), grouped)
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    numbered = pa.table({"text": list(frame["text"]), "label": [0, 1] * 6})
    numbered = numbered.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(numbered, work / "named.parquet")
    add("named.parquet", "parquet", (work / "named.parquet").read_bytes(), classify)
    for name, rows in examples.items():
        add(f"{name}.jsonl", "json lines", "".join(json.dumps(row) + "\n" for row in rows).encode(), instruct)
        add(f"{name}.json", "json", json.dumps(rows).encode(), instruct)
        pq.write_table(pa.Table.from_pylist(rows), work / f"{name}.parquet")
        add(f"{name}.parquet", "parquet", (work / f"{name}.parquet").read_bytes(), instruct)
    add("retained.txt", "lines", b"some text, and more\n" * 5, lambda file: load_retained(file, chat, 16))
    return found


_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "classes": {
        "train": "train.csv", "model": "embedded", "ranks": [4, 8], "learning-rates": "3e-4,1e-3", "seeds": 2,
        "epochs": 2, "target-modules": ["query", "value"], "alpha": "2rank", "scalings": "alpha/rank,rslora",
        "bases": ["float32", "nf4"], "report-to": ["tensorboard"], "keep": 0.9, "max-length": 64,
        "group": "document",
    },
    "instruction": {
        "task": "instruction", "train": "train.csv", "retain": "train.csv", "model": "embedded-lm", "steps": 10,
        "strategy": "escalate", "budget": "30m", "ranks": "8,16", "skip-bad": True, "score": "exact", "margin": 0.01,
        "batch-size": 4, "warmup-ratio": 0.1, "schedule": "cosine", "metric": "accuracy", "device": "cpu",
    },
    "built-in": {"task": "docmatch", "quantize": "none", "dtype": "auto", "full-learning-rates": [1e-5]},
}  # fmt: skip


def _configurations(work: Path) -> list[Kind]:
    (work / "train.csv").write_text("text,label\na,b\n")

    def read(file: Path) -> object:
        config = configured(file, {})
        trials = [
            one.trial(rank, rate, config.first_seed)
            for one in config.each_scaling
            for rank in config.ranks[:4]
            for rate in config.learning_rates[:4]
        ]
        return json.dumps(config.to_dict()), [trial.id for trial in trials], config.each_base

    found = []
    for name, options in _CONFIGURATIONS.items():
        path, content = f"{name}.yaml", yaml.safe_dump(options).encode()
        (work / path).write_bytes(content)
        found.append(Kind("configuration", path, "yaml", path, content, work, partial(_read_in, read, path)))
    return found


def _read_in(read: Callable[[Path], object], name: str, directory: Path) -> object:
    return read(directory / name)


def _adapters(work: Path) -> list[Kind]:
    base = load_base(save_model(work / "model", "bert"), num_labels=2, device="cpu", dtype="float32")
    targets = match_targets(base.model, ["query"], trained=base.trained_modules)
    names = [target.name for target in targets]
    adapter = work / "adapter"
    made_run(work / "made", causal=False, targets=names, base_model=str(work / "model"))
    shutil.move(work / "made" / "adapter", adapter)
    weights = {}
    for name in names:
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.ones(2, 32)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.ones(32, 2)
    weights["base_model.model.classifier.weight"] = torch.ones(2, 32)
    weights["base_model.model.classifier.bias"] = torch.ones(2)
    weights["base_model.model.bert.pooler.dense.weight"] = torch.ones(32, 32)
    weights["base_model.model.bert.pooler.dense.bias"] = torch.ones(32)
    weights = {name: tensor for name, tensor in weights.items() if "lora" in name or name[17:] in base.trained_shapes}
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"r": 2, "lora_alpha": 8}
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    def inspect(directory: Path) -> None:
        spectrum = inspect_adapter(directory)
        json.dumps(spectrum.to_dict(), allow_nan=False)
        Console(file=io.StringIO()).print(spectrum_table(spectrum))
        spectrum._repr_html_()

    def resize(directory: Path) -> None:
        shutil.rmtree(work / "out", ignore_errors=True)
        resize_adapter(directory, work / "out", energy=0.9, per_layer=True)

    def subject(directory: Path) -> object:
        return _known(find_adapter(directory), "test.csv", {})

    found = []
    reads = {
        "inspect": inspect,
        "resize": resize,
        "subject": subject,
        "base": lambda directory: read_adapter(directory, base, targets),
    }
    for path, form in (("adapter_config.json", "json"), ("adapter_model.safetensors", "safetensors")):
        content = (adapter / path).read_bytes()
        for name, read in reads.items():
            found.append(Kind("adapter", f"{name}-{path}", form, path, content, adapter, read))
    return found


def _runs(work: Path) -> list[Kind]:
    base = load_base(save_model(work / "model", "bert"), num_labels=2, device="cpu", dtype="float32")
    run = made_run(work / "run", targets=layer_names(["q_proj", "v_proj"]), comparison=RICH)
    directory = RunDirectory(run)
    made_run(run / "bases" / "nf4")
    _train(run)
    results = _train(run / "bases" / "nf4")
    file = directory.checkpoint("pack")
    targets = match_targets(base.model, ["value"], trained=base.trained_modules)
    trial = Trial(2, 4.0, use_rslora=False, learning_rate=1e-3, seed=0)
    with attached(base, [trial], targets) as pack:
        optimizer = PackOptimizer(pack, TrainingSettings(steps=5))
        for row in optimizer.rows:
            row.grad = torch.ones_like(row)
        optimizer.adamw.step()
        progress = PackProgress.start(pack.trials, 5, base.device)
        progress.step, progress.train_nll[:3] = 3, 0.5
        progress.evaluations = [(Evaluation(3, 0.5, 0.75),)]
        write_checkpoint(file, pack, optimizer.adamw, progress)
    saved = json.loads((run / "comparison.json").read_text())
    examples = load_classification(
        train=sentences(40), validation=None, test=None, text="sentence", text_pair=None, label="label",
        tokenizer=base.tokenizer, max_length=32,
    ).test  # fmt: skip
    scores = Scores(*(torch.rand(1, len(examples)).numpy() for _ in range(2)), predicted=None)
    directory.write_scores(directory.baseline, examples, scores)
    saved["data"]["test"] = {"examples": len(examples), "sha256": examples.fingerprint()}
    saved["data"]["validation"] = {"examples": 2, "sha256": "1"}
    saved["versions"], saved["hardware"] = {"rankwise": "0"}, {"machine": "x"}
    text = json.dumps(saved)
    (run / "comparison.json").write_text(text)

    def page(_: Path) -> None:
        write_page(run)

    def small_page(_: Path) -> None:
        write_page(run / "bases" / "nf4")

    def export(_: Path) -> None:
        # One trainer an input, the same whenever it is read again.
        size = sum((run / name).stat().st_size for name in ("experiments.json", "comparison.json"))
        size += (run / "adapter" / "adapter_config.json").stat().st_size
        to = (*TARGETS[:-1], "hub:user/name")[size % len(TARGETS)]
        export_recommendation(run, to, dry_run=to.startswith("hub:"))

    def table(_: Path) -> None:
        comparison = read_comparison(run)
        Console(file=io.StringIO()).print(comparison_table(comparison))
        comparison.to_pandas()
        comparison._repr_html_()
        json.dumps(comparison.to_dict(), allow_nan=False)

    def resume(_: Path) -> None:
        with directory.opened(json.loads(text), examples, resume=True) as journal:
            directory.results(journal)

    def subject(_: Path) -> object:
        return _known(find_adapter(run), "test.csv", {})

    def read_scores(_: Path) -> object:
        return directory.read_scores(directory.baseline)

    def checkpoint(_: Path) -> None:
        with attached(base, [trial], targets) as pack:
            optimizer = PackOptimizer(pack, TrainingSettings(steps=5))
            read_checkpoint([file], pack, optimizer.adamw, 5)

    base_run = RunDirectory(run / "bases" / "nf4")
    curve = str((base_run.trial(results[0].trial) / "curve.parquet").relative_to(run))
    planned = [
        ("page-experiments", "json", "experiments.json", page),
        ("table-experiments", "json", "experiments.json", table),
        ("export-experiments", "json", "experiments.json", export),
        ("page-comparison", "json", "comparison.json", page),
        ("export-comparison", "json", "comparison.json", export),
        ("resume-comparison", "json", "comparison.json", resume),
        ("subject-comparison", "json", "comparison.json", subject),
        ("page-journal", "journal", "bases/nf4/journal.jsonl", small_page),
        ("resume-journal", "journal", "journal.jsonl", resume),
        ("page-curve", "figures", curve, small_page),
        ("scores", "figures", "baseline/scores.parquet", read_scores),
        ("export-adapter", "json", "adapter/adapter_config.json", export),
        ("checkpoint", "safetensors", "checkpoints/pack.safetensors", checkpoint),
    ]
    return [Kind("run", name, form, path, (run / path).read_bytes(), run, read) for name, form, path, read in planned]


def _train(run: Path) -> list[TrialResult]:
    """The journal and the curves of trials, which `made_run` has none of."""
    directory, journal = RunDirectory(run), Journal(run / "journal.jsonl")
    results = trials_of(RICH, seeds=1, steps=8, rates=(3e-4,))
    ids = {result.trial.id: result.status for result in results}
    pack = {"pack": "pack0000", "trials": [asdict(result.trial) for result in results]}
    journal.append("baseline", examples=4, validation={"accuracy": 0.5, "nll": 0.7, "retained_nll": None}, seconds=1.0)
    journal.append("costs", ranks=[{"rank": 4, "seconds": 0.1, "peak_bytes": None}], seconds=1.0)
    journal.append("pack size", ranks=[4, 16, 64], size=8)
    journal.append("plan", start=0, stop=8, packs=[pack])
    journal.append("trained", pack="pack0000", status=ids, sha256=dict.fromkeys(ids, "0"), seconds=2.0)
    journal.append("scored", trials=list(ids), examples=4, seconds=1.0)
    journal.append(
        "decided", ranks=[4, 16, 64], learning_rates=[1e-4, 3e-4], seeds=1, examples=4, status="resolved", rank=4
    )
    for result in results:
        directory.write_result(result)
    return results
