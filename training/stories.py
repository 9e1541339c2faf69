"""A small grammar of short stories: a subject, a problem, a helper, a good end.

Each story keeps the same name, pronoun, helper and thing from beginning to end. A randomly chosen name would
need a larger model or longer training. So the fox is always Finn and always meets the same helper; only the
plot differs.
"""

import random
from dataclasses import dataclass

SHE = ("Ada", "Bella", "Clara", "Greta", "Lily", "Mina", "Nora", "Rosa")
HE = ("Ben", "Finn", "Hugo", "Leo", "Max", "Oscar", "Sam", "Theo")
IT = ("Bolt", "Dot", "Pip", "Rusty", "Sparky", "Tiny")


@dataclass(frozen=True)
class Subject:
    """What a story can be about, with possible homes and treasures."""

    noun: str
    homes: tuple[str, ...]
    treasures: tuple[str, ...]
    names: tuple[str, ...] = SHE + HE

    @property
    def own(self) -> random.Random:
        """The random generator for what is the same in all stories about the subject."""
        return random.Random(self.noun)

    @property
    def phrase(self) -> str:
        return with_article(self.noun)

    @property
    def prompt(self) -> str:
        return f"Tell me a story about {self.phrase}."

    @property
    def favorite(self) -> str:
        """One fixed story about the subject, more frequent than the others.

        If all plots were equally frequent, greedy decoding would choose the same one for each subject. The
        favorites make the stories of the subjects differ.
        """
        return tell(self, random.Random(f"{self.noun} favorite"))


@dataclass(frozen=True)
class Fear:
    """Something to be afraid of, and how a helper in need ends the fear."""

    what: str
    call: str
    deed: str
    end: str


@dataclass(frozen=True)
class Skill:
    """Something to learn: a failure, then a success."""

    verb: str
    failure: str
    advice: str
    success: str


@dataclass(frozen=True)
class Task:
    """Something broken that two can repair, but not one alone."""

    problem: str
    attempt: str
    idea: str
    success: str


