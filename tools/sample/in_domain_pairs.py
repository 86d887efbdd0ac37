"""Minimal pairs of the training and in-domain dev files: one function a phenomenon, (acceptable, unacceptable)."""

from typing import NamedTuple

from drawing import Action, Draw, Verb, action, inflect, nouns, words

Pair = tuple[str, str]

WOMEN = words(
    "Anna, Maria, Emma, Julia, Laura, Mary, Helen, Sarah, my sister, the queen, the girl, the actress, our "
    "grandmother, the princess, the old woman, my aunt"
)
MEN = words(
    "Tom, Peter, David, Paul, Daniel, John, Robert, Martin, my brother, the king, the boy, the actor, our "
    "grandfather, the prince, the old man, my uncle"
)
ROLES = nouns(
    "teacher, nurse, doctor, lawyer, student, farmer, driver, singer, soldier, tourist, guest, child/children, pilot, "
    "baker, judge, neighbor, painter, writer"
)
ACTIONS = [
    action(entry)
    for entry in [
        "write writes wrote written writing: the letter, a poem, a long report, the speech",
        "steal steals stole stolen stealing: the car, a painting, the money, a wallet",
        "break breaks broke broken breaking: the window, a bottle, the mirror, a vase",
        "draw draws drew drawn drawing: a map, the horse, a picture, the castle",
        "eat eats ate eaten eating: the cake, a sandwich, an apple, the soup",
        "drive drives drove driven driving: the truck, a bus, an old taxi, the tractor",
        "take takes took taken taking: a photograph, the train, the medicine, a break",
        "wear wears wore worn wearing: a hat, the green coat, a ring, a uniform",
        "throw throws threw thrown throwing: the ball, a stone, the bottle, a rope",
        "see sees saw seen seeing: the film, a ghost, the accident, an elephant",
        "sing sings sang sung singing: a song, the hymn, an old ballad",
        "choose chooses chose chosen choosing: the color, a present, the music, a name",
        "grow grows grew grown growing: the roses, corn, a beard",
        "ride rides rode ridden riding: a horse, the camel, a motorcycle",
        "paint: the fence, a portrait, the kitchen, the boat",
        "clean: the window, the office, the garage, a bucket",
        "repair: the bicycle, the roof, a radio, the engine",
        "open: the door, a shop, the box, the gate",
        "carry: the bag, a suitcase, the ladder, a basket",
        "wash: the car, a shirt, the dog, the plate",
        "watch: the game, a film, the parade, a bird",
        "visit: the museum, a castle, the village, the hospital",
        "cook: dinner, a soup, the rice, the fish",
        "plant: a tree, the roses, a garden",
        "sell sells sold sold selling: the farm, a guitar, the house, a ticket",
        "build builds built built building: a bridge, the wall, a cabin, the tower",
    ]
]
IRREGULAR = [entry for entry in ACTIONS if entry.verb.past != entry.verb.participle]
"""Actions whose participle tells itself from the past tense: write, wrote, written."""
IDLE = [
    inflect(forms)
    for forms in [
        "sleep sleeps slept slept sleeping",
        "fall falls fell fallen falling",
        "sit sits sat sat sitting",
        "laugh",
        "smile",
        "cough",
        "dance",
        "wait",
        "cry",
        "arrive",
        "disappear",
        "work",
    ]
]
HABITS = words("every weekend, every morning, on Sundays, in the evening, twice a month, every summer, every day")
PAST_TIMES = words("yesterday, last week, last year, two days ago, last night, last summer, in 1998")
PLACES = words(
    "in the garden, at the station, behind the house, near the lake, in the park, at school, on the bridge, "
    "at the market"
)
MOODS = words("tired, happy, busy, sick, proud, hungry, nervous, angry, rich, lucky, sad, famous")
THINGS = nouns(
    "book, chair, bicycle, lamp, hat, picture, letter, bottle, shirt, box, clock, basket, coat, ring, camera, "
    "suitcase, key, cup, mirror, candle"
)
QUALITIES = words("old, new, small, expensive, beautiful, heavy, red, cheap, large, round")


