"""All settings, in one file; each can be set by the environment variable of the same name."""

import os
from pathlib import Path

from django.utils.translation import gettext_lazy as _

from config.env import database, env_bool, env_int, env_list, env_secret

BASE_DIR = Path(__file__).resolve().parents[2]
BUCLE_HOME = Path(os.environ.get("BUCLE_HOME") or BASE_DIR / "var").resolve()
BUCLE_HOME.mkdir(parents=True, exist_ok=True)
ARTIFACTS = Path(os.environ.get("ARTIFACTS") or BUCLE_HOME / "artifacts").resolve()

DEBUG = env_bool("DEBUG", False)
SECRET_KEY = env_secret("SECRET_KEY", keep_in=BUCLE_HOME / "secret_key")
# This machine itself always: a container's health check asks there.
ALLOWED_HOSTS = [*env_list("ALLOWED_HOSTS", []), "localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS", [])
# Behind a proxy that ends TLS: cookies only over HTTPS, HSTS for a year.
HTTPS = env_bool("HTTPS", False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^health/$"]
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True

DATABASES = {"default": database(os.environ.get("DATABASE_URL", ""), BUCLE_HOME)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Where the embedded Valkey of this home listens, written by `manage.py up`.
REDIS_URL_FILE = BUCLE_HOME / "valkey" / "url"
REDIS_URL = os.environ.get("REDIS_URL") or (
    REDIS_URL_FILE.read_text().strip() if REDIS_URL_FILE.exists() else "redis://127.0.0.1:6379/0"
)

INSTALLED_APPS = [
    "accounts",
    "registry",
    "labeling",
    "workers",
    "allauth",
    "allauth.account",
    "csp",
    "django_htmx",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "config.middleware.FormsOnlyPage",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "style-src": ["'self'", "'unsafe-inline'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
    }
}

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
ACCOUNT_ADAPTER = "accounts.adapter.ClosedSignup"
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_SESSION_REMEMBER = True
EMAIL_BACKEND = os.environ.get("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend")
# Sign-in attempts are counted here; with one web process memory is enough, compose sets Redis.
CACHES = {
    "default": (
        {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": os.environ["CACHE_URL"]}
        if os.environ.get("CACHE_URL")
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    )
}

LANGUAGE_CODE = "es"
LANGUAGES = [("es", _("Spanish")), ("en", _("English"))]
LOCALE_PATHS = [BASE_DIR / "locale"]
TIME_ZONE = os.environ.get("TIME_ZONE", "UTC")
USE_TZ = True
FORMAT_MODULE_PATH = None

STATIC_URL = "static/"
STATIC_ROOT = BUCLE_HOME / "static"
STATIC_ROOT.mkdir(exist_ok=True)
NODE_MODULES = BASE_DIR / "node_modules"
STATICFILES_DIRS = [
    BASE_DIR / "platform" / "static",
    *(
        (f"vendor/{name}", folder)
        for name, folder in [
            ("bootstrap", NODE_MODULES / "bootstrap" / "dist"),
            ("htmx", NODE_MODULES / "htmx.org" / "dist"),
            ("sortablejs", NODE_MODULES / "sortablejs"),
            ("uplot", NODE_MODULES / "uplot" / "dist"),
        ]
        if folder.exists()
    ),
]
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

DATA_UPLOAD_MAX_MEMORY_SIZE = 2_621_440
FILE_UPLOAD_MAX_MEMORY_SIZE = 2_621_440
# Larger corpora come in by `manage.py import_data`, which streams.
UPLOAD_LIMIT_MB = env_int("UPLOAD_LIMIT_MB", 250)

# A lease is a slot lent to one person; the page renews it while it is open.
LEASE_SECONDS = env_int("LEASE_SECONDS", 900)
# A run whose supervisor has been silent for this long goes back to the queue, at most MAX_ATTEMPTS times in all.
STALE_SECONDS = env_int("STALE_SECONDS", 30)
HEARTBEAT_SECONDS = env_int("HEARTBEAT_SECONDS", 3)
MAX_ATTEMPTS = env_int("MAX_ATTEMPTS", 3)
RECONCILE_SECONDS = env_int("RECONCILE_SECONDS", 5)

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_BACKEND = None
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {"workers.train": {"queue": "train"}, "workers.serve.*": {"queue": "serve"}}
# Without a socket time-out a worker behind a dead connection waits for ever and its watchdog never runs.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "health_check_interval": 5,
    "visibility_timeout": 3600,
}
# Publishing from a web request gives up soon: the reconciler rings again.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
CELERY_BEAT_SCHEDULE_FILENAME = str(BUCLE_HOME / "beat-schedule")
CELERY_BEAT_SCHEDULE = {
    "reconcile": {
        "task": "workers.reconcile",
        "schedule": RECONCILE_SECONDS,
        "options": {"expires": 3 * RECONCILE_SECONDS},
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("LOG_LEVEL", "INFO")},
}