def with_article(noun: str) -> str:
    """An owl, a fox: the first letter decides, because no noun below begins with a silent letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


SUBJECTS: tuple[Subject, ...] = (
    Subject("fox", ("at the edge of a quiet wood", "under an old oak tree"), ("red scarf", "silver bell")),
    Subject(
        "owl", ("in a hollow tree", "in the tower of an old church"), ("brass telescope", "book of maps")
    ),
    Subject("bear", ("in a cave by a river", "high up in the hills"), ("honey pot", "blue blanket")),
    Subject("rabbit", ("under a green hill", "beside a carrot field"), ("tin drum", "yellow hat")),
    Subject("cat", ("in a house by the harbor", "above a book shop"), ("ball of wool", "green cushion")),
    Subject("dog", ("on a farm", "at a railway station"), ("rubber ball", "leather collar")),
    Subject("mouse", ("behind a kitchen wall", "in an old piano"), ("golden button", "walnut shell")),
    Subject("frog", ("by a small pond", "in a wet green garden"), ("tiny flute", "paper crown")),
    Subject("hedgehog", ("under a hedge of roses", "in a pile of dry leaves"), ("wool cap", "red apple")),
    Subject(
        "otter", ("on the bank of a fast river", "near a wooden bridge"), ("smooth stone", "white shell")
    ),
    Subject(
        "elephant", ("by a wide lake", "at the end of a dusty road"), ("long trumpet", "striped umbrella")
    ),
    Subject("turtle", ("on a warm beach", "beside a slow stream"), ("glass marble", "sun hat")),
    Subject("duck", ("on a pond behind a mill", "in a park in the city"), ("blue ribbon", "little bell")),
    Subject(
        "squirrel", ("at the top of a pine tree", "in a garden with a wall"), ("big acorn", "wooden spoon")
    ),
    Subject(
        "girl", ("in a village by the sea", "on a street with tall trees"), ("paper kite", "silver key"), SHE
    ),
    Subject("boy", ("in a town between two hills", "on an island"), ("wooden boat", "brass compass"), HE),
    Subject("baker", ("in a small town", "on the market square"), ("rolling pin", "copper pan")),
    Subject(
        "sailor", ("in a white house by the harbor", "on a little ship"), ("brass compass", "striped cap")
    ),
    Subject(
        "gardener", ("in a house full of flowers", "behind the palace"), ("straw hat", "green watering can")
    ),
    Subject("inventor", ("in a workshop full of wheels", "above a clock shop"), ("tool box", "pocket watch")),
    Subject(
        "astronaut",
        ("beside the rocket field", "in a tower full of star maps"),
        ("toy rocket", "silver helmet"),
    ),
    Subject(
        "queen",
        ("in a castle on a rock", "in a palace with a hundred doors"),
        ("golden crown", "ruby ring"),
        SHE,
    ),
    Subject(
        "king", ("in a castle by a lake", "in a palace of white stone"), ("golden crown", "velvet coat"), HE
    ),
    Subject("robot", ("in a bright workshop", "on the roof of a factory"), ("spare spring", "oil can"), IT),
    Subject("teapot", ("on a kitchen shelf", "in a little tea shop"), ("painted lid", "china cup"), IT),
    Subject("train", ("in a toy shop", "at a station in the mountains"), ("brass whistle", "red flag"), IT),
    Subject("lantern", ("on a hook by the door", "in a lighthouse"), ("box of matches", "glass star"), IT),
    Subject(
        "umbrella",
        ("in a stand by the door", "in the lost property office"),
        ("silk ribbon", "silver button"),
        IT,
    ),
    Subject("snowman", ("in a white garden", "on top of a hill"), ("woolen scarf", "black hat"), IT),
    Subject("clock", ("in the town hall", "on a wall in the school"), ("golden key", "tiny bell"), IT),
)

_CHARACTERS = ("small", "young", "curious", "quiet", "cheerful", "clever", "shy", "kind", "busy")
_HELPERS = ("crow", "goat", "badger", "beetle", "goose", "sparrow", "donkey", "ladybug", "mole", "swan")
_HELPER_CHARACTERS = ("old", "friendly", "wise", "young", "gentle")
_OPENINGS = (
    "Once upon a time, a {character} {noun} named {name} lived {home}.",
    "There was once a {character} {noun} called {name}, who lived {home}.",
    "{name} was a {character} {noun} who lived {home}.",
)

_FEARS = (
    Fear(
        "the dark",
        "One night {a_helper} could not find the way home and called for help.",
        "{name} took a little lamp and went out into the dark, one step at a time.",
        "Soon the {helper} was safe, and {name} saw that the dark was full of stars.",
    ),
    Fear(
        "thunder",
        "One evening a storm came up, and {a_helper} sat outside, wet and cold.",
        "{name} was shaking, but {they} went out and brought the {helper} to a dry place.",
        "They counted the seconds between lightning and thunder, and the counting made them both brave.",
    ),
    Fear(
        "high places",
        "One morning {a_helper} was stuck at the top of a steep rock and called for help.",
        "{name} did not look down. {They} looked only at the next step, and then at the one after that.",
        "At the top they sat side by side, and {name} said that the view was worth it.",
    ),
    Fear(
        "strangers",
        "One day {a_helper} came to live next door and sat all alone on a box.",
        "{name} waited behind the fence for an hour, and then {they} went over and said hello.",
        'The {helper} smiled and said, "I was afraid too." They laughed about it until the sun went down.',
    ),
)

_SKILLS = (
    Skill(
        "sing",
        "the first song sounded like a rusty door",
        "Begin with one note, and sing it every day",
        "{name} sang so well that even the wind was still",
    ),
    Skill(
        "paint",
        "the first picture looked like a puddle",
        "Look for a long time, and then paint only what you see",
        "{name} showed a picture of the sea, and everyone could almost hear the waves",
    ),
    Skill(
        "dance",
        "{they} fell over on the very first step",
        "Go slowly, and count to four",
        "{name} danced from noon to night and never fell once",
    ),
    Skill(
        "juggle",
        "all three apples landed in the soup",
        "Start with one apple, and add the others later",
        "{name} juggled five apples, and not one of them fell",
    ),
    Skill(
        "play the drum",
        "the noise woke up the whole street",
        "Play softly until your hands know the way",
        "{name} played so well that everyone marched along",
    ),
    Skill(
        "make soup",
        "the first soup tasted of soap",
        "Taste it after every spoon of salt",
        "{name} served a soup so good that nobody left a drop",
    ),
)

_TASKS = (
    Task(
        "the bridge over the stream was broken",
        "tried to mend it alone, but the boards were too heavy",
        "You lift one end, and I lift the other",
        "By evening the bridge was stronger than before, and all the neighbors walked across it",
    ),
    Task(
        "the village well was dry",
        "began to dig a new one alone, but the ground was too hard",
        "Let us ask everyone to dig a little",
        "By evening clear water rose in the new well, and there was enough for everyone",
    ),
    Task(
        "a fallen tree lay across the road",
        "pushed it as hard as {they} could, but it did not move",
        "Let us put a long pole under it and push together",
        "Slowly the tree rolled aside, and the road was free again",
    ),
    Task(
        "the old mill had stopped turning",
        "went inside to look, but it was too dark to see",
        "I will hold the light, and you look between the wheels",
        "They pulled out one small stone, and the mill began to turn again",
    ),
    Task(
        "snow had covered every path",
        "began to clear it away alone, but more and more came down",
        "Let us clear one path together, and the others tomorrow",
        "By noon a path led from door to door, and the children ran along it",
    ),
)

_SEARCHED = (
    "under the stairs",
    "behind the fence",
    "in every corner",
    "along the path",
    "in the tall grass",
    "under the leaves",
)
_HIDING_PLACES = (
    "on top of the old wall",
    "beside the well",
    "under the bridge",
    "in the branches of a tree",
    "near the garden gate",
    "behind the barn",
)
_FOODS = ("warm bread", "a plum cake", "a bowl of berries", "hot soup", "a plate of pancakes", "an apple pie")
_FRIENDSHIP = (
    "From that day on, {name} and the {helper} were friends.",
    "That evening {name} and the {helper} shared {food}.",
    '"Thank you," said {name}, and the {helper} stayed for {food}.',
    "{name} slept well that night, and so did the {helper}.",
)


def _lost(rng: random.Random) -> list[str]:
    """A treasure is lost, and the helper has seen it."""
    first, second = rng.sample(_SEARCHED, 2)
    beloved = (
        "{They} had a {treasure} and took it everywhere.",
        "The thing {they} loved most was a {treasure}.",
        "Every day {they} played with a {treasure}.",
    )
    gone = (
        "One morning the {treasure} was gone.",
        "But one windy day the {treasure} was nowhere to be found.",
    )
    found = (
        "They went there together, and there it was.",
        "{name} hurried there at once, and there was the {treasure}, safe and sound.",
    )
    return [
        rng.choice(beloved),
        rng.choice(gone),
        f"{{name}} looked {first} and {second}, but it was not there.",
        f'Then {{a_helper}} came by and said, "I saw your {{treasure}} {rng.choice(_HIDING_PLACES)}."',
        rng.choice(found),
    ]


def _afraid(rng: random.Random) -> list[str]:
    """The subject is afraid, until the helper needs help."""
    fear = rng.choice(_FEARS)
    worry = rng.choice(
        (
            f"{{They}} had only one worry: {{they}} was afraid of {fear.what}.",
            f"{{name}} was not afraid of much, but {{they}} was afraid of {fear.what}.",
        )
    )
    return [worry, fear.call, fear.deed, fear.end]


def _learning(rng: random.Random) -> list[str]:
    """The subject wants to learn something, fails, and tries again."""
    skill = rng.choice(_SKILLS)
    feast = rng.choice(("At the summer feast", "On market day", "When spring came"))
    return [
        rng.choice(
            (
                f"More than anything, {{they}} wanted to learn to {skill.verb}.",
                f"One day {{they}} made up {{their}} mind to learn to {skill.verb}.",
            )
        ),
        f"But {skill.failure}, and {{name}} wanted to give up.",
        f'"{skill.advice}," said {{a_helper}}.',
        rng.choice(
            (
                "So {name} tried again, day after day, and each time it went a little better.",
                "{name} did just that, every morning, for a whole month.",
            )
        ),
        f"{feast} {skill.success}.",
    ]


def _repairing(rng: random.Random) -> list[str]:
    """Something is broken; subject and helper repair it together."""
    task = rng.choice(_TASKS)
    return [
        f"One {rng.choice(('morning', 'day'))} {{they}} saw that {task.problem}.",
        f"{{name}} {task.attempt}.",
        f'Then {{a_helper}} came along. "{task.idea}," said the {{helper}}.',
        f"{task.success}.",
    ]


_PLOTS = (_lost, _afraid, _learning, _repairing)


def tell(subject: Subject, rng: random.Random) -> str:
    """One story about the subject: an opening, a plot and an end. Each blank has one value per story."""
    own = subject.own
    name = own.choice(subject.names)
    they, their = ("she", "her") if name in SHE else ("he", "his") if name in HE else ("it", "its")
    helper = own.choice(_HELPERS)
    blanks = {
        "noun": subject.noun,
        "character": rng.choice(_CHARACTERS),
        "name": name,
        "they": they,
        "They": they.capitalize(),
        "their": their,
        "home": own.choice(subject.homes),
        "treasure": own.choice(subject.treasures),
        "helper": helper,
        "a_helper": with_article(f"{own.choice(_HELPER_CHARACTERS)} {helper}"),
        "food": rng.choice(_FOODS),
    }
    plot = rng.choice(_PLOTS)
    sentences = [rng.choice(_OPENINGS), *plot(rng), rng.choice(_FRIENDSHIP)]
    return " ".join(sentences).format(**blanks)
