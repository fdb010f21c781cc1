"""The short form of a storm: one kill of each kind. `make chaos` is the long one."""

from __future__ import annotations

import pytest

from tests.crash.storm import CTRL_C, KINDS, OF_TWENTY, draw, weather

pytestmark = pytest.mark.ray


def test_a_sweep_weathers_ctrl_c_and_a_kill_of_each_kind() -> None:
    counts = dict.fromkeys((*KINDS, CTRL_C), 1)
    assert weather(seed=5, counts=counts, sampler="random", trials=8, say=print).kills == counts


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_has_the_kills_that_it_promises_in_the_order_in_which_they_come(seed: int) -> None:
    strikes = draw(seed, OF_TWENTY)
    kills = [strike.kind for strike in strikes for _ in range(1 if strike.again_after_s is None else 2)]
    assert {kind: kills.count(kind) for kind in KINDS} == OF_TWENTY
    assert sum(OF_TWENTY.values()) == 20
    assert OF_TWENTY["driver"] >= 6
    assert [strike.at for strike in strikes] == sorted(strike.at for strike in strikes)
    assert draw(seed, OF_TWENTY) == strikes
