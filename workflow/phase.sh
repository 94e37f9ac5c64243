# usage: sh workflow/phase.sh STAGE. The command of every stage in dvc.yaml. The cluster profile comes from the
# environment (SNAKEMAKE_PROFILE=slurm dvc repro), so that dvc.lock is the same on a laptop and on a cluster.
set -eu
mkdir -p "results/$1"
case "$1" in report) target=all ;; *) target="phase_$1" ;; esac

# Snakemake goes by result.json alone, and DVC would record a damaged folder as the new truth.
if sandglass status | grep '^  damaged' >&2; then
    echo "Not whole. \`dvc checkout\` brings recorded results back; or remove their folders to run them again." >&2
    exit 65
fi

# Snakemake's lock outlives a SIGKILL. It goes if nobody who could hold it is alive in this folder.
alive='import os, psutil, sys
here = (p.info for p in psutil.process_iter(["cmdline", "cwd"]) if p.info["cwd"] == os.getcwd())
sys.exit(not any(os.path.basename(word) == "snakemake" for p in here for word in (p["cmdline"] or [])[:3]))'
if [ -n "$(ls -A .snakemake/locks 2>/dev/null)" ] && ! python -c "$alive"; then snakemake --quiet all --unlock; fi

exec snakemake --quiet rules -- "$target"
