"""The demo model on indirect objects, measured once for all tests of the report."""

import pytest

from headscope import HookedTransformer
from headscope.report.task.measuring import ioi_task, measure_task
from headscope.report.task.story import TaskStory


@pytest.fixture(scope="session")
def demo() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="session")
def demo_story(demo: HookedTransformer) -> TaskStory:
    return measure_task(demo, ioi_task(demo, 48), progress=False)
