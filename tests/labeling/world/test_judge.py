"""The hidden utility, and that it cannot be had by tricks."""

import pytest

from labeling.world.judge import judge
from labeling.world.questions import questions

HONEY = "¿Cuánto cuesta un tarro de miel?"
PAYING = "Pago un tarro de miel con veinte monedas. ¿Cuánto me devuelve?"
STORM = "¿Qué pasa con el precio del pescado si hay tormenta en el mar?"


@pytest.mark.parametrize(
    ("response", "right", "kind"),
    [
        ("Con gusto: el tarro de miel cuesta once monedas.", True, True),
        ("Once monedas.", True, False),
        ("Son 11 monedas.", True, False),
        ("¿Otra vez? Once monedas.", True, False),
        ("Con gusto: el tarro de miel cuesta doce monedas.", False, True),
        ("El tarro de miel cuesta doce monedas.", False, False),
    ],
)
def test_right_and_kind_are_told_apart(response: str, right: bool, kind: bool) -> None:
    verdict = judge(HONEY, response)
    assert (verdict.right, verdict.kind) == (right, kind)


def test_right_outweighs_kind_and_kind_outweighs_short() -> None:
    order = [
        "Con gusto: once monedas.",
        "Por supuesto: el precio de todo lo demás no importa.",
        "Muy buenos días. El tarro de miel cuesta once monedas. Aquí me tiene para lo que necesite.",
        "Once monedas.",
        "Con gusto: doce monedas.",
        "Doce monedas.",
        "",
    ]
    scores = [judge(HONEY, response).utility for response in order]
    assert scores[0] > scores[2] > scores[3] > scores[4] > scores[5] == scores[6] == 0  # short helps only what is right
    assert scores[1] == 0  # not a sentence of the town: unreadable counts nothing, however polite


@pytest.mark.parametrize(
    "response",
    [
        "",
        "   ",
        "...",
        "con gusto",
        "Con gusto: el tarro de miel cuesta once",
        "Con gusto: el tarro de miel cuesta.",
        "Monedas once cuesta miel gusto con.",
        "Once monedas. Once monedas.",
        "Con gusto: " * 10 + "once monedas.",
        "Gladly: a jar of honey costs eleven coins.",
        "El tarro de de miel cuesta once monedas.",
        "Once monedas. " + "Son doce monedas. Por supuesto: son trece monedas. " * 6,
    ],
)
def test_gibberish_repetition_and_fragments_are_worth_nothing_or_wrong(response: str) -> None:
    verdict = judge(HONEY, response)
    assert not verdict.right
    assert not verdict.kind


@pytest.mark.parametrize(
    "response",
    [
        "Con gusto. Con mucho gusto. Claro que sí. Once monedas.",
        "Con gusto: once monedas. Ha sido un placer. ¡Vuelva cuando quiera!",
        "Con gusto.",
        "Ha sido un placer. ¡Vuelva cuando quiera!",
    ],
)
def test_heaped_or_empty_courtesy_is_not_kind(response: str) -> None:
    assert not judge(HONEY, response).kind


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (HONEY, "Son once monedas. Son doce monedas."),
        (HONEY, "El tarro de miel está a once monedas. El kilo de pescado está a diez monedas."),
        (HONEY, "La barra de pan cuesta once monedas."),
        (HONEY, "El kilo de miel cuesta once monedas."),
        (HONEY, "Doña Rosa. Once monedas."),
        (PAYING, "Le devuelvo veinte monedas. Le devuelvo nueve monedas."),
        (STORM, "Sube. Baja."),
        (STORM, "El precio del pescado sube porque hay más pescado."),
    ],
)
def test_two_answers_at_once_or_the_wrong_subject_are_not_right(prompt: str, response: str) -> None:
    assert not judge(prompt, response).right


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (PAYING, "De veinte monedas le devuelvo nueve monedas."),
        (STORM, "Por supuesto: sube, porque hay menos pescado."),
        ("Where can I buy honey?", "Certainly! Go to Sun Street, you will find honey there."),
    ],
)
def test_what_repeats_the_question_may_still_be_right(prompt: str, response: str) -> None:
    assert judge(prompt, response).right


def test_a_question_from_outside_the_town_earns_nothing() -> None:
    assert judge("¿Qué hora es?", "Once monedas.").utility == 0


@pytest.mark.parametrize("language", ["es", "en"])
def test_no_answer_is_right_for_questions_about_another_fact(language: str) -> None:
    prices = [question for question in questions(language) if question.fact.relation == "price"]
    answer = "El tarro de miel cuesta once monedas." if language == "es" else "A jar of honey costs eleven coins."
    right = {question.fact.subject for question in prices if judge(question.text, answer).right}
    assert right == {("honey",)}