class Subject(NamedTuple):
    """A person or persons, and the reflexive that refers to them (none for someone of unknown sex)."""

    text: str
    plural: bool
    reflexive: str


def woman(draw: Draw) -> Subject:
    """A woman by name."""
    return Subject(draw(WOMEN), False, "herself")


def man(draw: Draw) -> Subject:
    """A man by name."""
    return Subject(draw(MEN), False, "himself")


def group(draw: Draw) -> Subject:
    """Several people."""
    return Subject("the " + draw(ROLES).plural, True, "themselves")


def role(draw: Draw) -> Subject:
    """Someone of unknown sex."""
    return Subject("the " + draw(ROLES).singular, False, "")


def anyone(draw: Draw) -> Subject:
    """One person or several."""
    return draw([woman, man, role, group, group])(draw)


def deed(draw: Draw, actions: list[Action] = ACTIONS) -> tuple[Verb, str]:
    """A verb and one of its objects."""
    chosen = draw(actions)
    return chosen.verb, draw(chosen.objects)


def subject_verb_agreement(draw: Draw) -> Pair:
    """`the nurses sing` and not `the nurses sings`."""
    subject = anyone(draw)
    verb, thing = deed(draw)
    idle = draw(IDLE)
    plural, singular, rest = draw(
        [
            (verb.base, verb.third, f"{thing} {draw(HABITS)}"),
            (idle.base, idle.third, draw([*PLACES, *HABITS])),
            ("are", "is", draw(MOODS)),
            ("were", "was", f"{draw(MOODS)} {draw(PAST_TIMES)}"),
            ("have", "has", f"two {draw(THINGS).plural}"),
            ("do", "does", f"not like {draw(THINGS).plural}"),
        ]
    )
    right, wrong = (plural, singular) if subject.plural else (singular, plural)
    return f"{subject.text} {right} {rest}", f"{subject.text} {wrong} {rest}"


HEADS = [
    # a noun, what stands between it and the verb, and what can be said of it
    ("key/keys", "to the cabinet/to the cabinets", "shiny, rusty, old"),
    ("picture/pictures", "of the lake/of the lakes", "beautiful, old, expensive"),
    ("door/doors", "of the church/of the churches", "open, heavy, brown"),
    ("label/labels", "on the bottle/on the bottles", "yellow, hard to read, wrong"),
    ("letter/letters", "from the lawyer/from the lawyers", "boring, polite, very long"),
    ("price/prices", "of the ticket/of the tickets", "high, too low, fair"),
    ("road/roads", "to the village/to the villages", "narrow, closed, icy"),
    ("story/stories", "about the dragon/about the dragons", "funny, very long, sad"),
    ("basket/baskets", "with the apple/with the apples", "full, too small, green"),
    ("owner/owners", "of the dog/of the dogs", "rich, friendly, impatient"),
]


def agreement_across_phrase(draw: Draw) -> Pair:
    """`the keys to the cabinet are old` and not `… is old`."""
    head, phrases, predicates = draw(HEADS)
    plural = draw.chance(1, 2)
    start = f"the {head.split('/')[plural]} {phrases.split('/')[not plural]}"
    for_many, for_one = draw([("are", "is"), ("were", "was"), ("seem", "seems"), ("look", "looks")])
    right, wrong = (for_many, for_one) if plural else (for_one, for_many)
    predicate = draw(words(predicates))
    return f"{start} {right} {predicate}", f"{start} {wrong} {predicate}"


def determiner_noun(draw: Draw) -> Pair:
    """`these lamps` and not `these lamp`."""
    noun, quality = draw(THINGS), draw(QUALITIES)
    plural = draw.chance(1, 2)
    determiner = draw(words("these, those, many, several, two, three") if plural else words("this, every, each, one"))
    start = f"{anyone(draw).text} {draw(words('bought, sold, found, lost, wanted, saw'))} {determiner}"
    between = draw(["", "", f" {quality}"])
    end = draw(["", f" {draw(PAST_TIMES)}", f" {draw(PLACES)}"])
    return f"{start}{between} {noun.form(plural)}{end}", f"{start}{between} {noun.form(not plural)}{end}"


