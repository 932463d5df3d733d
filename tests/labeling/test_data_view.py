"""The data page: imports with their mistakes, the mixture, downloads."""

import gzip
import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from labeling.models import Demonstration, Prompt, Ranking
from registry.models import Dataset


@pytest.fixture(autouse=True)
def _own_artifacts(settings, tmp_path):
    settings.ARTIFACTS = tmp_path


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


def _file(name, rows):
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    content = text.encode()
    return SimpleUploadedFile(name, gzip.compress(content) if name.endswith(".gz") else content)


def _send(client, project, kind, file, **more):
    return client.post(reverse("data_import", args=[project.slug]), {"kind": kind, "file": file, **more})


DEMONSTRATION = {"instruction": "¿Qué es el ahorro?", "response": "Guardar monedas."}


def test_whoever_switches_the_language_on_a_refused_file_is_led_to_the_data_page(alices, project):
    assert alices.get(reverse("data_import", args=[project.slug]))["Location"] == reverse("data", args=[project.slug])


def test_text_comes_in_with_its_weight_and_checksum(alices, alice, project):
    answer = _send(alices, project, "corpus", _file("plaza.txt", "El pan cuesta dos monedas.\n"), weight="2.5")
    text = Dataset.objects.get()
    assert answer["Location"] == reverse("data", args=[project.slug])
    assert (text.name, text.weight, text.created_by) == ("plaza.txt", 2.5, alice)
    assert text.sha256[:10] in alices.get(reverse("data", args=[project.slug])).content.decode()


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_demonstrations_come_in(alices, project, name):
    _send(alices, project, "demonstrations", _file(name, [DEMONSTRATION]))
    assert Demonstration.objects.get().response == "Guardar monedas."


def test_prompts_are_held_out_where_asked(alices, project):
    _send(alices, project, "prompts", _file("p.jsonl", [{"prompt": "¿Cuánto cuesta?"}]), split="holdout")
    assert Prompt.objects.get().split == "holdout"


def test_preferences_and_rankings_come_in(alices, project):
    _send(alices, project, "preferences", _file("p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    rows = [{"prompt": "d", "responses": ["x", "y", "z"], "ranking": [2, [0, 1]]}]
    _send(alices, project, "rankings", _file("r.jsonl", rows))
    assert Ranking.objects.count() == 2


def test_a_broken_line_is_named_and_nothing_of_the_file_is_kept(alices, project):
    page = _send(alices, project, "demonstrations", _file("bad.jsonl", json.dumps(DEMONSTRATION) + "\n{broken\n"))
    text = page.content.decode()
    assert page.status_code == 422
    assert "Nothing was imported." in text
    assert "bad.jsonl line 2" in text
    assert not Demonstration.objects.exists()
    assert not Dataset.objects.exists()


def test_unknown_fields_are_refused_unless_they_shall_be_ignored(alices, project):
    rows = [{**DEMONSTRATION, "stars": 5}]
    assert "stars" in _send(alices, project, "demonstrations", _file("d.jsonl", rows)).content.decode()
    _send(alices, project, "demonstrations", _file("d.jsonl", rows), ignore_unknown="on")
    assert Demonstration.objects.count() == 1


def test_the_same_file_again_changes_nothing(alices, project):
    for _ in range(2):
        answer = alices.get(_send(alices, project, "demonstrations", _file("d.jsonl", [DEMONSTRATION]))["Location"])
    assert "already" in answer.content.decode()
    assert Dataset.objects.count() == Demonstration.objects.count() == 1


def test_too_large_an_upload_says_how_else(alices, project, settings):
    settings.UPLOAD_LIMIT_MB = 0
    assert "import_data" in _send(alices, project, "corpus", _file("t.txt", "pan")).content.decode()


def test_no_file_is_said_at_the_field(alices, project):
    page = alices.post(reverse("data_import", args=[project.slug]), {"kind": "corpus"})
    assert page.context["form"].errors["file"]


def test_mixture_is_shown_and_changed(alices, project):
    texts = [
        Dataset.objects.create(project=project, kind="corpus", name=name, path=name, sha256=name * 64) for name in "ab"
    ]
    alices.post(reverse("data_weight", args=[project.slug, texts[0].pk]), {"weight": "3"})
    page = alices.get(reverse("data", args=[project.slug]))
    assert {d.name: share for d, share in page.context["texts"]} == {"a": 75, "b": 25}


@pytest.mark.parametrize("weight", ["-1", "0", "lots", ""])
def test_a_weight_that_is_none_is_refused(alices, project, weight):
    text = Dataset.objects.create(project=project, kind="corpus", name="a", path="a", sha256="a" * 64)
    page = alices.post(reverse("data_weight", args=[project.slug, text.pk]), {"weight": weight}, follow=True)
    text.refresh_from_db()
    assert text.weight == 1.0
    assert "must be a number" in page.content.decode()


def test_download_gives_what_came_in(alices, project):
    _send(alices, project, "demonstrations", _file("d.jsonl", [DEMONSTRATION]))
    answer = alices.get(reverse("data_export", args=[project.slug, "demonstrations", "jsonl"]))
    assert json.loads(b"".join(answer.streaming_content)) == DEMONSTRATION
    assert "attachment" in answer["Content-Disposition"]
    trl = alices.get(reverse("data_export", args=[project.slug, "demonstrations", "trl"]))
    assert json.loads(b"".join(trl.streaming_content))["messages"][1]["content"] == "Guardar monedas."


@pytest.mark.parametrize(("kind", "format"), [("secrets", "jsonl"), ("prompts", "exe")])
def test_unknown_download_is_not_found(alices, project, kind, format):
    assert alices.get(reverse("data_export", args=[project.slug, kind, format])).status_code == 404


def test_rankings_have_no_trl_layout_and_say_so(alices, project):
    page = alices.get(reverse("data_export", args=[project.slug, "rankings", "trl"]), follow=True)
    assert "preferences" in page.content.decode()


def test_only_managers_reach_the_data(signed_in, bob, charlie, project, other_project):
    text = Dataset.objects.create(project=project, kind="corpus", name="a", path="a", sha256="a" * 64)
    for name, args, method in [
        ("data", [], "get"), ("data_import", [], "post"), ("data_export", ["prompts", "jsonl"], "get"),
        ("data_weight", [text.pk], "post"),
    ]:  # fmt: skip
        url = reverse(name, args=[project.slug, *args])
        assert getattr(signed_in(bob), method)(url).status_code == 403
        assert getattr(signed_in(charlie), method)(url).status_code == 404
    theirs = reverse("data_weight", args=[other_project.slug, text.pk])
    assert signed_in(charlie).post(theirs, {"weight": "9"}).status_code == 404
