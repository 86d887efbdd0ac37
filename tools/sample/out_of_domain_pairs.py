"""Minimal pairs of the out-of-domain dev file: other phenomena in other words than the training file has."""

from drawing import Draw, action, inflect, nouns, with_article, words

Pair = tuple[str, str]

WOMEN = words(
    "Kate, Alice, Susan, Linda, Rachel, Janet, Monica, Brenda, my niece, the landlady, the widow, the duchess"
)
MEN = words(
    "George, Henry, Bruce, Kevin, Walter, Philip, Stephen, Roger, my nephew, the landlord, the duke, the bishop"
)
NAMES = words("Kate, Alice, Susan, Linda, Rachel, Janet, George, Henry, Bruce, Kevin, Walter, Philip")
PEOPLE = nouns(
    "sailor, professor, dentist, journalist, carpenter, musician, butcher, librarian, cyclist, detective, hunter, "
    "chef, clerk, banker, electrician, photographer, tailor, fisherman/fishermen"
)
IDLE = [
    inflect(base)
    for base in words("sneeze, snore, yawn, faint, giggle, resign, shiver, stumble, hesitate, vanish, protest")
]
HANDIWORK = [
    action(entry)
    for entry in [
        "sew sews sewed sewn sewing: blanket, cushion, costume, glove",
        "fold: blanket, napkin, flag, tent",
        "iron: shirtsleeve, napkin, costume, skirt",
        "polish: trumpet, spoon, boot, violin",
        "grill: steak, sausage, pepper, eggplant",
        "peel: orange, onion, lemon, cucumber",
        "borrow: tent, violin, sofa, hammer",
        "bake: pie, muffin, pizza, cookie",
        "weld: pipe, gutter, railing, hinge",
        "knit knits knitted knitted knitting: sweater, glove, scarf, blanket",
    ]
]


def woman_or_man(draw: Draw) -> tuple[str, str]:
    """A person and the pronoun for them."""
    return (draw(WOMEN), "she") if draw.chance(1, 2) else (draw(MEN), "he")


def person(draw: Draw) -> str:
    """One person."""
    return draw([*WOMEN, *MEN, *("the " + role.singular for role in PEOPLE)])


def coordination(draw: Draw) -> Pair:
    """`both A and B` and not `both A or B`; nothing is asked out of one half."""
    one, other = (draw(WOMEN), draw(MEN)) if draw.chance(1, 2) else ("the " + draw(PEOPLE).singular, draw(NAMES))
    first, second = draw.two(HANDIWORK)
    thing, another = draw.two(first.objects)
    unrelated = draw(second.objects)
    made, also = first.verb, second.verb
    pairing, right, wrong = draw([("both", "and", "or"), ("either", "or", "and"), ("neither", "nor", "and")])
    what = f"what did {one} {made.base} and {other} {also.base}"
    start = f"{one} {made.past} the {thing} and"
    return draw(
        [
            (f"{what}?", f"{what} the {unrelated}?"),
            (f"what did {one} and {other} {made.base}?", f"what did {one} {made.base} the {thing} and?"),
            (f"who did {one} and {other} hug?", f"who did {one} hug {other} and?"),
            (f"{start} {also.past} the {unrelated}", f"{start} {also.gerund} the {unrelated}"),
            (
                f"{pairing} {one} {right} {other} {made.past} the {thing}",
                f"{pairing} {one} {wrong} {other} {made.past} the {thing}",
            ),
            (
                f"{one} {made.past} {pairing} the {thing} {right} the {another}",
                f"{one} {made.past} {pairing} the {thing} {wrong} the {another}",
            ),
        ]
    )