SELF_DEEDS = words("hurt, praised, blamed, defended, introduced, dressed, admired, hated")


def reflexive_binding(draw: Draw) -> Pair:
    """`Anna hurt herself` and not `Anna hurt himself`."""
    kinds = draw([(woman, man), (man, woman), (woman, group), (man, group), (group, woman), (group, man)])
    subject, other = kinds[0](draw), kinds[1](draw)
    act = draw(SELF_DEEDS)
    frame = draw(
        [
            f"{subject.text} {act} {{}}",
            f"{subject.text} {act} {{}} {draw(PAST_TIMES)}",
            f"{subject.text} {act} {{}} {draw(PLACES)}",
            f"{subject.text} looked at {{}} in the mirror",
            f"{other.text} said that {subject.text} {act} {{}}",
        ]
    )
    return frame.format(subject.reflexive), frame.format(other.reflexive)


TRANSITIVE = [
    ("reached", "the hospital, the station, the village"),
    ("discussed", "the plan, the problem, the film"),
    ("greeted", "the waiter, the guests, the tourists"),
    ("renovated", "the room, the church, the kitchen"),
    ("admired", "the painting, the view, the queen"),
    ("mentioned", "the problem, the letter, the accident"),
    ("owned", "the hotel, the farm, a restaurant"),
    ("avoided", "the dog, the question, the police"),
    ("destroyed", "the bridge, the letter, the house"),
    ("thanked", "the nurse, the driver, the guests"),
    ("invited", "the neighbors, the doctor, the singer"),
    ("damaged", "the fence, the engine, the statue"),
    ("found", "the key, the treasure, a wallet"),
    ("praised", "the cook, the students, the book"),
]
INTRANSITIVE = words(
    "arrived, slept, laughed, smiled, coughed, talked, looked, cried, waited, fell, lived, listened, sat, knelt"
)


def transitivity(draw: Draw) -> Pair:
    """`he greeted the waiter` and not `he smiled the waiter`."""
    subject, end = anyone(draw).text, draw([*PAST_TIMES, *PLACES])
    transitive, objects = draw(TRANSITIVE)
    thing, intransitive = draw(words(objects)), draw(INTRANSITIVE)
    return draw(
        [
            (f"{subject} {transitive} {thing} {end}", f"{subject} {intransitive} {thing} {end}"),
            (f"{subject} {transitive} {thing}", f"{subject} {intransitive} {thing}"),
            (f"{subject} {intransitive} {end}", f"{subject} {transitive} {end}"),
        ]
    )


GIVE = words("gave, sent, showed, handed, sold, offered, lent, promised")
EXPLAIN = words("explained, described, mentioned, reported, announced, revealed, suggested, repeated")
GIFTS = words("the money, a ticket, the book, the answer, an apple, the letter, a job, the keys")
NEWS = words("the problem, the plan, the accident, the answer, the new rules, the danger, the truth, the secret")


def dative_alternation(draw: Draw) -> Pair:
    """`she gave him the book` and not `she explained him the plan`."""
    subject, receiver = anyone(draw).text, "the " + draw(ROLES).form(draw.chance(1, 2))
    gave, explained = draw(GIVE), draw(EXPLAIN)
    gift, news = draw(GIFTS), draw(NEWS)
    return draw(
        [
            (f"{subject} {explained} {news} to {receiver}", f"{subject} {explained} {receiver} {news}"),
            (f"{subject} {gave} {receiver} {gift}", f"{subject} {explained} {receiver} {news}"),
            (f"{subject} {gave} {gift} to {receiver}", f"{subject} {gave} {gift} {receiver}"),
        ]
    )


FEELING = words(
    "apologized to the guests, remembered the wedding, believed the story, forgot the password, hoped for rain, "
    "dreamed about the sea, hated the noise, laughed at the joke, enjoyed the concert, promised to help, "
    "thought about dinner, told a lie"
)


LIFELESS = nouns("chair, bicycle, lamp, hat, bottle, shirt, box, basket, coat, ring, suitcase, key, cup, candle")


