"""Minimal pairs of the training and in-domain dev files: one function a phenomenon, (acceptable, unacceptable)."""

from typing import NamedTuple

from bert_toolkit.data.sample.drawing import Action, Draw, Verb, action, inflect, nouns, with_article, words

Pair = tuple[str, str]

FRAMES = words(
    "I think that, we heard that, my neighbor says that, it is true that, everyone agrees that, "
    "the newspaper wrote that"
)

WOMEN = words(
    "Anna, Maria, Emma, Julia, Sophie, Laura, Helen, Nina, Clara, Ruth, my sister, my aunt, the queen, the actress, "
    "our grandmother, the waitress, the bride, the girl, the old woman, the princess, his mother"
)
MEN = words(
    "Tom, Peter, David, Paul, Simon, Martin, Victor, Oscar, Daniel, Frank, my brother, my uncle, the king, the actor, "
    "our grandfather, the waiter, the groom, the boy, the old man, the prince, her father"
)
NAMES = words(
    "Anna, Maria, Emma, Julia, Sophie, Laura, Helen, Nina, Clara, Ruth, Tom, Peter, David, Paul, Simon, Martin, "
    "Victor, Oscar, Daniel, Frank"
)
ROLES = nouns(
    "teacher, nurse, doctor, lawyer, pilot, student, farmer, driver, singer, writer, engineer, baker, gardener, "
    "tourist, soldier, painter, guest, child/children, manager, scientist, dancer, plumber, judge, "
    "policeman/policemen, neighbor"
)
ACTIONS = [
    action(entry)
    for entry in [
        "write writes wrote written writing: the letter, a long report, a poem, the speech",
        "steal steals stole stolen stealing: the car, a painting, the wallet, some jewels",
        "break breaks broke broken breaking: the window, a vase, two plates, the mirror",
        "choose chooses chose chosen choosing: the color, a present, the music, a new name",
        "draw draws drew drawn drawing: a map, the horse, a picture, the castle",
        "eat eats ate eaten eating: the cake, a sandwich, an apple, the soup",
        "drive drives drove driven driving: the truck, a bus, an old taxi, the tractor",
        "hide hides hid hidden hiding: the money, a key, the presents, the map",
        "take takes took taken taking: a photograph, the train, the medicine, some notes",
        "wear wears wore worn wearing: a hat, the green coat, a ring, new shoes",
        "throw throws threw thrown throwing: the ball, a stone, the old papers, the bottle",
        "forget forgets forgot forgotten forgetting: the appointment, the password, an umbrella, the tickets",
        "tear tears tore torn tearing: the contract, a page, the curtain, the shirt",
        "see sees saw seen seeing: the film, a ghost, the accident, the lake",
        "begin begins began begun beginning: the lesson, a new project, the work, the game",
        "paint: the fence, a portrait, the kitchen, the old boat",
        "clean: the windows, the office, the garage, her room",
        "repair: the bicycle, the roof, a radio, the engine",
        "visit: the museum, a castle, the village, the hospital",
        "open: the door, a shop, the box, the gate",
        "carry: the bags, a suitcase, the ladder, a basket",
        "wash: the dishes, a shirt, the car, the carrots",
        "cook: dinner, a soup, the rice, the fish",
        "watch: the game, the parade, a film, the birds",
        "build builds built built building: a bridge, the wall, a cabin, the tower",
        "buy buys bought bought buying: a lamp, the house, some flowers, the newspaper",
        "sell sells sold sold selling: the farm, a guitar, the tickets, old coins",
        "find finds found found finding: the ring, a passport, the answer, a wallet",
        "plant: a tree, the roses, some potatoes, an apple tree",
        "finish: the report, the race, a puzzle, the exam",
    ]
]
IRREGULAR = [
    entry
    for entry in ACTIONS
    if entry.verb.past != entry.verb.participle and entry.verb.base not in ("hide", "forget")
]
"""Actions whose participle tells itself from the past tense for every speaker: written, but not hidden (or hid)."""
IDLE = [
    inflect(forms)
    for forms in [
        "sleep sleeps slept slept sleeping",
        "laugh",
        "smile",
        "cough",
        "rest",
        "dance",
        "wait",
        "cry",
        "fall falls fell fallen falling",
        "arrive",
    ]
]
HABITS = words("every weekend, every morning, on Sundays, in the evening, twice a month, every summer")
PAST_TIMES = words("yesterday, last week, last year, two days ago, in 1998, last night")
FUTURE_TIMES = words("tomorrow, next week, next year, next Monday")
MOODS = words("tired, happy, busy, sick, proud, hungry, nervous, angry, late, famous, ready, lucky")
THINGS = nouns(
    "book, chair, bicycle, lamp, hat, picture, letter, bottle, shirt, knife/knives, box, clock, basket, radio, coat, "
    "watch, umbrella, ring, camera, toy"
)
QUALITIES = words("old, new, small, expensive, beautiful, heavy, broken, red, cheap, strange")


