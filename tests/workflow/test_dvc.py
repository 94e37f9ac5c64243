"""DVC around the workflow. Every scenario counts the runs that were really executed, twice: the jobs that Snakemake
lists, and the results on disk that are new or other than before. The tests of a folder are told in order: each begins
where the one before it ended, which is part of the point."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from .conftest import BIN

SETTINGS = """\
study: demo
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 1}
studies:
  demo:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, views: baseline, epochs: 1, batch_size: 512, warmup_epochs: 0}
    probe: {probe: [knn]}
    finetune: {auxiliary: [none], labels: 0.1, views: plain, epochs: 1, batch_size: 32, warmup_epochs: 0}
    attack: {attack: [fgsm], images: 16}
    views: {baseline: {hflip: 0.0}}
    objectives: {byol: {hidden: 32, out: 16}}
    attacks: {fgsm: {epsilons: [0.0, 1.0]}, pgd: {epsilons: [0.0, 1.0], steps: 1}}
"""
PARTS = ("Snakefile", "workflow", "profiles", "slurm", "envs", "src", "dvc.yaml", ".dvcignore", ".gitignore")
EVERY = {"data": 1, "pretrain": 1, "probe": 1, "finetune": 1, "attack": 1, "report": 1}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "SNAKEMAKE_PROFILE")},
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": "src",  # of the folder that the command runs in
    "OMP_NUM_THREADS": "1",
    "SANDGLASS_TRACKING": "off",  # the subject of other tests, and seconds a phase
    **{f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


class Place:
    """A clone of the project with the smallest study, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params = folder / "params.yaml"

    def run(self, words: str, fails: bool = False) -> str:
        """What the command printed; it is run as a person types it."""
        shell = ["bash", "-c", words]
        done = subprocess.run(shell, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        text = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{words} exited {done.returncode}\n{text}"
        return text

    def executed(self, words: str) -> dict[str, int]:
        """How many runs of each stage a command executed."""
        before = self.contents()
        jobs = listed(self.run(words))
        new = Counter(path.split("/")[0] for path, text in self.contents().items() if before.get(path) != text)
        assert new == jobs, f"{words}: listed {jobs}, but new results {new}"
        return dict(new)

    def contents(self) -> dict[str, bytes]:
        files = self.folder.glob("results/*/*/result*.json")
        return {str(file.relative_to(self.folder / "results")): file.read_bytes() for file in files}

    def change(self, old: str, new: str) -> None:
        text = self.params.read_text()
        assert text.count(old) == 1
        self.params.write_text(text.replace(old, new))

    def commit(self, message: str) -> None:
        self.run(f"git add . && git commit -q -m {message}")

    def has_nothing_to_do(self) -> None:
        """Both ways of asking say so."""
        assert "Nothing to be done" in self.run("snakemake -n")
        assert "up to date" in self.run("dvc status")

    def copy(self, folder: Path) -> "Place":
        subprocess.run(["cp", "-a", str(self.folder), str(folder)], check=True)
        return Place(folder)


def listed(text: str) -> Counter[str]:
    """Runs in the tables of jobs that Snakemake printed."""
    jobs: Counter[str] = Counter()
    for table in re.findall(r"^job +count\n-+ +-+\n(.*?)^total", text, re.S | re.M):
        rows = (line.split() for line in table.strip().splitlines())
        jobs.update({name: int(n) for name, n in rows if name != "all" and not name.startswith("phase_")})
    return jobs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Place:
    """The study built by `dvc repro` and committed. The tests work on copies."""
    place = Place(tmp_path_factory.mktemp("dvc") / "built")
    place.folder.mkdir()
    for name in PARTS:
        source = repo / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, place.folder / name, ignore=ignore) if source.is_dir() else shutil.copy(
            source, place.folder
        )
    place.params.write_text(SETTINGS)
    place.run("git init -q -b main && dvc init -q && dvc config core.analytics false")
    shutil.copytree(repo / ".dvc" / "plots", place.folder / ".dvc" / "plots", dirs_exist_ok=True)
    assert place.executed("dvc repro") == EVERY
    place.commit("built")
    return place


# --------------------------------------------------------------------------------- one folder, changed again and again


