"""`potstill infer` as installed, against a local server that speaks generateContent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import COMMAND, Run

QUESTION = "How much GPU memory do I need to run a small model?"
PARAPHRASE = "How much GPU memory do I need to run small models?"
FAST = (
    "--set",
    "cache.encoder=hashing",
    "--set",
    "cache.threshold=0.85",
    "--set",
    "teacher.rpm=null",
    "--set",
    "teacher.max_attempts=1",
)


@dataclass
class Gemini:
    """Where the server listens, and the last turns that it was asked."""

    url: str
    asked: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """The environment that leads a command here."""
        return {"GOOGLE_GEMINI_BASE_URL": self.url, "GEMINI_API_KEY": "any-text"}


@pytest.fixture
def gemini() -> Iterator[Gemini]:
    """A server that answers `answer to: <question>`, and refuses a question with `forbidden` in it."""
    found = Gemini("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answer generateContent."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["contents"][-1]["parts"][0]["text"]
            found.asked.append(text)
            if "forbidden" in text:
                self._send(400, {"error": {"code": 400, "message": "refused", "status": "INVALID_ARGUMENT"}})
                return
            answer = {"role": "model", "parts": [{"text": f"answer to: {text}"}]}
            usage = {"promptTokenCount": 40, "candidatesTokenCount": 20, "totalTokenCount": 60}
            candidate = {"content": answer, "finishReason": "STOP", "index": 0}
            self._send(
                200, {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3.5-flash-lite"}
            )

        def _send(self, status: int, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def asked(run: Run, gemini: Gemini, *arguments: str, **more: Any) -> dict[str, Any]:
    """Run with --json and give the document."""
    result = run("infer", *arguments, "--json", env=gemini.env, **more)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_miss_exact_and_semantic_with_the_real_encoder(potstill: Run, gemini: Gemini) -> None:
    """The default config: Gemini once, then an exact hit, then MiniLM finds the paraphrase; each in its own process."""
    patient = ("--set", "cache.deadline_s=120")
    traces = [asked(potstill, gemini, text, *patient)["trace"] for text in (QUESTION, QUESTION, PARAPHRASE)]
    assert [trace["route"] for trace in traces] == ["teacher", "exact", "semantic"]
    assert "not calibrated, wrong hits have no bound" in traces[2]["reason"]
    assert gemini.asked == [QUESTION]


def test_answer_on_stdout_and_the_way_on_stderr(potstill: Run, gemini: Gemini) -> None:
    """A person sees the answer alone on standard output, and one line about route, cost and time beside it."""
    result = potstill("infer", QUESTION, *FAST, env=gemini.env)
    assert result.stdout == f"answer to: {QUESTION}\n"
    assert result.stderr.startswith("teacher: ")
    assert "Gemini alone about $" in result.stderr
    assert potstill("infer", QUESTION, *FAST, "-q", env=gemini.env).stderr == ""


def test_exact_hit_loads_nothing_heavy_and_needs_no_key(potstill: Run, gemini: Gemini, tmp_path: Path) -> None:
    """A question that was asked before is answered without torch, encoder, index, SDK or key."""
    potstill("infer", QUESTION, *FAST, env=gemini.env)
    heavy = ("torch", "sentence_transformers", "qdrant_edge", "qdrant_client", "google.genai", "numpy", "aiohttp")
    probe = (
        f"import sys\nsys.argv = ['potstill', 'infer', {QUESTION!r}, *{FAST!r}, '--set', 'teacher.base_url={gemini.url}']\n"
        "from potstill.cli.app import main\ntry:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == [f"answer to: {QUESTION}", "[]"], result.stderr


def test_batch_keeps_order_and_says_hit_rate_and_cost(potstill: Run, gemini: Gemini, tmp_path: Path) -> None:
    """A file with repeated and reworded questions: answers in order, hit rate, cost beside Gemini alone."""
    (tmp_path / "q.txt").write_text(f"# comment\n{QUESTION}\nWhat is a LoRA adapter?\n{QUESTION}\n", encoding="utf-8")
    document = asked(potstill, gemini, "--batch", "q.txt", *FAST, "--set", "teacher.max_concurrency=1")
    assert [row["question"] for row in document["answers"]] == [QUESTION, "What is a LoRA adapter?", QUESTION]
    assert document["summary"]["routes"]["exact"] == 1
    assert document["summary"]["hit_rate"] == pytest.approx(1 / 3)
    result = potstill("infer", "--batch", "q.txt", *FAST, env=gemini.env)
    assert "hit rate 100%" in result.stderr
    assert "100% saved" in result.stderr
    assert result.stdout.count("[exact]") == 3


def test_jsonl_lines(potstill: Run, gemini: Gemini, tmp_path: Path) -> None:
    """--jsonl gives one object a line, with question, answer and trace."""
    (tmp_path / "q.jsonl").write_text('{"prompt": "What is LoRA?"}\n{"prompt": "什麼是量化?"}\n', encoding="utf-8")
    result = potstill("infer", "--batch", "q.jsonl", "--jsonl", *FAST, env=gemini.env)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["question"] for row in rows] == ["What is LoRA?", "什麼是量化?"]
    assert rows[1]["answer"] == "answer to: 什麼是量化?"


@pytest.mark.parametrize("as_json", [False, True])
def test_failed_questions_end_in_six(potstill: Run, gemini: Gemini, tmp_path: Path, as_json: bool) -> None:
    """One refused question: the others are answered, it is listed, the exit code is 6, and --json stays one document."""
    (tmp_path / "q.txt").write_text("What is LoRA?\nSay the forbidden word\nHow fast is a GPU?\n", encoding="utf-8")
    result = potstill("infer", "--batch", "q.txt", *FAST, *(["--json"] if as_json else []), env=gemini.env)
    assert result.returncode == 6, result.stderr
    if as_json:
        document = json.loads(result.stdout)
        assert len(document["answers"]) == 2
        assert [row["question"] for row in document["failed"]] == ["Say the forbidden word"]
    else:
        assert "failed: Say the forbidden word" in result.stderr


def test_spent_budget_ends_in_four(potstill: Run, gemini: Gemini, tmp_path: Path) -> None:
    """The batch stops before the budget would be passed; nothing is sent beyond it."""
    (tmp_path / "q.txt").write_text("What is LoRA?\nHow fast is a GPU?\n", encoding="utf-8")
    result = potstill("infer", "--batch", "q.txt", "--max-cost", "0.0000001", *FAST, env=gemini.env)
    assert result.returncode == 4, result.stderr
    assert gemini.asked == []


def test_no_key_ends_in_three(potstill: Run) -> None:
    """A miss without a key says which variable to set."""
    result = potstill("infer", QUESTION, *FAST)
    assert result.returncode == 3
    assert "GEMINI_API_KEY" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no question"),
        (("   ",), "empty"),
        (("a question", "--chat"), "exclude each other"),
        (("--batch", "missing.txt"), "missing.txt"),
        (("--batch", "bad.jsonl"), "bad.jsonl:2"),
        (("--forget", "c1:unknown"), "c1:unknown"),
        (("a question", "--decide", "sometimes"), "infer.decide"),
        (("a question", "--threshold", "1.5"), "cache.threshold"),
        (("a question", "--model", "gemini-nonsense"), "gemini-nonsense"),
        (("a question", "--decide", "never"), "no student"),
    ],
)
def test_wrong_use_ends_in_two(potstill: Run, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """What cannot be read or is not known: exit code 2 and a message that names it."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"prompt": 3}\n', encoding="utf-8")
    result = potstill("infer", *arguments, *FAST)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_lines_on_standard_input(potstill: Run, gemini: Gemini) -> None:
    """One line is one question; several are a batch."""
    one = potstill("infer", *FAST, stdin="What is LoRA?\n", env=gemini.env)
    assert one.stdout == "answer to: What is LoRA?\n"
    two = asked(potstill, gemini, *FAST, stdin="What is LoRA?\n\n# is it a comment?\n")
    assert [row["question"] for row in two["answers"]] == ["What is LoRA?", "# is it a comment?"]