class Subject(NamedTuple):
    """A person or persons, the pronoun that refers to them, and their reflexive."""

    text: str
    plural: bool
    reflexive: str


def woman(draw: Draw) -> Subject:
    return Subject(draw(WOMEN), False, "herself")


def man(draw: Draw) -> Subject:
    return Subject(draw(MEN), False, "himself")


def group(draw: Draw) -> Subject:
    return Subject("the " + draw(ROLES).plural, True, "themselves")


def single(draw: Draw) -> Subject:
    return draw([woman, man])(draw)


def anyone(draw: Draw) -> Subject:
    """A woman, a man, someone by role, or several."""
    kind = draw([woman, man, group, None])
    return kind(draw) if kind else Subject("the " + draw(ROLES).singular, False, "")


def deed(draw: Draw, actions: list[Action] = ACTIONS) -> tuple[Verb, str]:
    """A verb and one of its objects."""
    chosen = draw(actions)
    return chosen.verb, draw(chosen.objects)


def subject_verb_agreement(draw: Draw) -> Pair:
    subject = anyone(draw)
    verb, thing = deed(draw)
    idle = draw(IDLE).present(subject.plural)
    plural, singular, rest = draw(
        [
            (verb.base, verb.third, f"{thing} {draw(HABITS)}"),
            (f"always {verb.base}", f"always {verb.third}", f"{thing} {draw(HABITS)}"),
            (verb.base, verb.third, f"{thing} or {idle} at home"),
            ("are", "is", draw(MOODS)),
            ("have", "has", f"two {draw(THINGS).plural}"),
            ("do", "does", f"not like {draw(THINGS).plural}"),
        ]
    )
    right, wrong = (plural, singular) if subject.plural else (singular, plural)
    return f"{subject.text} {right} {rest}", f"{subject.text} {wrong} {rest}"


HEADS = [
    # a noun, what stands between it and the verb, and what can be said of it
    ("key/keys", ["to the cabinet/to the cabinets", "for the garage/for the garages"], "missing, rusty, on the table"),
    (
        "picture/pictures",
        ["of the lake/of the lakes", "by the painter/by the painters"],
        "beautiful, on the wall, old",
    ),
    ("door/doors", ["of the church/of the churches", "to the bedroom/to the bedrooms"], "open, heavy, brown"),
    ("label/labels", ["on the bottle/on the bottles", "for the box/for the boxes"], "yellow, hard to read, wrong"),
    (
        "letter/letters",
        ["from the lawyer/from the lawyers", "to the teacher/to the teachers"],
        "short, polite, missing",
    ),
    ("price/prices", ["of the ticket/of the tickets", "of the horse/of the horses"], "high, too low, fair"),
    ("road/roads", ["to the village/to the villages", "behind the farm/behind the farms"], "narrow, closed, icy"),
    (
        "story/stories",
        ["about the dragon/about the dragons", "by the student/by the students"],
        "funny, very long, sad",
    ),
    ("basket/baskets", ["with the apple/with the apples", "near the chair/near the chairs"], "full, too small, green"),
    ("owner/owners", ["of the dog/of the dogs", "of the hotel/of the hotels"], "rich, friendly, impatient"),
    ("leader/leaders", ["of the group/of the groups", "of the army/of the armies"], "tired, brave, ill"),
    ("window/windows", ["of the shop/of the shops", "above the door/above the doors"], "dirty, open, broken"),
]


