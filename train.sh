#!/usr/bin/env bash
# Trains one stage, or a whole chain of stages, on all devices of one machine or of many.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
bash train.sh CONFIG [key=value ...]       one stage, e.g. conf/tiny/stage1_understanding.yaml run.minutes=5
bash train.sh all FOLDER [key=value ...]   all stage*.yaml of a folder by name, each from the last one's
                                           output; init=... is for the first one alone, and
                                           data.manifests.KIND=... for those that read that kind
bash train.sh                              all stages of the tiny model (conf/tiny), its corpus too

Stopped at any point, the same command goes on from the last checkpoint; what is finished is skipped.
By environment:
  NPROC        processes on this machine         (one for each cuda or npu device; 1 on a CPU)
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT    several machines: start the same command on each
  HOSTFILE     instead: a file of "host slots=N" lines, the first is the master; same command on each
  PYTHON       the interpreter                   (.venv/bin/python if there, else python3)
Data: conf/osum_echat reads conf/data_tmp.yaml; write your lists there, or give data.manifests.KIND=FILE.
DeepSpeed: engine.deepspeed=conf/ds_zero2.json (ds_zero0 to 3, ds_zero2_offload, ds_zero3_offload).
TEXT
}

fail() { echo "train.sh: $1" >&2; exit 2; }

if [[ -z "${PYTHON:-}" ]]; then
    if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
export TOKENIZERS_PARALLELISM=false
SAVE_S=600      # that the processes have for a last checkpoint after SIGTERM; torchrun's own is 30

# Sets NNODES, NODE_RANK and MASTER_ADDR, and NPROC where slots are given, from a file of hosts.
read_hosts() {
    local host slots own rank=0 found=""
    [[ -r "$1" ]] || fail "HOSTFILE $1 cannot be read"
    own=" $(hostname) $(hostname -f 2>/dev/null || true) $(hostname -I 2>/dev/null || true) localhost "
    while read -r host slots _ || [[ -n "$host" ]]; do
        [[ -z "$host" || "$host" == \#* ]] && continue
        [[ $rank -eq 0 ]] && MASTER_ADDR="$host"
        if [[ -z "$found" && "$own" == *" $host "* ]]; then
            found=$rank
            [[ "$slots" == slots=* ]] && NPROC="${NPROC:-${slots#slots=}}"
        fi
        rank=$((rank + 1))
    done < <(tr -d '\r' < "$1")
    [[ $rank -gt 0 ]] || fail "HOSTFILE $1 names no host"
    NNODES=$rank
    NODE_RANK="${NODE_RANK:-$found}"
    [[ -n "$NODE_RANK" ]] || fail "HOSTFILE $1: this machine ($(hostname)) is not in it; set NODE_RANK"
}

[[ -n "${HOSTFILE:-}" ]] && read_hosts "$HOSTFILE"
NNODES="${NNODES:-1}" NODE_RANK="${NODE_RANK:-0}" MASTER_PORT="${MASTER_PORT:-29500}"

# Runs a command; SIGTERM and Ctrl-C go on to it as SIGTERM, upon which a training saves and stops:
# that ends with 143 for one process and for many.
run() {
    local child ended=0 stopped=""
    "$@" &
    child=$!
    trap 'stopped=143; kill -TERM "$child" 2>/dev/null || true' TERM INT
    wait "$child" || ended=$?
    while kill -0 "$child" 2>/dev/null; do ended=0; wait "$child" || ended=$?; done
    trap - TERM INT
    [[ "$ended" -eq 0 ]] || return "${stopped:-$ended}"
}

# Runs train.py with a config and overrides: alone, or under torchrun with a process for each device.
train() {
    local device word processes
    device="$(sed -n 's/^device: *\([a-z0-9:]*\).*/\1/p' "$1")"
    for word in "$@"; do [[ "$word" == device=* ]] && device="${word#device=}"; done
    processes="${NPROC:-$("$PYTHON" -m osum_echat.device "${device:-auto}")}" || exit 2
    for word in "NPROC $processes" "NNODES $NNODES"; do
        [[ "$word" =~ \ [1-9][0-9]*$ ]] || fail "$word: give a whole number from 1"
    done
    [[ "$NODE_RANK" =~ ^[0-9]+$ && "$NODE_RANK" -lt "$NNODES" ]] \
        || fail "NODE_RANK $NODE_RANK: give a whole number from 0 to $((NNODES - 1))"
    echo "train.sh: $1: $processes process(es) on each of $NNODES machine(s)" >&2
    if [[ "$1" == conf/tiny/* && ! -d build/world/tokenizer ]]; then
        echo "train.sh: the stages of conf/tiny learn from build/world, which is not here: make" \
             "tiny-data makes it (some hours); each stage starts from the one before it" >&2
    fi
    if [[ "$NNODES" -eq 1 && "$processes" -eq 1 ]]; then
        run "$PYTHON" train.py --config "$@"
        return
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    local meet=(--standalone)
    if [[ "$NNODES" -gt 1 ]]; then
        [[ -n "${MASTER_ADDR:-}" ]] || fail "NNODES is $NNODES: set MASTER_ADDR to the first machine"
        meet=(--nnodes "$NNODES" --node_rank "$NODE_RANK"
              --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    fi
    run "$PYTHON" -m torch.distributed.run --shutdown-timeout "$SAVE_S" "${meet[@]}" \
        --nproc_per_node "$processes" train.py --config "$@"
}

# Every stage*.yaml of a folder by its name; what training starts from is for the first stage alone,
# and data of a kind for the stages that read that kind.
train_all() {
    local folder="$1" word kind config configs words later=()
    shift
    mapfile -t configs < <(LC_ALL=C; printf '%s\n' "$folder"/stage*.yaml)
    [[ -f "${configs[0]}" ]] || fail "$folder: holds no stage*.yaml; name a folder such as conf/tiny"
    for word in "$@"; do
        [[ "$word" != output=* ]] || fail "all: $word would be the output of every stage; train one"
        [[ "$word" == init=* || "$word" == init_*=* ]] || later+=("$word")
    done
    echo "train.sh: ${configs[*]}" >&2
    for config in "${configs[@]}"; do
        words=()
        for word in "$@"; do
            kind="${word#data.manifests.}"
            kind="^ *${kind%%=*}:"
            if [[ "$word" != data.manifests.* ]] || grep -q "$kind" "$config" \
                || ! grep -q "$kind" "${configs[@]}"; then words+=("$word"); fi
        done
        train "$config" "${words[@]}"
        set -- "${later[@]}"
    done
}

case "${1:-}" in
    -h|--help) usage ;;
    all)
        [[ $# -ge 2 ]] || fail "all: name the folder of the stages, e.g. bash train.sh all conf/tiny"
        train_all "${@:2}" ;;
    "")
        usage
        echo
        echo "Nothing was named: making what is missing of the tiny model's corpus (make tiny-data),"
        echo "then training the stages of conf/tiny. On a CPU that takes hours; Ctrl-C stops, and the"
        echo "same command goes on."
        [[ -d build/world/tokenizer ]] || make tiny-data
        train_all conf/tiny ;;
    *)
        [[ -f "$1" ]] || fail "$1: no such config in $PWD; see bash train.sh --help"
        train "$@" ;;
esac
