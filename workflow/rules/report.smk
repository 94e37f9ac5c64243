rule report:
    input:
        [ancient(f"results/{RUNS[key].result}") for key in REPORT.needs],
    output:
        f"results/{REPORT.result}",
        *page_to_view(),
    params:
        run=REPORT.name,
        about=SETTINGS.studies[STUDY].about,
        call=CALL,
    log:
        f"logs/report/{STUDY}.log",
    conda:
        "../../envs/report.yaml"
    shell:
        "sandglass report {params.run} {params.call} &> {log}"