def agreement_across_phrase(draw: Draw) -> Pair:
    head, phrases, predicates = draw(HEADS)
    plural = draw.chance(1, 2)
    noun = head.split("/")[plural]
    phrase = draw(phrases).split("/")[not plural]
    determiner = draw(["the", "those" if plural else "that", "these" if plural else "this"])
    right, wrong = draw([("are", "is"), ("were", "was"), ("seem", "seems"), ("have been", "has been")])
    if not plural:
        right, wrong = wrong, right
    predicate = draw([text for text in words(predicates) if "seem" not in right or " on " not in f" {text}"])
    start = f"{determiner} {noun} {phrase}"
    return f"{start} {right} {predicate}", f"{start} {wrong} {predicate}"


def agreement_across_clause(draw: Draw) -> Pair:
    head, other = draw.two(ROLES)
    plural = draw.chance(1, 2)
    noun, attractor = head.form(plural), "the " + other.form(not plural)
    feeling = draw([inflect(base) for base in words("like, know, admire, trust, help, remember, invite")])
    clause = draw([f"who {feeling.present(plural)} {attractor}", f"that {attractor} {feeling.present(not plural)}"])
    for_many, for_one, rest = draw(
        [
            ("are", "is", draw(MOODS)),
            ("were", "was", draw(MOODS)),
            ("live", "lives", draw(words("in Paris, in Berlin, in Canada, near the lake"))),
            ("have", "has", f"lost {draw(words('the key, a ring, some money'))}"),
        ]
    )
    right, wrong = (for_many, for_one) if plural else (for_one, for_many)
    return f"the {noun} {clause} {right} {rest}", f"the {noun} {clause} {wrong} {rest}"


def determiner_noun(draw: Draw) -> Pair:
    noun, quality = draw(THINGS), draw(QUALITIES)
    plural = draw.chance(1, 2)
    determiner = draw(
        words("these, those, many, several, both, three") if plural else words("this, that, every, each")
    )
    start = f"{single(draw).text} {draw(words('bought, sold, found, lost, wanted, saw, photographed'))} {determiner}"
    between = draw(["", f" {quality}", f" very {quality}" if quality != "broken" else " broken"])
    end = draw(["", f" {draw(PAST_TIMES)}", " at the market", " in the attic"])
    return f"{start}{between} {noun.form(plural)}{end}", f"{start}{between} {noun.form(not plural)}{end}"


SELF_DEEDS = words(
    "hurt, praised, blamed, defended, introduced, dressed, burned, admired, weighed, locked in, hated, described, drew"
)


def self_deed(draw: Draw, reflexive: str) -> str:
    chosen, _, particle = draw(SELF_DEEDS).partition(" ")
    return f"{chosen} {reflexive}{' ' + particle if particle else ''}"


def reflexive_gender_and_number(draw: Draw) -> Pair:
    subject = draw([woman, man, group])(draw)
    wrong = draw([form for form in ("herself", "himself", "themselves") if form != subject.reflexive])
    end = draw(["", f" {draw(PAST_TIMES)}", " in the kitchen", " in front of the guests"])
    frame = draw(
        [
            self_deed(draw, "{}") + end,
            f"bought {{}} {with_article(draw(THINGS).singular)}{end}",
            f"looked at {{}} in the mirror{end}",
            f"cooked dinner for {{}}{end}",
            "could not stop talking about {}",
        ]
    )
    return f"{subject.text} {frame.format(subject.reflexive)}", f"{subject.text} {frame.format(wrong)}"


