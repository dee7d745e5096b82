#!/usr/bin/env bash
# Answers every utterance of a list and scores the answers: python -m osum_echat.evaluation.batch.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usage() {
    cat <<'TEXT'
bash infer_with_shards_or_raw.sh LIST [options]

LIST is raw jsonl, a list of tars (shard, combine), a tar, a folder of these, or a data yaml. Each
utterance is asked its own task, in text and speech. OUT (exp/batch/NAME) gets results.jsonl,
text.scp (`key text`), wav/ and scores.json. Stopped at any point, the same command goes on.
  --task asr            one task for all        --no-speak         text only
  --model SOURCE        another model           --processes N      on this machine
  --out DIR             another place           --batch-size N     utterances at once
  --ray ADDRESS         on a Ray cluster      --help            all options
Several machines that see one OUT, without Ray: start on each
  torchrun --nnodes N --node_rank I --master_addr A --nproc_per_node K \
      -m osum_echat.evaluation.batch --data LIST --out OUT
By environment: PYTHON, the interpreter (.venv/bin/python if there, else python3).

Try it on the bundled lists and the tiny model:
  bash infer_with_shards_or_raw.sh common_utils/fake_data/raw/data.list --model tiny
  bash infer_with_shards_or_raw.sh common_utils/fake_data/shard/shards_list.txt --model tiny
  bash infer_with_shards_or_raw.sh common_utils/fake_data/combine/combines_list.txt --model tiny
TEXT
}

if [[ $# -eq 0 || "$1" == "-h" ]]; then
    usage
    exit 0
fi
if [[ -z "${PYTHON:-}" ]]; then
    if [[ -x "$here/.venv/bin/python" ]]; then PYTHON="$here/.venv/bin/python"; else PYTHON=python3; fi
fi
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
if [[ "$1" == -* ]]; then
    exec "$PYTHON" -m osum_echat.evaluation.batch "$@"
fi
exec "$PYTHON" -m osum_echat.evaluation.batch --data "$@"
