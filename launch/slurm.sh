#!/usr/bin/env bash
# Trains on a Slurm cluster: one process a GPU, on any number of nodes. From the root of the repository:
#   sbatch launch/slurm.sh --config=configs/imagenet.py --workdir=/shared/runs/imagenet
#   sbatch --nodes=4 --ntasks-per-node=4 --gpus-per-node=4 launch/slurm.sh --config=... --workdir=...
#   launch/slurm.sh --config=... --workdir=...      # inside an allocation, in the foreground
#   launch/slurm.sh --dry-run --config=...          # prints the commands
# The workdir and the repository lie where all nodes see them. As many tasks as GPUs a node: jax gives each
# task the GPU of its local number. Two minutes before the time limit the processes get SIGTERM, save, and
# the job is queued again; so is one that lost a process or hung, at most RESTARTS (3) times. After a preemption
# (PreemptMode=REQUEUE, whose GraceTime gives time to save) or the loss of a node Slurm queues it again itself. With
# NO_INSTALL=1 the program runs with $PYTHON (python3) as it is.
#SBATCH --job-name=simclr_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=simclr_jax-%j.log
set -euo pipefail
# sbatch runs a copy of this file, in the directory that it was called from.
root=$(dirname "$0")/..
[ -f "$root/launch/slurm.sh" ] || root=${SLURM_SUBMIT_DIR:-.}
cd "$root"
if [ ! -f launch/common.sh ]; then
    echo "error: call sbatch in the root of the repository, not in $PWD." >&2
    exit 1
fi
source launch/common.sh
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi
EXTRAS=${EXTRAS:-gpu,tfds}
source launch/environment.sh
need_gpus "$python"
# Of a GPU's memory jax would take three quarters, and no more.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

status=0
# Every task sees all GPUs of its node. If one fails the others would wait for it: they end too.
run srun --gpu-bind=none --kill-on-bad-exit=1 "$python" -m simclr_jax.main --multihost "$@" || status=$?

# 143: saved after SIGTERM. 75, 134, 137: a process was lost, or hung and was killed.
again=''
case $status in
    143) again=yes ;;
    75|134|137) if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-3}" ]; then again=yes; fi ;;
esac
# A job that was cancelled, or that a preemption queues again, is no longer RUNNING.
if [ -n "$again" ] && [ "$(squeue --noheader --jobs="${SLURM_JOB_ID:-}" --format=%T)" = RUNNING ]; then
    run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