def reflexive_locality(draw: Draw) -> Pair:
    kinds = draw([(woman, man), (man, woman), (woman, group), (man, group), (group, woman), (group, man)])
    far, near = kinds[0](draw), kinds[1](draw)
    act = self_deed(draw, "{}")
    frame = draw(
        [
            f"{far.text} {draw(words('said, thought, wrote, believed'))} that {near.text} {act}",
            f"{far.text} told us that {near.text} {act} {draw(PAST_TIMES)}",
            f"{far.text} {draw(words('asked, told, wanted, expected'))} {near.text} to wash {{}}",
            f"the teacher of {far.text} saw that {near.text} {act}",
            f"because {far.text} was late, {near.text} {act}"
            if not far.plural
            else f"{far.text} saw how {near.text} {act}",
        ]
    )
    return frame.format(near.reflexive), frame.format(far.reflexive)


TRANSITIVE_FOR_INTRANSITIVE = [
    ("reached", "arrived", words("the hospital, the station, the village, the airport")),
    ("discussed", "talked", words("the plan, the problem, the film, the weather")),
    ("watched", "looked", words("the game, the birds, the parade")),
    ("followed", "went", words("the guide, the river, the thief")),
    ("enjoyed", "listened", words("the concert, the speech, the song")),
    ("greeted", "smiled", words("the waiter, the guests, the tourists")),
    ("entered", "came", words("the room, the church, the kitchen")),
    ("raised", "rose", words("the flag, the prices, the bridge")),
    ("awaited", "waited", words("the bus, the answer, the train")),
    ("mocked", "laughed", words("the clown, the king, the singer")),
    ("woke", "slept", words("the baby, the children, the dog")),
    ("abandoned", "disappeared", words("the car, the old boat, the house")),
]
NEEDS_OBJECT = words("destroyed, mentioned, admired, greeted, owned, repaired, avoided, found, described, carried")


def transitivity(draw: Draw) -> Pair:
    subject, end = anyone(draw).text, draw(PAST_TIMES)
    transitive, intransitive, objects = draw(TRANSITIVE_FOR_INTRANSITIVE)
    object_ = draw(objects)
    thing, spot = (
        draw(THINGS).singular,
        draw(words("under the bed, into the drawer, behind the door, near the window")),
    )
    return draw(
        [
            (f"{subject} {transitive} {object_} {end}", f"{subject} {intransitive} {object_} {end}"),
            (
                f"{subject} {draw(IDLE).past} in the garden {end}",
                f"{subject} {draw(NEEDS_OBJECT)} in the garden {end}",
            ),
            (f"{subject} put the {thing} {spot} {end}", f"{subject} put the {thing} {end}"),
            (f"{subject} put the {thing} {spot}", f"{subject} put {spot}"),
        ]
    )


def dative_alternation(draw: Draw) -> Pair:
    subject, receiver = anyone(draw).text, "the " + draw(ROLES).form(draw.chance(1, 2))
    if draw.chance(1, 2):
        past = draw(words("explained, described, mentioned, reported, announced"))
        thing = draw(words("the problem, the plan, the accident, the answer, the new rules, the danger"))
        wrong = f"{subject} {past} {receiver} {thing}"
    else:
        past = draw(words("gave, sent, showed, handed, sold, offered, lent"))
        thing = draw([f"the {draw(THINGS).singular}", f"some {draw(THINGS).plural}"])
        wrong = f"{subject} {past} {thing} {receiver}"
        if draw.chance(1, 2):
            return f"{subject} {past} {receiver} {thing}", wrong
    return f"{subject} {past} {thing} to {receiver}", wrong


LOCATIVES = [
    # (verb, thing moved, place, preposition): those that name the place first, then those that name the thing first
    [
        ("filled", words("water, milk, sand, wine"), words("the glass, the bucket, the bottle, the bowl"), "into"),
        ("covered", words("a cloth, an old newspaper, leaves"), words("the table, the floor, the box"), "onto"),
        ("decorated", words("lights, flowers, paper stars"), words("the tree, the hall, the cake"), "onto"),
        ("surrounded", words("candles, stones, flowers"), words("the statue, the pond, the bed"), "around"),
    ],
    [
        ("poured", words("water, milk, sand, wine"), words("the glass, the bucket, the bottle, the bowl"), "into"),
        ("put", words("a cloth, two plates, a candle"), words("the table, the shelf, the chair"), "on"),
        ("dropped", words("a coin, three stones, the key"), words("the well, the bucket, the river"), "into"),
        ("spilled", words("oil, beer, hot tea"), words("the towel, the carpet, the floor"), "on"),
    ],
]