@pytest.fixture(scope="module")
def changing(built: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return built.copy(tmp_path_factory.mktemp("changing") / "place")


def test_no_change(changing: Place) -> None:
    changing.has_nothing_to_do()
    assert changing.executed("dvc repro") == {}


def test_one_finetune_value(changing: Place) -> None:
    changing.change("labels: 0.1", "labels: 0.2")
    assert changing.executed("dvc repro") == {"finetune": 1, "attack": 1, "report": 1}
    changing.has_nothing_to_do()
    changing.commit("labels")


def test_one_view_value_through_snakemake_then_dvc_runs_nothing_and_records_it(changing: Place) -> None:
    changing.change("hflip: 0.0", "hflip: 0.5")
    assert changing.executed("snakemake") == {"pretrain": 1, "probe": 1, "report": 1}
    assert "changed" in changing.run("dvc status")
    assert changing.executed("dvc repro") == {}
    changing.has_nothing_to_do()


def test_an_added_probe(changing: Place) -> None:
    changing.change("probe: [knn]", "probe: [knn, linear]")
    assert changing.executed("dvc repro") == {"probe": 1, "report": 1}


def test_an_added_auxiliary_and_an_added_attack(changing: Place) -> None:
    changing.change("auxiliary: [none]", "auxiliary: [none, drloc]")
    assert changing.executed("dvc repro finetune") == {"finetune": 1}
    changing.change("attack: [fgsm]", "attack: [fgsm, pgd]")
    assert changing.executed("snakemake") == {"attack": 3, "report": 1}, "both of the new model, and PGD of the old one"


def test_values_put_back_find_their_results(changing: Place) -> None:
    changing.run("git checkout -q params.yaml")
    assert changing.executed("dvc repro") == {"report": 1}, "the page alone: it has one place"
    changing.change("labels: 0.2", "labels: 0.1")
    assert changing.executed("snakemake") == {"report": 1}


def test_an_edited_template_of_the_report(changing: Place) -> None:
    template = changing.folder / "src" / "sandglass" / "report" / "templates" / "page.html.j2"
    template.write_text(template.read_text().replace("</body>", "<p>Edited.</p></body>"))
    assert changing.executed("dvc repro") == {"report": 1}
    assert "<p>Edited.</p>" in (changing.folder / "results/report/demo/index.html").read_text()


def test_a_default_in_the_code_of_an_idea(changing: Place) -> None:
    file = changing.folder / "src" / "sandglass" / "objectives" / "byol.py"
    text = file.read_text()
    assert '"momentum": ' in text
    file.write_text(re.sub(r'("momentum": \(?)([0-9.]+)', r"\g<1>0.5", text, count=1))
    assert file.read_text() != text
    assert changing.executed("dvc repro") == {"pretrain": 1, "probe": 1, "report": 1}
    changing.run("git checkout -q src")


def test_a_removed_result_folder(changing: Place) -> None:
    changing.executed("dvc repro")
    shutil.rmtree(changing.folder / "results" / "finetune" / now(changing, "finetune"))
    assert changing.executed("dvc repro") == {"finetune": 1}
    changing.has_nothing_to_do()


def now(place: Place, stage: str) -> str:
    """The name of a stage's only run in the present plan."""
    rows = [row for row in json.loads(place.run("sandglass plan --json")) if row["stage"] == stage]
    return str(rows[0]["run"])


def test_a_damaged_folder_is_not_recorded_and_the_message_brings_it_back(changing: Place) -> None:
    model = changing.folder / "results" / "pretrain" / now(changing, "pretrain") / "model.safetensors"
    locked = (changing.folder / "dvc.lock").read_bytes()
    model.unlink()
    text = changing.run("dvc repro", fails=True)
    assert "error R-113" in text and f"results/pretrain/{model.parent.name}" in text and "dvc checkout" in text
    assert (changing.folder / "dvc.lock").read_bytes() == locked
    changing.run("dvc checkout")
    changing.has_nothing_to_do()


def test_an_older_commit_with_its_results(changing: Place) -> None:
    changing.commit("later")
    changing.run("git checkout -q HEAD~1 && dvc checkout")
    assert "labels: 0.2" in changing.params.read_text()
    changing.has_nothing_to_do()
    assert changing.executed("dvc repro") == changing.executed("snakemake") == {}
    changing.run("git checkout -q main && dvc checkout")
    changing.has_nothing_to_do()


def test_a_clone_that_pulls_has_nothing_to_do_and_an_added_seed_runs_alone(changing: Place, tmp_path: Path) -> None:
    changing.run(f"dvc remote add -q --default store {tmp_path / 'store'} && git commit -q -a -m remote && dvc push")
    changing.run(f"git clone -q . {tmp_path / 'clone'}")
    clone = Place(tmp_path / "clone")
    clone.run("dvc pull")
    clone.has_nothing_to_do()
    assert clone.executed("snakemake") == clone.executed("dvc repro") == {}
    clone.change("seeds: [0]", "seeds: [0, 1]")
    assert clone.executed("dvc repro") == {"pretrain": 1, "probe": 1, "finetune": 1, "attack": 1, "report": 1}
    clone.has_nothing_to_do()


# ----------------------------------------------------------------------------------------------------- kinds of cache


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_cache_of_links(built: Place, tmp_path: Path, kind: str) -> None:
    """Nothing is written through a link: what a stage makes again is a file of its own, and the cache stays whole."""
    place = built.copy(tmp_path / "place")
    place.run(f"dvc config cache.type {kind} && dvc checkout --relink")
    files = filled(place)
    assert files and all(link(file) == kind for file in files)
    place.has_nothing_to_do()
    for file in [*place.folder.glob("results/*/*/result*.json"), *place.folder.glob("state/*/*/result*.json")]:
        file.unlink()  # every stage writes again into a folder of links; without its copy in state nothing is put back
    assert place.executed("snakemake") == EVERY
    assert {file for file in files if file.exists() and link(file) != "copy"} == set(), "written through a link"
    assert_whole(place)
    assert place.executed("dvc repro") == {}, "records what was made again"
    if kind == "copy":
        return
    place.change("images: 16", "images: 8")
    assert place.executed("dvc repro") == {"attack": 1, "report": 1}
    place.commit("fewer")
    assert all(link(file) == kind for file in filled(place))
    place.run("git checkout -q HEAD~1 -- . && dvc checkout")
    place.has_nothing_to_do()
    assert_whole(place)


def filled(place: Place) -> list[Path]:
    """The results' files; DVC never links an empty one, as the system samples of a run of less than a second are."""
    return [file for file in place.folder.glob("results/*/*/*") if file.is_file() and file.stat().st_size]


def link(file: Path) -> str:
    if file.is_symlink():
        return "symlink"
    return "hardlink" if file.stat().st_nlink > 1 else "copy"


def assert_whole(place: Place) -> None:
    """Every file of the cache still has the content that it is named after."""
    files = [file for file in place.folder.glob(".dvc/cache/files/md5/*/*") if file.is_file()]
    assert files
    for file in files:
        name = file.parent.name + file.name.removesuffix(".dir")
        assert hashlib.md5(file.read_bytes()).hexdigest() == name


# --------------------------------------------------------------------------------------------------------- interrupted


@contextmanager
def repro_in_training(place: Place) -> Iterator[tuple[psutil.Process, list[psutil.Process]]]:
    """A `dvc repro` in a session of its own, whose training has saved a checkpoint; dvc and all below it."""
    began, end = time.time(), time.monotonic() + 120
    with (place.folder / "repro.log").open("w") as log:
        started = subprocess.Popen(
            ["dvc", "repro"], cwd=place.folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
    dvc = psutil.Process(started.pid)
    while not any(file.stat().st_mtime > began for file in place.folder.glob("state/pretrain/*/checkpoints/*.json")):
        assert started.poll() is None and time.monotonic() < end, (place.folder / "repro.log").read_text()
        time.sleep(0.2)
    below = dvc.children(recursive=True)
    try:
        yield dvc, below
    finally:
        for process in (dvc, *below):
            if process.is_running():
                process.kill()
        started.wait(timeout=60)


@pytest.fixture(scope="module")
def stopping(built: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A copy whose pretraining is long enough to be met in the middle."""
    place = built.copy(tmp_path_factory.mktemp("stopping") / "place")
    place.change("views: baseline, epochs: 1", "views: baseline, epochs: 80")
    return place


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
def test_a_stopped_repro_leaves_nothing_half_written(stopping: Place, number: signal.Signals) -> None:
    before = stopping.contents()
    lock = yaml.safe_load((stopping.folder / "dvc.lock").read_text())["stages"]["pretrain"]
    with repro_in_training(stopping) as (dvc, below):
        os.killpg(dvc.pid, number)
        assert psutil.wait_procs([dvc, *below], timeout=60)[1] == []
    assert stopping.contents() == before
    assert yaml.safe_load((stopping.folder / "dvc.lock").read_text())["stages"]["pretrain"] == lock
    assert list(stopping.folder.glob("results/**/*.tmp")) == []


def test_a_dvc_that_is_terminated_leaves_its_phase_to_end_and_nobody_runs_beside_it(stopping: Place) -> None:
    with repro_in_training(stopping) as (dvc, below):
        (training,) = (process for process in below if process.cmdline()[1].endswith("sandglass"))
        training.suspend()  # so that it is sure to be met
        dvc.terminate()
        dvc.wait(timeout=60)
        for words in ("dvc repro", "snakemake"):
            assert "Directory cannot be locked" in stopping.run(words, fails=True)
        training.resume()
        assert psutil.wait_procs(below, timeout=200)[1] == []


def test_the_same_command_goes_on_and_ends(stopping: Place) -> None:
    run = now(stopping, "pretrain")
    assert stopping.executed("dvc repro") == {"probe": 1, "report": 1}, "the phase that was left alone ended by itself"
    facts = json.loads((stopping.folder / "results" / "pretrain" / run / "result.json").read_text())
    assert facts["attempts"] == 3, "interrupted, killed, and gone on to the end from the saved state"
    stopping.has_nothing_to_do()


# ------------------------------------------------------------------------------------------------------- docs/dvc.md


@pytest.fixture(scope="module")
def telling(built: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = built.copy(tmp_path_factory.mktemp("telling") / "place")
    place.change("probe: [knn]", "probe: [knn, linear]")
    return place


@pytest.fixture(scope="module")
def told(telling: Place, repo: Path) -> dict[str, str]:
    """Every command of docs/dvc.md, in its order -> what it printed."""
    lines = [line[4:] for line in (repo / "docs" / "dvc.md").read_text().splitlines() if line.startswith("    ")]
    commands = [re.split(r" +# ", line)[0].rstrip() for line in lines]
    return {command: telling.run(command) for command in commands}


def said(told: dict[str, str], start: str) -> str:
    """What the command that starts so printed."""
    (text,) = (text for command, text in told.items() if command.startswith(start))
    return text


def test_every_command_of_the_page_works(told: dict[str, str]) -> None:
    assert listed(said(told, "dvc repro")) == {"probe": 1, "report": 1}
    for words in ("dvc push", "git clone"):
        assert re.search(r"\d+ files? (pushed|fetched)", said(told, words)), said(told, words)


def test_metrics_params_and_plots_say_what_differs(told: dict[str, str], telling: Place) -> None:
    text = said(told, "dvc params diff")
    assert re.search(r"studies.demo.finetune.epochs +1 +40", text), text
    assert re.search(r"finetune.scratch/none.top1 +[0-9.]+ +[0-9.]+ +-?[0-9.]+", text), text
    for name in ("probe.knn/pretrained.top1", "probe.linear/pretrained.top1", "finetune.scratch/none.top1"):
        assert name in said(told, "dvc metrics show")
    assert "attack.fgsm/scratch/none.robust_top1_1_255" in said(told, "dvc metrics show")
    page = (telling.folder / "dvc_plots" / "index.html").read_text()
    assert "probe/linear/pretrained" in page and "finetune/scratch/none" in page
    assert "pretrain-byol.csv" in page and "finetune-scratch-none.csv" in page


def test_experiments_run_what_is_new_and_show_their_metrics(told: dict[str, str], telling: Place) -> None:
    for words in ("dvc exp run -S", "dvc exp run --temp"):
        assert listed(said(told, words)) == {"finetune": 1, "attack": 1, "report": 1}
    rows = telling.run("git checkout -q main && dvc checkout -q && dvc exp show -A --csv").splitlines()
    assert any("finetune.scratch/none.top1" in row for row in rows[:1]), rows[0]
    assert any("longer" in row and ",50" in row for row in rows), rows


def test_an_applied_experiment_of_a_copy_is_there_whole_and_in_mlflow(told: dict[str, str], telling: Place) -> None:
    telling.has_nothing_to_do()
    runs = len(list(telling.folder.glob("results/*/*/run.json")))
    assert f"{runs} runs in sqlite:///{telling.folder / 'mlflow.db'}" in said(told, "dvc exp apply")
    assert telling.executed("dvc repro") == telling.executed("snakemake") == {}


def test_the_cluster_profile_comes_from_the_environment(told: dict[str, str], telling: Place) -> None:
    """Nothing is left to submit, so no cluster is needed; what DVC records is the same."""
    before = (telling.folder / "dvc.lock").read_text()
    telling.change("log_every_steps: 1", "log_every_steps: 2")
    text = telling.run(next(command for command in told if "slurm" in command))
    assert text.count("Using profiles slurm and") == text.count("Nothing to be done") == len(EVERY), text
    assert (telling.folder / "dvc.lock").read_text() == before.replace("log_every_steps: 1", "log_every_steps: 2")


def test_an_override_changes_one_value_of_the_shipped_settings_and_no_other(repo: Path, tmp_path: Path) -> None:
    """`dvc exp run -S` rewrites the whole file; every number in it has to mean what it meant."""
    from dvc.utils.hydra import apply_overrides

    from sandglass.config import load

    file = Path(shutil.copy(repo / "params.yaml", tmp_path))
    wanted = load(file).model_dump()
    apply_overrides(file, ["studies.demo.finetune.epochs=40"])
    wanted["studies"]["demo"]["finetune"]["epochs"] = 40
    assert load(file).model_dump() == wanted
