"""Addresses of the pages where people write, rank and watch the loop."""

from django.urls import path

from labeling.views import compare, data, home, overview, playground, rounds, stages, tasks

urlpatterns = [
    path("", home.home, name="home"),
    path("p/<slug:slug>/write/", tasks.write, name="write"),
    path("p/<slug:slug>/rank/", tasks.rank, name="rank"),
    path("p/<slug:slug>/tasks/<int:pk>/", tasks.task, name="task"),
    path("p/<slug:slug>/tasks/<int:pk>/draft/", tasks.draft, name="task_draft"),
    path("p/<slug:slug>/tasks/<int:pk>/renew/", tasks.renew_lease, name="task_renew"),
    path("p/<slug:slug>/tasks/<int:pk>/skip/", tasks.skip, name="task_skip"),
    path("p/<slug:slug>/", overview.overview, name="overview"),
    path("p/<slug:slug>/data/", data.data, name="data"),
    path("p/<slug:slug>/data/import/", data.data_import, name="data_import"),
    path("p/<slug:slug>/data/export/<slug:kind>.<slug:format>", data.data_export, name="data_export"),
    path("p/<slug:slug>/data/<int:pk>/weight/", data.data_weight, name="data_weight"),
    path("p/<slug:slug>/runs/new/<slug:stage>/", stages.run_new, name="run_new"),
    path("p/<slug:slug>/compare/", compare.compare, name="compare"),
    path("p/<slug:slug>/compare/evaluate/", compare.compare_evaluate, name="compare_evaluate"),
    path("p/<slug:slug>/rounds/", rounds.rounds, name="rounds"),
    path("p/<slug:slug>/rounds/new/", rounds.round_new, name="round_new"),
    path("p/<slug:slug>/rounds/<int:number>/", rounds.round, name="round"),
    path("p/<slug:slug>/rounds/<int:number>/<slug:action>/", rounds.round_act, name="round_act"),
    path("p/<slug:slug>/playground/", playground.playground, name="playground"),
    path("p/<slug:slug>/playground/ask/", playground.playground_ask, name="playground_ask"),
    path("p/<slug:slug>/completions/<int:pk>/events/", playground.completion_events, name="completion_events"),
]
