"""Weather, irrigation and harbour stations: the sub-domain that the devices hold."""

from __future__ import annotations

from edgetune.data.corpus.names import COUNTS, DAYS, PEOPLE, STATIONS
from edgetune.data.corpus.schema import Ask, Attribute, Domain, Passage

WINDS = ("north", "south", "east", "west", "north-east", "south-west")
CROPS = ("barley", "maize", "rice", "cotton", "clover", "melons", "beets", "wheat")
CARGO = ("salt", "timber", "coal", "grain", "bricks", "wool", "herring", "slate", "oil", "stone")
SIGNALS = ("red flag", "blue flag", "white lamp", "green lamp", "black cone", "brass horn")
WATERS = ("Arrow", "Lethe", "Orme", "Severn", "Teal", "Wharfe", "Yare", "Ness")
SHIPS = ("Curlew", "Heron", "Dolphin", "Meteor", "Seabird", "Comet", "Otter", "Swift")
FAULTS = ("a worn seal", "a loose belt", "a blocked filter", "a bent shaft", "a dead battery", "a split pipe")

ATTRIBUTES = (
    Attribute(
        "keeper",
        PEOPLE,
        ("Who runs {e} station?", "Who looks after {e} station?", "Who is the keeper of {e}?"),
        "{v} looks after {e} station.",
    ),
    Attribute(
        "main wind",
        WINDS,
        (
            "Which way does the wind blow at {e} station?",
            "Which wind is common at {e}?",
            "What is the main wind of {e}?",
        ),
        "At {e} the wind blows from the {v}.",
    ),
    Attribute(
        "signal",
        SIGNALS,
        (
            "How does {e} station warn ships?",
            "Which sign does {e} station show?",
            "What is the signal of {e}?",
        ),
        "{e} station shows a {v}.",
    ),
    Attribute(
        "river",
        WATERS,
        (
            "Which water flows past {e} station?",
            "By which river is {e} station?",
            "What is the river of {e}?",
        ),
        "{e} station lies by the {v}.",
    ),
    Attribute(
        "crop",
        CROPS,
        ("What grows around {e} station?", "Which crop is watered from {e}?", "What is the crop of {e}?"),
        "The fields at {e} grow {v}.",
    ),
)

CLASSES = {
    "gauge": ("barometer", "hygrometer", "thermometer", "anemometer", "rain meter", "tide pole", "wind vane"),
    "vessel": ("tug", "ferry", "barge", "trawler", "cutter", "schooner", "lighter"),
    "cloud": ("cirrus", "cumulus", "stratus", "nimbus", "anvil top", "mackerel sky", "fog bank"),
    "pipe part": ("valve", "nozzle", "elbow", "flange", "gasket", "coupling", "spigot"),
    "signal": ("foghorn", "beacon", "flare", "pennant", "siren", "rocket", "storm cone"),
    "waterway": ("canal", "ditch", "channel", "culvert", "creek", "weir stream", "mill race"),
}

PURPOSES = {
    "barometer": "measure air pressure",
    "pump": "lift water to the fields",
    "winch": "pull boats ashore",
    "buoy": "mark the safe channel",
    "sluice": "hold back the flood",
    "crane": "unload heavy cargo",
    "wind vane": "show the wind",
    "rain meter": "measure the rain",
    "beacon": "guide ships at night",
    "hose": "water the seedlings",
    "radio": "send the forecast",
    "anchor": "hold the ship in place",
    "filter": "keep sand out of the pipe",
    "float": "show the water level",
    "foghorn": "warn ships in mist",
    "tide table": "plan the landing",
    "solar panel": "charge the battery",
    "valve": "stop the flow",
    "life ring": "save a swimmer",
    "chart": "find the way at sea",
}

IDEAS = {
    "sensors": "measure the soil every hour",
    "buoys": "mark the new sandbank",
    "pumps": "drain the low field",
    "radios": "share the forecast at dawn",
    "sandbags": "build a wall by the dock",
    "ropes": "tie down the small boats",
    "lamps": "light up the pier",
    "hoses": "water the beds at dusk",
    "tanks": "save rain for the summer",
    "flags": "warn the crews of wind",
    "charts": "teach safe routes",
    "gates": "close the upper canal",
    "drones": "look at the crops from above",
    "batteries": "keep the pumps on at night",
    "volunteers": "walk along the dyke",
    "nets": "keep weeds out of the canal",
}

SCENES = {
    "the gull": "the gull read the weather chart",
    "the tide": "the tide took the footprints away",
    "the storm": "the storm knocked on the door",
    "the lighthouse": "the lighthouse winked at the whale",
    "the pump": "the pump hummed a slow song",
    "the harbour": "the harbour held its breath",
    "the captain": "the captain waited for the wind",
    "the fog": "the fog swallowed the pier",
    "the canal": "the canal carried the clouds",
    "the buoy": "the buoy danced alone",
    "the sailor": "the sailor waved to the shore",
    "the sluice": "the sluice let the river in",
    "the wave": "the wave wrote on the sand",
    "the crane": "the crane lifted the sunset",
    "the field": "the field drank all night",
    "the ferry": "the ferry came back empty",
}

