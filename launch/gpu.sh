#!/usr/bin/env bash
# Trains on the GPUs of this machine, and with --restarts starts again what was killed.
#   launch/gpu.sh --config=configs/cifar10.py --workdir=runs/cifar10
#   launch/gpu.sh --processes 8 --restarts 3 --config=configs/imagenet.py --workdir=runs/imagenet
# One process drives all GPUs; where jax finds none, it ends with status 1 and says why. Options of this
# script come before those of the program:
#   --processes N     N processes (--multihost) that share the GPUs evenly, where one cannot feed them all
#   --cpu-devices K   K simulated CPU devices a process instead of GPUs: a pod in a box
#   --restarts M      starts all again, at most M times (0), after a process was killed or crashed
#   --grace S         seconds that the others then have to end by themselves, and again after SIGTERM (10)
#   --port P          where process 0 listens; by default a free port
#   --no-install      $PYTHON (python3) as it is, no virtual environment
#   --dry-run         prints the commands
# An error that the user can correct (status 1) and an interruption (130, 143) are passed on, not restarted.
# Ctrl-C and SIGTERM go to all processes, which save before they leave; a second one kills them.
set -euo pipefail
called_in=$PWD
cd "$(dirname "$0")/.."
source launch/common.sh

processes=1 cpu_devices='' restarts=0 grace=10 port=''
while [ $# -gt 0 ]; do
    case $1 in
        --processes=*|--cpu-devices=*|--restarts=*|--grace=*|--port=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --processes|--cpu-devices|--restarts|--grace|--port)
            [[ ${2:-} =~ ^[0-9]+$ ]] || fail "$1 takes a number, not '${2:-}'."
            name=${1#--}
            printf -v "${name//-/_}" %s "$2"
            shift 2 ;;
        --no-install) NO_INSTALL=1; shift ;;
        --dry-run) dry_run=yes; shift ;;
        --) shift; break ;;
        *) break ;;
    esac
done
[ "$processes" -gt 0 ] || fail '--processes takes a number from 1.'

settings=()        # environment of all processes
gpus=()
if [ -n "$cpu_devices" ]; then
    settings=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$cpu_devices")
else
    EXTRAS=${EXTRAS:-gpu,tfds}
    # Of a GPU's memory jax would take three quarters, and no more.
    settings=("XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}")
fi
source launch/environment.sh
if [ -z "$cpu_devices" ]; then
    need_gpus "$python"
    if [ "$processes" -gt 1 ]; then
        IFS=, read -ra gpus <<< "$visible"
        [ $((${#gpus[@]} % processes)) = 0 ] || fail "$processes processes cannot share ${#gpus[@]} GPUs evenly."
    fi
fi
back_to "$called_in"

free_port() {
    local candidate
    while candidate=$((10000 + RANDOM % 20000)); (: < "/dev/tcp/localhost/$candidate") 2> /dev/null; do :; done
    echo "$candidate"
}

start() {          # start ARGUMENTS...: starts all processes; pids holds those that run
    local address number mine command share=$((${#gpus[@]} / processes))
    address=localhost:${port:-$(free_port)}
    pids=() statuses=()
    for ((number = 0; number < processes; number++)); do
        mine=("${settings[@]}")
        [ "$share" = 0 ] || mine+=("CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:number * share:share}")")
        command=(env "${mine[@]}" "$python" -m simclr_jax.main "$@")
        [ "$processes" = 1 ] || command+=(--multihost "--coordinator=$address" "--num_processes=$processes"
                                          "--process_id=$number")
        show "${command[@]}"
        [ -z "$dry_run" ] || continue
        "${command[@]}" &
        pids[number]=$!
    done
}

reap() {           # takes down the status of those that have ended; false when all have
    local number status
    for number in "${!pids[@]}"; do
        kill -0 "${pids[number]}" 2> /dev/null && continue
        status=0
        wait "${pids[number]}" || status=$?
        statuses[number]=$status
        unset 'pids[number]'
    done
    [ ${#pids[@]} -gt 0 ]
}

failed() { [[ "${statuses[*]}" == *[1-9]* ]]; }

judge() {          # one status for all, and whether to start again
    local status final='' lost=''
    verdict=0 again=
    for status in "${statuses[@]}"; do
        case $status in
            0) ;;
            75|134) lost=$status ;;                     # it lost another one: whoever left, left a reason
            129|130|143) final=$status ;;
            *) if [ "$status" -gt 128 ]; then verdict=$status again=yes; return; fi
               final=$status ;;
        esac
    done
    if [ -n "$final" ]; then verdict=$final; elif [ -n "$lost" ]; then verdict=$lost again=yes; fi
}

supervise() {      # waits for all; once one has failed, sees to it that the others end
    local signal deadline
    while reap && ! failed; do sleep 0.2; done
    # Those that wait for a lost one in a collective operation would do so for minutes.
    for signal in 0 TERM KILL; do
        [ ${#pids[@]} -gt 0 ] || break
        kill "-$signal" "${pids[@]}" 2> /dev/null || true
        deadline=$((SECONDS + grace))
        while reap && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
        [ "$signal" != 0 ] || judge                     # what TERM and KILL do is no reason
    done
    [ -n "${verdict:-}" ] || judge
}

interrupted=''
interrupt() {
    local signal=TERM
    [ -z "$interrupted" ] || signal=KILL
    interrupted=$1
    kill "-$signal" "${pids[@]}" 2> /dev/null || true
}
trap 'interrupt 130' INT
trap 'interrupt 143' TERM

for ((count = 1; ; count++)); do
    start "$@"
    [ -z "$dry_run" ] || exit 0
    verdict=''
    supervise
    if [ -n "$interrupted" ] && [ "$verdict" != 0 ]; then exit "$interrupted"; fi
    if [ -z "$again" ] || [ "$count" -gt "$restarts" ]; then exit "$verdict"; fi
    echo "gpu.sh: a process ended with status $verdict; all start again ($count of $restarts)" >&2
done