def tag_question(draw: Draw) -> Pair:
    """`she left, didn't she?` and not `she left, isn't she?`."""
    name, pronoun = woman_or_man(draw)
    other = "he" if pronoun == "she" else "she"
    idle = draw(IDLE)
    right, wrong = draw(
        [
            (f"{idle.past}, didn't {{}}", f"{idle.past}, {draw(words('isn’t, hasn’t, won’t'))} {{}}"),
            (f"is {idle.gerund}, isn't {{}}", f"is {idle.gerund}, {draw(words('doesn’t, hasn’t, won’t'))} {{}}"),
            (
                f"has {idle.participle}, hasn't {{}}",
                f"has {idle.participle}, {draw(words('isn’t, didn’t, can’t'))} {{}}",
            ),
            (f"will {idle.base}, won't {{}}", f"will {idle.base}, {draw(words('isn’t, didn’t, hasn’t'))} {{}}"),
            (f"didn't {idle.base}, did {{}}", f"didn't {idle.base}, didn't {{}}"),
            (f"can't {idle.base}, can {{}}", f"can't {idle.base}, {draw(words('is, has, did'))} {{}}"),
        ]
    )
    if draw.chance(1, 4):
        return f"{name} {right.format(pronoun)}?", f"{name} {right.format(other)}?"
    return f"{name} {right.format(pronoun)}?", f"{name} {wrong.format(pronoun)}?".replace("’", "'")


PARTICLES = [
    ("switched", "off", words("heater, alarm, television, computer")),
    ("turned", "down", words("television, stereo, heater")),
    ("picked", "up", words("hammer, magazine, glove, spoon")),
    ("tossed", "out", words("magazine, receipt, mattress, sweater")),
    ("mailed", "in", words("form, questionnaire, application")),
    ("dug", "up", words("skeleton, fossil, onion")),
]
PREPOSITIONS = [
    ("jumped", "onto", words("mattress, raft, trampoline")),
    ("stepped", "over", words("puddle, mattress, hose, branch")),
    ("leaned", "against", words("railing, pillar, lamppost, haystack")),
    ("crawled", "under", words("sofa, hedge, mattress, bench")),
    ("stared", "at", words("sculpture, comet, menu, scarecrow")),
]


def particle_and_preposition(draw: Draw) -> Pair:
    """`picked it up` and not `picked up it`; `stared at it` and not `stared it at`."""
    one, other = draw.two([*WOMEN, *MEN])
    if draw.chance(1, 2):
        past, particle, things = draw(PARTICLES)
        right, wrong = f"{past} it {particle}", f"{past} {particle} it"
    else:
        past, particle, things = draw(PREPOSITIONS)
        right, wrong = f"{past} {particle} it", f"{past} it {particle}"
    thing = draw(things)
    start = draw(
        [
            f"{one} spotted the {thing} and",
            f"as soon as {one} spotted the {thing}, {other}",
            f"{one} ignored the {thing} until {other}",
            f"nobody touched the {thing} before {one}",
        ]
    )
    return f"{start} {right}", f"{start} {wrong}"


STRANDED = [
    # None of these verbs can take the noun itself as its object
    ("sofa", "comfortable", "lounge", "on"),
    ("bench", "comfortable", "recline", "on"),
    ("mattress", "comfortable", "nap", "on"),
    ("violin", "easy", "play sonatas", "on"),
    ("pencil", "awkward", "scribble", "with"),
    ("banker", "tough", "negotiate", "with"),
    ("professor", "pleasant", "chat", "with"),
    ("roommate", "tough", "argue", "with"),
    ("toddler", "fun", "play hopscotch", "with"),
    ("dormitory", "unpleasant", "stay", "in"),
    ("audience", "easy", "perform", "for"),
]
TOUGH = [
    ("riddle", "tricky", "solve"),
    ("cliff", "risky", "climb"),
    ("costume", "easy", "iron"),
    ("theorem", "tough", "prove"),
    ("onion", "unpleasant", "peel"),
    ("dialect", "tricky", "understand"),
    ("stain", "impossible", "remove"),
    ("recipe", "easy", "follow"),
]


def tough_construction(draw: Draw) -> Pair:
    """`this bench is comfortable to recline on` and not `… to recline`."""
    subject = person(draw)
    if draw.chance(1, 2):
        noun, adjective, do, preposition = draw(STRANDED)
        task = f"{do} {preposition}"
        bad = do
    else:
        noun, adjective, do = draw(TOUGH)
        task, bad = do, f"{do} it"
    return draw(
        [
            (f"this {noun} is {adjective} to {task}", f"this {noun} is {adjective} to {bad}"),
            (
                f"{subject} complained that the {noun} was {adjective} to {task}",
                f"{subject} complained that the {noun} was {adjective} to {bad}",
            ),
            (f"the {noun} proved {adjective} to {task}", f"the {noun} proved {adjective} to {bad}"),
            (f"it is {adjective} to {task} this {noun}", f"it is {adjective} this {noun} to {task}"),
        ]
    )


