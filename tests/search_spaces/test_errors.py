"""Problems and the text that people see."""

from __future__ import annotations

import pytest

from search_spaces.errors import ConfigError, Problem, dotted_path, ran_out_of_memory


def test_a_path_is_written_as_a_person_would() -> None:
    assert dotted_path(("methods", 1, "jasmin", "k")) == "methods[1].jasmin.k"
    assert dotted_path(()) == ""


def test_a_problem_leads_with_file_line_and_path() -> None:
    problem = Problem(("training", "epochs"), "found 0.", "Use 1.", "sweep.yaml", 7)
    assert str(problem) == "sweep.yaml:7: training.epochs: found 0. Use 1."
    assert str(Problem((), "empty.")) == "empty."


def test_an_error_lists_all_problems_and_counts_them() -> None:
    error = ConfigError([Problem(("a",), "one."), Problem(("b",), "two.")])
    assert str(error) == "2 problems in the configuration:\n  a: one.\n  b: two."
    assert str(ConfigError([Problem(("a",), "one.")])).startswith("1 problem in")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("RuntimeError: CUDA error: out of memory", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory", True),
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", True),
        ("MemoryError", True),
        ("ValueError: a memory of 3 is too few", False),
        ("The worker died unexpectedly; it may have been killed by SIGKILL by the OOM killer.", False),
    ],
)
def test_a_lack_of_memory_is_told_by_the_words_that_libraries_use(text: str, short: bool) -> None:
    assert ran_out_of_memory(text) is short
