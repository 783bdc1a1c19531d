#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size: creates it or takes the one that is there, installs this commit
# on every worker, runs the program on all of them, and after a preemption does it again, until it is done.
#   launch/tpu_pod.sh --name simclr --zone us-central2-b --type v4-32 --version tpu-ubuntu2204-base --spot \
#       --setup 'sudo mkdir -p /mnt/nfs && sudo mount 10.0.0.2:/share /mnt/nfs' \
#       -- --config=configs/imagenet.py --workdir=/mnt/nfs/runs/imagenet
#   launch/tpu_pod.sh --name simclr --zone us-central2-b --delete
# Options, before the -- that ends them:
#   --name NAME --zone ZONE           which slice
#   --type TYPE --version VERSION     its accelerator type and its software, needed to create it
#   --project PROJECT                 by default that of gcloud
#   --spot                            a slice that costs less and may be preempted
#   --setup COMMAND                   runs on every worker after the installation: mount what they share
#   --restarts N                      how often a crash is tried again while the slice stands (3); a
#                                     preemption is always followed by another slice
#   --delete                          deletes the slice: when the program has ended well, or now without one
#   --dry-run                         prints the commands for a slice that is not there yet
# The workdir is a directory that all workers see, such as a Filestore or a Cloud Storage bucket mounted by
# --setup; gs:// paths are not read. An error that the user can correct ends the script with its status.
# Ctrl-C ends the script and not the program: start the script again to stop and resume it, or --delete.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

name='' zone='' type='' version='' project='' setup='' restarts=3 spot='' delete=''
poll=${POLL_SECONDS:-60}          # between two looks at a slice that is not ready
while [ $# -gt 0 ]; do
    case $1 in
        --name=*|--zone=*|--type=*|--version=*|--project=*|--setup=*|--restarts=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --name|--zone|--type|--version|--project|--setup|--restarts)
            [ -n "${2:-}" ] || fail "$1 takes a value."
            printf -v "${1#--}" %s "$2"
            shift 2 ;;
        --spot) spot=yes; shift ;;
        --delete) delete=yes; shift ;;
        --dry-run) dry_run=yes; shift ;;
        --) shift; break ;;
        *) fail "no option $1: those of the program come after --." ;;
    esac
done
[ -n "$name" ] && [ -n "$zone" ] || fail '--name and --zone say which slice.'
[ $# -gt 0 ] || [ -n "$delete" ] || fail 'there is nothing to run after --.'
where=(--zone="$zone" ${project:+"--project=$project"} --quiet)
scratch=/tmp/SCRATCH
if [ -z "$dry_run" ]; then scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT; fi
trap 'exit 130' INT
trap 'exit 143' TERM

tpu() { run gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on_all() { tpu ssh "$name" --worker=all --command="$1"; }

look() {            # sets $state: that of the slice, ABSENT, or UNKNOWN where gcloud does not say
    state=ABSENT
    if [ -n "$dry_run" ]; then
        tpu describe "$name" '--format=value(state)'
    elif tpu describe "$name" '--format=value(state)' > "$scratch/state" 2> "$scratch/error"; then
        state=$(cat "$scratch/state")
    elif ! grep -qi 'not[_ ]found' "$scratch/error"; then
        state=UNKNOWN
        cat "$scratch/error" >&2
    fi
}

make_ready() {      # returns when the slice is READY; status 1 if it cannot be had
    while :; do
        look
        case $state in
            READY) return ;;
            ABSENT)
                installed=''
                [ -n "$type" ] && [ -n "$version" ] || fail "there is no slice $name: --type and --version create it."
                # The first time a refusal is told: a wrong type, no quota. Later one is short of machines.
                if tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}; then
                    if [ -n "$dry_run" ]; then return; else continue; fi
                fi
                [ -n "$had_one" ] || return 1
                sleep "$poll" ;;
            PREEMPTED|TERMINATED) tpu delete "$name" || sleep "$poll" ;;
            STOPPED) tpu start "$name" || return 1 ;;
            UNKNOWN) [ -n "$had_one" ] || return 1; sleep "$poll" ;;
            *) installed=''; echo "the slice $name is $state" >&2; sleep "$poll" ;;
        esac
    done
}

install() {
    local archive=simclr_jax.tar.gz
    git diff --quiet HEAD || echo 'note: changes that are not committed stay here' >&2
    run git archive --format=tar.gz --output="$scratch/$archive" HEAD || return
    tpu scp "$scratch/$archive" "$name:$archive" --worker=all || return
    on_all "mkdir -p simclr_jax && tar -xzf $archive -C simclr_jax && simclr_jax/launch/tpu_worker.sh install" || return
    [ -z "$setup" ] || on_all "$setup" || return
    installed=yes
}

program() { on_all "simclr_jax/launch/tpu_worker.sh run$(printf ' %q' "$@")"; }

had_one='' installed=''
while [ $# -gt 0 ]; do
    make_ready
    had_one=yes status=0
    { [ -n "$installed" ] || install; } && program "$@" || status=$?
    [ "$status" != 0 ] || break
    [ -z "$dry_run" ] || exit "$status"
    # 75, 143 and what is above 128: a worker was lost, told to stop or killed. 255: the connection broke.
    look
    if [ "$state" = READY ]; then
        if [ "$status" != 75 ] && [ "$status" -lt 129 ] || [ "$status" = 130 ]; then exit "$status"; fi
        restarts=$((restarts - 1))
        [ "$restarts" -ge 0 ] || exit "$status"
        sleep "$poll"               # a preemption that is under way shows by then
    fi
    echo "tpu_pod.sh: status $status on a slice that is $state; again" >&2
done
[ -z "$delete" ] || tpu delete "$name"
