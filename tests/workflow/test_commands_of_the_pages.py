"""Every command of README.md and docs/*.md works: it is run here, or a table says which test runs it or why none does.

A command is a line of an indented block. A new one that is in no table fails, and so does a row that no page has.
"""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from .conftest import BIN

REPO = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{file.name}" for file in sorted((REPO / "docs").glob("*.md")))]

# Blocks of other things, by their first line.
NO_COMMANDS = {
    "raw archive -> packed array -> pretrain -> kNN / linear probe ----> report": "a drawing",
    "set-resources:": "settings: tests/cluster/test_studies.py trains with them",
    "studies:": "settings: planned below",
    "backbones:": "settings, of which the page shows parts",
    "auxiliary: [activation_norm, masked_embedding]": "settings, of which the page shows parts",
    'folder = mlflow.artifacts.download_artifacts("runs:/RUN_ID/model", tracking_uri="sqlite:///mlflow.db")': (
        "Python: tests/workflow/test_tracking.py does the same"
    ),
}

# Pages of which one test runs every line.
WALKED = {
    "docs/benchmark.md": "tests/workflow/test_benchmark_page.py",
    "docs/dvc.md": "tests/workflow/test_dvc.py",
    "docs/your-own-images.md": "tests/workflow/test_own_images.py",
}

# Commands that another test runs: the test, and the words by which it does.
ELSEWHERE = {
    "dvc repro": ("tests/workflow/test_dvc.py", 'executed("dvc repro")'),
    "mlflow ui --backend-store-uri sqlite:///mlflow.db": ("tests/browser/test_mlflow_ui.py", '"--backend-store-uri"'),
    "snakemake --cores all": ("tests/workflow/test_dag.py", '["snakemake", "--cores", "all"]'),
    "snakemake --report view.html": ("tests/workflow/test_second_view.py", '"--report", "view.html"'),
    "snakemake --profile slurm": ("tests/cluster/conftest.py", '["snakemake", "--profile", "slurm", *words]'),
}

# Not run, for the reason given: `make` only says what it would do.
PARSED = {
    "make demo": "minutes, and it installs; tests/workflow/test_dag.py builds such a study",
    "make test": "this is it",
    "make reproduce-table-4-6": "a day of a GPU",
    "make reproduce-table-4-6 STUDY=table_4_6_jpeg": "a day of a GPU, and an archive of 70 MB",
}

RUN = [
    "sandglass check",
    "sandglass check --backbone swin_tiny_patch4_window7_224 --size 32",
    "sandglass list attacks --json",
    "sandglass list objectives",
    "sandglass plan",
    "sandglass plan --study attacked",
    "sandglass status",
    "snakemake --profile slurm -n",
    "snakemake -n --cores all --config study=attacked",
    "snakemake -n --cores all --config study=thesis_cifar",
    "snakemake phase_attack -n --cores all --config study=attacked",
]
ACTIVATE = ". .venv/bin/activate"  # of the environment that `make setup` makes; the tests have their own


def blocks(page: str) -> list[list[str]]:
    """The indented blocks outside fences: their lines, without indentation and closing comments."""
    text = re.sub(r"^```.*?^```$", "", (REPO / page).read_text(), flags=re.S | re.M)
    found = re.findall(r"(?:^    .*\n)+", text, re.M)
    return [re.findall(r"^    (.*?)(?:  +# .*)?$", block, re.M) for block in found]


def commands() -> Counter[str]:
    """Those of the pages that are not walked as a whole; how often each is there."""
    every = [
        block for page in PAGES if page not in WALKED for block in blocks(page) if block[0].strip() not in NO_COMMANDS
    ]
    return Counter(line for block in every for line in block)


def test_every_command_is_in_one_table_and_every_row_on_a_page() -> None:
    known = Counter([*ELSEWHERE, *PARSED, *RUN, ACTIVATE])
    assert set(commands()) == set(known) and set(known.values()) == {1}
    assert {block[0].strip() for page in PAGES for block in blocks(page)} >= set(NO_COMMANDS)


def test_the_tests_named_here_run_what_they_are_named_for() -> None:
    for page, test in WALKED.items():
        assert re.search(rf'"docs" / "{Path(page).name}"', (REPO / test).read_text()), page
    for test, words in ELSEWHERE.values():
        assert words in (REPO / test).read_text(), test
    for reason in NO_COMMANDS.values():
        for test in re.findall(r"tests/\S+\.py", reason):
            assert (REPO / test).is_file(), test


@pytest.mark.parametrize("line", PARSED)
def test_make_knows(line: str) -> None:
    done = subprocess.run([*line.split(), "--dry-run"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and re.search("snakemake|pytest", done.stdout), done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with the shipped settings, and the study that docs/robustness.md says to append to them."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("Snakefile", "workflow", "profiles", "slurm", "envs"):
        (folder / name).symlink_to(REPO / name)
    (study,) = re.findall(r"^    studies:\n((?:    .*\n)+)", (REPO / "docs" / "robustness.md").read_text(), re.M)
    settings = (REPO / "params.yaml").read_text() + re.sub(r"^    ", "", study, flags=re.M)
    (folder / "params.yaml").write_text(settings)
    return folder


@pytest.mark.parametrize("line", RUN)
def test_it_works_as_written(line: str, place: Path, command) -> None:
    assert shutil.which(line.split()[0], path=str(BIN))
    done = command(place, *line.split(), SANDGLASS_TRACKING="off")
    assert done.stdout.strip() or done.stderr.strip()
