rule probe:
    input:
        needs("probe"),
    output:
        shown("probe"),
    params:
        call=CALL,
    resources:
        attempt=attempt,
    log:
        "logs/probe/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "sandglass probe {wildcards.run} {params.call} --attempt {resources.attempt} &> {log}"


rule finetune:
    input:
        needs("finetune"),
    output:
        shown("finetune"),
    params:
        call=CALL,
        launch=launch,
    resources:
        attempt=attempt,
    log:
        "logs/finetune/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "{params.launch} finetune {wildcards.run} {params.call} --attempt {resources.attempt} &> {log}"


rule attack:
    input:
        needs("attack"),
    output:
        shown("attack"),
    params:
        call=CALL,
    resources:
        attempt=attempt,
    log:
        "logs/attack/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "sandglass attack {wildcards.run} {params.call} --attempt {resources.attempt} &> {log}"
