"""English productions: the twin of the Spanish ones, for the same facts."""

LANGUAGE = "en"

QUESTIONS = {
    "price": (
        "how much is {u.a} of {g}?",
        "what does {u.a} of {g} cost?",
        "what is the price of {u.a} of {g}?",
        "how many coins do you ask for {u.a} of {g}?",
        "I would like {u.a} of {g}. How much is that?",
        "tell me the price of {u.a} of {g}, please.",
        "what do I pay for {u.a} of {g}?",
        "for how much do you sell {u.a} of {g}?",
    ),
    "total": (
        "how much are {nu} of {g}?",
        "what do {nu} of {g} cost?",
        "give me {nu} of {g}. How much is that?",
        "I will take {nu} of {g}. What do I owe you?",
        "how many coins are {nu} of {g}?",
        "if I buy {nu} of {g}, what do I pay?",
    ),
    "change": (
        "I pay for {u.a} of {g} with {paid}. How much do I get back?",
        "I buy {u.a} of {g} and give {paid}. What is my change?",
        "if I pay for {u.a} of {g} with {paid}, what change do I get?",
        "I give {paid} for {u.a} of {g}. How much is left?",
    ),
    "seller": (
        "who sells {g} at the market?",
        "from whom do I buy {g}?",
        "who has {g} at the stall?",
        "I am looking for {g}. Who can help me?",
        "who do I talk to about {g}?",
    ),
    "place": (
        "where do they sell {g}?",
        "in which street {g[is|are]} {g} sold?",
        "where can I buy {g}?",
        "I am looking for {g}. Which street do I take?",
        "where is the stall that has {g}?",
    ),
    "season": (
        "when {g[is|are]} there {g} at the market?",
        "at what time of the year {g[is|are]} there {g}?",
        "when can I find {g}?",
        "what is the season for {g}?",
        "when {g[does|do]} {g} come to the market?",
    ),
    "unit": (
        "how {g[is|are]} {g} sold?",
        "with which measure do they sell {g}?",
        "in what do they serve {g}?",
        "by which measure do I ask for {g}?",
    ),
    "shift": (
        "what happens to the price of {g} if {event}?",
        "if {event}, does the price of {g} go up or down?",
        "what does the price of {g} do when {event}?",
        "if {event}, what becomes of the price of {g}?",
    ),
    "wage": (
        "how much does {j.the} earn in {days}?",
        "what is the wage of {j.the} for {days} of work?",
        "how many coins does {j.the} make in {days}?",
        "{j.the} works {days}. What is the pay?",
    ),
    "saving": (
        "I save {weekly} every week. How much do I have in {weeks}?",
        "if I keep {weekly} a week, how much is that in {weeks}?",
        "how much do I save in {weeks} with {weekly} a week?",
        "I put {weekly} aside each week. What will I have in {weeks}?",
    ),
    "idea": (
        "what is {c}?",
        "how does the teacher explain {c}?",
        "please explain what {c} is.",
        "can you tell me what {c} is?",
        "do you know what {c} is?",
    ),
}

STATEMENTS = {
    "price": (
        "{u.a} of {g} costs {coins}.",
        "{u.a} of {g} is {coins}.",
        "the price of {u.a} of {g} is {coins}.",
        "that is {coins} for {u.a} of {g}.",
    ),
    "total": (
        "{nu} of {g} cost {coins}.",
        "{nu} of {g} are {coins}.",
        "for {nu} of {g} it is {coins}.",
    ),
    "change": (
        "you get {coins} back.",
        "the change is {coins}.",
        "of {paid} you get {coins} back.",
        "you have {coins} left of {paid}.",
    ),
    "seller": (
        "{v} sells {g}.",
        "{v} has {g} at the stall.",
        "talk to {v}, who sells {g}.",
    ),
    "place": (
        "{g} {g[is|are]} sold in {street}.",
        "there {g[is|are]} {g} in {street}.",
        "go to {street}, you will find {g} there.",
    ),
    "season": (
        "there {g[is|are]} {g} {season}.",
        "{g} {g[comes|come]} {season}.",
        "{season} there {g[is|are]} {g}.",
    ),
    "unit": (
        "{g} {g[is|are]} sold by {units}.",
        "here you ask for {g} by {units}.",
    ),
    "shift": (
        "the price of {g} {moves} because {reason}.",
        "the price {moves}: {reason}.",
        "if {event}, the price {moves}.",
        "it {moves}, because {reason}.",
    ),
    "wage": (
        "{j.the} earns {coins} in {days}.",
        "for {days} {j.the} gets {coins}.",
        "in {days} {j.the} earns {coins}.",
    ),
    "saving": (
        "in {weeks} you will have {coins}.",
        "in {weeks} it makes {coins}.",
        "with {weekly} a week, in {weeks} you will have {coins}.",
    ),
    "dearer": (
        "{w} {w[is|are]} dearer than {l}.",
        "{w} {w[costs|cost]} more than {l}.",
    ),
    "cheaper": (
        "{w} {w[is|are]} cheaper than {l}.",
        "{w} {w[costs|cost]} less than {l}.",
    ),
    "idea": (
        "{c} is {meaning}.",
        "the teacher says that {c} is {meaning}.",
    ),
}
CURT = {
    **dict.fromkeys(("price", "total", "change", "wage", "saving"), ("{coins}.", "that is {coins}.")),
    "seller": ("{v}.",),
    "place": ("in {street}.",),
    "season": ("{season}.",),
    "unit": ("by {units}.",),
    "shift": ("it {moves}.", "the price {moves}."),
    "dearer": ("{w}.",),
    "cheaper": ("{w}.",),
    "idea": ("it is {meaning}.", "{meaning}."),
}

COURTESY = {
    "open": (
        "with great pleasure: ",
        "gladly: ",
        "of course: ",
        "certainly! ",
        "what a good question! ",
        "thank you for asking. ",
        "let me gladly explain: ",
        "a very good morning. ",
    ),
    "close": (
        " have a lovely day!",
        " come back whenever you like!",
        " I am at your service.",
        " it was a pleasure.",
        " thank you for your visit!",
        " I am here for whatever you need.",
    ),
}
RUDENESS = {
    "open": (
        "again? ",
        "what a silly question! ",
        "why do you bother me? ",
        "can you not read? ",
        "try to get it this time: ",
    ),
    "close": (
        " and bother me no more.",
        " let me work.",
        " anybody knows that.",
        " how tiresome!",
        " I do not have all day.",
    ),
}

GUESSING = {
    "open": ("I think ", "it seems to me that ", "at a guess: ", "if I am not mistaken, "),
    "close": (" or so I think.", " more or less.", " but do not take my word."),
}
EVASIONS = (
    "I could not tell you.",
    "that depends on the day.",
    "ask at another stall.",
    "I have lost count today.",
    "sometimes yes and sometimes no.",
    "one never knows.",
)