def raising_and_control(draw: Draw) -> Pair:
    """`it is likely to hail` and not `it is eager to hail`."""
    name, pronoun = woman_or_man(draw)
    idle = draw(IDLE)
    state = draw(words("jealous, dizzy, confident, lonely, grumpy, ashamed"))
    seems = draw(words("seemed, appears"))
    eager = draw(words("eager, reluctant, keen, unwilling"))
    weather = draw(words("thunder, hail, drizzle"))
    event = draw(words("earthquake, scandal, thunderstorm, famine, rebellion"))
    return draw(
        [
            (f"{name} {seems} to be {state}", f"{name} {seems} that {pronoun} is {state}"),
            (f"it {seems} that {name} {idle.past}", f"it {seems} {name} to have {idle.participle}"),
            (f"{name} is likely to {idle.base}", f"{name} is {draw(words('probable, possible'))} to {idle.base}"),
            (f"it is probable that {name} will {idle.base}", f"{name} is probable that {pronoun} will {idle.base}"),
            (f"there is likely to be {with_article(event)}", f"there is {eager} to be {with_article(event)}"),
            (f"it is likely to {weather}", f"it is {eager} to {weather}"),
            (f"{name} is {eager} to {idle.base}", f"{name} is {eager} that {pronoun} to {idle.base}"),
            (f"it {seems} to be {name} who {idle.past}", f"it {seems} being {name} who {idle.past}"),
        ]
    )


PLACES = [("sofa", "snored on"), ("cliff", "climbed onto"), ("tent", "shivered in"), ("compass", "relied on")]


def relative_clause_gap(draw: Draw) -> Pair:
    """`the tent that he sewed` and not `the tent that he sewed it`."""
    subject, role = person(draw), draw(PEOPLE).singular
    made = draw(HANDIWORK)
    thing, past = draw(made.objects), made.verb.past
    place, snored_on = draw(PLACES)
    state = draw(words("damp, moldy, ugly, dusty, enormous, precious, crooked, ruined"))
    hired = draw(words("hired, interviewed, insulted, adored, arrested"))
    idle = draw(IDLE).past
    return draw(
        [
            (f"the {thing} that {subject} {past} was {state}", f"the {thing} that {subject} {past} it was {state}"),
            (f"the {thing} which {subject} {past} was {state}", f"the {thing} who {subject} {past} was {state}"),
            (
                f"the {place} that {subject} {snored_on} was {state}",
                f"the {place} that {subject} {snored_on} it was {state}",
            ),
            (f"the {role} who {subject} {hired} has resigned", f"the {role} who {subject} {hired} them has resigned"),
            (f"the {role} whose nephew {idle} was {hired}", f"the {role} which nephew {idle} was {hired}"),
            (f"this is the {place} on which {subject} {idle}", f"this is the {place} on which {subject} {idle} on it"),
        ]
    )


def ellipsis_and_inversion(draw: Draw) -> Pair:
    """`she left, and so did he` and not `she left, and so was he`."""
    one, other = draw.two([*WOMEN, *MEN])
    idle = draw(IDLE)
    positive, negative, right, wrong = draw(
        [
            (idle.past, f"did not {idle.base}", "did", "was"),
            (f"{idle.third} constantly", f"does not {idle.base} constantly", "does", "is"),
            (f"has {idle.participle}", f"has not {idle.participle}", "has", "is"),
            (f"could {idle.base}", f"could not {idle.base}", "could", "was"),
            (f"will {idle.base}", f"will not {idle.base}", "will", "is"),
        ]
    )
    return draw(
        [
            (f"{one} {positive}, and so {right} {other}", f"{one} {positive}, and so {wrong} {other}"),
            (f"{one} {positive}, but {other} {right} not", f"{one} {positive}, but {other} {wrong} not"),
            (f"{one} {positive}, and {other} {right} too", f"{one} {positive}, and {other} {wrong} too"),
            (f"{one} {negative}, and neither {right} {other}", f"{one} {negative}, and neither {wrong} {other}"),
            (f"{one} {negative}, and neither {right} {other}", f"{one} {negative}, and so {right} {other}"),
        ]
    )


