"""All addresses."""

from allauth.account import views as account
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def health(request: HttpRequest) -> HttpResponse:
    """The web process answers; what workers there are is on every manager's page."""
    return HttpResponse("ok", content_type="text/plain")


urlpatterns = [
    path("", include("labeling.urls")),
    path("", include("accounts.urls")),
    path("", include("registry.urls")),
    # Of allauth only what a closed installation uses: no address is ever asked for or mailed to.
    path("accounts/login/", account.login, name="account_login"),
    path("accounts/logout/", account.logout, name="account_logout"),
    path("accounts/signup/", account.signup, name="account_signup"),
    path("accounts/inactive/", account.account_inactive, name="account_inactive"),
    path("accounts/password/change/", account.password_change, name="account_change_password"),
    path("accounts/password/set/", account.password_set, name="account_set_password"),
    path("accounts/reauthenticate/", account.reauthenticate, name="account_reauthenticate"),
    path("i18n/", include("django.conf.urls.i18n")),
    path("health/", health, name="health"),
]
