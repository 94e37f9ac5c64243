"""docs/benchmark.md is true: its commands plan what its table says."""

import re


def test_its_commands_plan_what_its_table_says(workplace, repo, command):
    (workplace / "params.yaml").write_text((repo / "params.yaml").read_text())
    page = (repo / "docs" / "benchmark.md").read_text()
    commands = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and all("-n" in words for words in commands)
    whole, packing = (command(workplace, *words).stdout for words in commands)
    assert re.search(r"^pretrain +300$", whole, re.M) and re.search(r"^report +1$", whole, re.M)
    assert re.search(r"^data +1$", packing, re.M) and "pretrain" not in packing
    for study, _, _, count in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (\d+) \|$", page, re.M):
        plan = command(workplace, "sandglass", "plan", "--study", study).stdout
        assert len(re.findall(r"^\S+ +pretrain ", plan, re.M)) == int(count), study
