from __future__ import annotations

from search_spaces.seeds import derive_seed


def test_derived_seeds_are_fixed_numbers_that_differ_in_every_part() -> None:
    assert derive_seed(0, "pgd", 1, 2) == derive_seed(0, "pgd", 1, 2)
    seeds = {derive_seed(seed, image, restart) for seed in range(10) for image in range(20) for restart in range(5)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)
