"""The classes of the zero-shot set: everyday words, each made of emoji subgroups and openclipart folders.

They are chosen so that each has enough held-out pictures, and its name is a word of the training texts.
"""

from __future__ import annotations

from items import Item

_SUBGROUPS = {
    "face": ("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
             "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative"),
    "person": ("person", "person-role", "person-activity", "person-gesture", "person-fantasy", "family"),
    "hand": ("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands",
             "hand-prop"),
    "heart": ("heart",),
    "animal": ("animal-mammal", "animal-reptile", "animal-amphibian"),
    "bird": ("animal-bird",),
    "fish": ("animal-marine",),
    "insect": ("animal-bug",),
    "plant": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "food": ("food-prepared", "food-asian"),
    "dessert": ("food-sweet",),
    "drink": ("drink",),
    "building": ("place-building", "place-religious"),
    "vehicle": ("transport-ground", "transport-water", "transport-air"),
    "clock": ("time",),
    "weather": ("sky-weather",),
    "sport": ("sport", "person-sport"),
    "game": ("game",),
    "music": ("music", "musical-instrument"),
    "clothing": ("clothing",),
    "tool": ("tool",),
    "mail": ("mail",),
    "computer": ("computer",),
    "arrow": ("arrow",),
    "flag": ("flag", "country-flag", "subdivision-flag"),
}  # fmt: skip
_FOLDERS = {
    "animals/birds": "bird",
    "animals/bugs": "insect",
    "animals/fish": "fish",
    "animals/mammals": "animal",
    "buildings": "building",
    "computer/hardware": "computer",
    "food/beverages": "drink",
    "food/breads_and_carbs": "food",
    "food/desserts": "dessert",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "people/clothing": "clothing",
    "people/smilies": "face",
    "plants": "plant",
    "recreation/games": "game",
    "recreation/music": "music",
    "recreation/sports": "sport",
    "shapes/arrows": "arrow",
    "signs_and_symbols/clocks": "clock",
    "signs_and_symbols/flags": "flag",
    "signs_and_symbols/weather": "weather",
    "tools": "tool",
    "transportation/boating": "vehicle",
    "transportation/vehicles": "vehicle",
}

CLASSES = tuple(_SUBGROUPS)
TEMPLATES = ("a picture of {}", "an icon of {}", "{} emoji", "clip art of {}", "{}")
_LABELS_BY_LOCALE = {
    "de": "Gesicht, Person, Hand, Herz, Tier, Vogel, Fisch, Insekt, Pflanze, Obst, Gemüse, Essen, Nachtisch, Getränk, "
    "Gebäude, Fahrzeug, Uhr, Wetter, Sport, Spiel, Musik, Kleidung, Werkzeug, Post, Computer, Pfeil, Flagge",
    "es": "cara, persona, mano, corazón, animal, pájaro, pez, insecto, planta, fruta, verdura, comida, postre, bebida, "
    "edificio, vehículo, reloj, tiempo, deporte, juego, música, ropa, herramienta, correo, ordenador, flecha, "
    "bandera",
    "fr": "visage, personne, main, cœur, animal, oiseau, poisson, insecte, plante, fruit, légume, nourriture, dessert, "
    "boisson, bâtiment, véhicule, horloge, météo, sport, jeu, musique, vêtement, outil, courrier, ordinateur, "
    "flèche, drapeau",
    "it": "faccina, persona, mano, cuore, animale, uccello, pesce, insetto, pianta, frutta, verdura, cibo, dolce, "
    "bevanda, edificio, veicolo, orologio, meteo, sport, gioco, musica, abbigliamento, attrezzo, posta, "
    "computer, freccia, bandiera",
    "ja": "顔, 人, 手, ハート, 動物, 鳥, 魚, 虫, 植物, 果物, 野菜, 食べ物, デザート, 飲み物, 建物, 乗り物, 時計, 天気, "
    "スポーツ, ゲーム, 音楽, 服, 道具, 郵便, コンピュータ, 矢印, 旗",
}
"""The same classes in other languages, in the same order. Our own translations: the packages' subgroup names are
machine-made (insects became software errors)."""
_CLASS_OF_SUBGROUP = {subgroup: name for name, subgroups in _SUBGROUPS.items() for subgroup in subgroups}
_STRANGERS = {"brick", "chains", "droplet", "feather", "fire", "link", "magnet", "nest with eggs", "rock", "seat",
              "water wave", "wood"}  # fmt: skip
"""Members of a subgroup that nobody would call by the class's name."""
_CLOCK_WORDS = ("clock", "watch", "hourglass", "oclock", "thirty", "timer")


def class_of(item: Item) -> str:
    """Class of a picture; empty where it has none."""
    if item.concept:
        name = "" if item.label in _STRANGERS else _CLASS_OF_SUBGROUP.get(item.subgroup, "")
        return name if name != "clock" or any(word in item.label for word in _CLOCK_WORDS) else ""
    path = f"{item.group}/{item.subgroup}/"
    return next((name for folder, name in _FOLDERS.items() if path.startswith(folder + "/")), "")


def labels_by_locale() -> dict[str, list[str]]:
    """Locale -> names of ``CLASSES``, in their order."""
    labels = {locale: names.split(", ") for locale, names in _LABELS_BY_LOCALE.items()}
    assert all(len(names) == len(CLASSES) for names in labels.values()), "a class lacks its translation"
    return labels
