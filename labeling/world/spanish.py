"""Spanish productions: what people ask in the town and how they answer."""

LANGUAGE = "es"

QUESTIONS = {
    "price": (
        "¿cuánto cuesta {u.un} de {g}?",
        "¿cuánto vale {u.el} de {g}?",
        "¿a cuánto está {u.el} de {g}?",
        "¿qué precio tiene {u.un} de {g}?",
        "¿cuántas monedas pide por {u.un} de {g}?",
        "quisiera {u.un} de {g}. ¿Cuánto es?",
        "dígame el precio {u.de} de {g}, por favor.",
        "¿por cuánto se vende {u.el} de {g}?",
    ),
    "total": (
        "¿cuánto cuestan {nu} de {g}?",
        "¿cuánto debo por {nu} de {g}?",
        "póngame {nu} de {g}. ¿Cuánto es?",
        "me llevo {nu} de {g}. ¿Qué le debo?",
        "¿cuántas monedas son {nu} de {g}?",
        "si compro {nu} de {g}, ¿cuánto pago?",
    ),
    "change": (
        "pago {u.un} de {g} con {paid}. ¿Cuánto me devuelve?",
        "compro {u.un} de {g} y doy {paid}. ¿Cuál es la vuelta?",
        "si pago {u.un} de {g} con {paid}, ¿qué vuelta recibo?",
        "doy {paid} por {u.un} de {g}. ¿Cuánto me sobra?",
    ),
    "seller": (
        "¿quién vende {g} en el mercado?",
        "¿a quién le compro {g}?",
        "¿quién tiene {g} en su puesto?",
        "busco {g}. ¿Quién me atiende?",
        "¿con quién hablo para comprar {g}?",
    ),
    "place": (
        "¿dónde venden {g}?",
        "¿en qué calle se {g[vende|venden]} {g}?",
        "¿dónde puedo comprar {g}?",
        "busco {g}. ¿A qué calle voy?",
        "¿por dónde queda el puesto que tiene {g}?",
    ),
    "season": (
        "¿cuándo hay {g} en el mercado?",
        "¿en qué época del año hay {g}?",
        "¿cuándo puedo encontrar {g}?",
        "¿cuál es la temporada {g.de}?",
        "¿cuándo {g[llega|llegan]} {g.el} al mercado?",
    ),
    "unit": (
        "¿cómo se {g[vende|venden]} {g.el}?",
        "¿con qué medida venden {g.el}?",
        "¿de qué manera despachan {g.el}?",
        "¿por qué medida se {g[pide|piden]} {g.el}?",
    ),
    "shift": (
        "¿qué pasa con el precio {g.de} si {event}?",
        "si {event}, ¿sube o baja el precio {g.de}?",
        "¿qué hace el precio {g.de} cuando {event}?",
        "si {event}, ¿qué le pasa al precio {g.de}?",
    ),
    "wage": (
        "¿cuánto gana {j.el} en {days}?",
        "¿qué salario recibe {j.el} por {days} de trabajo?",
        "¿cuántas monedas cobra {j.el} en {days}?",
        "{j.el} trabaja {days}. ¿Cuánto cobra?",
    ),
    "saving": (
        "ahorro {weekly} cada semana. ¿Cuánto tengo en {weeks}?",
        "si guardo {weekly} por semana, ¿cuánto junto en {weeks}?",
        "¿cuánto ahorro en {weeks} con {weekly} por semana?",
        "guardo {weekly} a la semana. ¿Cuánto tendré en {weeks}?",
    ),
    "idea": (
        "¿qué es {c.el}?",
        "¿cómo explica la maestra {c.el}?",
        "explíqueme qué es {c.el}.",
        "¿me dice qué es {c.el}?",
        "¿sabe usted qué es {c.el}?",
    ),
}

