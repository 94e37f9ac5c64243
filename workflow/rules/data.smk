rule data:
    output:
        "results/data/{run}/result.json",
    log:
        "logs/data/{run}.log",
    shell:
        "sandglass data {wildcards.run} {CALL} &> {log}"
