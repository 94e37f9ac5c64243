# usage: sh workflow/phase.sh STAGE. The command of every stage in dvc.yaml. The cluster profile comes from the
# environment (SNAKEMAKE_PROFILE=slurm dvc repro), so that dvc.lock is the same on a laptop and on a cluster.
set -eu
mkdir -p "results/$1"
case "$1" in report) target=all ;; *) target="phase_$1" ;; esac
exec snakemake --quiet rules -- "$target"
