"""Village life: the sub-domain that the base model mostly reads about."""

from __future__ import annotations

from edgetune.data.corpus.names import COUNTS, DAYS, PEOPLE, VILLAGES
from edgetune.data.corpus.schema import Ask, Attribute, Domain, Passage

CRAFTS = (
    "weaver",
    "baker",
    "potter",
    "miller",
    "smith",
    "carpenter",
    "tailor",
    "gardener",
    "cooper",
    "teacher",
)
PETS = ("cat", "dog", "goat", "hen", "duck", "pony", "rabbit", "goose")
FOODS = (
    "plum cake",
    "bean soup",
    "rye bread",
    "apple pie",
    "oat cakes",
    "onion tart",
    "pear jam",
    "barley stew",
)
GOODS = (
    "plums",
    "candles",
    "baskets",
    "apples",
    "blankets",
    "onions",
    "pots",
    "ribbons",
    "lamps",
    "pears",
    "nails",
    "chairs",
)
PLACES = (
    "the old mill",
    "the stone bridge",
    "the green barn",
    "the market hall",
    "the school",
    "the bakery",
    "the chapel",
    "the long meadow",
)
COLOURS = ("red", "blue", "green", "white", "yellow", "brown", "grey")

ATTRIBUTES = (
    Attribute(
        "home",
        VILLAGES,
        ("Where does {e} live?", "In which village does {e} live?", "What is the home of {e}?"),
        "{e} lives in {v}.",
    ),
    Attribute(
        "craft",
        CRAFTS,
        ("What does {e} do for work?", "Which craft does {e} have?", "What is the craft of {e}?"),
        "{e} works as a {v}.",
    ),
    Attribute(
        "pet",
        PETS,
        ("Which pet does {e} keep?", "What animal does {e} have?", "What is the pet of {e}?"),
        "{e} keeps a {v}.",
    ),
    Attribute(
        "favourite dish",
        FOODS,
        ("What does {e} like to eat?", "Which dish does {e} love?", "What is the favourite dish of {e}?"),
        "{e} likes to eat {v}.",
    ),
)

CLASSES = {
    "bird": ("heron", "robin", "owl", "lark", "crow", "swan", "wren", "finch"),
    "fruit": ("plum", "apple", "pear", "cherry", "fig", "quince", "peach", "grape"),
    "tool": ("hammer", "saw", "spade", "chisel", "rake", "axe", "file", "plane"),
    "flower": ("rose", "daisy", "tulip", "lily", "poppy", "violet", "iris", "aster"),
    "garment": ("coat", "scarf", "shirt", "hat", "glove", "sock", "apron", "cloak"),
    "dance": ("waltz", "jig", "reel", "polka", "hornpipe", "minuet", "galop", "mazurka"),
}

PURPOSES = {
    "loom": "weave cloth",
    "oven": "bake bread",
    "kiln": "fire clay pots",
    "anvil": "shape hot iron",
    "needle": "sew shirts",
    "spade": "dig the garden",
    "ladder": "reach the roof",
    "basket": "carry fruit",
    "lantern": "see at night",
    "churn": "make butter",
    "saddle": "ride a pony",
    "broom": "sweep the floor",
    "kettle": "boil water for tea",
    "bell": "call the children",
    "cart": "move heavy sacks",
    "sieve": "clean the flour",
    "shears": "cut wool",
    "barrel": "store cider",
    "chest": "keep blankets dry",
    "whistle": "call the dog",
}

IDEAS = {
    "apples": "bake a big apple pie",
    "music": "ask the band to play",
    "flowers": "tie small bouquets",
    "candles": "light the path to the hall",
    "children": "hold a race on the green",
    "stories": "listen to old tales",
    "wool": "knit warm scarves",
    "clay": "make little bowls",
    "honey": "sell honey cakes",
    "ribbons": "dress up the gate",
    "books": "set up a reading corner",
    "soup": "share a pot of soup",
    "horses": "offer rides on a pony",
    "paint": "paint the old fence",
    "paper": "fold a hundred birds",
    "seeds": "plant a bean bed",
}

SCENES = {
    "the fox": "the fox slept under the hedge",
    "the moon": "the moon looked into the well",
    "the baker": "the baker sang to her bread",
    "the snow": "the snow covered every roof",
    "the cat": "the cat counted the stars",
    "the mill": "the mill turned in the breeze",
    "the child": "the child hid a golden coin",
    "the owl": "the owl kept watch on the barn",
    "the bell": "the bell rang for no one",
    "the garden": "the garden smelled of mint",
    "the old man": "the old man carved a boat",
    "the bridge": "the bridge dreamed of ships",
    "the goat": "the goat ate the blue hat",
    "the fire": "the fire told a quiet tale",
    "the bee": "the bee went home late",
    "the rain": "the rain tapped on the window",
}

