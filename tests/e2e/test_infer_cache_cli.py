"""`potstill infer` looking after its cache, as installed: calibration, feedback, dropping, taking along, replay, resume."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import COMMAND, Run

from potstill.config import CacheConfig
from potstill.infer.cache import entries_file
from potstill.infer.store import EntryStore
from potstill.workspace import Workspace

QUESTION = "How much GPU memory do I need to run a small model?"
PARAPHRASE = "How much GPU memory do I need to run small models?"
FAST = (
    "--set",
    "cache.encoder=hashing",
    "--set",
    "teacher.rpm=null",
    "--set",
    "cache.deadline_s=120",
    "--set",
    "cache.threshold=0.85",
)
FAQ = Path(__file__).parents[2] / "prompts" / "faq" / "hardware.en.yaml"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running emulator: the environment that leads a command to it."""
    folder = tmp_path_factory.mktemp("emulator")
    command = [str(COMMAND), "emulator", "--port", "0", "--json", "--faq", str(FAQ)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            text += process.stdout.readline()
        yield {"GOOGLE_GEMINI_BASE_URL": json.loads(text)["url"], "GEMINI_API_KEY": "any-text"}
        process.terminate()


def done(run: Run, *arguments: str, code: int = 0, **more: Any) -> dict[str, Any]:
    """Run with --json, check the exit code, give the document."""
    result = run("infer", *arguments, "--json", **more)
    assert result.returncode == code, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def pairs(path: Path, noise: float) -> None:
    """A thousand labelled pairs: the same words in another order are the same question."""
    draw = random.Random(3)
    lines = []
    for number in range(1000):
        thing, part = f"thing {number}", draw.choice(["speed", "price", "memory", "heat"])
        other = part if number % 2 else draw.choice([name for name in ("power", "width", "noise") if name != part])
        same = (other == part) != (draw.random() < noise)
        lines.append(f"What is the {part} of {thing}?\tThe {other} of {thing} is what?\t{int(same)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_calibration_sets_the_rule_and_says_what_it_promises(
    potstill: Run, emulator: dict[str, str], tmp_path: Path
) -> None:
    """Pairs in, rule out: JSON and PNG beside the entries, held-out figures for a reader, and hits that state the bound."""
    pairs(tmp_path / "pairs.tsv", noise=0.0)
    free = FAST[:-2]
    result = potstill("infer", "--calibrate", "pairs.tsv", *free)
    assert result.returncode == 0, result.stderr
    assert "held-out pairs" in result.stdout
    assert "with 95% confidence" in result.stdout
    folder = tmp_path / "workspace" / "cache"
    found = json.loads((folder / "calibration.json").read_text())
    assert found["upper"] <= 0.05
    assert (folder / "calibration.png").stat().st_size > 10_000
    for text in ("What is the speed of thing 7?", "The speed of thing 7 is what?"):
        last = done(potstill, text, *free, env=emulator)["trace"]
    assert last["route"] == "semantic"
    assert f"at most {found['upper']:.1%} wrong by calibration" in last["reason"]
    assert "at most" in done(potstill, "--stats", *free)["calibration"]["reason"]


def test_calibration_that_fails_turns_the_layer_off(potstill: Run, emulator: dict[str, str], tmp_path: Path) -> None:
    """Where no threshold keeps the promise the layer stays off, and both the command and the answer say so."""
    pairs(tmp_path / "pairs.tsv", noise=0.3)
    found = done(potstill, "--calibrate", "pairs.tsv", *FAST[:-2])["calibration"]
    assert found["threshold"] is None
    for text in (QUESTION, PARAPHRASE):
        last = done(potstill, text, *FAST[:-2], env=emulator)["trace"]
    assert last["route"] == "teacher"
    assert "semantic cache off: no threshold keeps wrong hits under 5.0%" in last["reason"]


def test_wrong_hit_is_not_served_again(potstill: Run, emulator: dict[str, str]) -> None:
    """--wrong on a semantic hit keeps the answer for its own question and withholds it at that nearness."""
    done(potstill, QUESTION, *FAST, env=emulator)
    trace = done(potstill, PARAPHRASE, *FAST, env=emulator)["trace"]
    assert trace["route"] == "semantic"
    assert done(potstill, "--wrong", trace["id"], *FAST)["tightened"] == trace["entry_id"]
    again = done(potstill, PARAPHRASE, *FAST, env=emulator)["trace"]
    assert again["route"] == "teacher"
    assert "answered wrongly before" in again["reason"]
    assert done(potstill, QUESTION, *FAST, env=emulator)["trace"]["route"] == "exact"
    assert done(potstill, "--stats", *FAST)["audits"][0]["source"] == "feedback"


def test_cached_questions_are_judged_for_a_calibration(potstill: Run, emulator: dict[str, str]) -> None:
    """Gemini judges near pairs of what the cache holds, each once; the verdicts are what `--calibrate cache` reads."""
    lines = f"{QUESTION}\n{PARAPHRASE}\nHow much GPU memory do I need to train a small model?\n"
    done(potstill, *FAST, "--threshold", "1", stdin=lines, env=emulator)
    first = done(potstill, "--judge", "2", *FAST, env=emulator)
    assert first["judged"] == 2
    assert float(first["cost_usd"]) > 0
    assert done(potstill, "--judge", "9", *FAST, env=emulator)["judged"] == 1
    assert done(potstill, "--judge", "9", *FAST, env=emulator)["judged"] == 0
    assert done(potstill, "--stats", *FAST)["audits"][0]["judged"] == 3
    assert sum(done(potstill, "--calibrate", "cache", *FAST)["calibration"]["pairs"].values()) == 3
    assert potstill("infer", "--judge", "1", *FAST).returncode == 3


def test_wrong_answer_is_dropped(potstill: Run, emulator: dict[str, str]) -> None:
    """--wrong on Gemini's own answer drops it, by the id that the line after the answer ends in."""
    result = potstill("infer", QUESTION, *FAST, env=emulator)
    identity = result.stderr.split()[-1]
    assert "forgotten" in done(potstill, "--wrong", identity, *FAST)
    assert done(potstill, QUESTION, *FAST, env=emulator)["trace"]["route"] == "teacher"


def test_a_torn_trace_is_passed_over(potstill: Run, tmp_path: Path) -> None:
    """Half a line, as a full disk leaves it, is no trace, though the id stands in it."""
    folder = tmp_path / "workspace" / "traces"
    folder.mkdir(parents=True)
    (folder / "2026-11-29.jsonl").write_text('{"schema_version":1,"id":"abcd","at":"2026-')
    result = potstill("infer", "--wrong", "abcd", *FAST)
    assert result.returncode == 2
    assert "no trace has the id 'abcd'" in result.stderr


def test_invalidate_export_and_import(potstill: Run, emulator: dict[str, str]) -> None:
    """The cache goes to a file, is emptied by role, and comes back: the question is an exact hit without any key."""
    done(potstill, QUESTION, *FAST, env=emulator)
    assert done(potstill, "--export", "cache.jsonl", *FAST)["exported"] == 1
    assert done(potstill, "--invalidate", "role=hardware-expert", "--dry-run", *FAST)["invalidate"] == 1
    assert done(potstill, "--invalidate", "role=hardware-expert", *FAST)["invalidated"] == 1
    assert done(potstill, "--stats", *FAST)["namespaces"] == []
    assert done(potstill, "--import", "cache.jsonl", *FAST)["imported"] == 1
    url = emulator["GOOGLE_GEMINI_BASE_URL"]
    assert done(potstill, QUESTION, *FAST, env={"GOOGLE_GEMINI_BASE_URL": url})["trace"]["route"] == "exact"


def test_replay_reads_the_traces_of_a_workspace(potstill: Run, emulator: dict[str, str]) -> None:
    """What was recorded is priced under other rules, for nothing; the first line is what was paid."""
    for text in (QUESTION, PARAPHRASE, QUESTION):
        done(potstill, text, *FAST, env=emulator)
    outcomes = done(potstill, "--replay", "workspace/traces")["outcomes"]
    assert (outcomes[0]["hits"], outcomes[0]["gemini"]) == (2, 1)
    strict = next(found for found in outcomes if found["rule"] == "exact hits only, then Gemini alone")
    assert (strict["hits"], strict["gemini"]) == (1, 2)
    assert "of all-Gemini" in potstill("infer", "--replay", "workspace/traces").stdout
    asked = done(potstill, "--replay", "workspace/traces", "--decide", "never", "--threshold", "1")["outcomes"][1]
    assert (asked["rule"], asked["gemini"]) == ("as asked: cosine >= 1, then student wherever it answered", 2)
    elsewhere = potstill("infer", "--replay", "traces")
    assert elsewhere.returncode == 2
    assert "those of this workspace lie in workspace/traces" in elsewhere.stderr


def test_batch_never_writes_over_its_questions(potstill: Run, tmp_path: Path) -> None:
    """`--output` that names the file of questions, by whatever path, is refused before anything is asked."""
    asked = tmp_path / "questions.txt"
    asked.write_text("What is LoRA?\n", "utf-8")
    (tmp_path / "link.txt").symlink_to(asked)
    result = potstill("infer", "--batch", "questions.txt", "--output", "link.txt")
    assert result.returncode == 2
    assert "link.txt would be written over" in result.stderr
    assert asked.read_text("utf-8") == "What is LoRA?\n"


def test_killed_batch_goes_on(potstill: Run, emulator: dict[str, str], tmp_path: Path) -> None:
    """Kill -9 in the middle, then the same command: every answer once, in order, and what was answered is not asked again."""
    questions = [f"What is the number {place} good for?" for place in range(120)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    command = ("infer", "--batch", "q.jsonl", "--output", "out.jsonl", *FAST, "--threshold", "1")
    with subprocess.Popen([str(COMMAND), *command], cwd=tmp_path, env={**os.environ, **emulator}) as process:
        journal = tmp_path / "out.jsonl.partial"
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 10:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = journal.read_bytes().count(b"\n")
    result = potstill(*command, env=emulator)
    assert result.returncode == 0, result.stderr
    assert f"answered before: {before} of 120 questions" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == questions
    assert not journal.exists()
    assert "seconds: p50" in result.stderr


def test_server_and_command_share_a_workspace(potstill: Run, emulator: dict[str, str], tmp_path: Path) -> None:
    """While another process holds the index, a command still finds by meaning what that process stored, and stores too."""
    done(potstill, QUESTION, *FAST, env=emulator)
    code = (
        "import sys\nfrom pathlib import Path\nfrom potstill.config import CacheConfig\n"
        "from potstill.infer.cache import open_cache\nfrom potstill.workspace import Workspace\n"
        "cache = open_cache(CacheConfig(encoder='hashing'), Workspace(Path('workspace')))\n"
        "cache.near(cache.encode('x'), 's', 1.0)\nprint(type(cache._opened.index).__name__, flush=True)\n"
        "sys.stdin.read()\ncache.close()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "GrowingIndex"
        assert done(potstill, PARAPHRASE, *FAST, env=emulator)["trace"]["route"] == "semantic"
        assert done(potstill, "What is LoRA?", *FAST, env=emulator)["trace"]["route"] == "teacher"
        holder.communicate("")
    assert done(potstill, "What's LoRA?", *FAST, env=emulator)["trace"]["route"] in ("semantic", "teacher")
    with EntryStore(entries_file(CacheConfig(), Workspace(tmp_path / "workspace"))) as store:
        assert store.count() >= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--calibrate", "missing.tsv"), "missing.tsv"),
        (("--calibrate", "cache"), "no verdicts yet"),
        (("--wrong", "abc"), "no trace has the id 'abc'"),
        (("--invalidate", "rolle=x"), "NAME=VALUE"),
        (("--import", "missing.jsonl"), "missing.jsonl"),
        (("--replay", "missing.jsonl"), "missing.jsonl"),
        (("--replay", ".", "--stats"), "exclude each other"),
        (("a question", "--output", "x.jsonl"), "--output goes with --batch"),
        (("--batch", "faq-queries.en", "--output", "."), ". is a folder"),
        (("--export", "."), ". is a folder"),
    ],
)
def test_wrong_use_ends_in_two(potstill: Run, arguments: tuple[str, ...], words: str) -> None:
    """What cannot be read or is not known: exit code 2 and a message that names it."""
    result = potstill("infer", *arguments, *FAST)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
