"""How fast, how exact and how small `generate` is, against the emulator, beside its yardsticks in the same run.

    python benchmarks/generate.py rate --prompts 5000
    python benchmarks/generate.py rate --prompts 1500 --curator /path/to/venv/bin/python
    python benchmarks/generate.py quota | faults | memory | scale

Each contender runs in a process of its own, in turn; the emulator in another. Printed are ratios; wall times on a shared
machine are noise, CPU seconds less so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

MODEL = "gemini-3.5-flash-lite"
KEY = "benchmark-key"
EARLY = 1000
"""Answers after which memory is first read."""
CURATOR = """
import json, os, resource, sys, time
started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
url, folder, count, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.environ.update(GEMINI_API_KEY="benchmark-key", CURATOR_CACHE_DIR=folder, TELEMETRY_ENABLED="false",
                  CURATOR_VIEWER="0", LITELLM_LOCAL_MODEL_COST_MAP="True", HF_HUB_OFFLINE="1",
                  CURATOR_DISABLE_RICH_DISPLAY="1")
from bespokelabs import curator
from datasets import Dataset

class Ask(curator.LLM):
    def prompt(self, row): return row["q"]
    def parse(self, row, response): return {"q": row["q"], "a": response}

ask = Ask(model_name="gemini/gemini-3.5-flash-lite", backend="litellm",
          generation_params={"max_tokens": 256},
          backend_params={"base_url": url + "/v1beta", "max_requests_per_minute": 10_000_000,
                          "max_tokens_per_minute": 10_000_000_000, "max_concurrent_requests": concurrency,
                          "require_all_responses": False})
rows = Dataset.from_list([{"q": f"How long does part number {n} last?"} for n in range(count)])
out = ask(rows)
after = resource.getrusage(resource.RUSAGE_SELF)
data = out.dataset if hasattr(out, "dataset") else out
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print("RESULT " + json.dumps({"samples": len(data), "wall_s": time.monotonic() - started, "cpu_s": cpu,
                              "peak_mb": after.ru_maxrss / 1024}))