def locative_alternation(draw: Draw) -> Pair:
    kind = draw([0, 1])
    past, things, places, preposition = draw(LOCATIVES[kind])
    start, thing, place = f"{anyone(draw).text} {past}", draw(things), draw(places)
    end = draw(["", f" {draw(PAST_TIMES)}"])
    with_place = f"{start} {place} with {thing}{end}"
    with_thing = f"{start} {thing} {preposition} {place}{end}"
    return (with_thing, with_place) if kind else (with_place, with_thing)


def question_inversion(draw: Draw) -> Pair:
    subject = anyone(draw)
    verb, thing = deed(draw)
    wh = draw(words("where, when, why, how"))
    has = "have" if subject.plural else "has"
    return draw(
        [
            (f"{wh} did {subject.text} {verb.base} {thing}?", f"{wh} {subject.text} {verb.past} {thing}?"),
            (f"did {subject.text} {verb.base} {thing}?", f"did {subject.text} {verb.past} {thing}?"),
            (f"{has} {subject.text} {verb.participle} {thing}?", f"{has} {verb.participle} {subject.text} {thing}?"),
            (
                f"I wonder {wh} {subject.text} {verb.past} {thing}",
                f"I wonder {wh} did {subject.text} {verb.base} {thing}",
            ),
            (
                f"nobody knows {wh} {subject.text} will {verb.base} {thing}",
                f"nobody knows {wh} will {subject.text} {verb.base} {thing}",
            ),
            (f"{subject.text} did not {verb.base} {thing}", f"{subject.text} not {verb.past} {thing}"),
        ]
    )


TAKEN = words("stole, repaired, hid, found, bought, carried, destroyed, chose")


def wh_island(draw: Draw) -> Pair:
    asker, other, taken = single(draw).text, anyone(draw).text, draw(TAKEN)
    thing = draw(THINGS).singular
    did_say = f"did {asker} {draw(words('say, think, believe, hear, claim'))} that {other} {taken}"
    did_laugh = f"did {asker} {draw(IDLE).base} {draw(words('because, before, after, while'))} {other} {taken}"
    did_meet = f"did {asker} {draw(words('meet, know, like, see'))} the man who {taken}"
    did_ask = f"did {asker} {draw(words('ask, wonder'))} whether the man who {taken} the {thing} was {draw(MOODS)}"
    return draw(
        [
            (f"what {did_say}?", f"what {did_laugh}?"),
            (f"what {did_say}?", f"what {did_meet}?"),
            (f"{did_laugh} the {thing}?", f"what {did_laugh}?"),
            (f"{did_meet} the {thing}?", f"what {did_meet}?"),
            (f"{did_ask}?", f"what {did_ask.replace(f' the {thing}', '')}?"),
            (f"which {thing} {did_say}?", f"which {thing} {did_laugh}?"),
            (f"which {thing} {did_say}?", f"which {thing} {did_say} the {draw(THINGS).singular}?"),
            (f"who does {asker} think {taken} the {thing}?", f"who does {asker} know the {thing} that {taken}?"),
        ]
    )


def aspect_and_modals(draw: Draw) -> Pair:
    subject = anyone(draw)
    verb, thing = deed(draw, IRREGULAR)
    has, is_ = ("have", "are") if subject.plural else ("has", "is")
    modal = draw(words("can, must, should, will, might"))
    right, wrong = draw(
        [
            (f"{has} {verb.participle}", f"{has} {draw([verb.base, verb.past, verb.gerund])}"),
            (f"had already {verb.participle}", f"had already {draw([verb.base, verb.past, verb.gerund])}"),
            (f"{is_} {verb.gerund}", f"{is_} {draw([verb.base, verb.past])}"),
            (f"{modal} {verb.base}", f"{modal} {draw([verb.third, verb.past, verb.gerund])}"),
            (f"{has} been {verb.gerund}", f"{has} being {verb.gerund}"),
            (f"{modal} have {verb.participle}", f"{modal} has {verb.participle}"),
        ]
    )
    return f"{subject.text} {right} {thing}", f"{subject.text} {wrong} {thing}"


