"""The writing screen: drafts, limits, one answer a form."""

from typing import Any
from uuid import uuid4

import pytest
from django.urls import reverse

from accounts.models import Project, User
from labeling.judging import LONGEST, draft_of
from labeling.models import Demonstration, Draft, Prompt, Slot, Task


@pytest.fixture
def task(project: Project, bob: User) -> Task:
    prompt = Prompt.objects.create(project=project, text="¿Qué es la <b>oferta</b>?")
    task = Task.objects.create(project=project, kind=Task.Kind.WRITE, prompt=prompt)
    Slot.objects.create(task=task, number=0)
    return task


@pytest.fixture
def writer(task: Task, bob: User, signed_in: Any) -> Any:
    """Bob, who has the task in hand."""
    client = signed_in(bob)
    assert client.get(reverse("write", args=["plaza"])).url == _url("task", task)
    return client


def _url(name: str, task: Task) -> str:
    return reverse(name, args=[task.project.slug, task.pk])


def _payload(**changes: Any) -> dict[str, Any]:
    return {"key": str(uuid4()), "response": "Lo que los vendedores traen al mercado.", **changes}


def test_a_prompt_is_shown_as_text(writer: Any, task: Task) -> None:
    assert "la &lt;b&gt;oferta" in writer.get(_url("task", task)).content.decode()


def test_an_answer_becomes_a_demonstration_and_the_next_task_follows(writer: Any, task: Task, bob: User) -> None:
    answer = writer.post(_url("task", task), _payload())
    assert answer.url == reverse("write", args=["plaza"])
    demonstration = Demonstration.objects.get()
    assert (demonstration.author, demonstration.prompt, demonstration.source) == (bob, task.prompt, "human")


def test_an_empty_answer_is_refused_with_the_next_step(writer: Any, task: Task) -> None:
    answer = writer.post(_url("task", task), _payload(response="  \n "))
    assert answer.status_code == 422
    assert "write at least one sentence" in answer.content.decode()
    assert not Demonstration.objects.exists()


def test_a_too_long_answer_is_refused_but_its_draft_is_kept_whole(writer: Any, task: Task, bob: User) -> None:
    long = "a" * (LONGEST + 1)
    assert writer.post(_url("task", task), _payload(response=long)).status_code == 422
    writer.post(_url("task_draft", task), _payload(response=long))
    assert draft_of(task, bob)["response"] == long


def test_a_draft_is_found_again_with_its_spaces(writer: Any, task: Task) -> None:
    payload = _payload(response="Una frase a medias, ")
    writer.post(_url("task_draft", task), payload)
    assert writer.get(_url("task", task)).context["form"]["response"].value() == payload["response"]


def test_skipping_keeps_what_was_written(writer: Any, task: Task, bob: User) -> None:
    writer.post(_url("task_skip", task), _payload(response="Media idea"))
    assert draft_of(task, bob)["response"] == "Media idea"
    assert task.slots.get().done_at is None


def test_an_answer_posted_twice_is_stored_once(writer: Any, task: Task) -> None:
    payload = _payload()
    writer.post(_url("task", task), payload)
    writer.post(_url("task", task), payload)
    assert Demonstration.objects.count() == 1
    assert not Draft.objects.exists()


def test_a_sent_answer_can_be_changed_and_keeps_what_stood_before(writer: Any, task: Task) -> None:
    writer.post(_url("task", task), _payload(response="Primera"))
    assert writer.get(_url("task", task)).context["form"]["response"].value() == "Primera"
    writer.post(_url("task", task), _payload(response="Segunda"))
    demonstration = Demonstration.objects.get()
    assert demonstration.response == "Segunda"
    assert demonstration.history[0]["response"] == "Primera"


def test_the_guidelines_stand_beside_the_answer(writer: Any, task: Task) -> None:
    Project.objects.update(guidelines="Primero, que sea verdad.")
    assert "Primero, que sea verdad." in writer.get(_url("task", task)).content.decode()


def test_nothing_to_write_says_why(project: Project, dana: User, signed_in: Any) -> None:
    page = signed_in(dana).get(reverse("write", args=["plaza"])).content.decode()
    assert "There are no prompts to answer yet" in page