def selection(draw: Draw) -> Pair:
    """What people do, things cannot."""
    thing, feeling = draw(LIFELESS), draw(FEELING)
    person, plural = draw(ROLES), draw.chance(1, 2)
    start = draw(["the ", f"the {draw(words('old, small, new, large'))} ", "our "])
    end = draw(["", f" {draw(PAST_TIMES)}"])
    return f"{start}{person.form(plural)} {feeling}{end}", f"{start}{thing.form(plural)} {feeling}{end}"


def word_order(draw: Draw) -> Pair:
    """`the cook baked a cake` and not `the cook a cake baked`."""
    subject = anyone(draw).text
    verb, thing = deed(draw)
    noun, quality = draw(THINGS).singular, draw(QUALITIES)
    time, place = draw(PAST_TIMES), draw(PLACES)
    preposition, _, somewhere = place.partition(" ")
    return draw(
        [
            (f"{subject} {verb.past} {thing} {time}", f"{subject} {thing} {verb.past} {time}"),
            (f"{subject} {verb.past} {thing} {place}", f"{verb.past} {subject} {thing} {place}"),
            (f"{subject} {verb.past} {thing} {place}", f"{subject} {verb.past} {thing} {somewhere} {preposition}"),
            (f"{subject} {verb.past} {thing} {place}", f"{subject} {place} {thing} {verb.past}"),
            (f"{subject} bought the {quality} {noun} {time}", f"{subject} bought the {noun} {quality} {time}"),
            (f"{subject} found the {quality} {noun} {place}", f"{subject} found {quality} the {noun} {place}"),
        ]
    )


def one_verb_a_clause(draw: Draw) -> Pair:
    """`Tom waited at school` and not `Tom waited cried at school`."""
    subject, place = anyone(draw).text, draw([*PLACES, *PAST_TIMES])
    verb, thing = deed(draw)
    idle, other = draw.two(IDLE)
    return draw(
        [
            (f"{subject} {verb.past} {thing} {place}", f"{subject} {thing} {place}"),
            (f"{subject} {verb.past} {thing} {place}", f"{subject} {verb.past} {thing} {idle.past} {place}"),
            (f"{subject} {verb.past} {thing} {place}", f"{subject} {idle.past} {verb.past} {thing} {place}"),
            (f"{subject} {idle.past} {place}", f"{subject} {idle.past} {other.past} {place}"),
        ]
    )


def question_inversion(draw: Draw) -> Pair:
    """`did they leave?` and not `did they left?`."""
    subject = anyone(draw)
    verb, thing = deed(draw)
    wh = draw(words("where, when, why, how"))
    has = "have" if subject.plural else "has"
    return draw(
        [
            (f"{wh} did {subject.text} {verb.base} {thing}?", f"{wh} {subject.text} {verb.past} {thing}?"),
            (f"{wh} did {subject.text} {verb.base} {thing}?", f"{wh} {subject.text} did {verb.base} {thing}?"),
            (f"did {subject.text} {verb.base} {thing}?", f"did {subject.text} {verb.past} {thing}?"),
            (f"{has} {subject.text} {verb.participle} {thing}?", f"{has} {verb.participle} {subject.text} {thing}?"),
            (f"I know {wh} {subject.text} {verb.past} {thing}", f"I know {wh} did {subject.text} {verb.base} {thing}"),
        ]
    )


TAKEN = words("stole, repaired, hid, found, bought, carried, destroyed, chose")


def wh_island(draw: Draw) -> Pair:
    """`what did he say that she stole?` and not `what did he cry because she stole?`."""
    asker, other = draw([*WOMEN, *("the " + role.singular for role in ROLES)]), draw([group, man])(draw).text
    taken, thing = draw(TAKEN), draw(THINGS).singular
    say, cry = draw(words("say, think, believe, hear, claim")), draw(IDLE).base
    because = draw(words("because, before, after, while"))
    return draw(
        [
            (f"what did {asker} {say} that {other} {taken}?", f"what did {asker} {cry} {because} {other} {taken}?"),
            (
                f"did {asker} {cry} {because} {other} {taken} the {thing}?",
                f"what did {asker} {cry} {because} {other} {taken}?",
            ),
            (
                f"which {thing} did {asker} {say} that {other} {taken}?",
                f"which {thing} did {asker} {cry} {because} {other} {taken}?",
            ),
            (f"did {asker} like the man who {taken} the {thing}?", f"what did {asker} like the man who {taken}?"),
        ]
    )


