rule data:
    output:
        shown("data"),
    params:
        call=CALL,
    log:
        "logs/data/{run}.log",
    conda:
        "../../envs/report.yaml"
    shell:
        "sandglass data {wildcards.run} {params.call} &> {log}"
