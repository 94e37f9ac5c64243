# The runs of the study that params.yaml names. `snakemake --cores all` builds its report.
# Another study: --config study=NAME. Another settings file: --config params=FILE.

from snakemake.utils import min_version

min_version("9.18")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        [f"results/{run.result}" for run in RUNS.values()],


rule phase_data:
    input:
        results("data"),


rule phase_pretrain:
    input:
        results("pretrain"),


rule phase_probe:
    input:
        results("probe"),


rule phase_finetune:
    input:
        results("finetune"),


rule phase_attack:
    input:
        results("attack"),
