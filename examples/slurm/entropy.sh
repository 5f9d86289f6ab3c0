#!/usr/bin/env bash
# One entropy run in N parts: sbatch --array=0-63 examples/slurm/entropy.sh gpt2 story.txt /shared/runs/story-entropy
#
# Each task measures its part of the shards in RUN, a folder that all nodes see, and may be preempted, killed and started
# again at any moment: what it had measured is there. The task that finds all shards measured writes the result; where an
# analysis takes two passes (--baseline mean), submit the array once for each. Without SLURM, bash runs all parts here:
# PARTS=4 bash examples/slurm/entropy.sh headscope-demo story.txt runs/story-entropy
#
#SBATCH --job-name=headscope-entropy
#SBATCH --array=0-63
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
set -euo pipefail

MODEL=$1 TEXT=$2 RUN=$3
shift 3

part() {
    OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} exec "${HEADSCOPE:-headscope}" entropy "$MODEL" --text "$TEXT" \
        --out "$RUN" --shard "$1" --no-progress "${@:2}"
}

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT" "$@"
else
    for number in $(seq 0 $((${PARTS:-4} - 1))); do
        (part "$number/${PARTS:-4}" "$@")
    done
fi
