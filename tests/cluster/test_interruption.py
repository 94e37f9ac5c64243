"""A training in a real SLURM that is stopped in every way a cluster knows: one command, the same bits, nothing left.

These tests mostly wait, so they run at the same time on one cluster; each training has a node of its own.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from .conftest import Place
from .slurm import until

pytestmark = pytest.mark.cluster

BITS = ("model.safetensors", "metrics.jsonl", "config.json")
TWO_CPUS = "    cpus_per_task: 2\n"
A_NODE_OF_ITS_OWN = {"  pretrain: 2\n": "  pretrain: 1\n", "    runtime: 1440\n": "    runtime: 1440\n" + TWO_CPUS}
Scenario = Callable[[Place], None]
SCENARIOS: dict[str, tuple[Scenario, dict[str, str]]] = {}


def at_the_same_time(**profile: str) -> Callable[[Scenario], Callable[..., None]]:
    """The first such test that is run starts all that were selected; each reports its own outcome."""

    def enlist(scenario: Scenario) -> Callable[..., None]:
        SCENARIOS[scenario.__name__] = scenario, profile

        def test(outcomes: dict[str, Future[None]]) -> None:
            outcomes[scenario.__name__].result()

        test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
        return test

    return enlist


@pytest.fixture(scope="session")
def calm(cluster, repo, tmp_path_factory) -> Path:
    """The same run outside SLURM, undisturbed, with the same number of threads."""
    place = Place(tmp_path_factory.mktemp("calm"), repo, cluster)
    for stage in ("data", "pretrain"):
        place.call("sandglass", stage)
    return place.training()


@pytest.fixture(scope="session")  # a daemon dies with the thread that started it, so these threads stay
def outcomes(request, cluster, calm, repo, tmp_path_factory) -> Iterator[dict[str, Future[None]]]:
    chosen = [item.name for item in request.session.items if item.name in SCENARIOS]

    def play(name: str) -> None:
        scenario, profile = SCENARIOS[name]
        place = Place(tmp_path_factory.mktemp(name), repo, cluster, **{**A_NODE_OF_ITS_OWN, **profile})
        try:
            scenario(place)
        except AssertionError as error:
            error.add_note(f"driver.log\n{place.said()[-4000:]}\nslurmctld.log\n{cluster.said()[-4000:]}")
            raise
        for file in BITS:
            assert (place.training() / file).read_bytes() == (calm / file).read_bytes(), f"{file} differs"
        assert "is being written by another" not in place.log() + place.said(), "there was a second writer"

    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(play, name) for name in chosen}
        pool.shutdown(cancel_futures=True)


def under_way(place: Place) -> dict[str, str]:
    """Wait until the training has something to lose; its job."""
    until(place.has_saved, 120, "the first checkpoint")
    return place.running("pretrain")


@at_the_same_time(**{"    runtime: 1440\n": "    runtime: 2\n" + TWO_CPUS, "retries: 5": "retries: 9"})
def test_a_training_stops_before_its_time_limit_and_goes_on(place: Place) -> None:
    driver = place.start("phase_pretrain")
    job = under_way(place)
    (lease,) = place.root.glob("state/pretrain/*/lease.json")
    training = psutil.Process(json.loads(lease.read_text())["pid"])
    training.suspend()  # a machine on which it cannot end in time
    until(lambda: place.cluster("squeue", "-h", "-j", job["id"], "-o", "%L").strip() < "0:20", 200, "the last seconds")
    training.resume()
    place.finish(driver)
    *stopped, done = [job["state"] for job in place.jobs()]
    assert stopped and set(stopped) == {"FAILED"}, "each ended by itself: none was stopped by SLURM (TIMEOUT)"
    assert done == "COMPLETED"
    assert "resumed at step" in place.log()


@at_the_same_time()
def test_a_cancelled_training_is_resubmitted_and_goes_on(place: Place) -> None:
    driver = place.start("phase_pretrain")
    place.cluster("scancel", under_way(place)["id"])
    place.finish(driver)
    assert [job["state"] for job in place.jobs()] == ["CANCELLED", "COMPLETED"]
    assert "resumed at step" in place.log()


@at_the_same_time()
def test_a_preempted_training_is_requeued_and_goes_on(place: Place) -> None:
    driver = place.start("phase_pretrain")
    job = under_way(place)
    urgent = ("-p", "urgent", "-w", job["on"], "-c", "2", "-t", "1", "-o", "/dev/null")
    place.cluster("sbatch", *urgent, "--wrap", "sleep 1")
    place.finish(driver)
    assert [(job["id"], job["state"])] == [(done["id"], "RUNNING") for done in place.jobs()], "SLURM has restarted it"
    assert " Restarts=1 " in place.cluster("scontrol", "show", "job", job["id"])
    assert "resumed at step" in place.log()


@at_the_same_time()
def test_a_training_whose_node_dies_goes_on_elsewhere(place: Place) -> None:
    driver = place.start("phase_pretrain")
    job = under_way(place)
    place.cluster.fail_node(job["on"])
    until(lambda: place.jobs()[0]["state"] != "RUNNING", 120, "the end of the dead node's job")
    place.cluster.start_node(job["on"])
    place.finish(driver)
    assert [done["state"] for done in place.jobs()] == ["COMPLETED"]
    assert " Restarts=1 " in place.cluster("scontrol", "show", "job", job["id"])
    assert "resumed at step" in place.log()


@at_the_same_time()
def test_a_killed_driver_is_started_again_by_the_same_command(place: Place) -> None:
    driver = place.start("phase_pretrain")
    job = under_way(place)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert place.running("pretrain")["id"] == job["id"], "its job trains on"
    place.finish(place.start("phase_pretrain"))
    assert "resumed at step" in place.log()
