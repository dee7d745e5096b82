"""What the thinker learns to answer: what is said and how, a thought about it, a reply that fits.

What is said comes from people's chats, hand-written topics, the tiny world, and crisis and wordless
frames; replies are hand-written, the world's, or people's own.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from string import Template

from common_utils.small_model import manner, texts, topics
from common_utils.small_model.pieces import heard_words
from common_utils.small_model.ranking import Ranker
from common_utils.small_model.texts import Conversation, conversations
from common_utils.tiny_world.world import EVENTS as WORLD_EVENTS
from common_utils.tiny_world.world import load_world
from osum_echat.inference import safety
from osum_echat.records import Labels

SIZES = {  # examples of each source
    "topics": 4000, "chats": 3000, "people": 4000, "world": 1800, "safety": 120, "wordless": 400,
    "dialogues": 800,
}  # fmt: skip
MOST_ALIKE = 0.004  # of all examples: how many may share a reply, safety and wordless ones apart
EVENTS = {
    **WORLD_EVENTS,
    "FEAR": {"OTHER": 0.6, "CRY": 0.15, "SCREAMING": 0.1, "SIGH": 0.15},
    "DISGUST": {"OTHER": 0.7, "COUGH": 0.1, "GROAN": 0.2},
}
MORE_EVENTS = ("SNEEZE", "THROAT CLEARING", "GROAN", "SIGH")
MORE_EVENTS_SHARE = 0.05
LONGEST_CHAT = 11  # words: what is longer is seldom about the word that is found in it
OPTIONS = 4  # of a topic's replies that are ranked for a question
BLOCK = 256  # questions whose replies are ranked together
# How much likelier a reply is to its question than to none, at least: log probability, a word.
LEAST_LIFT = {"topics": -9.0, "chats": 0.15, "people": 0.3}
LEAST_SAID_LIFT = 0.8  # of people's replies that ask nothing
MOST_OF_TOPIC = 260  # chats
GOOD, BAD = ("HAPPY", "SURPRISE"), ("SAD", "ANGER", "FEAR", "DISGUST")
CARING = ("selfharm", "abuse", "illness")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is said, the topic and mood of its words, and the emotion of the voice."""

    key: str
    source: str
    question: str
    found: topics.Found
    mood: str
    emotion: str


@dataclass(frozen=True, slots=True)
class Example:
    """One turn: what was said and how, thought and reply; earlier turns as (said, reply)."""

    key: str
    source: str
    question: str
    labels: Labels
    reply: str
    thought: str
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def heard(self) -> str:
        """The words as the ear writes them."""
        return (heard_words(self.question) or "").strip()


def voice(emotion: str, rng: Random) -> Labels:
    """A voice of that emotion: age, gender and sound event by chance."""
    events = EVENTS[emotion]
    event = rng.choices(tuple(events), weights=tuple(events.values()))[0]
    if rng.random() < MORE_EVENTS_SHARE:
        event = rng.choice(MORE_EVENTS)
    if rng.random() < 0.35:
        event = manner.NO_EVENT
    age = rng.choices(manner.AGES, weights=(0.22, 0.56, 0.22))[0]
    labels = Labels(age=age, gender=rng.choice(manner.GENDERS), emotion=emotion, event=event)
    return replace(labels, style=manner.style_for(labels))


def joined(opening: str, core: str) -> str:
    """Opening and core as one reply; an opening that ends in a comma goes on in lower case."""
    if opening.endswith(",") and not core.startswith("I "):
        core = core[:1].lower() + core[1:]
    return f"{opening} {core}".strip()


def fitting_mood(topic: topics.Topic, mood: str, emotion: str, rng: Random) -> str:
    """Which replies fit: those of the words' mood, unless the voice tells otherwise."""
    felt = "good" if emotion in GOOD else "bad" if emotion in BAD else "plain"
    if topic.is_act or (mood == "plain" and felt == "good" and rng.random() < 0.4):
        return felt
    return "plain" if mood == "good" and felt == "bad" else mood