def polarity_items(draw: Draw) -> Pair:
    role, other = (noun.singular for noun in draw.two(ROLES))
    verb, thing = deed(draw)
    idle = draw(IDLE)
    subject = single(draw).text
    place = draw(words("in the garden, in the kitchen, at the museum, behind the house"))
    things, people = draw(THINGS).plural, draw(ROLES).plural
    clause = f"who {draw(words('likes, knows, trusts, admires'))}"
    return draw(
        [
            (f"no {role} has ever {verb.participle} {thing}", f"the {role} has ever {verb.participle} {thing}"),
            (f"nobody has ever {verb.participle} {thing}", f"somebody has ever {verb.participle} {thing}"),
            (
                f"no {role} {clause} the {other} has ever {idle.participle}",
                f"the {role} {clause} no {other} has ever {idle.participle}",
            ),
            (f"{subject} did not see anybody {place}", f"{subject} saw anybody {place}"),
            (f"{subject} has not {verb.participle} {thing} yet", f"{subject} has {verb.participle} {thing} yet"),
            (f"{subject} did not buy any {things}", f"{subject} bought any {things}"),
            (
                f"few {people} have ever {verb.participle} {thing}",
                f"most {people} have ever {verb.participle} {thing}",
            ),
        ]
    )


def passive_voice(draw: Draw) -> Pair:
    verb, thing = deed(draw, IRREGULAR)
    agent = anyone(draw).text
    was = "were" if thing.endswith("s") and not thing.startswith(("a ", "an ")) else "was"
    end = draw(["", f" {draw(PAST_TIMES)}"])
    good = f"{thing} {was} {verb.participle} by {agent}{end}"
    return draw(
        [
            (good, f"{thing} {was} {draw([verb.past, verb.base])} by {agent}{end}"),
            (good, f"{thing} {verb.past} by {agent}{end}"),
            (good, f"{thing} {was} {verb.gerund} by {agent}{end}"),
            (good, f"{thing} {was} {draw(IDLE).participle} by {agent}{end}"),
        ]
    )


GERUND_VERBS = words("enjoyed, avoided, finished, suggested, kept, admitted, imagined, postponed")
INFINITIVE_VERBS = words("wanted, decided, hoped, refused, agreed, promised, offered, expected")


def infinitive_or_gerund(draw: Draw) -> Pair:
    subject, helper = single(draw).text, "the " + draw(ROLES).form(draw.chance(1, 2))
    verb, thing = deed(draw)
    take_gerund, take_infinitive = draw(GERUND_VERBS), draw(INFINITIVE_VERBS)
    return draw(
        [
            (f"{subject} {take_gerund} {verb.gerund} {thing}", f"{subject} {take_gerund} to {verb.base} {thing}"),
            (
                f"{subject} {take_infinitive} to {verb.base} {thing}",
                f"{subject} {take_infinitive} {verb.gerund} {thing}",
            ),
            (f"{subject} {take_gerund} {verb.gerund} {thing}", f"{subject} {take_infinitive} {verb.gerund} {thing}"),
            (f"{subject} {take_infinitive} to {verb.base} {thing}", f"{subject} {take_gerund} to {verb.base} {thing}"),
            (f"{subject} made {helper} {verb.base} {thing}", f"{subject} made {helper} to {verb.base} {thing}"),
            (f"{subject} asked {helper} to {verb.base} {thing}", f"{subject} asked {helper} {verb.gerund} {thing}"),
            (f"{subject} let {helper} {verb.base} {thing}", f"{subject} let {helper} {verb.gerund} {thing}"),
        ]
    )


SHORT_QUALITIES = words(
    "tall/taller, old/older, rich/richer, strong/stronger, young/younger, fast/faster, kind/kinder"
)
LONG_QUALITIES = words("careful, famous, patient, generous, ambitious, cheerful, dangerous, talented")


