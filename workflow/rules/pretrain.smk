rule pretrain:
    input:
        needs("pretrain"),
    output:
        "results/pretrain/{run}/result.json",
    params:
        call=CALL,
    log:
        "logs/pretrain/{run}.log",
    conda:
        "../../envs/train.yaml"
    shell:
        "sandglass pretrain {wildcards.run} {params.call} &> {log}"
