"""Home and the frame around every page."""

from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from accounts.models import Membership, Project, Role, User
from labeling.judging import save_draft
from labeling.models import Demonstration, Prompt, Round, Slot, Task
from registry.models import Deployment, ModelVersion, WorkerProcess


def _writing_task(project: Project, text: str = "¿Qué es la oferta?") -> Task:
    task = Task.objects.create(
        project=project, kind=Task.Kind.WRITE, prompt=Prompt.objects.create(project=project, text=text)
    )
    Slot.objects.create(task=task, number=0)
    return task


def _page(client: Client) -> str:
    return client.get(reverse("home")).content.decode()


def test_a_stranger_is_sent_to_sign_in(client: Client, db: None) -> None:
    assert client.get(reverse("home")).url.startswith(reverse("account_login"))


def test_the_next_task_is_one_click_away_with_its_count(project: Project, bob: User, signed_in: Any) -> None:
    _writing_task(project)
    page = _page(signed_in(bob))
    assert f'href="{reverse("write", args=["plaza"])}"' in page
    assert "1 prompt without an answer" in page
    assert "Rank the next one" not in page


def test_drafts_and_what_was_done_lately_lead_back_to_their_tasks(project: Project, bob: User, signed_in: Any) -> None:
    begun, done = _writing_task(project, "¿Uno?"), _writing_task(project, "¿Dos?")
    save_draft(begun, bob, {"key": str(uuid4()), "response": "A medias"})
    Demonstration.objects.create(project=project, prompt=done.prompt, task=done, author=bob, response="Hecho")
    context = signed_in(bob).get(reverse("home")).context
    assert [draft.task for draft in context["drafts"]] == [begun]
    assert [entry["task"] for entry in context["lately"]] == [done]


def test_a_page_that_was_only_opened_is_no_draft(project: Project, bob: User, signed_in: Any) -> None:
    save_draft(_writing_task(project), bob, {"key": str(uuid4()), "seconds": 4})
    assert signed_in(bob).get(reverse("home")).context["drafts"] == []


def test_nobody_sees_the_projects_or_the_work_of_others(
    project: Project, other_project: Project, bob: User, charlie: User, signed_in: Any
) -> None:
    save_draft(_writing_task(project), bob, {"response": "Mío"})
    context = signed_in(charlie).get(reverse("home")).context
    assert [entry["project"] for entry in context["projects"]] == [other_project]
    assert context["drafts"] == []


def test_somebody_without_a_project_reads_the_next_step(db: None, signed_in: Any) -> None:
    page = _page(signed_in(User.objects.create_user("nadia")))
    assert "You are in no project yet" in page
    assert "<strong>nadia</strong>" in page


def test_a_manager_reads_where_the_loop_stands(project: Project, alice: User, signed_in: Any) -> None:
    client = signed_in(alice)
    assert "bring in a corpus" in _page(client)
    policy = ModelVersion.objects.create(project=project, kind="sft", number=1, path="x", sha256="0" * 64)
    assert "none is live yet" in _page(client)
    Deployment.objects.create(project=project, model=policy)
    assert "sft-1 is live and no round is open" in _page(client)
    round = Round.objects.create(project=project, number=1, policy=policy, status=Round.Status.RANKING)
    assert "0 of 0 rankings are in" in _page(client)
    Round.objects.filter(pk=round.pk).update(error="Only 3 comparisons; this run needs 32.")
    assert "Only 3 comparisons" in _page(client)


@pytest.mark.parametrize("status", Round.Status.values)
def test_every_state_of_a_round_has_a_sentence(project: Project, alice: User, signed_in: Any, status: str) -> None:
    policy = ModelVersion.objects.create(project=project, kind="sft", number=1, path="x", sha256="0" * 64)
    Round.objects.create(project=project, number=1, policy=policy, status=status)
    assert signed_in(alice).get(reverse("home")).status_code == 200


def test_a_manager_is_told_of_missing_workers_and_an_annotator_is_not(
    project: Project, alice: User, bob: User, signed_in: Any
) -> None:
    for queue in ("default", "serve"):
        WorkerProcess.objects.create(name=queue, queue=queue, seen_at=now())
    page = _page(signed_in(alice))
    assert "No train worker is running." in page
    assert "No serve worker" not in page
    assert "No train worker" not in _page(signed_in(bob))


def test_the_navigation_shows_what_the_role_may_open(project: Project, alice: User, bob: User, signed_in: Any) -> None:
    url = reverse("write", args=["plaza"])
    assert reverse("rounds", args=["plaza"]) not in signed_in(bob).get(url).content.decode()
    assert reverse("rounds", args=["plaza"]) in signed_in(alice).get(url).content.decode()


def test_a_name_with_markup_is_shown_as_text(project: Project, bob: User, signed_in: Any) -> None:
    Project.objects.update(name="<script>alert(1)</script>")
    assert "<script>alert" not in _page(signed_in(bob))


def test_the_language_switch_is_remembered(project: Project, bob: User, signed_in: Any) -> None:
    client = signed_in(bob)
    assert 'lang="en"' in _page(client)
    client.post(reverse("set_language"), {"language": "es", "next": "/"})
    page = _page(client)
    assert '<html lang="es">' in page
    assert "Hola, bob" in page


def test_an_unknown_page_offers_the_way_home(project: Project, bob: User, signed_in: Any) -> None:
    answer = signed_in(bob).get("/nowhere/")
    assert answer.status_code == 404
    assert "There is nothing here" in answer.content.decode()


def test_a_member_without_the_role_reads_why(project: Project, bob: User, signed_in: Any) -> None:
    answer = signed_in(bob).get(reverse("members", args=["plaza"]))
    assert answer.status_code == 403
    assert "needs another role" in answer.content.decode()


def test_a_reviewer_annotates_too(project: Project, rita: User, signed_in: Any) -> None:
    _writing_task(project)
    assert signed_in(rita).get(reverse("write", args=["plaza"])).status_code == 302
    assert Membership.objects.get(user=rita).role == Role.REVIEWER


def test_signing_in_and_out(project: Project, bob: User, client: Client) -> None:
    login = reverse("account_login")
    wrong = client.post(login, {"login": "bob", "password": "no"})
    assert wrong.status_code == 200
    assert client.post(login, {"login": "bob", "password": "a-long-passphrase"}).url == reverse("home")
    assert client.post(reverse("account_logout")).url == login
    assert client.get(reverse("home")).status_code == 302


def test_nobody_signs_up_alone(client: Client, db: None) -> None:
    client.post(reverse("account_signup"), {"username": "eve", "password1": "a-long-passphrase"})
    assert not User.objects.filter(username="eve").exists()


def test_health_answers_without_a_session(client: Client, db: None) -> None:
    assert client.get("/health/").content == b"ok"


@pytest.mark.parametrize("name", ["account_change_password", "account_logout", "account_reauthenticate"])
def test_account_pages_are_ours(project: Project, bob: User, signed_in: Any, name: str) -> None:
    page = signed_in(bob).get(reverse(name)).content.decode()
    assert 'class="panel alone"' in page
