"""Words of the generated tasks; after a space each is one token for SmolLM2's tokenizer."""

from __future__ import annotations

WOMEN = tuple(
    """
    Jessica Ashley Jennifer Amanda Sarah Stephanie Nicole Elizabeth Melissa Christina Rachel Laura
    Amy Michelle Emily Rebecca Samantha Sara Angela Katherine Mary Lisa Katie Christine Allison
    Anna Julia Jane Helen Susan Karen Linda Nancy Maria Emma Alice Kate Anne Ruth Catherine
    """.split()
)
MEN = tuple(
    """
    Michael Christopher Matthew Joshua Daniel David James Robert John Joseph Andrew Ryan Jason
    Justin William Jonathan Brian Nicholas Anthony Eric Adam Kevin Steven Thomas Timothy Richard
    Jeffrey Jeremy Benjamin Charles Stephen Patrick Nathan Paul Scott Gregory Kenneth Peter George
    Henry
    """.split()
)

PLACES = tuple("store school park office garden station market library hospital church".split())
OBJECTS = tuple("drink book ring ball letter gift bottle bag basket coin".split())
ROLES = tuple("friend teacher doctor leader student writer artist singer player neighbor".split())

PEOPLE = tuple(
    (word, word + "s")
    for word in """
    teacher doctor student author king artist lawyer farmer writer driver pilot manager officer
    scientist singer player worker soldier guard friend neighbor engineer actor dancer judge leader
    """.split()
)
THINGS = tuple(
    (word, word + "s")
    for word in "key table car house tree book picture letter window garden bridge lamp".split()
)
"""Singular and plural."""
ADJECTIVES = tuple("old young tall famous quiet clever rich happy brave new".split())
PREPOSITIONS = tuple("near behind beside with".split())
SINGULAR_VERBS = ("is", "was", "has")
PLURAL_VERBS = ("are", "were", "have")

EVENTS = tuple(
    """
    war battle siege strike conflict campaign trial voyage expedition project debate journey
    plague drought crisis rebellion
    """.split()
)

_CAPITALS = """
    France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing,
    Russia Moscow, Greece Athens, Egypt Cairo, England London, Ireland Dublin, Austria Vienna,
    Hungary Budapest, Poland Warsaw, Portugal Lisbon, Norway Oslo, Sweden Stockholm,
    Denmark Copenhagen, Finland Helsinki, Iran Tehran, Iraq Baghdad, Cuba Havana, Canada Ottawa,
    Kenya Nairobi, Belgium Brussels, Syria Damascus, Scotland Edinburgh, Afghanistan Kabul
"""
CAPITALS = {pair.split()[0]: pair.split()[1] for pair in _CAPITALS.split(",")}

FUNCTIONS = tuple("port run load make build get find move send read write open".split())
ARGUMENTS = tuple(
    """
    size files last path name value key data index count list text line width height color code
    time date user group mode type state node item page image model table field query result source
    target label weight score level token event client server host order price root start end step
    limit offset test shape
    """.split()
)
SUBJECTS = tuple(
    """
    oil column piece crime population unit dark water city food money music paper street family
    horse river mountain season winter summer bread stone metal glass garden road bridge
    """.split()
)