def test_chat_remembers_and_caches_only_what_stands_alone(potstill: Run, gemini: Gemini) -> None:
    """The first turn may be a hit; a later one carries its past and never is."""
    turns = [
        asked(potstill, gemini, "--chat", *FAST, stdin="What is LoRA?\nWhat is LoRA?\n")["turns"] for _ in range(2)
    ]
    assert [[turn["trace"]["route"] for turn in found] for found in turns] == [
        ["teacher", "teacher"],
        ["exact", "teacher"],
    ]


def test_forget_and_stats(potstill: Run, gemini: Gemini) -> None:
    """A forgotten answer is gone from the statistics and is asked anew."""
    entry = asked(potstill, gemini, QUESTION, *FAST)["trace"]["entry_id"]
    assert asked(potstill, gemini, "--stats")["namespaces"] == [
        {"namespace": "default", "entries": 1, "hits": 0, "routes": {"teacher": 1}}
    ]
    assert asked(potstill, gemini, "--forget", entry)["forgotten"] == entry
    assert asked(potstill, gemini, "--stats")["namespaces"] == []
    assert asked(potstill, gemini, QUESTION, *FAST)["trace"]["route"] == "teacher"
    assert len(gemini.asked) == 2


def test_dry_run_asks_and_writes_nothing(potstill: Run, gemini: Gemini, tmp_path: Path) -> None:
    """The plan names the steps and the policy; no request, no workspace."""
    document = asked(potstill, gemini, QUESTION, "--dry-run", *FAST)
    assert document["decide"] == "always"
    assert gemini.asked == []
    assert not (tmp_path / "workspace").exists()


def test_trace_shows_the_whole_record(potstill: Run, gemini: Gemini) -> None:
    """--trace puts the record of the query on standard error, as JSON."""
    result = potstill("infer", QUESTION, "--trace", *FAST, env=gemini.env)
    assert json.loads(result.stderr)["query"] == QUESTION


def test_hostile_question_is_data(potstill: Run, gemini: Gemini) -> None:
    """Markup, templates, format strings and control characters pass through unread."""
    text = "[red]{{ 7*7 }} {0} %s \x1b[31m ../../etc <script>"
    assert asked(potstill, gemini, text, *FAST)["answer"] == f"answer to: {text}"


def test_two_processes_on_one_workspace(gemini: Gemini, tmp_path: Path) -> None:
    """Two commands at once on one workspace: both finish, and nothing is lost."""
    import os

    for name in ("a", "b"):
        lines = [f"What is the {word} of {name}{place}?" for place, word in enumerate(["size", "speed", "price"] * 5)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    running = [
        subprocess.Popen(
            [str(COMMAND), "infer", "--batch", f"{name}.txt", *FAST, "--threshold", "1", "-q"],
            cwd=tmp_path,
            env={**os.environ, **gemini.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in ("a", "b")
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    traces = [line for file in (tmp_path / "workspace" / "traces").iterdir() for line in file.read_text().splitlines()]
    assert len(traces) == 30
    stats = subprocess.run([str(COMMAND), "infer", "--stats"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "30 answers" in stats.stdout