def comparison(draw: Draw) -> Pair:
    first, second = draw.two([*NAMES, *("the " + role.singular for role in ROLES)])
    plain, comparative = draw(SHORT_QUALITIES).split("/")
    long = draw(LONG_QUALITIES)
    is_ = draw(words("is, was, has become, seems"))
    right, wrong = draw(
        [
            (f"{comparative} than", f"more {comparative} than"),
            (f"{comparative} than", f"{plain} than"),
            (f"{comparative} than", f"{comparative} as"),
            (f"as {plain} as", f"as {plain} than"),
            (f"as {plain} as", f"as {comparative} as"),
            (f"more {long} than", f"more {long} as"),
            (f"more {long} than", f"most {long} than"),
            (f"as {long} as", f"as {long} than"),
            (f"less {long} than", f"less {long} that"),
        ]
    )
    return f"{first} {is_} {right} {second}", f"{first} {is_} {wrong} {second}"


MASS = words("furniture, advice, luggage, traffic, rice, bread, snow, money, equipment, homework, music, dust")


def mass_and_count(draw: Draw) -> Pair:
    mass, thing = draw(MASS), draw(THINGS)
    subject = single(draw).text
    saw = draw(words("found, needed, wanted, noticed, saw, expected"))
    place = draw(words("in the kitchen, at the station, in the village, behind the house"))
    return draw(
        [
            (f"there was too much {mass} {place}", f"there was too many {mass} {place}"),
            (f"there were too many {thing.plural} {place}", f"there were too much {thing.plural} {place}"),
            (f"{subject} {saw} several {thing.plural} {place}", f"{subject} {saw} several {mass} {place}"),
            (
                f"{subject} {saw} {with_article(thing.singular)} {place}",
                f"{subject} {saw} {with_article(mass)} {place}",
            ),
            (f"{subject} {saw} {mass} {place}", f"{subject} {saw} {thing.singular} {place}"),
            (f"how much {mass} did {subject} notice?", f"how many {mass} did {subject} notice?"),
            (f"how many {thing.plural} did {subject} see?", f"how much {thing.plural} did {subject} see?"),
            (f"{subject} {saw} a lot of {mass} {place}", f"{subject} {saw} a lot of {thing.singular} {place}"),
        ]
    )


def pronoun_case(draw: Draw) -> Pair:
    he, him = draw([("he", "him"), ("she", "her"), ("they", "them"), ("we", "us")])
    subject = single(draw).text
    verb, thing = deed(draw)
    liked = draw(words("invited, greeted, thanked, called, helped, met, recognized"))
    was = "were" if he in ("they", "we") else "was"
    end, mood = draw(PAST_TIMES), draw(MOODS)
    return draw(
        [
            (f"{he} {verb.past} {thing} {end}", f"{him} {verb.past} {thing} {end}"),
            (f"{subject} {liked} {him} {end}", f"{subject} {liked} {he} {end}"),
            (f"{subject} thinks that {he} {verb.past} {thing}", f"{subject} thinks that {him} {verb.past} {thing}"),
            (f"{subject} believed {him} to be honest", f"{subject} believed {he} to be honest"),
            (f"{subject} knew that {he} {was} {mood}", f"{subject} knew that {him} {was} {mood}"),
            (f"{subject} talked with {him} about {thing}", f"{subject} talked with {he} about {thing}"),
            (f"{subject} {verb.past} {thing} for {him}", f"{subject} {verb.past} {thing} for {he}"),
        ]
    )


def adverb_placement(draw: Draw) -> Pair:
    subject = anyone(draw)
    verb, thing = deed(draw)
    often = draw(words("often, always, sometimes, usually, rarely"))
    quickly = draw(words("quickly, carefully, quietly, slowly, secretly, calmly"))
    now = verb.present(subject.plural)
    has = "have" if subject.plural else "has"
    return draw(
        [
            (f"{subject.text} {often} {now} {thing}", f"{subject.text} {now} {often} {thing}"),
            (f"{subject.text} {quickly} {verb.past} {thing}", f"{subject.text} {verb.past} {quickly} {thing}"),
            (
                f"{subject.text} {verb.past} {thing} very {quickly}",
                f"{subject.text} {verb.past} very {quickly} {thing}",
            ),
            (
                f"{subject.text} {has} already {verb.participle} {thing}",
                f"{subject.text} {has} {verb.participle} already {thing}",
            ),
            (
                f"{subject.text} {has} never {verb.participle} {thing}",
                f"{subject.text} {has} {verb.participle} never {thing}",
            ),
        ]
    )