"""


@contextmanager
def emulator(*flags: str) -> Iterator[tuple[str, Path]]:
    """An emulator in a process of its own: its address, and the file of its request log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        command = [sys.executable, "-m", "potstill", "emulator", "--port", "0", "--json", "--log", str(log), *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            document = ""
            while not document.rstrip().endswith("}"):
                document += process.stdout.readline()
            try:
                yield json.loads(document)["url"], log
            finally:
                process.terminate()


def read_log(log: Path) -> list[dict[str, Any]]:
    """The requests that an emulator has seen."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def questions(folder: Path, count: int) -> Path:
    """A prompt file."""
    path = folder / "questions.txt"
    with path.open("w") as file:
        file.writelines(f"How long does part number {number} last?\n" for number in range(count))
    return path


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mb() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def config_of(folder: Path, url: str, **teacher: Any) -> Any:
    """The config of a run on a prompt file in a folder."""
    from potstill.config import Config, with_values

    values = {"model": MODEL, "base_url": url, "rpm": None, **teacher}
    generate = {"prompts": (str(folder / "questions.txt"),), "max_output_tokens": 256}
    return with_values(Config(workspace=str(folder / "workspace")), teacher=values, generate=generate)


async def bare(folder: Path, url: str, concurrency: int) -> dict[str, Any]:
    """The same questions by asyncio.gather over the same SDK client: no journal, no limits, no retries, no dataset."""
    started, before = time.monotonic(), cpu_s()
    from google import genai
    from google.genai import types

    from potstill.prompts import load_roles

    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=url, timeout=120_000))
    config = types.GenerateContentConfig(
        system_instruction=load_roles(["hardware-expert"], "en")[0].system,
        temperature=1.0,
        max_output_tokens=256,
        thinking_config=types.ThinkingConfig(thinking_budget=0),
    )
    lines = iter((folder / "questions.txt").read_text().splitlines())
    samples: list[str] = []

    async def work() -> None:
        for line in lines:
            response = await client.aio.models.generate_content(model=MODEL, contents=line, config=config)
            samples.append(response.text or "")

    await asyncio.gather(*(work() for _ in range(concurrency)))
    wall_s, used = time.monotonic() - started, cpu_s() - before
    await client.aio.aclose()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"samples": len(samples), "wall_s": wall_s, "cpu_s": used, "peak_mb": peak_mb}


async def potstill(folder: Path, url: str, concurrency: int, **teacher: Any) -> dict[str, Any]:
    """`generate` as the command runs it. Asking is timed apart from writing the dataset."""
    started, before = time.monotonic(), cpu_s()
    from pydantic import SecretStr

    from potstill.config import Secrets
    from potstill.generate.run import Terms, generate
    from potstill.workspace import Workspace

    config = config_of(folder, url, max_concurrency=concurrency, **teacher)
    seen: dict[str, float] = {}

    def report(progress: Any) -> None:
        if progress.done >= EARLY and "early_mb" not in seen:
            seen["early_mb"] = resident_mb()
        if not progress.left:
            seen.update(wall_s=time.monotonic() - started, cpu_s=cpu_s() - before, asked_mb=resident_mb())

    terms = Terms(report, asyncio.Event())
    outcome = await generate(config, Secrets(SecretStr(KEY)), Workspace(Path(config.workspace)), terms)
    manifest = outcome.manifest
    assert manifest is not None
    return {
        "samples": sum(manifest.samples.values()) + sum(manifest.rejected.values()),
        "failed": len(outcome.failed),
        "possibly_paid": len(outcome.possibly_paid),
        "whole_wall_s": time.monotonic() - started,
        "whole_cpu_s": cpu_s() - before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **seen,
    }


def contender(name: str, folder: Path, url: str, concurrency: int) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "contender", name, str(folder), url, str(concurrency)]
    return result_of(subprocess.run(command, capture_output=True, text=True, check=False))


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The result line of a process; its complaint where there is none."""
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    sys.stderr.write(done.stdout[-2000:] + done.stderr[-4000:])
    message = "a contender gave no result"
    raise SystemExit(message)


def rate(options: argparse.Namespace) -> None:
    """Samples a second and a CPU second at a fixed latency, in turn with the yardsticks."""
    rows: dict[str, list[dict[str, Any]]] = {"bare": [], "potstill": [], "curator": []}
    with emulator("--latency-s", "0.02") as (url, _):
        for _ in range(options.rounds):
            for name in ("bare", "potstill"):
                with tempfile.TemporaryDirectory() as folder:
                    questions(Path(folder), options.prompts)
                    rows[name].append(contender(name, Path(folder), url, options.concurrency))
            if options.curator:
                rows["curator"].append(run_curator(options, url))
    for name, results in rows.items():
        for result in results:
            print(
                f"{name:9} {result['samples']} samples, {result['samples'] / result['wall_s']:.1f}/s, "
                f"{1000 * result['cpu_s'] / result['samples']:.2f} CPU ms each, peak {result['peak_mb']:.0f} MB"
            )
    pairs = list(zip(rows["bare"], rows["potstill"], strict=True))
    by_wall = [bare_["wall_s"] / mine["wall_s"] for bare_, mine in pairs]
    by_cpu = [bare_["cpu_s"] / mine["cpu_s"] for bare_, mine in pairs]
    print(f"rate against the bare gather: median {statistics.median(by_wall):.3f} of {[round(x, 3) for x in by_wall]}")
    print(f"samples a CPU second against it: median {statistics.median(by_cpu):.3f} of {[round(x, 3) for x in by_cpu]}")
    if options.curator:
        each = [
            (theirs["cpu_s"] / theirs["samples"]) / (mine["whole_cpu_s"] / mine["samples"])
            for theirs, mine in zip(rows["curator"], rows["potstill"], strict=True)
        ]
        print(f"samples a CPU second against curator, dataset included: median {statistics.median(each):.2f}")


def run_curator(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """Curator's own loop over the same questions; the smaller of 1,500 and the number of prompts, for its time's sake."""
    with tempfile.TemporaryDirectory() as folder:
        command = [options.curator, "-c", CURATOR, url, folder, str(options.prompts), str(options.concurrency)]
        return result_of(subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder))


def quota(options: argparse.Namespace) -> None:
    """How much of a quota of N a minute is used, and how often it says no."""
    flags = ("--latency-s", "0.02", "--quota", f"rpm={options.rpm}")
    with emulator(*flags) as (url, log), tempfile.TemporaryDirectory() as folder:
        questions(Path(folder), int(options.rpm * options.minutes))
        started = time.monotonic()
        asyncio.run(potstill(Path(folder), url, options.concurrency, rpm=options.rpm))
        elapsed_s = time.monotonic() - started
        entries = read_log(log)
    good = [entry for entry in entries if entry["status"] == HTTPStatus.OK]
    times = sorted(time_of(entry) for entry in good)
    steady = [moment for moment in times if times[0] + 5 <= moment <= times[-1]]
    share = (len(steady) - 1) / (steady[-1] - steady[0]) * 60 / options.rpm
    refused = sum(entry["status"] == HTTPStatus.TOO_MANY_REQUESTS for entry in entries) / len(entries)
    print(
        f"{len(good)} answers in {elapsed_s:.0f} s at {options.rpm} a minute: "
        f"{share:.1%} of the quota used, {refused:.2%} of {len(entries)} requests answered 429"
    )


def time_of(entry: dict[str, Any]) -> float:
    """When a request was logged, in seconds since the epoch."""
    from datetime import datetime

    return datetime.fromisoformat(entry["at"]).timestamp()


def faults(options: argparse.Namespace) -> None:
    """Ten per cent mixed faults: what is lost, and what is paid twice."""
    unbilled = ("http-500", "http-503", "bare-429", "unbilled", "http-504")
    billed = ("reset", "truncated", "disconnect", "empty")
    shares = [f"--fault={name}={0.1 / len((*unbilled, *billed))}" for name in (*unbilled, *billed)]
    with emulator("--latency-s", "0.02", *shares) as (url, log), tempfile.TemporaryDirectory() as folder:
        questions(Path(folder), options.prompts)
        result = asyncio.run(potstill(Path(folder), url, options.concurrency, max_attempts=8))
        entries = read_log(log)
    paid = Counter(entry["digest"] for entry in entries if entry["billed"]["input_tokens"])
    struck = Counter(entry["fault"] for entry in entries if entry["fault"])
    lost_replies = sum(struck[name] for name in billed if name != "empty")
    repaid = sum(count - 1 for count in paid.values())
    print(f"{options.prompts} cells, {len(entries)} requests, faults {dict(struck)}")
    print(
        f"samples {result['samples']}, failed {result['failed']}; billed more than once: {repaid}, of which "
        f"{struck['empty']} empty replies and {lost_replies} replies lost after billing; "
        f"listed as possibly paid: {result['possibly_paid']}"
    )


def memory(options: argparse.Namespace) -> None:
    """How memory grows from the thousandth answer to the end of the dataset."""
    with emulator("--latency-s", "0.02") as (url, _), tempfile.TemporaryDirectory() as folder:
        questions(Path(folder), options.prompts)
        result = contender("potstill", Path(folder), url, options.concurrency)
    print(
        f"{result['samples']} samples: {result['early_mb']:.0f} MB after 1,000, {result['asked_mb']:.0f} MB when all "
        f"were asked (+{result['asked_mb'] - result['early_mb']:.0f}), peak {result['peak_mb']:.0f} MB with the dataset "
        f"(+{result['peak_mb'] - result['early_mb']:.0f})"
    )


def scale(options: argparse.Namespace) -> None:
    """A million cells of which half are done: when the first request leaves, and with how much memory."""
    with emulator("--latency-s", "0.02") as (url, log), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions(folder, options.prompts)
        half_done(folder, url, options.prompts // 2)
        size_gb = (folder / "workspace" / "ledger.sqlite3").stat().st_size / 2**30
        print(f"ledger with {options.prompts // 2} answers: {size_gb:.2f} GB")
        flags = ("--prompts", "questions.txt", "--set", "generate.max_output_tokens=256", "--rpm", "null", "--json")
        command = [sys.executable, "-m", "potstill", "generate", *flags, "--max-requests", "200"]
        environment = {**os.environ, "GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": url}
        started = time.time()
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
            while not read_log(log):
                time.sleep(0.05)
            at_first = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            used_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            print(
                f"first request {time_of(read_log(log)[0]) - started:.1f} s after the start, {used_s:.1f} CPU s, "
                f"{int(at_first) * resource.getpagesize() / 2**20:.0f} MB"
            )
            output, _ = process.communicate()
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"whole run {time.time() - started:.0f} s, dataset {json.loads(output)['samples']}, "
            f"peak {peak_mb:.0f} MB (the largest of all child processes)"
        )


def half_done(folder: Path, url: str, count: int) -> None:
    """Fill a ledger as a run that stopped in the middle would have left it."""
    import sqlite3

    from potstill.generate.run import load_plan
    from potstill.ledger import Ledger
    from potstill.teacher.scripted import reply_200

    config = config_of(folder, url)
    plan = load_plan(config)
    path = folder / "workspace" / "ledger.sqlite3"
    Ledger.open(path).close()
    now = "2026-11-01T00:00:00+00:00"

    def rows() -> Iterator[tuple[Any, ...]]:
        for position, cell in plan.cells():
            if position == count:
                return
            request = json.dumps({"model": MODEL, "body": cell.request.body, "sample": 0})
            reply = reply_200(f"Part number {position} lasts for {position % 97} years if it is kept dry.").body
            yield (
                cell.request.key,
                "generate",
                "a",
                MODEL,
                "standard",
                request,
                "done",
                9,
                7,
                "p",
                10,
                20,
                reply,
                0.1,
                now,
                now,
            )

    with sqlite3.connect(path) as connection:
        columns = (
            "key, command, role, model, service, request, status, reserved, cost, price_id, input_tokens,"
            " output_tokens, reply, latency_s, started_at, finished_at"
        )
        marks = ", ".join("?" * 16)
        connection.executemany(f"INSERT INTO attempts ({columns}) VALUES ({marks})", rows())
        connection.execute("INSERT INTO plans VALUES (?, ?, ?)", (plan.fingerprint, len(plan), count))
    connection.close()


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_subparsers(dest="what", required=True)
    sizes = {"rate": 5000, "quota": 0, "faults": 2000, "memory": 50_000, "scale": 1_000_000}
    for function in (rate, quota, faults, memory, scale):
        sub = chosen.add_parser(function.__name__, help=function.__doc__)
        sub.add_argument("--prompts", type=int, default=sizes[function.__name__])
        sub.add_argument("--concurrency", type=int, default=200)
        sub.add_argument("--rounds", type=int, default=3)
        sub.add_argument("--curator", help="Python of a virtual environment with bespokelabs-curator")
        sub.add_argument("--rpm", type=int, default=1200)
        sub.add_argument("--minutes", type=float, default=3)
        sub.set_defaults(run=function)
    one = chosen.add_parser("contender")
    one.add_argument("arguments", nargs=4)
    options = parser.parse_args()
    if options.what == "contender":
        name, folder, url, concurrency = options.arguments
        run = {"bare": bare, "potstill": potstill}[name]
        print("RESULT " + json.dumps(asyncio.run(run(Path(folder), url, int(concurrency)))))
    else:
        options.run(options)


if __name__ == "__main__":
    main()
