"""Nobody gets the same slot twice, and nothing is lent beyond the overlap."""

import threading

import pytest
from django.db import connection
from django.utils.timezone import now, timedelta

from accounts.models import Membership, Project, User
from labeling.models import Prompt, Slot, Task
from labeling.queue import counts, next_task, release, renew, why_nothing


def _tasks(project: Project, count: int, overlap: int = 1, kind: str = Task.Kind.WRITE) -> list[Task]:
    made = []
    for n in range(count):
        prompt = Prompt.objects.create(project=project, text=f"¿Pregunta {n}?")
        task = Task.objects.create(project=project, kind=kind, prompt=prompt)
        Slot.objects.bulk_create(Slot(task=task, number=i) for i in range(overlap))
        made.append(task)
    return made


def test_the_same_task_comes_back_until_it_is_done(project: Project, bob: User) -> None:
    _tasks(project, 2)
    first = next_task(project, bob, Task.Kind.WRITE)
    again = next_task(project, bob, Task.Kind.WRITE)
    assert first is not None
    assert again == first


def test_two_people_get_different_tasks(project: Project, bob: User, dana: User) -> None:
    _tasks(project, 2)
    slots = [next_task(project, user, Task.Kind.WRITE) for user in (bob, dana)]
    assert None not in slots
    assert slots[0].task_id != slots[1].task_id


def test_with_overlap_two_people_share_a_task_but_nobody_has_it_twice(project: Project, bob: User, dana: User) -> None:
    _tasks(project, 1, overlap=3)
    assert next_task(project, bob, Task.Kind.WRITE).task_id == next_task(project, dana, Task.Kind.WRITE).task_id
    Slot.objects.filter(holder=bob).update(done_at=now())
    assert next_task(project, bob, Task.Kind.WRITE) is None


def test_an_expired_lease_goes_to_the_next_person(project: Project, bob: User, dana: User) -> None:
    _tasks(project, 1)
    slot = next_task(project, bob, Task.Kind.WRITE)
    assert next_task(project, dana, Task.Kind.WRITE) is None
    Slot.objects.filter(pk=slot.pk).update(leased_until=now() - timedelta(seconds=1))
    assert next_task(project, dana, Task.Kind.WRITE).pk == slot.pk
    assert renew(slot.task, bob) is None


def test_a_skipped_task_comes_back_last(project: Project, bob: User) -> None:
    first, second = _tasks(project, 2)
    assert next_task(project, bob, Task.Kind.WRITE).task_id == first.pk
    release(first, bob)
    assert next_task(project, bob, Task.Kind.WRITE).task_id == second.pk
    Slot.objects.filter(task=second).update(done_at=now())
    assert next_task(project, bob, Task.Kind.WRITE).task_id == first.pk


def test_skipping_goes_round_all_that_was_skipped(project: Project, bob: User) -> None:
    tasks = _tasks(project, 3)
    met = []
    task = next_task(project, bob, Task.Kind.WRITE).task
    for _ in range(6):
        met.append(task.pk)
        release(task, bob)
        task = next_task(project, bob, Task.Kind.WRITE, leaving=task).task
    assert met == [t.pk for t in tasks] * 2


def test_no_task_where_every_prompt_has_its_answer_says_so(project: Project, bob: User) -> None:
    assert "no prompts" in why_nothing(project, bob, Task.Kind.WRITE)
    Prompt.objects.create(project=project, text="¿Cuánto cuesta el pan?")
    assert "Every prompt has its demonstration" in why_nothing(project, bob, Task.Kind.WRITE)


def test_the_end_of_the_next_lease_is_a_time_that_the_page_puts_into_the_readers_zone(project, bob, dana) -> None:
    _tasks(project, 1)
    slot = next_task(project, bob, Task.Kind.WRITE)
    Slot.objects.filter(pk=slot.pk).update(leased_until=now() + timedelta(minutes=5))
    why = why_nothing(project, dana, Task.Kind.WRITE)
    assert "<time data-clock" in why
    assert "people&#x27;s hands" in why


def test_counts_say_what_waits_for_me(project: Project, bob: User, dana: User) -> None:
    _tasks(project, 3)
    next_task(project, bob, Task.Kind.WRITE)
    assert counts(project, bob)["write"] == 3
    assert counts(project, dana)["write"] == 2


@pytest.mark.django_db(transaction=True)
def test_sixteen_people_at_once_get_sixteen_different_slots() -> None:
    project = Project.objects.create(name="Plaza", slug="plaza")
    _tasks(project, 8, overlap=2)
    people = [User.objects.create_user(f"p{n}") for n in range(16)]
    Membership.objects.bulk_create(Membership(project=project, user=user) for user in people)
    got: list[int] = []
    start = threading.Barrier(len(people))

    def ask(user: User) -> None:
        start.wait()
        slot = next_task(project, user, Task.Kind.WRITE)
        got.append(slot.pk)
        connection.close()

    threads = [threading.Thread(target=ask, args=(user,)) for user in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 16