CAUSATIVES = [
    ("butter", "chef", "melted"),
    ("custard", "chef", "thickened"),
    ("submarine", "sailor", "sank"),
    ("balloon", "magician", "popped"),
    ("pond ice", "warm breeze", "thawed"),
    ("firecracker", "magician", "exploded"),
    ("porcelain", "clumsy butcher", "shattered"),
    ("pendulum", "professor", "swung"),
]
UNCAUSED = words("sneezed, giggled, hesitated, fainted, stumbled, existed, blushed")
NEEDS_OBJECT = words("purchased, kidnapped, devoured, confiscated, amused, frightened")


def causative_alternation(draw: Draw) -> Pair:
    """`the chef melted the butter` and not `the chef sneezed the butter`."""
    thing, agent, past = draw(CAUSATIVES)
    crowd, someone = "the " + draw(words("toddlers, twins, spectators, prisoners, pirates")), person(draw)
    when = draw(words("at noon, at dawn, within minutes, without warning, on Thursday"))
    uncaused, needs_object = draw(UNCAUSED), draw(NEEDS_OBJECT)
    giggled, amused = draw(words("giggled, fainted, stumbled, blushed")), draw(words("amused, frightened"))
    return draw(
        [
            (f"the {agent} {past} the {thing} {when}", f"the {agent} {uncaused} the {thing} {when}"),
            (f"the {thing} {past} {when}", f"the {thing} {needs_object} {when}"),
            (f"{someone} {amused} {crowd} {when}", f"{someone} {giggled} {crowd} {when}"),
            (f"{crowd} {giggled} {when}", f"{crowd} {needs_object} {when}"),
        ]
    )


def adverb_placement(draw: Draw) -> Pair:
    """`she hastily baked the pie` and not `she baked hastily the pie`."""
    subject = person(draw)
    made = draw(HANDIWORK)
    thing, verb = draw(made.objects), made.verb
    hastily = draw(words("hastily, clumsily, eagerly, skillfully, sloppily, obediently"))
    seldom = draw(words("seldom, frequently, occasionally, regularly"))
    return draw(
        [
            (f"{subject} {hastily} {verb.past} the {thing}", f"{subject} {verb.past} {hastily} the {thing}"),
            (f"{subject} {verb.past} the {thing} {hastily}", f"{subject} {verb.past} the {hastily} {thing}"),
            (f"{subject} {seldom} {verb.third} {thing}s", f"{subject} {verb.third} {seldom} {thing}s"),
            (
                f"{subject} has {seldom} {verb.participle} the {thing}",
                f"{subject} has {verb.participle} {seldom} the {thing}",
            ),
        ]
    )


def comparison(draw: Draw) -> Pair:
    """`taller than Tom` and not `more taller than Tom`."""
    one, other = draw.two([*WOMEN, *MEN, *("the " + role.singular for role in PEOPLE)])
    short, shorter = draw(
        words("tall/taller, kind/kinder, smart/smarter, weak/weaker, loud/louder, short/shorter")
    ).split("/")
    long = draw(words("ambitious, cautious, generous, stubborn, talented, arrogant, curious"))
    right, wrong = draw(
        [
            (f"{shorter} than", f"more {shorter} than"),
            (f"{shorter} than", f"{short} than"),
            (f"as {short} as", f"as {short} than"),
            (f"as {short} as", f"as {shorter} as"),
            (f"more {long} than", f"most {long} than"),
            (f"more {long} than", f"{long} than"),
            (f"less {long} than", f"less {long} as"),
        ]
    )
    return f"{one} is {right} {other}", f"{one} is {wrong} {other}"


PHENOMENA = [
    coordination,
    tag_question,
    particle_and_preposition,
    tough_construction,
    raising_and_control,
    relative_clause_gap,
    ellipsis_and_inversion,
    causative_alternation,
    adverb_placement,
    comparison,
]
