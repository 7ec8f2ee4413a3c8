"""When a run that finds no way to the teacher is over."""

from __future__ import annotations

from potstill.generate.ask import OUTAGE_S, Outage

LOST = "no connection: ClientConnectorError"


def test_a_teacher_that_was_never_heard_ends_a_run_after_a_round() -> None:
    """As soon as each worker has failed, and not before three requests have."""
    for workers, most in ((1, 3), (16, 16)):
        outage = Outage()
        for number in range(1, most + 1):
            outage.failed(LOST, 0.0)
            assert outage.ends_run(workers, 0.0) == (number == most)


def test_an_outage_in_the_middle_of_a_run_is_sat_out_for_a_while() -> None:
    """A network that comes back costs the cells that failed; one that stays away ends the run after ten minutes."""
    outage = Outage()
    outage.answered()
    for second in range(100):
        outage.failed(LOST, float(second))
    assert not outage.ends_run(4, 99.0)
    assert outage.ends_run(4, OUTAGE_S)
    outage.answered()
    outage.failed(LOST, OUTAGE_S + 1)
    assert not outage.ends_run(1, OUTAGE_S + 2)


def test_a_refusal_is_no_outage() -> None:
    """Whoever refuses a request was reached, however many are refused."""
    outage = Outage()
    for _ in range(50):
        outage.failed("http 400", 0.0)
    assert not outage.ends_run(1, 1e9)
