"""How well the refusal filter and the language test tell texts apart, on a small labelled set (sifting.jsonl).

    python benchmarks/sifting.py            # figures of both halves
    python benchmarks/sifting.py --misses   # and the texts of the development half that were told wrong

The texts were written for this, before the filter's patterns were read: refusals, and answers that look like one (advice
against something, quotations, apologies inside an answer). Only the development half may be looked at to mend the filter.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from potstill.generate.languages import language_of
from potstill.generate.phrases import refusal_in

HALVES = ("development", "held out")


def main() -> None:
    """Print recall and precision of the refusal filter by half and language, and what the language test says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--misses", action="store_true", help="show what was told wrong in the development half")
    options = parser.parse_args()
    lines = Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for half in HALVES:
        for language in ("en", "zh-TW"):
            chosen = [row for row in rows if (row["half"], row["language"]) == (half, language)]
            print(f"{half:12} {language:6} {refusals(chosen)}")
    for language in ("en", "zh-TW", "zh-CN"):
        told = Counter(language_of(row["text"]) for row in rows if row["language"] == language)
        print(f"language     {language:6} told as {dict(told.most_common())}")
    for row in rows if options.misses else ():
        found = refusal_in(row["text"])
        if row["half"] == HALVES[0] and row["refusal"] is not None and row["refusal"] is not (found is not None):
            print("missed" if row["refusal"] else f"wrongly {found!r}", "|", row["text"])


def refusals(rows: list[dict[str, Any]]) -> str:
    """Recall and precision of the filter on some rows."""
    counts = Counter((row["refusal"], refusal_in(row["text"]) is not None) for row in rows)
    found, missed, wrongly = counts[True, True], counts[True, False], counts[False, True]
    recall, precision = found / (found + missed), found / max(1, found + wrongly)
    return f"recall {recall:.0%} ({found} of {found + missed}), precision {precision:.0%} ({wrongly} of {counts[False, False] + wrongly} answers taken for refusals)"


if __name__ == "__main__":
    main()
