"""`potstill cost` as installed: forms, exit codes, and the figures that the documentation promises."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from tests.conftest import Run

from potstill.ledger import Intent, Ledger, Settlement, Ticket
from potstill.records import Usage

CALL = ("--input-tokens", "500", "--output-tokens", "2000")
PROMPTS = ("--prompts", "faq-train.en.txt")


EXPONENT = re.compile(r'"-?[0-9.]+E[+-]?[0-9]+"')


@pytest.mark.parametrize("command", ["estimate", "report", "compare", "forecast"])
def test_a_workspace_without_history_is_no_failure_and_stays_empty(command: str, potstill: Run, tmp_path: Path) -> None:
    """Without ledger and traces the command answers in one JSON document, and writes nothing."""
    more = PROMPTS if command == "estimate" else ()
    result = potstill("cost", command, *more, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["command"] == command
    assert not EXPONENT.search(result.stdout)
    assert not list(tmp_path.iterdir())


def test_a_retired_model_is_priced_as_on_its_last_day(potstill: Run) -> None:
    """The source design's example has its exact price, and the note says that the model is gone."""
    result = potstill("cost", "call", "--model", "gemini-1.5-flash", *CALL)
    assert result.returncode == 0, result.stderr
    assert "$0.0006375" in result.stdout
    assert "retired" in result.stdout


def test_all_services_stand_side_by_side_and_the_cliff_is_told(potstill: Run) -> None:
    """Four services of 3.8-flash in November, and what the call costs from New Year's Day on."""
    arguments = ("cost", "call", "--model", "gemini-3.8-flash", *CALL, "--as-of", "2026-11-24", "--json")
    found = json.loads(potstill(*arguments).stdout)
    assert {name: row["usd"] for name, row in found["services"].items()} == {
        "standard": "0.007875",
        "flex": "0.0039375",
        "batch": "0.0039375",
        "priority": "0.014175",
    }
    assert [(row["on"], row["usd"]) for row in found["ahead"]] == [("2027-01-01", "0.01575")]


def test_a_retired_id_is_priced_as_what_answers(potstill: Run) -> None:
    """From December on gemini-2.5-flash is answered by 3.5-flash-lite, at its price, and the output says so."""
    result = potstill("cost", "call", "--model", "gemini-2.5-flash", *CALL, "--as-of", "2026-12-05")
    assert "$0.00515" in result.stdout
    assert "gemini-3.5-flash-lite answers" in result.stdout


def test_the_source_designs_book_says_where_it_is_outdated(potstill: Run) -> None:
    """Its own sum comes out, with today's price of the same call beside it."""
    result = potstill("cost", "call", "--model", "gemini-2.5-flash", "--book", "source-design", *CALL)
    assert "$0.0006375" in result.stdout
    assert "outdated" in result.stdout
    assert "8.08 times" in result.stdout