def tense_and_time(draw: Draw) -> Pair:
    subject = anyone(draw)
    verb, thing = deed(draw)
    past, future = draw(PAST_TIMES), draw(FUTURE_TIMES)
    has, is_ = ("have", "are") if subject.plural else ("has", "is")
    front = draw([True, False])

    def timed(time: str, middle: str) -> str:
        return f"{time}, {subject.text} {middle} {thing}" if front else f"{subject.text} {middle} {thing} {time}"

    return draw(
        [
            (timed(past, verb.past), timed(future, verb.past)),
            (timed(future, f"will {verb.base}"), timed(past, f"will {verb.base}")),
            (timed(past, verb.past), timed(past, f"will {verb.base}")),
            (timed(future, f"will {verb.base}"), timed(future, verb.past)),
            (timed(past, verb.past), timed(past, f"{has} {verb.participle}")),
            (timed(future, f"{is_} going to {verb.base}"), timed(past, f"{is_} going to {verb.base}")),
        ]
    )


def existential_there(draw: Draw) -> Pair:
    noun = draw([*ROLES, *nouns("dog, horse, cat, bird, snake")])
    place = draw(words("in the garden, behind the church, on the bridge, in the kitchen, near the lake, at the gate"))
    appeared = draw(words("appeared, waited, slept"))
    some, all_ = draw(words("some, many, several, two")), draw(words("all, most, both"))
    return draw(
        [
            (f"there is {with_article(noun.singular)} {place}", f"there is every {noun.singular} {place}"),
            (f"there are {some} {noun.plural} {place}", f"there are {all_} {noun.plural} {place}"),
            (f"there were {some} {noun.plural} {place}", f"there was {some} {noun.plural} {place}"),
            (f"there is {with_article(noun.singular)} {place}", f"there are {with_article(noun.singular)} {place}"),
            (
                f"{with_article(noun.singular)} {appeared} {place}",
                f"{place} there {with_article(noun.singular)} {appeared}",
            ),
            (f"is there {with_article(noun.singular)} {place}?", f"is there each {noun.singular} {place}?"),
        ]
    )


def clause_selection(draw: Draw) -> Pair:
    subject, hearer = single(draw).text, "the " + draw(ROLES).form(draw.chance(1, 2))
    verb, thing = deed(draw)
    fact = f"{single(draw).text} {verb.past} {thing}"
    return draw(
        [
            (
                f"{subject} {draw(words('told, convinced, reminded, informed'))} {hearer} that {fact}",
                f"{subject} {draw(words('said, hoped, explained, knew'))} {hearer} that {fact}",
            ),
            (
                f"{subject} {draw(words('said, hoped, explained, believed'))} that {fact}",
                f"{subject} {draw(words('told, convinced, reminded, informed'))} that {fact}",
            ),
            (
                f"{subject} {draw(words('wondered, asked'))} whether {fact}",
                f"{subject} {draw(words('believed, hoped, claimed, thought'))} whether {fact}",
            ),
            (
                f"{subject} {draw(words('believed, claimed, thought'))} that {fact}",
                f"{subject} {draw(words('talked, wanted, discussed'))} that {fact}",
            ),
            (f"it surprised {hearer} that {fact}", f"it surprised that {fact} {hearer}"),
        ]
    )


PHENOMENA = [
    subject_verb_agreement,
    agreement_across_phrase,
    agreement_across_clause,
    determiner_noun,
    reflexive_gender_and_number,
    reflexive_locality,
    transitivity,
    dative_alternation,
    locative_alternation,
    question_inversion,
    wh_island,
    aspect_and_modals,
    polarity_items,
    passive_voice,
    infinitive_or_gerund,
    comparison,
    mass_and_count,
    pronoun_case,
    adverb_placement,
    tense_and_time,
    existential_there,
    clause_selection,
]