def answered(one: Asked, rng: Random, core: str | None = None) -> Example | None:
    """An example by a topic's replies; core: the reply, drawn without one.

    None where what was drawn does not fit.
    """
    labels, topic = voice(one.emotion, rng), one.found.topic
    if core is None:
        drawn = pointed(topic, fitting_mood(topic, one.mood, one.emotion, rng), rng)
        core = topics.filled(drawn, one.found.word)
    if core is None:
        return None
    opening = "" if topic.is_act and one.emotion == "NEUTRAL" else manner.opening(labels, rng)
    if topic.is_act and rng.random() < 0.4:
        opening = ""
    reply = joined(opening, core)
    gist = Template(topic.gist).safe_substitute(it=one.found.word or "it")
    return made(one.key, one.source, one.question, labels, reply, gist, rng)


def best_answered(
    asked: Iterable[Asked], rng: Random, ranker: Ranker | None
) -> Iterator[Example | None]:
    """An example of each by that of its topic's replies which the ranker finds likeliest.

    None where that is not likely enough, too; ranker: None: any of the replies.
    """
    waiting = iter(asked)
    while block := list(islice(waiting, BLOCK)):
        if ranker is None:
            yield from (answered(one, rng) for one in block)
            continue
        options = [cores(one, rng) for one in block]
        pairs = [(one.question, core) for one, own in zip(block, options, strict=True)
                 for core in own]  # fmt: skip
        lift = dict(zip(pairs, ranker.lifts(pairs), strict=True))
        for one, own in zip(block, options, strict=True):
            best = max(own, key=lambda core: lift[one.question, core], default=None)
            likely = lift[one.question, best] / len(best.split()) if best else None
            is_likely = likely is not None and likely >= LEAST_LIFT[one.source]
            yield answered(one, rng, best) if is_likely else None


def cores(one: Asked, rng: Random) -> list[str]:
    """Some of the topic's replies in a mood that fits."""
    topic = one.found.topic
    replies = topic.replies_for(fitting_mood(topic, one.mood, one.emotion, rng))
    known = {topics.filled(reply, one.found.word) for reply in replies} - {None}
    return rng.sample(sorted(map(str, known)), min(OPTIONS, len(known)))


def made(
    key: str, source: str, question: str, labels: Labels, reply: str, gist: str, rng: Random
) -> Example | None:
    """The example, None where the reply does not fit the question."""
    if not manner.is_fit(question, reply, labels):
        return None
    thought = manner.natural_thought(labels, gist, rng)
    return Example(key, source, question, labels, reply, thought)


def led(text: str, rng: Random) -> str:
    """The sentence with a word or two before it."""
    leads = topics.words("moods")["question_leads" if text.endswith("?") else "leads"].split(" | ")
    whole = text if text.startswith("I ") else text[0].lower() + text[1:]
    return f"{rng.choice(leads)} {whole}"


def pointed(topic: topics.Topic, mood: str, rng: Random) -> str:
    """One of the topic's replies, rather one that names the topic."""
    replies = topic.replies_for(mood)
    weights = [3 if "$it" in one or topic.pattern.search(one.lower()) else 1 for one in replies]
    return rng.choices(replies, weights=weights)[0]


def emotion_for(mood: str, topic: str, rng: Random) -> str:
    """An emotion that goes with the mood of what is said."""
    feels = topics.words("moods")["feels"]
    if mood == "bad" and topic in feels and rng.random() < 0.85:
        return rng.choice(feels[topic].split())
    weights = topics.words("moods")["moods"][mood]
    return rng.choices(tuple(weights), weights=tuple(weights.values()))[0]


def from_topics(size: int, rng: Random, ranker: Ranker | None = None) -> Iterator[Example]:
    """What the hand-written topics say, in many moods."""
    said = [(topic, mood, text) for topic in topics.topics()
            for mood, texts in topic.say.items() for text in texts]  # fmt: skip

    def asked() -> Iterator[Asked]:
        for number in range(size):
            topic, mood, text = said[number % len(said)]
            found = topics.topic_of(text, (topic,)) or topics.Found(topic, None)
            emotion = emotion_for(mood, topic.name, rng)
            if topic.is_act and rng.random() < 0.2:
                emotion = rng.choice(manner.EMOTIONS)
            question = text
            if not topic.is_act and rng.random() < 0.25:
                question = led(text, rng)
            yield Asked(f"topic-{number:05d}", "topics", question, found, mood, emotion)

    yield from filter(None, best_answered(asked(), rng, ranker))