def test_a_text_is_counted_and_chinese_is_not_undercounted(potstill: Run, tmp_path: Path) -> None:
    """A file and standard input give the same count; ninety Chinese characters are no 23 tokens."""
    text = "一張顯示卡要多少記憶體才能微調語言模型" * 5
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    from_file = json.loads(potstill("cost", "call", "--text", "prompt.txt", "--json").stdout)
    from_input = json.loads(potstill("cost", "call", "--text", "-", "--json", stdin=text).stdout)
    assert from_file["usage"] == from_input["usage"]
    assert from_file["usage"]["input_tokens"] > 60


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (("call",), "--input-tokens or --text"),
        (("call", *CALL, "--model", "gemini-3.5-flash-lit"), "gemini-3.5-flash-lite"),
        (("call", *CALL, "--as-of", "tomorrow"), "no day"),
        (("call", *CALL, "--currency", "TWD"), "none is built in"),
        (("call", *CALL, "--json", "--csv"), "exclude each other"),
        (("call", "--input-tokens", "5", "--cached-tokens", "6"), "more than the prompt"),
        (("estimate", *PROMPTS, "--hold", "most"), "expected, high, worst"),
        (("estimate", *PROMPTS, "--machine", "abacus"), "abacus"),
        (("compare", "--hit-rate", "1.5"), "between 0 and 1"),
        (("compare", "--chart", "x.pdf"), ".png or .svg"),
        (("report", "--by", "hour"), "no group"),
        (("forecast", "--alert", "80%"), "--monthly"),
        (("diff", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_wrong_use_is_2_and_says_what_is_meant(arguments: tuple[str, ...], needle: str, potstill: Run) -> None:
    """Every wrong option ends in 2 with a line that helps, and no traceback."""
    result = potstill("cost", *arguments)
    assert result.returncode == 2, result.stdout
    assert needle in result.stderr
    assert "Traceback" not in result.stderr


def test_an_estimate_above_the_limit_ends_in_4(potstill: Run) -> None:
    """CI can stop on an estimate that is too dear, by its expected price or by its ceiling; the table still comes."""
    result = potstill("cost", "estimate", *PROMPTS, "--limit", "0.0001", "--markdown")
    assert result.returncode == 4, result.stderr
    assert result.stdout.startswith("<!-- potstill cost estimate -->")
    assert "above $0.0001" in result.stdout
    found = json.loads(potstill("cost", "estimate", *PROMPTS, "--json").stdout)
    stage = found["stages"][0]
    between = str((Decimal(stage["expected_usd"]) + Decimal(stage["worst_usd"])) / 2)
    assert potstill("cost", "estimate", *PROMPTS, "--limit", between).returncode == 0
    assert potstill("cost", "estimate", *PROMPTS, "--limit", between, "--hold", "worst").returncode == 4


def test_every_stage_is_priced_and_the_csv_can_be_read(potstill: Run) -> None:
    """Generate, judge, distill and a month of answers; the same figures as comma-separated values."""
    arguments = ("cost", "estimate", *PROMPTS, "--judge", "1")
    found = json.loads(potstill(*arguments, "--json").stdout)
    assert [stage["name"] for stage in found["stages"]] == ["generate", "judge", "distill", "infer, a month"]
    for stage in found["stages"]:
        assert 0 < Decimal(stage["expected_usd"]) <= Decimal(stage["worst_usd"])
    rows = list(csv.reader(io.StringIO(potstill(*arguments, "--csv").stdout)))
    assert [row[0] for row in rows if row][:4] == ["service", "standard", "flex", "batch"]


def test_amounts_in_the_readers_currency(potstill: Run) -> None:
    """A user's rate changes what is shown, and the JSON's dollars stay dollars."""
    money = ("--currency", "TWD", "--rate", "32")
    assert "TWD 0.1648" in potstill("cost", "call", *CALL, *money).stdout
    found = json.loads(potstill("cost", "call", *CALL, *money, "--json").stdout)
    assert found["services"]["standard"]["usd"] == "0.00515"
    assert found["currency"] == {"code": "TWD", "rate": "32"}


def test_four_schemes_with_bars_and_a_picture(potstill: Run, tmp_path: Path) -> None:
    """The source design's four, what moves the month most, bars on the terminal, and a PNG and an SVG that are one."""
    arguments = ("cost", "compare", "--hardware", "400", "--sensitivity")
    result = potstill(*arguments, "--chart", "schemes.png")
    assert result.returncode == 0, result.stderr
    for needle in ("gemini free", "gemini paid", "hybrid", "local", "█", "hit rate", "halved"):
        assert needle in result.stdout
    assert (tmp_path / "schemes.png").read_bytes().startswith(b"\x89PNG")
    assert potstill(*arguments, "--chart", "schemes.svg", "-q").returncode == 0
    assert "<svg" in (tmp_path / "schemes.svg").read_text(encoding="utf-8")


def test_own_scenarios_by_file(potstill: Run, tmp_path: Path) -> None:
    """A YAML file's scenarios take the place of the four; text in it stays text."""
    (tmp_path / "mine.yaml").write_text(
        "queries_a_day: 2000\nscenarios:\n - {name: '=1+1|<b>'}\n - name: 本機\n   machine: {id: runpod-rtx4090}\n   escalation: 0\n",
        encoding="utf-8",
    )
    found = json.loads(potstill("cost", "compare", "--scenarios", "mine.yaml", "--json").stdout)
    assert [scheme["name"] for scheme in found["schemes"]] == ["=1+1|<b>", "本機"]
    assert found["load"]["queries_a_day"] == 2000
    assert Decimal(found["schemes"][1]["month_usd"]) == Decimal("244.8")
    assert "=1+1\\|&lt;b>" in potstill("cost", "compare", "--scenarios", "mine.yaml", "--markdown").stdout
    assert "'=1+1|<b>" in potstill("cost", "compare", "--scenarios", "mine.yaml", "--csv").stdout


def test_prices_filter_by_day_and_show_limits_and_machines(potstill: Run) -> None:
    """On New Year's Day 3.8-flash has one standard price, the doubled one; limits and machines have their sources."""
    arguments = ("cost", "prices", "3.8-flash", "--service", "standard", "--on", "2027-01-01", "--json")
    rows = json.loads(potstill(*arguments).stdout)["tables"][0]
    assert [(row["input"], row["output"], row["source"]) for row in rows] == [("1.5", "7.5", "genai-prices-0.2.3")]
    assert "ratelimits-2026-08-18" in potstill("cost", "prices", "--limits").stdout
    assert "cloud-run-l4" in potstill("cost", "prices", "--machines").stdout


def test_a_diff_for_a_pull_request(potstill: Run, tmp_path: Path) -> None:
    """Two configs: Markdown with a hidden tag to find the comment again, and 4 where the price rises too far."""
    (tmp_path / "old.yaml").write_text("generate: {prompts: [faq-train.en.txt]}\n")
    (tmp_path / "new.yaml").write_text("generate: {prompts: [faq-train.en.txt], samples_per_prompt: 4}\n")
    result = potstill("cost", "diff", "old.yaml", "new.yaml", "--markdown")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("<!-- potstill cost diff -->")
    assert "+300%" in result.stdout
    assert potstill("cost", "diff", "old.yaml", "new.yaml", "--limit", "0.01").returncode == 4
    assert potstill("cost", "diff", "new.yaml", "old.yaml", "--limit", "0").returncode == 0


def test_a_bare_revision_means_the_same_file_then(potstill: Run, tmp_path: Path) -> None:
    """`cost diff HEAD` holds the folder's potstill.yaml against the committed one."""
    (tmp_path / "potstill.yaml").write_text("generate: {prompts: [faq-train.en.txt]}\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "first")):
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)
    (tmp_path / "potstill.yaml").write_text("generate: {prompts: [faq-train.en.txt], samples_per_prompt: 2}\n")
    found = json.loads(potstill("cost", "diff", "HEAD", "--json").stdout)
    assert found["keys"] == [["generate.samples_per_prompt", "1", "2"]]
    assert Decimal(found["change_usd"]) > 0


def test_a_budget_file_for_several_projects(potstill: Run, tmp_path: Path) -> None:
    """Each project against its budget, the sum last; a workspace without a ledger is told, not taken for thrift."""
    (tmp_path / "budgets.yaml").write_text(
        "total_monthly_usd: 50\nprojects:\n - {name: faq, workspace: a, monthly_usd: 20}\n - {name: b, workspace: b, monthly_usd: 5}\n"
    )
    result = potstill("cost", "forecast", "--budgets", "budgets.yaml")
    assert result.returncode == 0, result.stderr
    assert "all projects" in result.stdout
    assert "faq: there is no ledger" in result.stdout
    assert potstill("cost", "forecast", "--budgets", "budgets.yaml", "--alert", "5").returncode == 2


async def test_an_alert_ends_in_4(potstill: Run, tmp_path: Path) -> None:
    """A projection above an alert, or above the month's budget, ends in 4; below both it ends in 0."""
    with Ledger.open(tmp_path / "workspace" / "ledger.sqlite3") as ledger:
        ticket = await ledger.reserve(Intent("k", "generate", None, "gemini-3.8-flash", "standard", "{}", Decimal(3)))
        assert isinstance(ticket, Ticket)
        await ledger.settle(ticket.attempt, Settlement("{}", Usage(output_tokens=5), Decimal(3), "p", 0.1))
    assert potstill("cost", "forecast", "--monthly", "1000", "--alert", "90%", "--alert", "500").returncode == 0
    for arguments in (("--alert", "2.5"), ("--monthly", "3000", "--alert", "0.01%"), ("--monthly", "2.9")):
        result = potstill("cost", "forecast", *arguments, "--json")
        assert result.returncode == 4, arguments
        assert json.loads(result.stdout)["alerts"]
        assert "above" in result.stderr


def test_a_model_without_a_free_tier_has_three_schemes(potstill: Run) -> None:
    """Argon is paid only, and a model of one's own prices has no tiers: the comparison goes on without the free one."""
    own = ("--set", "prices.overrides={mine: {input: 1, output: 2}}", "--set", "teacher.model=mine")
    for arguments in (("--model", "gemini-4-argon"), own):
        result = potstill("cost", "compare", *arguments, "--json")
        assert result.returncode == 0, result.stderr
        names = [scheme["name"] for scheme in json.loads(result.stdout)["schemes"]]
        assert names == ["gemini paid", "hybrid", "local"]
