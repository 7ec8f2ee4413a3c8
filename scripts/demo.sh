#!/usr/bin/env bash
# The whole pipeline, from nothing to a hybrid router, to read and to paste. No key, no GPU, no network.
#
# The teacher here is an EMULATOR: a local server that speaks Gemini's protocol and answers from a FAQ file.
# For the real one, take away the two lines marked (*), export your own GEMINI_API_KEY, and take a config such as
# configs/free-tier.yaml or configs/gpu-8gb.yaml in place of configs/demo.yaml. Everything else stays as it is.
#
#   bash scripts/demo.sh            a few minutes on two cores; what `make demo` runs
#   bash scripts/demo.sh --quick    the same commands with a student too small to learn: a check, not a show
set -euo pipefail
cd "$(dirname "$0")/.."

config=configs/demo.yaml
run=demo-run                                  # the workspace: everything that is made lands here
base=.cache/tiny-base                         # the small student's base, kept between runs
size=demo
student=()                                    # what --quick changes
if [ "${1:-}" = --quick ]; then
    run=${2:-demo-run-quick} base=.cache/tiny-base-small size=small
    student=(--set "student.base=$base" --set distill.epochs=1)
fi
began=$SECONDS

say()  { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }    # print a command as a user would type it, then run it

stop() {
    # shellcheck disable=SC2086
    # Unquoted: one that was not started is no argument.
    kill ${emulator:-} ${server:-} 2>/dev/null || true
    wait 2>/dev/null || true
}
trap stop EXIT

# The first line that a background server prints is its address: `address FILE PROCESS`.
address() {
    for _ in $(seq 600); do
        [ -s "$1" ] && { grep -om1 'http://[0-9.:]*' "$1" && return; }
        kill -0 "$2" 2>/dev/null || break
        sleep 0.2
    done
    echo "no answer from the server, see $1" >&2
    exit 1
}

rm -rf "$run" && mkdir -p "$run"
export GEMINI_API_KEY=any-text-does-for-the-emulator                                                        # (*)

say "The teacher: a local Gemini (an emulator: same protocol, quotas, token counts)"
potstill emulator --faq hardware.en --port 0 --log "$run/emulator.jsonl" >"$run/emulator.out" &
emulator=$!
GOOGLE_GEMINI_BASE_URL=$(address "$run/emulator.out" $emulator); export GOOGLE_GEMINI_BASE_URL              # (*)
echo "emulator at $GOOGLE_GEMINI_BASE_URL"

say "1. cost estimate: know before you spend"
show potstill cost estimate -c $config -w "$run"

say "2. generate: prompts x roles -> dataset, never over budget, never paid twice"
show potstill generate -c $config -w "$run" --max-cost 1.00
echo "   the same command again pays nothing:"
show potstill generate -c $config -w "$run" --max-cost 1.00 --quiet
show potstill cost report -c $config -w "$run"

say "3. distill: a small student, and a verdict on held-out questions"
show python scripts/build_tiny_base.py --out $base --size $size
show potstill distill -c $config -w "$run" ${student[@]+"${student[@]}"}

say "4. serve-local: the student's roles behind an OpenAI-compatible API"
potstill serve-local -c $config -w "$run" --port 0 >"$run/server.out" &
server=$!
OPENAI_BASE_URL=$(address "$run/server.out" $server)/v1
export OPENAI_BASE_URL
show python scripts/ask_server.py "How much GPU memory do I need to run a small model?" hardware-expert cost-analyst
kill -TERM $server && wait $server || true
server=

say "5. infer: cache -> student -> Gemini, each answer at the lowest cost"
question=$(sed -n '/^[^#]/p' prompts/tasks/faq-queries.en.txt | head -1)
show potstill infer -c $config -w "$run" "$question"
echo "   once more: an exact hit"
show potstill infer -c $config -w "$run" "$question"
echo "   in other words: a semantic hit"
show potstill infer -c $config -w "$run" "Please tell me: $question"
echo "   a file of questions:"
show potstill infer -c $config -w "$run" --batch prompts/tasks/faq-queries.en.txt

say "6. cost: what was spent, what was saved, and what each way would cost a month"
show potstill cost report -c $config -w "$run"
show potstill cost compare -c $config -w "$run"

say "Done in $((SECONDS - began)) s. Look at $run/dataset/README.md and $run/students/demo/report.html"
echo "The teacher was an emulator: its answers and prices are real in form, not in content."
