rule report:
    input:
        [ancient(f"results/{RUNS[key].result}") for key in REPORT.needs],
    output:
        f"results/{REPORT.result}",
    log:
        f"logs/report/{STUDY}.log",
    params:
        run=REPORT.name,
    shell:
        "sandglass report {params.run} {CALL} &> {log}"