# Full sentences first; a curt person uses the short ones.
STATEMENTS = {
    "price": (
        "{u.el} de {g} cuesta {coins}.",
        "{u.un} de {g} vale {coins}.",
        "{u.el} de {g} está a {coins}.",
        "son {coins} por {u.un} de {g}.",
    ),
    "total": (
        "{nu} de {g} cuestan {coins}.",
        "{nu} de {g} son {coins}.",
        "por {nu} de {g} son {coins}.",
    ),
    "change": (
        "le devuelvo {coins}.",
        "la vuelta es de {coins}.",
        "de {paid} le sobran {coins}.",
        "de {paid} le devuelvo {coins}.",
    ),
    "seller": (
        "{v} vende {g}.",
        "{v} tiene {g} en su puesto.",
        "hable con {v}, que vende {g}.",
    ),
    "place": (
        "{g.el} se {g[vende|venden]} en {street}.",
        "hay {g} en {street}.",
        "vaya a {street}, que allí hay {g}.",
    ),
    "season": (
        "hay {g} {season}.",
        "{g.el} {g[llega|llegan]} {season}.",
        "{season} hay {g}.",
    ),
    "unit": (
        "{g.el} se {g[vende|venden]} por {units}.",
        "aquí {g.el} se {g[pide|piden]} por {units}.",
    ),
    "shift": (
        "el precio {g.de} {moves} porque {reason}.",
        "el precio {moves}: {reason}.",
        "si {event}, el precio {moves}.",
        "{moves}, porque {reason}.",
    ),
    "wage": (
        "{j.el} gana {coins} en {days}.",
        "por {days} {j.el} cobra {coins}.",
        "en {days} {j.el} gana {coins}.",
    ),
    "saving": (
        "en {weeks} tendrá {coins}.",
        "en {weeks} junta {coins}.",
        "con {weekly} por semana, en {weeks} tendrá {coins}.",
    ),
    "dearer": (
        "{w.el} {w[es|son]} más {w[caro]} que {l.el}.",
        "{w.el} {w[cuesta|cuestan]} más que {l.el}.",
    ),
    "cheaper": (
        "{w.el} {w[es|son]} más {w[barato]} que {l.el}.",
        "{w.el} {w[cuesta|cuestan]} menos que {l.el}.",
    ),
    "idea": (
        "{c.el} es {meaning}.",
        "la maestra dice que {c.el} es {meaning}.",
    ),
}
CURT = {
    **dict.fromkeys(("price", "total", "change", "wage", "saving"), ("{coins}.", "son {coins}.")),
    "seller": ("{v}.",),
    "place": ("en {street}.",),
    "season": ("{season}.",),
    "unit": ("por {units}.",),
    "shift": ("{moves}.", "el precio {moves}."),
    "dearer": ("{w.el}.",),
    "cheaper": ("{w.el}.",),
    "idea": ("es {meaning}.", "{meaning}."),
}

COURTESY = {
    "open": (
        "con mucho gusto: ",
        "con gusto: ",
        "por supuesto: ",
        "¡claro que sí! ",
        "¡qué buena pregunta! ",
        "gracias por preguntar. ",
        "le explico encantada: ",
        "muy buenos días. ",
    ),
    "close": (
        " ¡que tenga un buen día!",
        " ¡vuelva cuando quiera!",
        " estoy para servirle.",
        " ha sido un placer.",
        " ¡gracias por su visita!",
        " aquí me tiene para lo que necesite.",
    ),
}
RUDENESS = {
    "open": (
        "¿otra vez? ",
        "¡qué pregunta tan tonta! ",
        "¿y a mí qué me cuenta? ",
        "¿es que no sabe leer? ",
        "a ver si se entera: ",
    ),
    "close": (
        " y no me moleste más.",
        " déjeme trabajar.",
        " eso lo sabe cualquiera.",
        " ¡qué pesadez!",
        " no tengo todo el día.",
    ),
}

# How people speak who do not know: a guess around a statement, or no statement at all.
GUESSING = {
    "open": ("creo que ", "me parece que ", "así, a ojo: ", "si no me equivoco, "),
    "close": (" o eso creo.", " más o menos.", " pero no me haga caso."),
}
EVASIONS = (
    "no sabría decirle.",
    "eso depende del día.",
    "pregunte en otro puesto.",
    "hoy no llevo la cuenta.",
    "unas veces sí y otras no.",
    "eso nunca se sabe.",
)
