#!/usr/bin/env bash
# The stages on real text, demonstrations and preferences; prints the figures that stand in docs/results.md.
# Usage: bench/real_data.sh DATA_DIR   (with pretrain/*.txt, instructions/*.jsonl and preferences/*.jsonl in it)
# Starts a platform in a home of its own and stops it at the end; takes about ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(cd "$1" && pwd)
python=.venv/bin/python
export BUCLE_HOME=${BUCLE_HOME:-$(mktemp -d)}
manage() { "$python" manage.py "$@"; }
result() { manage train "$@" --project tales --wait --json 2>/dev/null | "$python" -c '
import json, sys
run = json.load(sys.stdin)
print(run["stage"], json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in run["result"].items()}))'; }

"$python" manage.py up --port 0 >"$BUCLE_HOME/up.log" 2>&1 &
up=$!
trap 'kill $up; wait $up' EXIT
until grep -q "is up" "$BUCLE_HOME/up.log"; do sleep 0.5; done

manage import_data --project tales --create --kind corpus "$data/pretrain/grimm_en.txt" "$data/pretrain/oz_alice_en.txt"
manage import_data --project tales --kind demonstrations "$data/instructions/en_short_llms_from_scratch.jsonl"
manage import_data --project tales --kind preferences "$data/preferences/en_short_polite_llms_from_scratch.jsonl"
result tokenizer --set vocab_size=1024
result pretrain --set steps=800 batch_size=32 learning_rate=3e-3 val_fraction=0.05
result sft --set epochs=3 learning_rate=1e-3
result reward --set learning_rate=1e-3 batch_size=8
result ppo --set updates=40 batch_size=64 max_new_tokens=32 kl_coef=0.05
result evaluate --base policy-1 --reference sft-1 --set max_new_tokens=32
