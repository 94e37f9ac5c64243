rule data:
    output:
        "results/data/{run}/result.json",
    params:
        call=CALL,
    log:
        "logs/data/{run}.log",
    conda:
        "../../envs/report.yaml"
    shell:
        "sandglass data {wildcards.run} {params.call} &> {log}"
