"""Reads what /metrics says, as Prometheus does."""

from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass
class Scrape:
    """What one scrape has shown."""

    families: list[Metric]

    def samples(self, name: str, **labels: str) -> Iterator[float]:
        """The values of a sample whose labels are, among others, these; without the prefix."""
        for family in self.families:
            for sample in family.samples:
                if sample.name == f"systemevent_{name}" and labels.items() <= sample.labels.items():
                    yield sample.value

    def sum(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(self.samples(name, **labels))


async def scrape(admin: str) -> Scrape:
    """Ask the operator's port at this address."""
    async with aiohttp.request("GET", f"{admin}/metrics") as answer:
        assert answer.status == 200
        return Scrape(list(text_string_to_metric_families(await answer.text())))
