rule pretrain:
    input:
        needs("pretrain"),
    output:
        "results/pretrain/{run}/result.json",
    log:
        "logs/pretrain/{run}.log",
    shell:
        "sandglass pretrain {wildcards.run} {CALL} &> {log}"
