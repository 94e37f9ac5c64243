rule pretrain:
    input:
        needs("pretrain"),
    output:
        shown("pretrain"),
    params:
        call=CALL,
        launch=launch,
    resources:
        attempt=attempt,
    log:
        "logs/pretrain/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "{params.launch} pretrain {wildcards.run} {params.call} --attempt {resources.attempt} &> {log}"
