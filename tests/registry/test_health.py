"""Pages say which worker is missing."""

import pytest
from django.utils.timezone import now, timedelta

from registry.health import ALIVE, forget, missing_queues, sign_of_life
from registry.models import WorkerProcess


@pytest.mark.django_db
def test_a_queue_is_missing_until_somebody_serves_it() -> None:
    assert missing_queues() == ["default", "train", "serve"]
    sign_of_life("train@here:1", "train")
    assert missing_queues() == ["default", "serve"]


@pytest.mark.django_db
def test_a_worker_that_fell_silent_is_missing_another_one_stands_in() -> None:
    sign_of_life("train@here:1", "train")
    WorkerProcess.objects.update(seen_at=now() - ALIVE - timedelta(seconds=1))
    assert "train" in missing_queues()
    sign_of_life("train@here:2", "train")
    assert "train" not in missing_queues()


@pytest.mark.django_db
def test_signs_of_one_worker_are_one_row_and_a_goodbye_removes_it() -> None:
    for _ in range(3):
        sign_of_life("serve@here:1", "serve")
    assert WorkerProcess.objects.count() == 1
    forget("serve@here:1")
    assert "serve" in missing_queues()
