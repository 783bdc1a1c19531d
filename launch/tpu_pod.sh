#!/usr/bin/env bash
# Trains on Cloud TPU, one slice of any size or several: asks for them as a queued resource or takes what is
# there, installs this commit on every worker, runs the program on all of them, and after a preemption does it
# again, until it is done.
#   launch/tpu_pod.sh --name simclr --zone us-central2-b --type v4-32 --version tpu-ubuntu2204-base --spot \
#       --bucket gs://mine/code -- --config=configs/imagenet.py --workdir=gs://mine/runs/imagenet
#   launch/tpu_pod.sh --name simclr --zone us-central2-b --delete
# Options, before the -- that ends them:
#   --name NAME --zone ZONE           which queued resource
#   --type TYPE --version VERSION     the slice's accelerator type and software, needed to ask for it
#   --slices N                        so many slices, joined by the data-centre network (1)
#   --project PROJECT                 by default that of gcloud
#   --spot                            slices that cost less and may be preempted
#   --bucket gs://PATH                where this commit is put for the workers to fetch; else it is copied to each
#   --setup COMMAND                   runs on every worker after the installation, such as mounting a disk
#   --restarts N                      how often a crash is tried again while the slices stand (3); a
#                                     preemption is always followed by another request
#   --delete                          deletes the slices: when the program has ended well, or now without one
#   --dry-run                         prints the commands for slices that are not there yet
# The workdir is a bucket, or a directory that all workers see. The workers' service account needs to read and
# write it. An error that the user can correct ends the script with its status.
# Ctrl-C ends the script and not the program: start the script again to stop and resume it, or --delete.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

name='' zone='' type='' version='' project='' slices=1 bucket='' setup='' restarts=3 spot='' delete=''
poll=${POLL_SECONDS:-60}          # between two looks at a slice that is not ready
while [ $# -gt 0 ]; do
    case $1 in
        --name=*|--zone=*|--type=*|--version=*|--project=*|--slices=*|--bucket=*|--setup=*|--restarts=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --name|--zone|--type|--version|--project|--slices|--bucket|--setup|--restarts)
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
[ -n "$name" ] && [ -n "$zone" ] || fail '--name and --zone say which queued resource.'
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices takes a number from 1, not '$slices'."
[[ -z $bucket || $bucket == gs://?* ]] || fail "--bucket takes a path such as gs://mine/code, not '$bucket'."
[ $# -gt 0 ] || [ -n "$delete" ] || fail 'there is nothing to run after --.'
where=(--zone="$zone" ${project:+"--project=$project"} --quiet)
scratch=/tmp/SCRATCH
if [ -z "$dry_run" ]; then scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT; fi
trap 'exit 130' INT
trap 'exit 143' TERM

tpu() { run gcloud compute tpus queued-resources "$@" "${where[@]}"; }
# All at once: gcloud would take 64 workers at a time, and these would wait for the others.
workers=(--worker=all --node=all --batch-size=all)
on_all() { tpu ssh "$name" "${workers[@]}" --command="$1"; }

look() {            # sets $state: that of the request, ABSENT, or UNKNOWN where gcloud does not say
    state=ABSENT
    if [ -n "$dry_run" ]; then
        tpu describe "$name" '--format=value(state.state)'
    elif tpu describe "$name" '--format=value(state.state)' > "$scratch/state" 2> "$scratch/error"; then
        state=$(cat "$scratch/state")
    elif ! grep -qi 'not[_ ]found' "$scratch/error"; then
        state=UNKNOWN
        cat "$scratch/error" >&2
    fi
}

create() {
    local nodes=(--node-id="$name")
    [ "$slices" = 1 ] || nodes=(--node-count="$slices")
    tpu create "$name" "${nodes[@]}" --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot}
}

make_ready() {      # returns when the slices are there; status 1 if they cannot be had
    while :; do
        look
        case $state in
            ACTIVE) return ;;
            ABSENT)
                installed=''
                [ -n "$type" ] && [ -n "$version" ] || fail "there is no $name: --type and --version ask for it."
                # The first time a refusal is told: a wrong type, no quota. Later one is tried again.
                if create; then
                    if [ -n "$dry_run" ]; then return; else continue; fi
                fi
                [ -n "$had_one" ] || return 1
                sleep "$poll" ;;
            # A request that was refused, unless it followed a preemption, is for the user to mend.
            FAILED)
                [ -n "$had_one" ] || fail "the request $name has failed: look at it with gcloud, and --delete it."
                tpu delete "$name" --force || sleep "$poll" ;;
            SUSPENDED) tpu delete "$name" --force || sleep "$poll" ;;
            UNKNOWN) [ -n "$had_one" ] || return 1; sleep "$poll" ;;
            *) installed=''; echo "$name is $state" >&2; sleep "$poll" ;;
        esac
    done
}

install() {
    local archive=simclr_jax.tar.gz fetch=''
    git diff --quiet HEAD || echo 'note: changes that are not committed stay here' >&2
    run git archive --format=tar.gz --output="$scratch/$archive" HEAD || return
    if [ -n "$bucket" ]; then
        run gcloud storage cp "$scratch/$archive" "$bucket/$archive" || return
        fetch="gcloud storage cp $bucket/$archive $archive && "
    else
        tpu scp "$scratch/$archive" "$name:$archive" "${workers[@]}" || return
    fi
    on_all "${fetch}mkdir -p simclr_jax && tar -xzf $archive -C simclr_jax && simclr_jax/launch/tpu_worker.sh install" ||
        return
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
    if [ "$state" = ACTIVE ]; then
        if [ "$status" != 75 ] && [ "$status" -lt 129 ] || [ "$status" = 130 ]; then exit "$status"; fi
        restarts=$((restarts - 1))
        [ "$restarts" -ge 0 ] || exit "$status"
        sleep "$poll"               # a preemption that is under way shows by then
    fi
    echo "tpu_pod.sh: status $status, and $name is $state; again" >&2
done
[ -z "$delete" ] || tpu delete "$name" --force
