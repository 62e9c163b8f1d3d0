"""Files that somebody made to do harm: nothing of theirs runs, nothing is written elsewhere, nothing grows large."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import rankwise
from benchmarks.fuzz.parsers import kinds
from rankwise.base.load import load_base
from rankwise.base.source import find_config
from rankwise.cli.options import configured
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.directory import RunDirectory, read_comparison
from rankwise.compare.journal import Journal
from rankwise.compare.page import write_page
from rankwise.errors import RunError, UserError
from rankwise.export.write import export_recommendation
from rankwise.lora.peft_files import find_adapter
from rankwise.spectrum.inspect import inspect_adapter
from rankwise.spectrum.resize import resize_adapter
from rankwise.spectrum.subject import _known
from rankwise.tasks.files import parquet
from rankwise.tasks.source import read_splits
from rankwise.train.checkpoint import split_checkpoint
from tests.data import write_sentences
from tests.export.runs import made_run
from tests.models import save_model


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a journal, made as somebody else would make one."""
    kinds("run", tmp_path / "theirs")
    return tmp_path / "theirs" / "run"


def signed(event: dict[str, Any]) -> str:
    """A line of a journal whose checksum is right."""
    return json.dumps(event | {"crc32": zlib.crc32(json.dumps(event).encode())}) + "\n"


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trace, bad = tmp_path / "trace", pickle.dumps(Payload(tmp_path / "trace"))
    adapter = made_run(tmp_path / "run") / "adapter"
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(bad)
    with pytest.raises(UserError, match=r"pickled ones in adapter_model\.bin, which can run code"):
        inspect_adapter(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(bad)  # by its name no pickle
    with pytest.raises(UserError, match="could not be read"):
        inspect_adapter(adapter)
    model = save_model(tmp_path / "model", "bert")
    (model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (model / name).write_bytes(bad)
    with pytest.raises(UserError, match="convert them to safetensors"):
        load_base(model, num_labels=2, device="cpu")
    for name in ("data.pt", "data.pkl", "data.parquet", "data.csv"):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(UserError, match=name):
            read_splits(tmp_path / name, None, None, ["text"])
    (tmp_path / "pack.safetensors").write_bytes(bad)
    with pytest.raises(RunError, match="damaged"):
        split_checkpoint(tmp_path / "pack.safetensors", {})
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../../out", "/etc/x", "..", "", "a/b", "a\0"])
def test_no_name_in_a_journal_leads_out_of_the_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / "journal.jsonl"
    events = [
        {"event": "trained", "pack": name, "status": {}, "sha256": {}},
        {"event": "trained", "pack": "p", "status": {name: "dropped"}, "sha256": {}},
        {"event": "fine-tuned", "id": name},
    ]
    for event in events:
        path.write_text(signed(event))
        with pytest.raises(RunError, match=r"journal.jsonl, line 1: damaged"):
            Journal(path)
    trial = {"rank": name, "alpha": 1.0, "use_rslora": False, "learning_rate": 1e-3, "seed": 0}
    path.write_text(signed({"event": "plan", "start": 0, "stop": 1, "packs": [{"pack": "p", "trials": [trial]}]}))
    with pytest.raises(RunError, match="damaged"):
        RunDirectory(tmp_path).results(Journal(path))


def test_no_name_of_a_base_leads_out_of_the_run(run: Path) -> None:
    """`..` would be the run itself, whose page would be written for ever."""
    file = run / "experiments.json"
    document = json.loads(file.read_text())
    for name in ("..", "/", "a/.."):
        document["over"][0]["run"] = name
        file.write_text(json.dumps(document))
        with pytest.raises(RunError, match=r"experiments.json is damaged .* is no run over another base"):
            write_page(run)
    document["over"][0]["run"] = "/etc/nf4"  # only the last name of it counts
    file.write_text(json.dumps(document))
    assert read_comparison(run).over[0].run == run / "bases" / "nf4"


def test_names_in_an_adapter_lead_nowhere(tmp_path: Path) -> None:
    adapter = made_run(tmp_path / "run", targets=["../../x", "model.layers.0.../../y"]) / "adapter"
    alone = tmp_path / "alone" / "adapter"
    alone.parent.mkdir()
    adapter.rename(alone)
    config = json.loads((alone / "adapter_config.json").read_text()) | {"base_model_name_or_path": "../../x"}
    (alone / "adapter_config.json").write_text(json.dumps(config))
    before = set(tmp_path.rglob("*"))
    assert [module.name for module in inspect_adapter(alone).modules] == ["../../x", "model.layers.0.../../y"]
    resize_adapter(alone, tmp_path / "out", rank=1)
    assert {file.relative_to(tmp_path).parts[0] for file in set(tmp_path.rglob("*")) - before} == {"out"}
    with pytest.raises(UserError, match=r"\.\./\.\./x is not a model directory"):
        resize_adapter(alone, tmp_path / "other", rank=1, test=write_sentences(tmp_path / "t.csv", 8))


def test_only_an_adapter_is_sent_to_the_hub(run: Path, tmp_path: Path) -> None:
    """A run from elsewhere could have a link to a key of this machine's beside its adapter, or in its place."""
    (tmp_path / "key").write_text("secret")
    (run / "adapter" / "notes").symlink_to(tmp_path / "key")
    path = export_recommendation(run, "hub:user/name", dry_run=True).path
    assert path is not None
    assert {file.name for file in path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    (run / "adapter" / "adapter_model.safetensors").unlink()
    (run / "adapter" / "adapter_model.safetensors").symlink_to(tmp_path / "key")
    with pytest.raises(RunError, match="missing or a link"):
        export_recommendation(run, "hub:user/name", tmp_path / "out", dry_run=True)


def test_a_script_that_is_exported_holds_no_code_of_somebody_elses(run: Path) -> None:
    for name, value in (("dtype", 'bfloat16"); import os #'), ("targets", [["a"]])):
        document = json.loads((run / "comparison.json").read_text())
        document["model"][name] = value
        (run / "comparison.json").write_text(json.dumps(document))
        with pytest.raises(RunError, match=r"comparison.json is damaged"):
            export_recommendation(run, "unsloth")


def test_no_tag_of_somebody_elses_is_in_the_page(run: Path) -> None:
    tag = "</script></svg><img src=x onerror=alert(1)>"
    described, answered = run / "comparison.json", run / "experiments.json"
    setup, answer = json.loads(described.read_text()), json.loads(answered.read_text())
    setup["data"]["labels"], setup["hardware"], setup["config"]["model"] = [tag], {tag: tag}, tag
    answer |= {"task": tag, "model": tag, "notes": [tag]}
    answer["recommendation"] |= {"reason": tag, "holds_for": tag, "unknown": [tag], "target_modules": [tag]}
    answer["recommendation"]["guards"][0]["metric"] = tag
    described.write_text(json.dumps(setup))
    answered.write_text(json.dumps(answer))
    page = write_page(run).read_text()
    assert "onerror=alert(1)" in page
    assert "<img" not in page
    assert "</svg><" not in page


def test_a_parquet_of_kilobytes_that_stands_for_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bomb.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["a" * 100_000]))
    pq.write_table(pa.table({"text": text}), file, compression="zstd")
    assert file.stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"bomb.parquet: unpacked it takes more than 4 GiB"):
        read_splits(file, None, None, ["text"])
    monkeypatch.setattr(parquet, "MOST_BYTES", 1_000_000)
    pq.write_table(pa.table({"step": pa.nulls(1_000_000, pa.int64())}), file)
    with pytest.raises(UserError, match="unpacked it takes more than"):
        parquet.check_unpacked(file)


LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)


@pytest.mark.parametrize("option", ["ranks", "alpha", "seeds", "budget", "text", "target-modules", "keep", "train"])
def test_a_few_lines_of_yaml_are_not_written_out_as_billions(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aliases cost nothing while they are read: what would write them out is the message."""
    nested = yaml.safe_load(LAUGHS)["a11"]
    monkeypatch.setattr(yaml, "safe_load", lambda text: {"train": "t.csv", option: nested})
    file = tmp_path / "laughs.yaml"
    file.touch()
    with pytest.raises(UserError, match=option) as error:
        configured(file, {})
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "content", ["[" * 5000, "a: 2001-99-99", "a: !!python/object/apply:os.system [x]", "? [a]\n: b", "1: 2", "a: 0b"]
)
def test_what_is_no_configuration_is_told_in_a_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"c\.yaml"):
        configured(file, {})


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "(.*)*x", ".*.*.*.*.*.*x", r"(a)\1*"])
def test_a_pattern_that_could_take_for_ever_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="no regular expression to match with"):
        ComparisonConfig.from_mapping({"train": "t.csv", "target-modules": pattern}, "a file")
    adapter = made_run(tmp_path / "run", targets=["a" * 60 + "b"]) / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"rank_pattern": {pattern: 2}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no regular expression to match with"):
        inspect_adapter(adapter)


@pytest.mark.parametrize("size", [2**60, 2**63, 10**8 + 1, 0])
def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path, size: int) -> None:
    adapter = made_run(tmp_path / "run") / "adapter"
    (adapter / "adapter_model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(UserError, match=r"adapter_model.safetensors could not be read"):
        find_adapter(adapter)


def test_json_deeper_than_python_goes_is_told_in_a_line(run: Path) -> None:
    deep = "[" * 100_000
    (run.parent / "d.jsonl").write_text(deep)
    with pytest.raises(UserError, match=r"d\.jsonl, line 1: not JSON"):
        read_splits(run.parent / "d.jsonl", None, None, ["text"])
    for name in ("adapter/adapter_config.json", "experiments.json"):
        (run / name).write_text(deep)
    with pytest.raises(RunError, match=r"experiments.json is damaged"):
        read_comparison(run)
    with pytest.raises(UserError, match="is not JSON"):
        inspect_adapter(run / "adapter")


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("long.jsonl", '{"text": "', '"}\n{"text": "b"}\n'),
        ("long.json", '[{"text": "', '"}]'),
        ("wide.json", '[{"text": "b", "other": ["', '"]}]'),
    ],
)
def test_a_line_of_megabytes_takes_a_few_times_its_size(tmp_path: Path, name: str, begin: str, end: str) -> None:
    file, size = tmp_path / name, 100_000_000
    with file.open("w") as opened:
        opened.write(begin + "a" * size + end)
    program = (
        "import resource, sys; from pathlib import Path; from rankwise.tasks.source import read_splits\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_splits(Path(sys.argv[1]), None, None, ['text'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) * 1024 < 8 * size


def test_no_spreadsheet_is_written() -> None:
    """So no cell of ours is taken for a formula; what a user makes of `to_pandas` is numbers and fixed words."""
    sources = [file.read_text() for file in Path(rankwise.__file__).parent.rglob("*.py")]
    assert not [text for text in sources if re.search(r"to_csv|csv\.writer|DictWriter|to_excel", text)]


def model_with_code(directory: Path, trace: Path) -> Path:
    save_model(directory, "bert")
    config = json.loads((directory / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    config |= {"model_type": "theirs", "auto_map": {name: f"theirs.{name}" for name in names}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "theirs.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    return directory


def test_a_models_own_code_runs_by_the_users_word_alone(run: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    model = model_with_code(tmp_path / "model", trace)
    with pytest.raises(UserError, match="brings code of its own: read it, then allow it with --trust-remote-code"):
        load_base(model, num_labels=2, device="cpu")
    with pytest.raises(UserError, match="brings code of its own"):
        find_config(model)
    file = tmp_path / "theirs.yaml"
    file.write_text(f"model: {model}\ntask: docmatch\ntrust-remote-code: true\n")
    with pytest.raises(UserError, match="trust-remote-code is for the command line alone"):
        configured(file, {})
    document = json.loads((run / "comparison.json").read_text())
    document["config"] |= {"model": str(model), "trust_remote_code": True}
    (run / "comparison.json").write_text(json.dumps(document))
    assert not _known(find_adapter(run), "test.csv", {}).config.trust_remote_code
    assert not trace.exists()
    with pytest.raises(UserError):
        load_base(model, num_labels=2, device="cpu", trust_remote_code=True)
    assert trace.exists()  # it would have run


def test_nobody_is_asked_over_a_network_where_no_hub_id_is_given(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "bert")
    write_sentences(tmp_path / "train.csv", 200)
    made_run(tmp_path / "theirs")  # it names a hub id, which nobody asks for
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not re.match("HF_|TRANSFORMERS_", name)}
    ran = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stderr.count("reached for") == 1, ran.stderr[-2000:]  # that of the hub id at the end
    assert ran.stdout.splitlines()[-1] == "codes [0, 0, 0, 0, 0, 0, 2]", ran.stderr[-2000:]


PROGRAM = """
import socket, sys

def refuse(*arguments, **named):
    print("reached for", arguments[:1], file=sys.stderr)
    raise OSError("no network")

class Blocked(socket.socket):
    connect = connect_ex = bind = refuse

socket.socket, socket.create_connection, socket.getaddrinfo = Blocked, refuse, refuse
from rankwise.cli.main import main

compare = "compare --model model --train train.csv --text sentence --ranks 2,4 --learning-rates 1e-3 --seeds 1 "
commands = [
    compare + "--steps 4 --batch-size 8 --max-length 32 --device cpu --run run",
    "estimate model --method formula --ranks 4 --seq-len 32",
    "inspect run",
    "report run",
    "export theirs --to peft",
    "resize run --rank 1 --out smaller --test train.csv",
    "estimate nobody/nothing",
]
codes = []
for number, command in enumerate(commands):
    sys.argv = ["rankwise", *command.split()]
    if number == len(commands) - 1:
        refused = refuse
        said = []
        def refuse_once(*arguments, **named):
            if not said:
                print("reached for", arguments[:1], file=sys.stderr)
            said.append(1)
            raise OSError("no network")
        socket.create_connection = socket.getaddrinfo = Blocked.connect = refuse_once
    try:
        main()
    except SystemExit as left:
        codes.append(left.code)
print("codes", codes)
"""
