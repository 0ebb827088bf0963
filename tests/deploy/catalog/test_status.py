"""How much is left, as told from the newest checkpoint."""

from scopemill.deploy.catalog.status import PassStatus, SaeStatus, SweepStatus, status_table
from scopemill.trainer.training.history import Row

ROW = Row(400, 400, 0.5, 0.4, 50.0, 50.0, 0.4, 0, 1e-3, 1e-3, 1.0, steps_per_second=2.0, waiting_share=0.0)


def sae(step: int, finished: bool, last: Row | None) -> SaeStatus:
    return SaeStatus("0.resid_post/16/jumprelu/0.001", "saes/m/h/width_16/jumprelu/0.001-0", step, 1000, finished, last, [])


def test_the_time_left_is_the_steps_left_at_the_newest_checkpoints_speed():
    assert sae(400, False, ROW).seconds_left == 300
    assert sae(0, False, None).seconds_left is None
    assert sae(1000, True, ROW).seconds_left == 0


def test_a_sweep_is_finished_with_its_last_sae_and_the_table_says_the_rest():
    status = SweepStatus("s", [PassStatus("s", 1, 3)], [sae(1000, True, ROW), sae(400, False, ROW), sae(0, False, None)])
    assert not status.finished and SweepStatus("s", [PassStatus("s", 3, 3)], status.saes[:1]).finished
    states, left, losses = (list(status_table(status).columns[i].cells) for i in (2, 3, 4))
    assert states == ["finished", "started", "not started"]
    assert left == ["", "0:05:00", ""] and losses == ["0.5", "0.5", ""]
