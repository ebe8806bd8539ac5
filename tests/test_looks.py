"""Every file that a test set judges has a number of its own, whoever asks and how many ask at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks import looks
from tasks.references import File

pytestmark = pytest.mark.usefixtures("services")

TEST, OTHER = "a" * 64, "b" * 64


def take(model: str, file: str, test: str = TEST) -> int:
    return looks.take(model, test, File("mlflow-artifacts:/somewhere", file), by="recipe run")


def test_files_are_counted_in_order_each_once_for_each_test_set() -> None:
    assert [take("counted", file) for file in ("one", "two", "one", "three")] == [1, 2, 1, 3]
    assert take("counted", "three", OTHER) == 1
    assert take("another", "three") == 1


def test_jobs_that_ask_at_once_get_a_number_each() -> None:
    files = [f"file {number}" for number in range(6)]
    with ThreadPoolExecutor(len(files)) as pool:
        numbers = list(pool.map(lambda file: take("busy", file), files))
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert [take("busy", file) for file in files] == numbers