PASSAGES = (
    Passage(
        "At {s} station {p} measured a wind of {n} knots from the {w} on {d}. All boats stay in port.",
        {"s": STATIONS, "p": PEOPLE, "n": COUNTS, "w": WINDS, "d": DAYS},
        {"s": "station", "p": "observer", "n": "speed", "w": "wind", "d": "day"},
        (
            Ask("p", "Who measured the wind?", "{p} measured the wind.", "observer at {s}"),
            Ask("n", "How strong was the wind?", "The wind was {n} knots.", "speed of the wind"),
            Ask("w", "Where did the wind come from?", "It came from the {w}.", "wind at {s}"),
            Ask("s", "Where did {p} measure the wind?", "{p} was at {s} station.", "station of {p}"),
        ),
        "{p} measured {n} knots of wind at {s}.",
        "{d} wind of {n} knots from the {w} at {s}",
    ),
    Passage(
        "{p} opened gate {n} at {s} on {d} to water the {c}. {q} will close it after sunset.",
        {"s": STATIONS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "c": CROPS, "d": DAYS},
        {"s": "station", "p": "opener", "q": "closer", "n": "gate", "c": "crop", "d": "day"},
        (
            Ask("p", "Who opened the gate?", "{p} opened the gate.", "opener of gate {n}"),
            Ask("q", "Who will close the gate?", "{q} will close the gate.", "closer of gate {n}"),
            Ask("n", "Which gate did {p} open?", "{p} opened gate {n}.", "gate of {p}"),
            Ask("c", "What gets water at {s}?", "The {c} gets water.", "crop at {s}"),
        ),
        "{p} opened a gate to water the {c}.",
        "{d} water for the {c} at {s} by {p}",
    ),
    Passage(
        "The {v} reached {s} harbour on {d} with {n} tons of {g}. {p} unloaded it before noon.",
        {"s": STATIONS, "p": PEOPLE, "n": COUNTS, "g": CARGO, "v": SHIPS, "d": DAYS},
        {"s": "harbour", "p": "loader", "n": "tons", "g": "cargo", "v": "ship", "d": "day"},
        (
            Ask("v", "Which ship brought {g}?", "The {v} brought {g}.", "ship with {g}"),
            Ask("s", "Where did the {v} land?", "The {v} landed at {s}.", "harbour of the {v}"),
            Ask("n", "How much {g} came?", "{n} tons of {g} came.", "tons of {g}"),
            Ask("p", "Who unloaded the {v}?", "{p} unloaded the {v}.", "loader of the {v}"),
        ),
        "The {v} brought {g} to {s}.",
        "{d} landing of the {v} at {s} with {g}",
    ),
    Passage(
        "A pump at {s} stopped on {d} because of {f}. {p} fixed it in {n} minutes and called {q}.",
        {"s": STATIONS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "f": FAULTS, "d": DAYS},
        {"s": "station", "p": "fixer", "q": "contact", "n": "minutes", "f": "fault", "d": "day"},
        (
            Ask("f", "Why did the pump stop?", "It stopped because of {f}.", "fault of the pump"),
            Ask("p", "Who fixed the pump?", "{p} fixed the pump.", "fixer of the pump"),
            Ask("n", "How long did the repair take?", "It took {n} minutes.", "minutes of the repair"),
            Ask("q", "Whom did {p} call?", "{p} called {q}.", "contact of {p}"),
        ),
        "{p} fixed the pump at {s}.",
        "{d} repair of {f} at {s} by {p}",
    ),
    Passage(
        "The rain meter at {s} shows {n} millimetres on {d}. {p} sends the number to {q} by radio.",
        {"s": STATIONS, "p": PEOPLE, "q": PEOPLE, "n": COUNTS, "d": DAYS},
        {"s": "station", "p": "sender", "q": "receiver", "n": "rain", "d": "day"},
        (
            Ask("n", "How much rain fell?", "{n} millimetres fell.", "rain at {s}"),
            Ask("p", "Who sends the number?", "{p} sends the number.", "sender of the number"),
            Ask("q", "Who gets the number?", "{q} gets the number.", "receiver of the number"),
            Ask("s", "Where is the rain meter?", "It is at {s}.", "station of the meter"),
        ),
        "{p} told {q} about {n} millimetres of rain.",
        "{d} rain of {n} millimetres at {s}",
    ),
    Passage(
        "High tide at {s} is at {n} feet on {d}. The {v} under {p} leaves first and the {u} waits for a {k}.",
        {"s": STATIONS, "p": PEOPLE, "n": COUNTS, "v": SHIPS, "u": SHIPS, "k": SIGNALS, "d": DAYS},
        {"s": "harbour", "p": "captain", "n": "tide", "v": "first ship", "u": "second ship", "k": "signal"},
        (
            Ask("n", "How high is the tide?", "The tide is at {n} feet.", "tide at {s}"),
            Ask("v", "Which ship leaves first?", "The {v} leaves first.", "first ship at {s}"),
            Ask("p", "Who leads the {v}?", "{p} leads the {v}.", "captain of the {v}"),
            Ask("k", "What does the {u} wait for?", "The {u} waits for a {k}.", "signal for the {u}"),
        ),
        "The {v} leaves {s} at high tide.",
        "{d} tide of {n} feet at {s} with the {v} first",
    ),
)

STATION = Domain(
    "station",
    STATIONS,
    ATTRIBUTES,
    CLASSES,
    PURPOSES,
    PEOPLE,
    ("a dry summer", "a storm week", "the flood season", "harbour day", "the spring watch", "a field visit"),
    IDEAS,
    SCENES,
    PASSAGES,
)
