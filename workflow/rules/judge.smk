rule probe:
    input:
        needs("probe"),
    output:
        "results/probe/{run}/result.json",
    params:
        call=CALL,
    log:
        "logs/probe/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "sandglass probe {wildcards.run} {params.call} &> {log}"


rule finetune:
    input:
        needs("finetune"),
    output:
        "results/finetune/{run}/result.json",
    params:
        call=CALL,
    log:
        "logs/finetune/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "sandglass finetune {wildcards.run} {params.call} &> {log}"


rule attack:
    input:
        needs("attack"),
    output:
        "results/attack/{run}/result.json",
    params:
        call=CALL,
    log:
        "logs/attack/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "sandglass attack {wildcards.run} {params.call} &> {log}"