PASSAGES = (
    Passage(
        "On {d} {p} took {n} {g} from {a} to {b}. The road was dry and the cart was full.",
        {"d": DAYS, "p": PEOPLE, "n": COUNTS, "g": GOODS, "a": VILLAGES, "b": VILLAGES},
        {"d": "day", "p": "carrier", "n": "number", "g": "goods", "a": "start", "b": "goal"},
        (
            Ask("p", "Who took the {g}?", "{p} took the {g}.", "carrier of the {g}"),
            Ask("n", "How many {g} did {p} take?", "{p} took {n} {g}.", "number of {g}"),
            Ask("b", "Where did {p} go?", "{p} went to {b}.", "goal of {p}"),
            Ask("d", "When did {p} travel?", "{p} travelled on {d}.", "day of the trip"),
        ),
        "{p} took {g} to {b}.",
        "{d} trip by {p} to {b} with {g}",
    ),
    Passage(
        "{p} sells {g} at the market in {a}. One costs {n} pence, and {q} bought the last one on {d}.",
        {"d": DAYS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "g": GOODS, "a": VILLAGES},
        {"d": "day", "p": "seller", "q": "buyer", "n": "price", "g": "goods", "a": "place"},
        (
            Ask("p", "Who sells {g}?", "{p} sells {g}.", "seller of the {g}"),
            Ask("q", "Who bought from {p}?", "{q} bought from {p}.", "buyer of the {g}"),
            Ask("n", "How much do the {g} cost?", "The {g} cost {n} pence each.", "price of the {g}"),
            Ask("a", "Where is the market?", "The market is in {a}.", "place of the market"),
        ),
        "{q} bought {g} from {p}.",
        "{d} sale of {g} by {p} to {q}",
    ),
    Passage(
        "{p} wrote a letter to {q} on {d}. It says that {n} guests will come to {a} and eat {f}.",
        {"d": DAYS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "a": VILLAGES, "f": FOODS},
        {"d": "day", "p": "writer", "q": "reader", "n": "number", "a": "place", "f": "dish"},
        (
            Ask("p", "Who wrote the letter?", "{p} wrote the letter.", "writer of the letter"),
            Ask("q", "Who got the letter?", "{q} got the letter.", "reader of the letter"),
            Ask("n", "How many guests will come?", "{n} guests will come.", "number of guests"),
            Ask("f", "What will the guests eat?", "The guests will eat {f}.", "dish of the guests"),
        ),
        "{p} told {q} about guests in {a}.",
        "{d} letter by {p} to {q} on guests in {a}",
    ),
    Passage(
        "The {x} of {p} ran away on {d}. {q} found it near {l} after {n} hours.",
        {"d": DAYS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "x": PETS, "l": PLACES},
        {"d": "day", "p": "owner", "q": "finder", "n": "hours", "x": "animal", "l": "place"},
        (
            Ask("p", "Whose {x} ran away?", "The {x} of {p} ran away.", "owner of the {x}"),
            Ask("q", "Who found the {x}?", "{q} found the {x}.", "finder of the {x}"),
            Ask("l", "Where was the {x}?", "The {x} was near {l}.", "place of the {x}"),
            Ask("n", "How long was the {x} away?", "It was away for {n} hours.", "hours of the search"),
        ),
        "{q} found the {x} of {p}.",
        "{d} search for the {x} of {p} by {q}",
    ),
    Passage(
        "{p} the {c} painted {l} {k} on {d}. {q} paid {n} pence for the work.",
        {"d": DAYS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "c": CRAFTS, "l": PLACES, "k": COLOURS},
        {"d": "day", "p": "painter", "q": "payer", "n": "price", "c": "craft", "k": "colour"},
        (
            Ask("p", "Who painted {l}?", "{p} painted {l}.", "painter of {l}"),
            Ask("k", "Which colour is {l} now?", "{l} is {k} now.", "colour of {l}"),
            Ask("q", "Who paid for the work?", "{q} paid for the work.", "payer of the work"),
            Ask("c", "What is the craft of {p}?", "{p} is a {c}.", "craft of {p}"),
        ),
        "{p} painted {l} {k}.",
        "{d} painting of {l} by {p} in {k}",
    ),
    Passage(
        "In the garden of {p} there are {n} rows of {g}. {q} waters them on {d}, "
        "and {r} guards them from the {x}.",
        {
            "d": DAYS,
            "p": PEOPLE,
            "q": PEOPLE,
            "r": PEOPLE,
            "n": COUNTS,
            "x": PETS,
            "g": ("beans", "onions", "roses", "peas", "beets", "tulips", "herbs", "leeks"),
        },
        {"d": "day", "p": "owner", "q": "helper", "r": "guard", "n": "rows", "x": "animal", "g": "plants"},
        (
            Ask("p", "Who owns the garden?", "{p} owns the garden.", "owner of the garden"),
            Ask("q", "Who waters the {g}?", "{q} waters the {g}.", "helper of the garden"),
            Ask("r", "Who guards the {g}?", "{r} guards the {g}.", "guard of the garden"),
            Ask("n", "How many rows are there?", "There are {n} rows.", "number of rows"),
        ),
        "{q} and {r} care for the {g} of {p}.",
        "{n} rows of {g} of {p} with {q} and {r}",
    ),
)

VILLAGE = Domain(
    "village",
    PEOPLE,
    ATTRIBUTES,
    CLASSES,
    PURPOSES,
    PEOPLE,
    ("a feast", "a fair", "a birthday", "a rainy day", "a school day", "a wedding"),
    IDEAS,
    SCENES,
    PASSAGES,
)