def from_chats(
    chat: Iterable[Conversation], size: int, rng: Random, ranker: Ranker | None = None
) -> Iterator[Example]:
    """What people wrote, answered by the topic it is about."""
    general = topics.words("lexicon")["general_topics"].split()
    wrote = [(key, place, text) for key, place, text in texts.messages(chat)
             if heard_words(text) and 2 <= len(text.split()) <= LONGEST_CHAT]  # fmt: skip
    counts = Counter(word for _, _, text in wrote for word in manner.content_words(text))
    any_topic = next(topic for topic in topics.topics() if topic.name == topics.ANY)
    rng.shuffle(wrote)
    given: Counter[str] = Counter()

    def asked() -> Iterator[Asked]:
        for key, place, question in wrote:
            found, mood = topics.topic_of(question), texts.mood_of(question)
            if found is None:
                content = sorted(manner.content_words(question), key=lambda one: (counts[one], one))
                names = [word for word in content if 3 < len(word) < 12 and counts[word] > 2
                         and not word.endswith(("ly", "ing", "ed", "'s"))]  # fmt: skip
                if len(content) < 2 or not names or rng.random() < 0.8:
                    continue
                found = topics.Found(any_topic, names[0])
            is_vague = found.topic.name in general and rng.random() < 0.6
            if is_vague or given[found.topic.name] > MOST_OF_TOPIC:
                continue
            given[found.topic.name] += 1
            emotion = emotion_for(mood, found.topic.name, rng)
            yield Asked(f"chat-{key}-{place}", "chats", question, found, mood, emotion)

    yield from islice(filter(None, best_answered(asked(), rng, ranker)), size)


def from_people(
    chat: Sequence[Conversation], size: int, rng: Random, ranker: Ranker
) -> Iterator[Example]:
    """What people told and what they were answered, where the ranker finds that it fits."""
    pairs = [one for one in texts.exchanges(chat)
             if heard_words(one.question) and manner.content_words(one.question)]  # fmt: skip
    lifts = ranker.lifts([(one.question, one.reply) for one in pairs])
    likely = {one: lift / len(one.reply.split()) for one, lift in zip(pairs, lifts, strict=True)}
    fitting = [one for one, lift in likely.items()
               if lift >= (LEAST_LIFT["people"] if "?" in one.reply else LEAST_SAID_LIFT)]
    for one in sorted(fitting, key=lambda one: -likely[one])[:size]:
        labels = voice(emotion_for(texts.mood_of(one.question), "", rng), rng)
        opening = manner.opening(labels, rng) if rng.random() < 0.4 else ""
        found = topics.topic_of(one.question)
        gist = found.topic.gist if found else "$he talks about something on $his mind"
        gist = Template(gist).safe_substitute(it=found.word if found else "it")
        key = f"people-{one.conversation}-{one.place}"
        example = made(key, "people", one.question, labels, joined(opening, one.reply), gist, rng)
        if example:
            yield example


def from_world(size: int, rng: Random, split: str = "train") -> Iterator[Example]:
    """The tiny world's turns; half with an opening of our own."""
    world = load_world()
    for exchange in world.exchanges(split, 11, size):
        labels = Labels(**asdict(exchange.labels), style=exchange.reply_style)
        sentences = list(exchange.reply_sentences)
        if exchange.kind != "identity" and rng.random() < 0.6:
            opening = manner.opening(labels, rng)
            sentences = [opening, *sentences[1:]] if opening else sentences[1:]
        earlier = tuple((turn.user_text, turn.reply_text) for turn in exchange.turns)
        reply = " ".join(sentences)
        if 3 <= len(reply.split()) <= 24:
            yield Example(
                exchange.key, "world", exchange.user_text, labels, reply, exchange.thought, earlier
            )


