"""An address that only takes forms, opened by a person and by a program."""

from django.urls import reverse


def test_a_person_reads_what_to_do_a_program_gets_the_bare_answer(signed_in, alice, project):
    url = reverse("round_act", args=[project.slug, 1, "close"])
    page = signed_in(alice).get(url, headers={"accept": "text/html"})
    assert (page.status_code, page["Allow"]) == (405, "POST")
    assert "only takes forms" in page.content.decode()
    assert signed_in(alice).get(url, headers={"accept": "application/json"}).content == b""
