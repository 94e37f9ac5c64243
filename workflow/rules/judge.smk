rule probe:
    input:
        needs("probe"),
    output:
        "results/probe/{run}/result.json",
    log:
        "logs/probe/{run}.log",
    shell:
        "sandglass probe {wildcards.run} {CALL} &> {log}"


rule finetune:
    input:
        needs("finetune"),
    output:
        "results/finetune/{run}/result.json",
    log:
        "logs/finetune/{run}.log",
    shell:
        "sandglass finetune {wildcards.run} {CALL} &> {log}"


rule attack:
    input:
        needs("attack"),
    output:
        "results/attack/{run}/result.json",
    log:
        "logs/attack/{run}.log",
    shell:
        "sandglass attack {wildcards.run} {CALL} &> {log}"
