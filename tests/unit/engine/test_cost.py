"""Cost: a rate without the first epoch, minutes at that rate, a peak that a later attempt cannot lower."""

import pytest

from sandglass.engine.cost import Cost


def test_the_first_epoch_is_no_part_of_the_rate_and_minutes_are_those_of_all_epochs():
    cost = Cost()
    for epoch, seconds in ((0, 50.0), (0, 10.0), (1, 3.0), (1, 3.0), (2, 3.0), (2, 3.0)):
        cost.spent(epoch, 30, seconds)
    numbers = cost.numbers()
    assert numbers["images_per_second"] == pytest.approx(10) and numbers["minutes"] == pytest.approx(180 / 10 / 60)


def test_one_epoch_is_told_as_it_was():
    cost = Cost()
    cost.spent(0, 30, 6.0)
    assert cost.numbers()["images_per_second"] == pytest.approx(5)
    assert cost.numbers()["minutes"] == pytest.approx(0.1)


def test_it_goes_on_from_a_checkpoint():
    first = Cost()
    first.spent(0, 30, 60.0)
    first.spent(1, 30, 3.0)
    first.allocated_gib = 1000.0  # more than this process will have
    second = Cost(**vars(first))
    second.spent(1, 30, 2.0)
    second.look()
    assert second.numbers()["images_per_second"] == pytest.approx(60 / 5)
    assert second.numbers()["peak_memory_gib"] == 1000.0


def test_memory_is_that_of_the_process_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cost = Cost()
    cost.spent(0, 1, 1.0)
    held = bytearray(200 * 2**20)
    cost.look()
    assert len(held) / 2**30 < cost.numbers()["peak_memory_gib"] < 100
    assert "peak_reserved_gib" not in cost.numbers()
