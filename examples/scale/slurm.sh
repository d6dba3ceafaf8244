#!/usr/bin/env bash
# A SLURM job array: each task is one shard. `--requeue` restarts a preempted task, which then continues its shard.
#
#   sbatch examples/scale/slurm.sh mine/hintdistill.yaml /shared/run
#   hintdistill merge /shared/run                    # when all tasks are done: sbatch --dependency=afterok:JOBID --wrap "..."
#   hintdistill run /shared/run --resume             # trains
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --output=shard-%a.log
set -euo pipefail
config=$1 shared=$2
hintdistill run "$config" --until rescore --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" run.dir="$shared"