def from_safety(size: int, rng: Random) -> Iterator[Example]:
    """Crisis and abuse."""
    rows, feels = topics.words("safety"), topics.words("moods")["safety"]
    said = [(kind, text) for kind, raw in rows.items() for text in topics.parts(raw["say"])]
    replies = {rule.kind: rule.replies for rule in safety.rules("english")}
    for number in range(size):
        kind, text = said[number % len(said)]
        raw = rows[kind]
        emotion = rng.choice([*feels[kind].split() * 3, "NEUTRAL"])
        labels = replace(voice(emotion, rng), style="SOFT" if kind in CARING else "CALM")
        if labels.event == "LAUGH":
            labels = replace(labels, event=manner.NO_EVENT)
        reply = rng.choice(replies[kind])
        if kind in ("selfharm", "abuse") and rng.random() < 0.3:
            reply = joined(rng.choice(manner.openings()["emotion"]["SAD"]), reply)
        question = text.rstrip(".?!")
        if rng.random() < 0.3:
            question = led(question, rng)
        thought = manner.natural_thought(labels, raw["gist"], rng, raw["act"])
        yield Example(f"safety-{number:04d}", "safety", question, labels, reply, thought)


def from_wordless(size: int, rng: Random) -> Iterator[Example]:
    """Silence and sounds without words."""
    raw = topics.words("wordless")
    for number in range(size):
        event = rng.choice(("silence", "silence", *raw["sounds"]))
        if event == "silence":
            labels, replies = Labels(style="CALM"), topics.parts(raw["silence"])
            thought = "I hear nothing. Nobody says a word. I ask again and speak calmly."
        else:
            emotions = [emotion for emotion, events in EVENTS.items() if event in events]
            labels = replace(voice(rng.choice(emotions or ["NEUTRAL"]), rng), event=event)
            labels = replace(labels, style=manner.style_for(labels))
            thought = manner.natural_thought(labels, raw["gists"][event], rng)
            replies = topics.parts(raw["sounds"][event])
        reply = rng.choice(replies)
        yield Example(f"wordless-{number:04d}", "wordless", "", labels, reply, thought)


def from_dialogues(examples: list[Example], size: int, rng: Random) -> Iterator[Example]:
    """Two and three turns: an example, then a follow-up that its topic answers again."""
    firsts = [one for one in examples if one.source in ("topics", "chats") and not one.earlier]
    for number in range(size):
        first = rng.choice(firsts)
        found = topics.topic_of(first.question)
        if found is None or found.topic.is_act:
            continue
        earlier = [(first.question, first.reply)]
        for _ in range(rng.choice((1, 1, 2))):
            text, mood = rng.choice(tuple(topics.words("moods")["follow_ups"].items()))
            emotion = first.labels.emotion or "NEUTRAL"
            asked = Asked(f"dialogue-{number:05d}", "dialogues", text, found, mood, emotion)
            last = answered(asked, rng)
            if last is None or last.reply in [reply for _, reply in earlier]:
                break
            yield replace(last, key=f"{last.key}-{len(earlier)}", earlier=tuple(earlier))
            earlier.append((text, last.reply))


def without_crowds(examples: Iterable[Example], most: int) -> list[Example]:
    """The examples without those whose reply was given `most` times already, or pair twice."""
    given: Counter[str] = Counter()
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for one in examples:
        pair = (one.heard, one.reply, one.labels.emotion or "")
        free = one.source in ("safety", "wordless")
        if (pair in seen and not free) or (given[one.reply] >= most and not free):
            continue
        given[one.reply] += 1
        seen.add(pair)
        kept.append(one)
    return kept


def examples(
    parts_folder: Path, seed: int = 0, sizes: dict[str, int] | None = None,
    ranker: Ranker | None = None,
) -> list[Example]:  # fmt: skip
    """All examples to train on, the same for the same seed.

    ranker: chooses replies that fit; None: any of a topic's, and none of people's.
    """
    sizes, rng = {**SIZES, **(sizes or {})}, Random(f"thinker {seed}")
    chat = [one for one in conversations(parts_folder) if not one.held_out]
    found = [
        *from_topics(sizes["topics"], rng, ranker),
        *from_chats(chat, sizes["chats"], rng, ranker),
        *(from_people(chat, sizes["people"], rng, ranker) if ranker else ()),
        *from_world(sizes["world"], rng),
        *from_safety(sizes["safety"], rng),
        *from_wordless(sizes["wordless"], rng),
    ]
    found += from_dialogues(found, sizes["dialogues"], rng)
    return without_crowds(found, max(4, int(MOST_ALIKE * len(found))))
