"""The rule by which `make soak` says that the service has grown."""

import random
from dataclasses import fields, replace

import pytest

from bench.soak import SAMPLES, THIRD, Sample, judge, table

FLAT = Sample(memory=60.0, descriptors=45, tasks=35, connections=8)


def soaked(**growth: float) -> list[Sample]:
    """Samples of a service whose figures go up by so much in each third, beside some noise."""
    return [
        replace(
            FLAT,
            **{
                name: getattr(FLAT, name) + more * number / THIRD + random.uniform(-1, 1)
                for name, more in ({"memory": 0.0} | growth).items()
            },
        )
        for number in range(SAMPLES)
    ]


def test_what_is_flat_passes() -> None:
    """Though caches fill in the first third, and now and then a sample stands out."""
    samples = soaked()
    samples[:THIRD] = [replace(FLAT, memory=40.0, descriptors=20)] * THIRD
    samples[-1] = replace(FLAT, memory=90.0, tasks=200)
    assert judge(samples) == []


@pytest.mark.parametrize("name", [field.name for field in fields(Sample)])
def test_what_grows_is_named(name: str) -> None:
    """By what it was, and what it became."""
    (said,) = judge(soaked(**{name: 12}))
    assert said.startswith(f"{name}: ")


def test_the_table_shows_the_start_the_end_and_what_is_between() -> None:
    """A line each, with the minutes."""
    lines = table(soaked(), (FLAT, FLAT), 3600).splitlines()
    assert lines[2].startswith("| at first | 60.0 | 45 | 35 | 8 |")
    assert lines[-2].startswith("| 60.0 min | ")
    assert lines[-1].startswith("| at rest | ")
