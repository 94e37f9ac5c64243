rule report:
    input:
        [ancient(f"results/{RUNS[key].result}") for key in REPORT.needs],
    output:
        f"results/{REPORT.result}",
    params:
        run=REPORT.name,
        call=CALL,
    log:
        f"logs/report/{STUDY}.log",
    conda:
        "../../envs/report.yaml"
    shell:
        "sandglass report {params.run} {params.call} &> {log}"