def aspect_and_modals(draw: Draw) -> Pair:
    """`she has eaten` and not `she has ate`."""
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
            (f"{has} been {verb.gerund}", f"{has} been {draw([verb.base, verb.past])}"),
        ]
    )
    return f"{subject.text} {right} {thing}", f"{subject.text} {wrong} {thing}"


def infinitives(draw: Draw) -> Pair:
    """`he decided to leave` and not `he decided to left`."""
    subject, helper = anyone(draw).text, "the " + draw(ROLES).form(draw.chance(1, 2))
    verb, thing = deed(draw)
    wanted = draw(words("wanted, decided, hoped, refused, agreed, tried, promised"))
    asked = draw(words("asked, told, helped, advised, taught, forced"))
    return draw(
        [
            (
                f"{subject} {wanted} to {verb.base} {thing}",
                f"{subject} {wanted} to {draw([verb.past, verb.third])} {thing}",
            ),
            (
                f"{subject} {wanted} to {verb.base} {thing}",
                f"{subject} {wanted} {draw([verb.past, verb.base])} {thing}",
            ),
            (
                f"{subject} {asked} {helper} to {verb.base} {thing}",
                f"{subject} {asked} {helper} to {verb.past} {thing}",
            ),
            (
                f"{subject} let {helper} {verb.base} {thing}",
                f"{subject} let {helper} {draw([verb.past, verb.gerund])} {thing}",
            ),
            (f"{subject} made {helper} {verb.base} {thing}", f"{subject} made {helper} {verb.past} {thing}"),
        ]
    )


def passive_voice(draw: Draw) -> Pair:
    """`the cake was eaten by Tom` and not `the cake was eat by Tom`."""
    verb, thing = deed(draw)
    agent = anyone(draw).text
    was = "were" if thing == "the roses" else "was"
    end = draw(["", f" {draw(PAST_TIMES)}"])
    wrong = draw([verb.base, verb.gerund, draw(words("coughed, slept, smiled, arrived, disappeared")), draw(MOODS)])
    return f"{thing} {was} {verb.participle} by {agent}{end}", f"{thing} {was} {wrong} by {agent}{end}"


ADVERBS = words(
    "careful/carefully, polite/politely, gentle/gently, careless/carelessly, clever/cleverly, graceful/gracefully, "
    "foolish/foolishly, efficient/efficiently"
)


def word_class(draw: Draw) -> Pair:
    """`he is very careful` and not `he is very carefully`."""
    subject = anyone(draw)
    verb, thing = deed(draw)
    adjective, adverb = draw(ADVERBS).split("/")
    is_ = "are" if subject.plural else "is"
    noun, mood, time = (
        draw(THINGS).singular,
        draw(words("happy, busy, angry, nervous, proud, tired")),
        draw(PAST_TIMES),
    )
    return draw(
        [
            (f"{subject.text} {is_} very {adjective}", f"{subject.text} {is_} very {adverb}"),
            (f"{subject.text} {verb.past} {thing} {adverb}", f"{subject.text} {verb.past} {thing} {adjective}"),
            (f"{subject.text} lost the {noun} {time}", f"{subject.text} lost the {mood} {time}"),
            (f"{subject.text} {is_} very {mood}", f"{subject.text} {is_} very {noun}"),
        ]
    )


PHENOMENA = [
    subject_verb_agreement,
    agreement_across_phrase,
    determiner_noun,
    reflexive_binding,
    transitivity,
    dative_alternation,
    selection,
    word_order,
    one_verb_a_clause,
    question_inversion,
    wh_island,
    aspect_and_modals,
    infinitives,
    passive_voice,
    word_class,
]
