"""The banner about missing workers, on a page that stays open."""

import pytest
from django.urls import reverse

from registry.health import sign_of_life

URL = "/workers/"


@pytest.mark.django_db
def test_the_banner_is_sent_only_when_it_has_changed(signed_in, alice):
    client = signed_in(alice)
    assert client.get(URL, {"seen": "default,train,serve"}).status_code == 204
    for queue in ("default", "serve"):
        sign_of_life(f"{queue}@here", queue)
    page = client.get(URL, {"seen": "default,train,serve"}).content.decode()
    assert "No train worker is running." in page
    assert "serve worker" not in page
    assert f"{URL}?seen=train" in page


def test_who_manages_nothing_is_not_told_and_stops_asking(signed_in, bob, client):
    assert signed_in(bob).get(URL).status_code == 286
    assert client.get(URL)["Location"].startswith(reverse("account_login"))


def test_only_a_managers_page_asks(signed_in, alice, bob):
    assert 'id="workers"' in signed_in(alice).get("/").content.decode()
    assert 'id="workers"' not in signed_in(bob).get("/").content.decode()
