"""The market town: goods, sellers, streets, trades and ideas, each with facts that never change."""

from dataclasses import dataclass

from labeling.world.words import Noun, Thing


@dataclass(frozen=True)
class Seller:
    """Someone with a stall: the same person in both languages, in one street of the town."""

    es: str
    en: str
    street_es: str
    street_en: str


@dataclass(frozen=True)
class Good:
    """What a stall sells, by which measure, at how many coins, when, and what makes it scarce or plentiful."""

    seller: str
    price: int
    season: str
    es: Noun
    unit_es: Noun
    units_es: str
    shortage_es: str
    plenty_es: str
    en: Thing
    unit_en: Thing
    units_en: str
    shortage_en: str
    plenty_en: str


@dataclass(frozen=True)
class Trade:
    """A trade and its daily wage in coins."""

    wage: int
    es: Noun
    en: Thing


@dataclass(frozen=True)
class Idea:
    """A word of economics and how the teacher of the town explains it."""

    es: Noun
    meaning_es: str
    en: Thing
    meaning_en: str


SEASONS = {
    "spring": ("en primavera", "in spring"),
    "summer": ("en verano", "in summer"),
    "autumn": ("en otoño", "in autumn"),
    "winter": ("en invierno", "in winter"),
    "always": ("todo el año", "all year round"),
}

SELLERS = {
    "tomas": Seller("don Tomás", "Tomás", "la calle del Horno", "Oven Street"),
    "rosa": Seller("doña Rosa", "Rosa", "la calle Mayor", "Main Street"),
    "lucia": Seller("doña Lucía", "Lucía", "la calle de la Huerta", "Garden Street"),
    "alba": Seller("doña Alba", "Alba", "la calle del Sol", "Sun Street"),
    "mateo": Seller("don Mateo", "Mateo", "la calle del Puerto", "Harbour Street"),
}


def _good(head: str, es: str, causes_es: str, en: str, causes_en: str) -> Good:
    """Read the compact table below: fields separated by commas or by " / "."""
    seller, price, season = head.split(", ")
    name_es, form, unit_es, units_es, unit_form = es.split(", ")
    name_en, unit_en, units_en = en.split(", ")
    shortage_es, plenty_es = causes_es.split(" / ")
    shortage_en, plenty_en = causes_en.split(" / ")
    return Good(
        seller=seller,
        price=int(price),
        season=season,
        es=Noun(name_es, form),
        unit_es=Noun(unit_es, unit_form),
        units_es=units_es,
        shortage_es=shortage_es,
        plenty_es=plenty_es,
        en=Thing(name_en, plural=form[1] == "p"),
        unit_en=Thing(unit_en),
        units_en=units_en,
        shortage_en=shortage_en,
        plenty_en=plenty_en,
    )


GOODS = {
    "bread": _good(
        "tomas, 2, always",
        "pan, ms, barra, barras, fs",
        "falta harina / hay mucha harina",
        "bread, loaf, loaves",
        "flour is missing / there is plenty of flour",
    ),
    "milk": _good(
        "rosa, 3, always",
        "leche, fs, litro, litros, ms",
        "las vacas enferman / las vacas comen bien",
        "milk, jug, jugs",
        "the cows fall ill / the cows eat well",
    ),
    "tomatoes": _good(
        "lucia, 4, summer",
        "tomates, mp, kilo, kilos, ms",
        "cae granizo / hace mucho sol",
        "tomatoes, kilo, kilos",
        "hail falls / the sun shines for weeks",
    ),
    "biscuits": _good(
        "tomas, 5, always",
        "galletas, fp, lata, latas, fs",
        "falta azúcar / sobra azúcar",
        "biscuits, tin, tins",
        "sugar is missing / there is plenty of sugar",
    ),
    "sardines": _good(
        "mateo, 6, summer",
        "sardinas, fp, caja, cajas, fs",
        "se rompen las redes / las redes vuelven llenas",
        "sardines, crate, crates",
        "the nets break / the nets come back full",
    ),
    "oranges": _good(
        "lucia, 7, winter",
        "naranjas, fp, bolsa, bolsas, fs",
        "hiela por la noche / el invierno es suave",
        "oranges, bag, bags",
        "it freezes at night / the winter is mild",
    ),
    "flowers": _good(
        "alba, 8, spring",
        "flores, fp, ramo, ramos, ms",
        "no llueve en abril / llueve mucho en abril",
        "flowers, bunch, bunches",
        "it stays dry in April / it rains a lot in April",
    ),
    "fish": _good(
        "mateo, 10, winter",
        "pescado, ms, kilo, kilos, ms",
        "hay tormenta en el mar / el mar está tranquilo",
        "fish, kilo, kilos",
        "there is a storm at sea / the sea is calm",
    ),
    "honey": _good(
        "alba, 11, summer",
        "miel, fs, tarro, tarros, ms",
        "las abejas pasan frío / las abejas trabajan bien",
        "honey, jar, jars",
        "the bees are cold / the bees work well",
    ),
    "cheese": _good(
        "rosa, 12, winter",
        "queso, ms, pieza, piezas, fs",
        "se estropea la bodega / la bodega está llena",
        "cheese, wheel, wheels",
        "the cellar is damaged / the cellar is full",
    ),
}

TRADES = {
    "postman": Trade(3, Noun("cartero"), Thing("postman")),
    "shepherd": Trade(4, Noun("pastor"), Thing("shepherd")),
    "seamstress": Trade(5, Noun("costurera", "fs"), Thing("seamstress")),
    "carpenter": Trade(7, Noun("carpintero"), Thing("carpenter")),
    "teacher": Trade(8, Noun("maestra", "fs"), Thing("teacher")),
    "doctor": Trade(10, Noun("médica", "fs"), Thing("doctor")),
}

IDEAS = {
    "supply": Idea(
        Noun("oferta", "fs"), "lo que los vendedores quieren vender", Thing("supply"), "what the sellers want to sell"
    ),
    "demand": Idea(
        Noun("demanda", "fs"), "lo que la gente quiere comprar", Thing("demand"), "what the people want to buy"
    ),
    "wage": Idea(Noun("salario"), "lo que se cobra por trabajar", Thing("a wage"), "what one earns for working"),
    "saving": Idea(
        Noun("ahorro"), "dinero que se guarda para mañana", Thing("saving"), "money that is kept for tomorrow"
    ),
    "barter": Idea(
        Noun("trueque"), "cambiar una cosa por otra sin dinero", Thing("barter"), "trading one thing for another"
    ),
    "scarcity": Idea(
        Noun("escasez", "fs"), "que no hay bastante para todos", Thing("scarcity"), "not having enough for everyone"
    ),
    "loan": Idea(Noun("préstamo"), "dinero que hay que devolver", Thing("a loan"), "money that must be given back"),
    "inflation": Idea(
        Noun("inflación", "fs"), "que suben todos los precios", Thing("inflation"), "all the prices going up"
    ),
}
