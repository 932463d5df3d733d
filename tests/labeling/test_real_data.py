"""The real files of ../shared/data come in whole."""

import json
from pathlib import Path

import pytest
from django.conf import settings

from accounts.models import Project
from labeling.imports import import_file
from labeling.models import Demonstration, Ranking

DATA = settings.BASE_DIR.parent / "shared" / "data"
pytestmark = [
    pytest.mark.usefixtures("artifacts"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"REAL INPUT NOT TESTED: {DATA} is not there"),
]
REAL = [
    *((f"instructions/{name}.jsonl", "demonstrations", rows) for name, rows in [
        ("en_chatterbot", 673), ("en_dolly_open_qa", 3367), ("en_openstax_economics", 713),
        ("en_self_instruct_user_oriented", 229), ("en_short_llms_from_scratch", 935), ("es_chatterbot", 247),
        ("es_mgsm_numeric", 200), ("es_openstax_estadistica", 458), ("es_xquad_context_qa", 991),
    ]),
    *((f"preferences/{name}.jsonl", "preferences", rows) for name, rows in [
        ("en_hh_rlhf_harmless", 1961), ("en_llmbar", 234), ("en_pandalm_human", 713),
        ("en_short_polite_llms_from_scratch", 929),
    ]),
    ("rankings/en_oasst_ranked.jsonl", "rankings", 172),
    ("rankings/en_qa_feedback_k4.jsonl", "rankings", 400),
]  # fmt: skip
TEXTS = [
    "cuentos_es_cligs", "economics_en_openstax3e", "estadistica_empresarial_es_openstax", "grimm_en", "oz_alice_en",
    "quijote_es_pg2000_first90", "tinyshakespeare_first90", "tinystories_slice",
]  # fmt: skip


def _texts(ranking: Ranking) -> list[list[str]]:
    text_of = {c.pk: c.text for c in ranking.task.completions.all()}
    return [[text_of[pk] for pk in tier] for tier in ranking.tiers]


@pytest.mark.parametrize(("file", "kind", "rows"), REAL)
def test_real_rows_come_in(project: Project, file: str, kind: str, rows: int):
    made = import_file(project=project, kind=kind, path=DATA / file, name=Path(file).name)
    assert made.rows == rows
    assert made.manifest["imported"] == rows
    if kind == "demonstrations":
        assert Demonstration.objects.count() == rows
        return
    sources = [json.loads(line) for line in (DATA / file).read_text("utf-8").split("\n") if line]
    for ranking, source in zip(Ranking.objects.order_by("pk"), sources, strict=True):
        if kind == "preferences":
            assert _texts(ranking) == [[source["chosen"]], [source["rejected"]]]
        else:
            assert _texts(ranking) == [[source["responses"][place]] for place in source["ranking"]]


@pytest.mark.parametrize("name", TEXTS)
def test_real_texts_come_in(project: Project, name: str):
    path = DATA / "pretrain" / f"{name}.txt"
    made = import_file(project=project, kind="corpus", path=path, name=path.name)
    plain = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    assert made.file.read_bytes() == plain
    assert made.bytes == len(plain)
